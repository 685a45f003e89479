"""Commands of `cri-jails` that speak with a running daemon."""
