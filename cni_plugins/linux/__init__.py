"""Linux: veth pairs, bridges, nftables and traffic control, by netlink alone."""
