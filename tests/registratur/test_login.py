"""Whether a registry takes credentials, asked of one that can be made to say anything."""

import pytest
from aiohttp import web

from registratur import (
    Client,
    Credentials,
    HostsConfig,
    InvalidEndpointError,
    NotFoundError,
    RegistryHost,
    TransportError,
    UnauthorizedError,
    UnavailableError,
)

ME = Credentials("me", "hunter2")
HEADER = ME.basic_header()


def answered(registry, *, realm="", token="t0ken", scope=""):
    """A registry behind Basic, or behind tokens from its own /token."""

    async def hook(request):
        authorization = request.headers.get("Authorization")
        if request.path == "/token":
            if authorization != HEADER:
                return web.Response(status=401)
            return web.json_response({"token": token})
        assert request.path == "/v2/"
        if authorization == (f"Bearer {token}" if realm else HEADER):
            return web.Response()
        challenge = f'Bearer realm="{realm}",service="s"{scope}' if realm else 'Basic realm="x"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    registry.hook = hook


async def test_basic(registry, client):
    answered(registry)
    assert await client.check(registry.host, ME)
    with pytest.raises(UnauthorizedError, match=rf"{registry.host} at http.*HTTP 401"):
        await client.check(registry.host, Credentials("me", "hunter3"))


@pytest.mark.parametrize("scope", ["", ',scope="repository:user/image:pull"'])
async def test_a_token_is_asked_for_without_a_repository_of_ours(registry, client, scope):
    answered(registry, realm=f"{registry.url}/token", scope=scope)
    assert await client.check(registry.host, ME)
    (asked,) = [request for request in registry.requests if request.path == "/token"]
    assert asked.query.getall("scope", []) == (["repository:user/image:pull"] if scope else [])
    with pytest.raises(UnauthorizedError, match="refuses a token"):
        await client.check(registry.host, Credentials("me", "hunter3"))


async def test_a_registry_that_lets_anybody_in(registry, client):
    async def hook(request):
        return web.Response()

    registry.hook = hook
    assert not await client.check(registry.host, ME)
    assert all("Authorization" not in request.headers for request in registry.requests)


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFoundError), (403, UnauthorizedError), (500, UnavailableError)]
)
async def test_other_answers(registry, client, status, error):
    async def hook(request):
        return web.Response(status=status)

    registry.hook = hook
    with pytest.raises(error, match=f"HTTP {status}"):
        await client.check(registry.host, ME)
    assert len(registry.requests) == 1


async def test_nobody_there(client):
    with pytest.raises(TransportError):
        await client.check("127.0.0.1:1", ME)


async def test_a_mirror_is_not_asked(registries):
    mirror, own = await registries(), await registries()
    answered(own)
    async with Client(HostsConfig(mirrors={own.host: [mirror.url]})) as client:
        assert await client.check(own.host, ME)
    assert mirror.requests == []


async def test_credentials_are_not_for_who_stands_in(registry):
    hosts = HostsConfig(servers={"r.example": RegistryHost(registry.url)})
    async with Client(hosts) as client:
        with pytest.raises(InvalidEndpointError, match=rf"give them for {registry.host}"):
            await client.check("r.example", ME)
    assert registry.requests == []


async def test_a_redirect_gets_no_credentials(registries, client):
    first, second = await registries(), await registries()

    async def away(request):
        return web.Response(status=307, headers={"Location": f"{second.url}/v2/"})

    first.hook = away
    answered(second)
    with pytest.raises(UnauthorizedError):
        await client.check(first.host, ME)
    assert all("Authorization" not in request.headers for request in second.requests)
