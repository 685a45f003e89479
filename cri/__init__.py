"""cri-jails: the Kubernetes CRI server for FreeBSD nodes."""
