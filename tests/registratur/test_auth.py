"""Who gets to see which secret."""

import base64
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from registratur import Client, Credentials, HostOptions, HostsConfig, UnauthorizedError

USER = Credentials("user", "hunter2")
BASIC = "Basic " + base64.b64encode(b"user:hunter2").decode()


class TokenService:
    """Guards a registry with bearer tokens, given out by the registry `realm`."""

    def __init__(self, guarded, realm, *, accepts=(BASIC,)):
        self.guarded, self.realm, self.accepts = guarded, realm, accepts
        self.asked: list[web.Request] = []
        self.forms: list[dict[str, str]] = []
        self.valid: set[str] = set()
        self.lifetime = 300
        guarded.hook = self.guard
        realm.hook = self.guard if realm is guarded else self.give

    async def guard(self, request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            return await self.give(request)
        if request.headers.get("Authorization") in self.valid:
            return None
        challenge = (
            f'Bearer realm="{self.realm.url}/token?a=b",service="s p",scope="repository:team/app:pull"'
        )
        return web.json_response(
            {"errors": [{"code": "UNAUTHORIZED"}]}, status=401, headers={"WWW-Authenticate": challenge}
        )

    async def give(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        if request.method == "POST":
            form = dict(await request.post())
            self.forms.append(form)
            accepted = form["refresh_token"] in self.accepts
        else:
            accepted = request.headers.get("Authorization") in self.accepts
        if not accepted:
            return web.Response(status=401)
        token = f"tok{len(self.asked)}"
        self.valid.add(f"Bearer {token}")
        return web.json_response({"token": token, "expires_in": self.lifetime})


@pytest.fixture
async def other(registries: Callable[[], Awaitable[object]]):
    return await registries()


def authorizations(registry):
    return [request.headers.get("Authorization") for request in registry.requests]


async def test_anonymous_token(registry, other, client, kit):
    service = TokenService(registry, other, accepts=(None,))
    registry.add(kit.image(), "1")
    await client.manifest(registry.ref())
    (asked,) = service.asked
    assert dict(asked.query) == {"a": "b", "service": "s p", "scope": "repository:team/app:pull"}


async def test_token_for_a_user_is_asked_once_and_used_again(registry, client, kit):
    service = TokenService(registry, registry)
    image = registry.add(kit.image(), "1")
    await client.resolve(registry.ref(), USER)
    await client.manifest(registry.ref(), image.digest, USER)
    assert len(service.asked) == 1
    assert [given for given in authorizations(registry) if given] == [BASIC, "Bearer tok1", "Bearer tok1"]


async def test_a_token_that_stops_working_is_replaced(registry, client, kit):
    service = TokenService(registry, registry)
    registry.add(kit.image(), "1")
    await client.manifest(registry.ref(), None, USER)
    service.valid.clear()
    await client.manifest(registry.ref(), None, USER)
    assert len(service.asked) == 2


async def test_an_expired_token_is_not_sent(registry, client, kit):
    service = TokenService(registry, registry)
    service.lifetime = 5  # less than the safety margin
    registry.add(kit.image(), "1")
    await client.manifest(registry.ref(), None, USER)
    await client.manifest(registry.ref(), None, USER)
    assert "Bearer tok1" not in authorizations(registry)[3:]


async def test_tokens_are_not_shared_between_credentials(registry, client, kit):
    TokenService(registry, registry)
    registry.add(kit.image(), "1")
    await client.manifest(registry.ref(), None, USER)
    for stranger in (None, Credentials("user", "wrong")):
        with pytest.raises(UnauthorizedError):
            await client.manifest(registry.ref(), None, stranger)


async def test_identity_token(registry, client, kit):
    service = TokenService(registry, registry, accepts=("refresh-me",))
    registry.add(kit.image(), "1")
    await client.manifest(registry.ref(), None, Credentials(identity_token="refresh-me"))
    (form,) = service.forms
    assert (form["grant_type"], form["service"]) == ("refresh_token", "s p")
    assert form["scope"] == "repository:team/app:pull"


async def test_registry_token_is_sent_as_it_is(registry, client, kit):
    service = TokenService(registry, registry)
    service.valid.add("Bearer mine")
    registry.add(kit.image(), "1")
    await client.manifest(registry.ref(), None, Credentials(registry_token="mine"))
    assert authorizations(registry) == ["Bearer mine"]


async def test_wrong_password(registry, client):
    TokenService(registry, registry)
    with pytest.raises(UnauthorizedError, match="check the credentials") as caught:
        await client.resolve(registry.ref(), Credentials("user", "s3cret"))
    assert "s3cret" not in str(caught.value)


async def require_basic(request):
    if request.headers.get("Authorization") == BASIC:
        return None
    return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})


