"""SPDY/3.1, the server side: what kubectl and crictl speak after `Upgrade: SPDY/3.1`."""
