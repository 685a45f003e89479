"""Whom TLS trusts, and as whom it speaks: contexts from what the configuration says of a host."""

import asyncio
import ssl
from pathlib import Path
from typing import TypeAlias

from registratur.errors import ConnectError
from registratur.hosts import HostOptions

_Key: TypeAlias = tuple[Path | None, tuple[Path, ...], tuple[tuple[Path, Path | None], ...], bool]


class Contexts:
    """Contexts by what they are made of; files are read once, in a thread."""

    def __init__(self) -> None:
        self._made: dict[_Key, ssl.SSLContext] = {}

    async def of(self, host: str | None, options: HostOptions) -> ssl.SSLContext | bool:
        """Return what aiohttp wants to know: a context, or whether to verify as the system does.

        Raises ConnectError, which names `host`, the file, and what is wrong with it.
        """
        key = options.ca_file, options.extra_ca_files, options.client_certificates, options.skip_verify
        if not any(key[:3]):
            return not options.skip_verify
        if key not in self._made:
            self._made[key] = await asyncio.to_thread(_make, host, options)
        return self._made[key]


def _make(host: str | None, options: HostOptions) -> ssl.SSLContext:
    try:
        file = options.ca_file
        context = ssl.create_default_context(cafile=None if file is None else str(file))
        for file in options.extra_ca_files:
            context.load_verify_locations(file)
    except OSError as error:
        raise ConnectError(f"{host}: cannot load the CA file {file}: {error}") from error
    try:
        for file, key in options.client_certificates:
            # A password, so that nobody asks the terminal for that of an encrypted key.
            context.load_cert_chain(file, key, password="")
    except OSError as error:
        of = f" with the key {key}" if key is not None else ""
        raise ConnectError(f"{host}: cannot load the client certificate {file}{of}: {error}") from error
    if options.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
