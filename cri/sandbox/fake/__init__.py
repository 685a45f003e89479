"""A host in memory, with the kernel's rules, for unit tests of the life cycles and of undo."""

from cri.sandbox.fake.host import FakeHost, FakeNetwork
from cri.sandbox.fake.kernel import FakeKernel, InjectedError

__all__ = ["FakeHost", "FakeKernel", "FakeNetwork", "InjectedError"]
