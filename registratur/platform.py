"""Platforms, and which image runs on which (image-spec image-index.md; variants as in containerd)."""

import platform as machine
import re
from dataclasses import dataclass, replace
from typing import Self

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv7": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
    "riscv": ("riscv64", ""),
    "powerpc64le": ("ppc64le", ""),
    "powerpc64": ("ppc64", ""),
}

# The variant that an empty one stands for, and the lowest one there is.
_DEFAULT_VARIANT = {"amd64": 1, "arm64": 8, "arm": 7}
_LOWEST_VARIANT = {"amd64": 1, "arm64": 8, "arm": 5}

_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}")


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and a processor, in the words of Go's GOOS and GOARCH.

    `os_version` is the system's release: what an image is made for, or what a machine runs; or "".
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``os/architecture`` or ``os/architecture/variant``. Raises ValueError."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise ValueError(f"{text!r} is no platform: expected os/architecture or os/architecture/variant")
        return cls(*parts).normalized()

    @classmethod
    def current(cls, os: str | None = None) -> Self:
        """Return this machine's platform; with another operating system if `os` names one (emulation), of no version."""
        own = machine.system()
        version = machine.release() if (os or own).lower() == own.lower() else ""
        return cls(os or own, machine.machine(), os_version=version).normalized()

    def normalized(self) -> Self:
        """Return the canonical spelling: x86_64 is amd64, arm64/v8 is arm64, arm is arm/v7."""
        architecture = self.architecture.lower()
        architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
        variant = self.variant.lower() or implied
        if variant.isdecimal():
            variant = f"v{variant}"
        default = _DEFAULT_VARIANT.get(architecture)
        if architecture == "arm":
            variant = variant or f"v{default}"
        elif default is not None and variant == f"v{default}":
            variant = ""
        return replace(self, os=self.os.lower(), architecture=architecture, variant=variant)

    def accepts(self) -> tuple[Self, ...]:
        """Return what runs here, best first: this variant, then the older ones of the same architecture."""
        own = self.normalized()
        if own.architecture not in _DEFAULT_VARIANT:
            return (own,)
        number = own.variant.removeprefix("v") or str(_DEFAULT_VARIANT[own.architecture])
        if not number.isdecimal():  # "v8.2" and the like: no order is defined among them
            return (own,)
        lowest = _LOWEST_VARIANT[own.architecture]
        older = (replace(own, variant=f"v{n}").normalized() for n in range(int(number) - 1, lowest - 1, -1))
        return (own, *older)

    def rank(self, image: Self) -> int | None:
        """Return how well `image` suits this platform: 0 is best, None is not at all."""
        wanted = image.normalized()
        for rank, offer in enumerate(self.accepts()):
            if (offer.os, offer.architecture, offer.variant) == (
                wanted.os,
                wanted.architecture,
                wanted.variant,
            ):
                return rank
        return None

    @property
    def release(self) -> tuple[int, ...]:
        """The numbers that `os_version` begins with: (15, 1) for 15.1-RELEASE-p2; empty where it tells none."""
        found = _VERSION.match(self.os_version)
        return tuple(map(int, found[0].split("."))) if found else ()

    def is_newer_than(self, other: Self) -> bool:
        """Say whether this is a later release of `other`'s system, as far as both tell: 15.1.2 is no later than 15.1."""
        ours, theirs = self.release, other.release
        told = min(len(ours), len(theirs))
        return self.os.lower() == other.os.lower() and ours[:told] > theirs[:told]

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)
