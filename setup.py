"""The kernel bindings, compiled at install against the headers of the running system; all else is in pyproject.toml."""

import sys

from setuptools import setup

_BINDINGS = {
    "linux": ["cri/sandbox/linux/_kernel_build.py:ffibuilder"],
    "freebsd": [
        "cni_plugins/freebsd/_kernel_build.py:ffibuilder",
        "cni_plugins/freebsd/_pf_build.py:ffibuilder",
        "cri/sandbox/freebsd/_kernel_build.py:ffibuilder",
    ],
}

setup(cffi_modules=_BINDINGS.get(sys.platform.rstrip("0123456789"), []))
