"""The node's images: what was pulled, what it is called, and which unpacked layers it stands on."""

from cri.images.image_store import ImageStore

__all__ = ["ImageStore"]
