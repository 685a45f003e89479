"""The client of the OCI distribution-spec v1.1: manifests and blobs, there and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Self, TypeVar

from yarl import URL

from registratur import media
from registratur.body import Body
from registratur.credentials import Credentials
from registratur.digest import Verifier, compute_digest, parse_digest, split_digest
from registratur.download import download
from registratur.errors import (
    DigestMismatchError,
    InvalidDigestError,
    InvalidEndpointError,
    MalformedContentError,
    NotFoundError,
    RegistryError,
    TransportError,
    UnauthorizedError,
    UnavailableError,
)
from registratur.exchange import Exchange, Request, Route
from registratur.hosts import PULL, PUSH, RESOLVE, HostsConfig
from registratur.limits import HostLimits
from registratur.manifest import Descriptor, parse_manifest
from registratur.reference import Reference
from registratur.referrers import PAGES, extended, fallback_tag, listed, next_page, reference_to
from registratur.retry import MIRROR_POLICY, RetryPolicy
from registratur.sources import BlobSource
from registratur.transport import Transport, resolved
from registratur.upload import Upload

if TYPE_CHECKING:
    from aiohttp import ClientResponse

MANIFEST_LIMIT = 4 * 1024 * 1024
"""Bytes of a manifest that are read; registries must accept as much (distribution-spec, Pushing Manifests)."""

_HEADERS = {"Accept": media.MANIFEST_ACCEPT}

_T = TypeVar("_T")


class Client:
    """Asks registries for manifests and blobs, and brings them there; open it with ``async with``.

    When asking, endpoints (mirrors, then the registry) are tried in order; what is brought goes to one. Nothing has a total
    time limit: a download may take hours, but after `idle_timeout` seconds without one byte it fails. `connect_timeout`
    (seconds) bounds name resolution, connect and TLS handshake together. With one host there are `per_host` transfers of
    blobs at a time, with all of them `in_all`; one that has waited for `idle_timeout` begins all the same. Proxies are those
    of `hosts`, and else of `environment` (HTTPS_PROXY, NO_PROXY and so on), by default this process's.
    """

    def __init__(
        self,
        hosts: HostsConfig | None = None,
        *,
        idle_timeout: float = 60.0,
        connect_timeout: float = 15.0,
        retry: RetryPolicy | None = None,
        per_host: int = 16,
        in_all: int = 32,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._hosts = hosts or HostsConfig()
        self._retry = retry or RetryPolicy()
        self._transport = Transport(
            self._hosts, idle_timeout=idle_timeout, connect_timeout=connect_timeout, environment=environment
        )
        self._exchange = Exchange(self._transport)
        self._limits = HostLimits(per_host, idle_timeout, in_all)

    def configure(self, hosts: HostsConfig) -> None:
        """Go by other rules from the next request on. Files with certificates are read anew."""
        self._hosts = hosts
        self._transport.configure(hosts)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._transport.__aexit__(*details)

    async def check(self, registry: str, credentials: Credentials) -> bool:
        """Say whether a registry, and no mirror of it, has looked at credentials and taken them; False if it asks nobody.

        Raises UnauthorizedError where they are refused, InvalidEndpointError where the configuration puts another host in the
        registry's place, and other RegistryErrors.
        """
        endpoint = self._hosts.endpoints(registry)[-1]
        if endpoint.is_mirror:
            raise InvalidEndpointError(
                f"{registry}: the configuration has {endpoint.url.authority} in its place; credentials are for the host itself: "
                f"give them for {endpoint.url.authority}"
            )
        return await self._exchange.check(endpoint, credentials)

    async def resolve(self, ref: Reference, credentials: Credentials | None = None) -> Descriptor:
        """Return what `ref` points to now, by HEAD, or by GET where HEAD does not tell.

        HEAD does not count towards the pull limits of public registries. Raises RegistryError.
        """

        async def ask(route: Route) -> Descriptor:
            told = await self._head(route)
            if told is not None and told.digest == (ref.digest or told.digest):
                return told
            return (await self._get(route, ref.target))[0]

        return await self._first(ref, credentials, ask, _capability(ref.target))

    async def manifest(
        self, ref: Reference, target: str | None = None, credentials: Credentials | None = None
    ) -> tuple[Descriptor, bytes]:
        """Return the index or manifest of `ref`, or of another tag or digest, `target`, beside it.

        The bytes are those of the digest, when one was asked for, and of the Docker-Content-Digest
        header, when one came. Raises RegistryError, DigestMismatchError, MalformedContentError (more
        than MANIFEST_LIMIT).
        """

        async def ask(route: Route) -> tuple[Descriptor, bytes]:
            return await self._get(route, target or ref.target)

        return await self._first(ref, credentials, ask, _capability(target or ref.target))

    async def blob(
        self,
        ref: Reference,
        descriptor: Descriptor,
        credentials: Credentials | None = None,
        distrusted: set[str] | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Stream a blob of `ref`'s repository, verifying size and digest.

        Only when the iterator ends without an error are the bytes the right ones: act on them before,
        commit after. A broken connection is continued where it broke, in the end at the next endpoint, too.
        Close the iterator (``contextlib.aclosing``) if you leave it early. Endpoints in `distrusted` are not asked; one whose
        bytes were wrong is added, so that whoever has thrown them away may try again, see `has_others`.
        Raises DigestMismatchError, IdleTimeoutError, TransportError and other RegistryErrors.
        """
        verifier = Verifier(descriptor.digest, descriptor.size)
        failures: list[tuple[Route, RegistryError]] = []
        avoided = set() if distrusted is None else distrusted
        for route in self._routes(ref, credentials):
            if str(route.endpoint) in avoided:
                continue
            try:
                async with (
                    self._limits.slot(route.endpoint.url.authority),
                    aclosing(download(self._exchange, route, descriptor, verifier)) as chunks,
                ):
                    async for chunk in chunks:
                        yield chunk
            except RegistryError as error:
                if isinstance(error, DigestMismatchError) and verifier.received:
                    avoided.add(str(route.endpoint))
                    raise  # wrong bytes are out already; the next endpoint cannot take them back
                failures.append((route, error))
                continue
            try:
                verifier.finish()
            except DigestMismatchError as error:
                avoided.add(str(route.endpoint))
                raise DigestMismatchError(f"{route.what}: {error}") from error
            return
        raise _combined(failures)

    def has_others(self, ref: Reference, distrusted: set[str]) -> bool:
        """Say whether there are endpoints to ask for blobs besides those. Raises InvalidEndpointError."""
        return any(str(endpoint) not in distrusted for endpoint in self._hosts.endpoints(ref.registry))

    async def has(self, ref: Reference, digest: str, credentials: Credentials | None = None) -> bool:
        """Say whether the repository that a push goes to has a manifest. Raises RegistryError."""
        try:
            async with self._exchange.open(
                "HEAD", self._there(ref, credentials), "manifests", digest, _HEADERS
            ):
                return True
        except NotFoundError:
            return False

    async def upload(
        self,
        ref: Reference,
        blob: Descriptor,
        source: BlobSource,
        credentials: Credentials | None = None,
        *,
        mount_from: str = "",
        chunk: int = 0,
    ) -> str:
        """See that `ref`'s repository has a blob: return ``there``, ``mounted`` or ``uploaded``.

        `mount_from` is another repository of that registry, which may have it; `chunk` the bytes of one request, 0 for all.
        Raises DigestMismatchError where `source` has other bytes than `blob` says, RegistryError, and what `source` raises.
        """
        route = replace(self._there(ref, credentials), beside=mount_from)
        async with self._limits.slot(route.endpoint.url.authority):
            return await Upload(self._exchange, route, blob, source, chunk).run()

    async def put_manifest(
        self,
        ref: Reference,
        manifest: Descriptor,
        data: bytes,
        target: str,
        credentials: Credentials | None = None,
    ) -> None:
        """Give `ref`'s repository a manifest or index, under the tag or digest `target`. What it names must be there.

        Raises DigestMismatchError if the registry has made something else of it, RegistryError.
        """
        route = self._there(ref, credentials)

        async def stream() -> AsyncGenerator[bytes, None]:
            yield data

        url = route.endpoint.address(ref.repository, "manifests", target)
        headers = {"Content-Type": manifest.media_type, "Content-Length": str(len(data))}
        request = Request("PUT", url, headers, Body(len(data), stream))
        async with self._exchange.send(route, request) as answer:
            told = _claimed_digest(answer.response)
            is_listed = "OCI-Subject" in answer.response.headers
        if told not in (None, manifest.digest) and split_digest(told)[0] == split_digest(manifest.digest)[0]:
            raise DigestMismatchError(
                f"{route.what}: the registry keeps {manifest.digest} as {told}: it has changed it on its way"
            )
        document = await asyncio.to_thread(parse_manifest, data, route.what)
        if document.subject is not None and not is_listed:
            await self._list_referrer(ref, document.subject, reference_to(document, manifest), credentials)

    async def referrers(
        self,
        ref: Reference,
        digest: str,
        artifact_type: str = "",
        credentials: Credentials | None = None,
    ) -> tuple[Descriptor, ...]:
        """Return what refers to the manifest `digest` of `ref`'s repository, of one type of artifact or of all.

        Raises RegistryError, MalformedContentError.
        """

        async def ask(route: Route) -> tuple[Descriptor, ...]:
            try:
                return await self._referrers(route, digest)
            except NotFoundError:
                _, data = await self._get(route, fallback_tag(digest))
                return listed(data, f"referrers of {digest} from {route.endpoint}")

        try:
            found = await self._first(ref, credentials, ask, RESOLVE)
        except NotFoundError:
            return ()
        return tuple(one for one in found if artifact_type in ("", one.artifact_type))

    async def _referrers(self, route: Route, digest: str) -> tuple[Descriptor, ...]:
        """Read a registry's own list, page by page."""
        url: URL | None = route.endpoint.address(route.ref.repository, "referrers", digest)
        found: list[Descriptor] = []
        for _ in range(PAGES):
            if url is None:
                return tuple(found)
            async with self._exchange.send(route, Request("GET", url, _HEADERS)) as answer:
                data = await answer.body(MANIFEST_LIMIT, self._exchange.idle_timeout)
                link = next_page(answer.response.headers.getall("Link", ()))
                url = None if link is None else resolved(answer.url, link, "continues a list")
            if data is None:
                raise MalformedContentError(
                    f"referrers of {digest} from {route.endpoint} are longer than {MANIFEST_LIMIT} bytes"
                )
            found += listed(data, f"referrers of {digest} from {route.endpoint}")
        raise MalformedContentError(
            f"referrers of {digest} from {route.endpoint} have more than {PAGES} pages"
        )

    async def _list_referrer(
        self, ref: Reference, subject: Descriptor, added: Descriptor, credentials: Credentials | None
    ) -> None:
        """Do for a registry without the API what it would do: keep a list under a tag."""
        route, tag = self._there(ref, credentials), fallback_tag(subject.digest)
        try:
            _, data = await self._get(route, tag)
            entries = listed(data, f"{tag} of {route.endpoint}")
        except NotFoundError:
            entries = ()
        longer = extended(entries, added)
        if longer is not None:
            await self.put_manifest(ref, *longer, tag, credentials)

    async def _head(self, route: Route) -> Descriptor | None:
        try:
            async with self._exchange.open("HEAD", route, "manifests", route.ref.target, _HEADERS) as answer:
                return _described(answer.response)
        except (NotFoundError, UnauthorizedError, UnavailableError, TransportError):
            raise
        except RegistryError:
            return None  # 405 and the like from plain file servers: GET decides

    async def _get(self, route: Route, target: str) -> tuple[Descriptor, bytes]:
        what = f"manifest {target} of {route.ref.name}"
        async with self._exchange.open("GET", route, "manifests", target, _HEADERS) as answer:
            claimed = _claimed_digest(answer.response)
            data = await answer.body(MANIFEST_LIMIT, self._exchange.idle_timeout)
        if data is None:
            raise MalformedContentError(f"{what} is longer than {MANIFEST_LIMIT} bytes")
        expected = target if ":" in target else claimed
        digest = compute_digest(data, split_digest(expected)[0] if expected else "sha256")
        if expected is not None and digest != expected:
            raise DigestMismatchError(f"{what} from {route.endpoint} hashes to {digest}, not to {expected}")
        return Descriptor(parse_manifest(data, what).media_type, digest, len(data)), data

    def _routes(self, ref: Reference, credentials: Credentials | None, capability: str = PULL) -> list[Route]:
        endpoints = self._hosts.endpoints(ref.registry, capability)
        policies = [MIRROR_POLICY] * (len(endpoints) - 1) + [self._retry]
        return [
            Route(ref, endpoint, policy, self._hosts.credentials_for(endpoint, credentials, ref.repository))
            for endpoint, policy in zip(endpoints, policies, strict=True)
        ]

    def _there(self, ref: Reference, credentials: Credentials | None) -> Route:
        """Return the way of a push."""
        endpoint = self._hosts.endpoints(ref.registry, PUSH)[0]
        known = self._hosts.credentials_for(endpoint, credentials, ref.repository)
        return Route(ref, endpoint, self._retry, known, actions="pull,push")

    async def _first(
        self,
        ref: Reference,
        credentials: Credentials | None,
        ask: Callable[[Route], Awaitable[_T]],
        capability: str = PULL,
    ) -> _T:
        """Return the answer of the first endpoint that has one."""
        failures: list[tuple[Route, RegistryError]] = []
        for route in self._routes(ref, credentials, capability):
            try:
                return await ask(route)
            except RegistryError as error:
                failures.append((route, error))
        raise _combined(failures)


def _capability(target: str) -> str:
    """Return what a host must be trusted with to be asked for a manifest: anybody may have that of a digest."""
    return PULL if ":" in target else RESOLVE


def _combined(failures: list[tuple[Route, RegistryError]]) -> RegistryError:
    """Return the last endpoint's error, telling what those before it said."""
    *before, (_, last) = failures
    if not before:
        return last
    told = "; ".join(f"{route.endpoint}: {error}" for route, error in before)
    error = type(last)(f"{last} (tried before: {told})")
    error.__cause__ = last
    return error


def _claimed_digest(response: ClientResponse) -> str | None:
    """Return the Docker-Content-Digest header; None without one of a known algorithm."""
    try:
        return parse_digest(response.headers.get("Docker-Content-Digest", ""))
    except InvalidDigestError:
        return None


def _described(response: ClientResponse) -> Descriptor | None:
    """Return the descriptor that the headers of a HEAD make up, None if one is missing."""
    media_type = media.bare(response.headers.get("Content-Type"))
    digest, size = _claimed_digest(response), response.content_length
    if (
        digest is None
        or size is None
        or size > MANIFEST_LIMIT
        or media_type not in media.INDEXES | media.MANIFESTS
    ):
        return None
    return Descriptor(media_type, digest, size)
