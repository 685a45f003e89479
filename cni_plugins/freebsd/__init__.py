"""FreeBSD: epairs, bridges and pf, by netlink(4), ioctl(2) and /dev/pf."""
