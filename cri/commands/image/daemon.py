"""The daemon, as a client of the CRI sees it: blocking calls over its socket."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import betterproto2
import grpc

from cri.api.runtime import v1
from cri.commands.image.errors import CommandError, DaemonError

if TYPE_CHECKING:
    from registratur.credentials import Credentials

SECONDS = 120.0
"""A call may take; a pull may take any time."""

_LONGEST = 16 * 1024 * 1024
"""Bytes of an answer, as the kubelet has it. Lists come in pieces."""
_CONNECT_SECONDS = 5.0

_M = TypeVar("_M", bound=betterproto2.Message)


class Daemon:
    """Calls of both services; to be closed, as by ``with``. All of them raise DaemonError."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises CommandError that says what keeps one from it."""
        _look_at(path)
        self._channel = grpc.insecure_channel(
            f"unix:{quote(str(path))}", options=[("grpc.max_receive_message_length", _LONGEST)]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def images(self) -> list[v1.Image]:
        """All images."""
        request = v1.StreamImagesRequest()
        pieces = self._stream("ImageService/StreamImages", request, v1.StreamImagesResponse)
        return [image for piece in pieces for image in piece.images]

    def image(self, name: str) -> v1.Image | None:
        """The image of a name or id; None if it is not here."""
        return self._status(name, verbose=False).image

    def found(self, name: str) -> v1.Image:
        """The image of a name or id. Raises CommandError if it is not here."""
        image = self.image(name)
        if image is None:
            raise _not_here(name)
        return image

    def status(self, name: str) -> tuple[v1.Image, dict[str, str]]:
        """An image, and what else is told of it, by key. Raises CommandError if it is not here."""
        found = self._status(name, verbose=True)
        if found.image is None:
            raise _not_here(name)
        return found.image, found.info

    def pull(self, name: str, credentials: Credentials | None) -> str:
        """Have an image pulled; its id."""
        request = v1.PullImageRequest(image=v1.ImageSpec(image=name))
        if credentials is not None:
            request.auth = v1.AuthConfig(
                username=credentials.username,
                password=credentials.password,
                auth=credentials.auth,
                server_address=credentials.server_address,
                identity_token=credentials.identity_token,
                registry_token=credentials.registry_token,
            )
        return self._call("ImageService/PullImage", request, v1.PullImageResponse, is_short=False).image_ref

    def remove(self, image_id: str) -> None:
        """Have an image removed, with all its names; succeeds if it is gone."""
        request = v1.RemoveImageRequest(image=v1.ImageSpec(image=image_id))
        self._call("ImageService/RemoveImage", request, v1.RemoveImageResponse)

    def usage(self) -> v1.ImageFsInfoResponse:
        """What images and containers take on disk."""
        return self._call("ImageService/ImageFsInfo", v1.ImageFsInfoRequest(), v1.ImageFsInfoResponse)

    def containers(self) -> list[v1.Container]:
        """All containers."""
        request = v1.StreamContainersRequest()
        pieces = self._stream("RuntimeService/StreamContainers", request, v1.StreamContainersResponse)
        return [container for piece in pieces for container in piece.containers]

    def mounted(self, container_id: str) -> list[v1.ImageSpec]:
        """The images that a container has mounted; none if it is gone."""
        request = v1.ContainerStatusRequest(container_id=container_id)
        try:
            found = self._call("RuntimeService/ContainerStatus", request, v1.ContainerStatusResponse)
        except DaemonError as error:
            if error.code == "NOT_FOUND":
                return []
            raise
        mounts = found.status.mounts if found.status is not None else []
        return [mount.image for mount in mounts if mount.image is not None and mount.image.image]

    def _status(self, name: str, *, verbose: bool) -> v1.ImageStatusResponse:
        request = v1.ImageStatusRequest(image=v1.ImageSpec(image=name), verbose=verbose)
        return self._call("ImageService/ImageStatus", request, v1.ImageStatusResponse)

    def _call(
        self, method: str, request: betterproto2.Message, answer: type[_M], *, is_short: bool = True
    ) -> _M:
        call = self._channel.unary_unary(
            f"/runtime.v1.{method}", request_serializer=bytes, response_deserializer=answer.parse
        )
        with _explained(method):
            found: _M = call(request, timeout=SECONDS if is_short else None)
        return found

    def _stream(self, method: str, request: betterproto2.Message, piece: type[_M]) -> list[_M]:
        call = self._channel.unary_stream(
            f"/runtime.v1.{method}", request_serializer=bytes, response_deserializer=piece.parse
        )
        with _explained(method):
            return list(call(request, timeout=SECONDS))


def _not_here(name: str) -> CommandError:
    """The error for an image that the node has not."""
    return CommandError(f"image {name} is not on this node; cri-jails image ls shows what is")


@contextlib.contextmanager
def _explained(method: str) -> Iterator[None]:
    """Turn gRPC's errors into ours. What the daemon says has names and remedies in it."""
    try:
        yield
    except grpc.RpcError as error:
        told: Any = error
        code: str = told.code().name
        name = method.partition("/")[2]
        text = told.details() or f"{name} failed: {code}"
        if code == "DEADLINE_EXCEEDED":
            text = (
                f"the daemon has not answered {name} within {SECONDS:g} s; "
                "SIGUSR1 has it write into its log what it is doing"
            )
        elif code == "UNIMPLEMENTED":
            text = f"the daemon does not serve {name}: is it an older release? ({text})"
        raise DaemonError(text, code) from error


def _look_at(path: Path) -> None:
    """Connect once, as gRPC tells nobody what is wrong with a socket. Raises CommandError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return  # so many want to be served that there is a queue: there is a daemon
        except PermissionError:
            raise CommandError(
                f"{path} is not for this user: be root, or a member of the group that socket_group names"
            ) from None
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            what = "nobody listens at" if isinstance(error, ConnectionRefusedError) else "there is no socket"
            raise CommandError(
                f"no daemon: {what} {path}; start it (cri-jails serve), or give its configuration with --config, "
                "or its socket with --address"
            ) from None
        except OSError as error:
            raise CommandError(f"the daemon's socket {path}: {error.strerror or error}") from error
