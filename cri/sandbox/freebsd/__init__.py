"""FreeBSD: a pod sandbox is a persistent VNET jail, a container is a child jail of it."""
