"""What can go wrong in this package."""


class BaustelleError(Exception):
    """Base of all errors raised on purpose here; the message names the object and the reason."""


class UnpackError(BaustelleError):
    """A layer could not be unpacked."""


class CorruptLayerError(UnpackError):
    """The layer's bytes are not what a layer is made of: truncated, damaged, or not a tar archive."""


class BoundExceededError(UnpackError):
    """An image would become more than is allowed; `bound` is the field of `baustelle.bounds.Bounds`."""

    def __init__(self, bound: str, message: str) -> None:
        super().__init__(message)
        self.bound = bound


class ImageConfigError(BaustelleError, ValueError):
    """An image config, or a command made from it, is not usable."""


class ContainerfileError(BaustelleError):
    """A Containerfile says something that cannot be read or is not supported."""


class BuildError(BaustelleError):
    """A Containerfile was understood but could not be carried out."""


class LayoutError(BaustelleError):
    """An OCI image layout lacks something or holds something else than it promises."""
