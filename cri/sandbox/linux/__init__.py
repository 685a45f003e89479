"""The Linux driver of the port: namespaces, overlayfs, cgroups. For laptops and CI; needs Linux 5.12 or later."""
