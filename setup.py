"""The kernel bindings and the launcher, compiled at install for the running system; all else is in pyproject.toml."""

import runpy
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

_BINDINGS = {
    "linux": ["cri/sandbox/linux/_kernel_build.py:ffibuilder"],
    "freebsd": [
        "cni_plugins/freebsd/_kernel_build.py:ffibuilder",
        "cni_plugins/freebsd/_pf_build.py:ffibuilder",
        "cri/sandbox/freebsd/_kernel_build.py:ffibuilder",
    ],
}

_LAUNCHER = Path("cri", "sandbox", "launcher")


class BuildAll(build_ext):
    """The bindings, and the launcher as a file of its package."""

    def run(self) -> None:
        """Build them."""
        super().run()
        target = (Path() if self.inplace else Path(self.build_lib)) / _LAUNCHER / "launcher"
        target.parent.mkdir(parents=True, exist_ok=True)
        runpy.run_path(str(_LAUNCHER / "_build.py"))["compile_launcher"](target)

    def get_outputs(self) -> list[str]:
        """What an installation has of it."""
        return [*super().get_outputs(), str(Path(self.build_lib) / _LAUNCHER / "launcher")]


setup(cffi_modules=_BINDINGS.get(sys.platform.rstrip("0123456789"), []), cmdclass={"build_ext": BuildAll})
