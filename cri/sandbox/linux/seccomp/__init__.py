"""Filters for system calls: from a profile to the program that the kernel runs before each call of a container.

For the daemon only, which makes a filter once per container; a warden gets it ready (`cri.sandbox.linux.filters`).

    selection.py        which filter a container asks for; reads profiles of the node
    profile.py          an OCI profile as JSON, checked
    runtime_default.py  the profile of ours, as data
    compiler.py         a profile to a program, with library.py (libseccomp) and bpf.py (what a program says to a call)
    entry.py            what the way into a container takes after the filter is there
"""
