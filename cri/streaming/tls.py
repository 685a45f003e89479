"""The streaming server's certificate: two files that may be replaced while it runs."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import NoReturn

import structlog

log = structlog.get_logger(__name__)

Signature = tuple[tuple[int, int, int], ...]


class CertificateError(Exception):
    """The certificate or its key cannot be used."""


class CertificateFiles:
    """A certificate chain and its private key, in PEM files."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._context: ssl.SSLContext | None = None
        self._seen: Signature = ()

    async def context(self) -> ssl.SSLContext:
        """The context for a new connection, read anew if a file has changed.

        Raises CertificateError if there has never been a good pair. Later a bad one is logged once, and the last good
        one stays in use.
        """
        return await asyncio.to_thread(self._current)

    def _current(self) -> ssl.SSLContext:
        seen: Signature = ()
        try:
            seen = _signature(self._certificate), _signature(self._key)
        except OSError as error:
            if self._context is None:
                raise CertificateError(
                    f"cannot read {error.filename}: {error.strerror}; check the streaming server's TLS files"
                ) from error
        if self._context is not None and seen == self._seen:
            return self._context
        self._seen = seen
        try:
            context = self._load()
        except CertificateError as error:
            if self._context is None:
                raise
            return self._keep(self._context, error)
        if self._context is not None:
            log.info("the streaming server has a new certificate", file=str(self._certificate))
        self._context = context
        return context

    def _keep(self, context: ssl.SSLContext, error: CertificateError) -> ssl.SSLContext:
        log.error("the streaming server keeps its old certificate", reason=str(error))
        return context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Without a callback OpenSSL would ask for a password on the terminal.
            context.load_cert_chain(self._certificate, self._key, password=self._refuse_password)
        except OSError as error:  # ssl.SSLError is one
            raise CertificateError(
                f"cannot use the certificate {self._certificate} with the key {self._key}: "
                f"{error.strerror or error}; both must be readable PEM files, and belong together"
            ) from error
        return context

    def _refuse_password(self) -> NoReturn:
        raise CertificateError(f"the key {self._key} is encrypted; a server's key must not be")


def _signature(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size
