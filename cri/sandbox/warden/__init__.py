"""The supervisor of one pod, which outlives the daemon.

`spawner` forks a `supervisor` per pod; a driver (`driver.Driver`, made by `cri.sandbox.linux` or `cri.sandbox.freebsd`) knows
the kernel; `client` and its `handles` are the daemon's side. All but these import the standard library and the kernel binding
only: what they import is what each pod pays for.
"""
