"""What it takes to put a CRI endpoint on trial: images, a registry, private namespaces, a look for leaks.

Shared by `critest-config/run` and `tests/bench`, imported by path. Nothing here is part of the daemon,
so subprocesses are fine. Needs Linux, root and, for the packages that are missing, Debian's apt.
"""
