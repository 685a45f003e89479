"""A FreeBSD kernel in memory: jails, mounts, resource limits, and what a test wants to happen to them."""

from cri.sandbox.fake.freebsd.jails import FakeJail
from cri.sandbox.fake.freebsd.kernel import FakeFreeBSD
from cri.sandbox.fake.kernel import InjectedError

__all__ = ["FakeFreeBSD", "FakeJail", "InjectedError"]