async def test_basic(registry, client, kit):
    registry.hook = require_basic
    registry.add(kit.image(), "1")
    await client.manifest(registry.ref(), None, Credentials(auth=BASIC.removeprefix("Basic ")))
    assert authorizations(registry) == [None, BASIC], "secrets are sent on demand only"


@pytest.mark.parametrize("credentials", [None, Credentials("user", "wrong")])
async def test_basic_refused(registry, client, credentials):
    registry.hook = require_basic
    with pytest.raises(UnauthorizedError):
        await client.resolve(registry.ref(), credentials)
    assert len(registry.requests) <= 2


@pytest.mark.parametrize(
    "header", ["Negotiate", "", 'Bearer realm="nonsense"', "Bearer", 'Bearer realm="ftp://x"']
)
async def test_challenges_that_cannot_be_met(registry, client, header):
    async def refuse(_):
        return web.Response(status=401, headers={"WWW-Authenticate": header} if header else {})

    registry.hook = refuse
    with pytest.raises(UnauthorizedError):
        await client.resolve(registry.ref(), USER)


async def test_a_redirect_to_another_host_drops_the_secret(registry, other, client, kit):
    image = other.add(kit.image(), "1")

    async def guard_then_redirect(request):
        return await require_basic(request) or web.Response(
            status=307, headers={"Location": f"http://evil:pw@{other.host}{request.path}"}
        )

    registry.hook = guard_then_redirect
    assert (await client.resolve(registry.ref(), USER)).digest == image.digest
    assert BASIC in authorizations(registry)
    assert authorizations(other) == [None]


async def test_a_redirect_on_the_same_host_keeps_it(registry, client, kit):
    image = registry.add(kit.image(), "2")

    async def guard_then_redirect(request):
        refused = await require_basic(request)
        if refused or request.path.endswith("/2"):
            return refused
        return web.Response(status=307, headers={"Location": "2"})

    registry.hook = guard_then_redirect
    assert (await client.resolve(registry.ref(), USER)).digest == image.digest


async def test_a_secret_does_not_come_back_by_a_detour(registry, other, client, kit):
    async def bounce(request):
        return web.Response(status=307, headers={"Location": f"{registry.url}/v2/team/app/manifests/2"})

    async def start(request):
        refused = await require_basic(request)
        if request.path.endswith("/2"):
            return web.Response(status=404)
        return refused or web.Response(status=307, headers={"Location": f"{other.url}/x"})

    registry.hook, other.hook = start, bounce
    with pytest.raises(Exception, match="404"):
        await client.resolve(registry.ref(), USER)
    assert authorizations(registry)[-1] is None
    assert authorizations(other) == [None]


async def test_a_challenge_of_another_host_is_not_answered(registry, other, client):
    async def redirect(request):
        return web.Response(status=307, headers={"Location": f"{other.url}/x"})

    registry.hook, other.hook = redirect, require_basic
    with pytest.raises(UnauthorizedError):
        await client.resolve(registry.ref(), USER)
    assert authorizations(other) == [None]


async def test_a_token_service_cannot_forward_the_password(registry, other, client, registries):
    thief = await registries()

    async def forward(request):
        return web.Response(status=307, headers={"Location": f"{thief.url}/token"})

    async def steal(request):
        return web.json_response({"token": "x"})

    TokenService(registry, other)
    other.hook, thief.hook = forward, steal
    for credentials in (USER, Credentials(identity_token="refresh-me")):
        with pytest.raises(Exception, match=r"HTTP 401|redirects a POST"):
            await client.resolve(registry.ref(), credentials)
    assert authorizations(other)[0] == BASIC
    assert set(authorizations(thief)) == {None}
    assert all(request.method == "GET" for request in thief.requests)


async def test_mirrors_never_see_the_registrys_secret(registry, other, kit):
    TokenService(other, other)
    registry.hook = require_basic
    image = registry.add(kit.image(), "1")
    async with Client(HostsConfig(mirrors={registry.host: [other.url]}), retry=kit.quick) as client:
        assert (await client.resolve(registry.ref(), USER)).digest == image.digest
    assert set(authorizations(other)) == {None}


async def test_a_mirror_may_have_credentials_of_its_own(registry, other, kit):
    other.hook = require_basic
    image = other.add(kit.image(), "1")
    hosts = HostsConfig(
        mirrors={registry.host: [other.url]}, options={other.host: HostOptions(credentials=USER)}
    )
    async with Client(hosts, retry=kit.quick) as client:
        pulled = await client.resolve(registry.ref(), Credentials("registry", "secret"))
    assert pulled.digest == image.digest


async def test_credentials_for_another_server_are_not_sent(registry, client):
    registry.hook = require_basic
    elsewhere = Credentials("user", "hunter2", server_address="https://elsewhere.example")
    with pytest.raises(UnauthorizedError):
        await client.resolve(registry.ref(), elsewhere)
    assert authorizations(registry) == [None]
