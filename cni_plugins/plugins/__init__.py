"""The plugins themselves, a module each, found by `cni_plugins.registry`."""
