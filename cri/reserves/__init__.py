"""What is kept back so that a node that is out of it can still be cleared: room on the disk, and descriptors."""

from cri.reserves.descriptors import DescriptorReserve, raise_limit
from cri.reserves.disk import DiskReserve

__all__ = ["DescriptorReserve", "DiskReserve", "raise_limit"]
