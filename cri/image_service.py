"""ImageService of the CRI: one short method per RPC. Translates and delegates; decides nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable

from cri import encode, lists, runtime_handlers
from cri.api.runtime import v1
from cri.images import ImageStore
from cri.state import ImageRecord
from cri.stats import Stats
from registratur import Credentials


class ImageService:
    """Images, as the kubelet asks for them."""

    def __init__(self, images: ImageStore, stats: Stats, handlers: Iterable[str]) -> None:
        """`handlers` are those of RuntimeClasses that are configured."""
        self._images = images
        self._handlers = tuple(handlers)
        self._stats = stats
        self._encoded: dict[str, tuple[ImageRecord, bytes]] = {}
        self._pace = lists.Pace()

    async def list_images(self, request: v1.ListImagesRequest) -> AsyncGenerator[list[bytes], None]:
        """Images that match the filter."""
        async for items in self._items(request.filter):
            yield items

    async def stream_images(self, request: v1.StreamImagesRequest) -> AsyncGenerator[bytes, None]:
        """As ListImages, in messages of bounded size."""
        async for message in lists.batches(self._items(request.filter)):
            yield message

    async def image_status(self, request: v1.ImageStatusRequest) -> AsyncGenerator[list[bytes], None]:
        """One image; no image in the answer if it is not here."""
        image = self._images.find(_name(request.image))
        if image is None:
            return
        yield [encode.image_item(image)]
        if request.verbose:
            # The config is JSON already, and may be long.
            chain = json.dumps(image.chains[-1:]).encode()
            yield encode.info_field(b'{"chainID": ', chain, b', "imageSpec": ', image.config.encode(), b"}")

    async def pull_image(self, request: v1.PullImageRequest) -> v1.PullImageResponse:
        """Bring an image here, for any handler."""
        runtime_handlers.check("" if request.image is None else request.image.runtime_handler, self._handlers)
        return v1.PullImageResponse(
            image_ref=await self._images.pull(_name(request.image), _credentials(request.auth))
        )

    async def remove_image(self, request: v1.RemoveImageRequest) -> v1.RemoveImageResponse:
        """Remove an image with all its names."""
        await self._images.remove(_name(request.image))
        return v1.RemoveImageResponse()

    async def image_fs_info(self, request: v1.ImageFsInfoRequest) -> v1.ImageFsInfoResponse:
        """What images and containers take on disk."""
        del request
        return v1.ImageFsInfoResponse(
            image_filesystems=[self._stats.image_filesystem()],
            container_filesystems=[self._stats.container_filesystem()],
        )

    async def _items(self, wanted: v1.ImageFilter | None) -> AsyncGenerator[list[bytes], None]:
        images = self._matching(wanted)
        if len(self._encoded) > len(images) and wanted is None:
            here = {image.id for image in images}
            self._encoded = {known: item for known, item in self._encoded.items() if known in here}
        async for some in self._pace.over(images):
            yield [self._item(image) for image in some]

    def _item(self, image: ImageRecord) -> bytes:
        """The image as an element of a list. Records do not change, so neither does this."""
        cached = self._encoded.get(image.id)
        if cached is None or cached[0] is not image:
            cached = self._encoded[image.id] = (image, encode.image_item(image))
            lists.checked(f"image {image.id}", len(cached[1]))
        return cached[1]

    def _matching(self, wanted: v1.ImageFilter | None) -> list[ImageRecord]:
        if wanted is None or not _name(wanted.image):
            return list(self._images.images())
        image = self._images.find(_name(wanted.image))
        return [] if image is None else [image]


def _name(spec: v1.ImageSpec | None) -> str:
    return "" if spec is None else spec.image


def _credentials(auth: v1.AuthConfig | None) -> Credentials | None:
    if auth is None or not (auth.username or auth.auth or auth.identity_token or auth.registry_token):
        return None
    return Credentials(
        username=auth.username,
        password=auth.password,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
        auth=auth.auth,
        server_address=auth.server_address,
    )
