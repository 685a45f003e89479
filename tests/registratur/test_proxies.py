"""Proxies: whose they are by Go's rules, and what goes through them."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import Mapping

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from registratur import Client, ConnectError, Credentials, HostOptions, HostsConfig, Reference, RegistryError
from registratur.errors import InvalidEndpointError
from registratur.proxies import Direct, Proxies, Proxy


def through(environment: Mapping[str, str], url: str) -> str | None:
    proxy = Proxies.of(environment).proxy_for(URL(url))
    return None if proxy is None else str(proxy.url).rstrip("/")


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://r.example/v2/", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://r.example/v2/", "http://p:3128"),
        ({"https_proxy": "http://p:3128"}, "https://r.example/v2/", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p", "https_proxy": "http://q"}, "https://r.example", "http://p"),
        ({"HTTPS_PROXY": "", "https_proxy": "http://q"}, "https://r.example", "http://q"),
        ({"HTTPS_PROXY": "http://p"}, "http://r.example", None),
        ({"HTTP_PROXY": "http://p"}, "http://r.example", "http://p"),
        ({"HTTP_PROXY": "http://p", "REQUEST_METHOD": "GET"}, "http://r.example", "http://p"),
        ({"HTTP_PROXY": "http://p"}, "https://r.example", None),
        ({"ALL_PROXY": "http://a"}, "https://r.example", "http://a"),
        ({"all_proxy": "http://a", "HTTP_PROXY": "http://p"}, "http://r.example", "http://p"),
        ({"HTTPS_PROXY": "p.example:3128"}, "https://r.example", "http://p.example:3128"),
        ({"HTTPS_PROXY": "https://p.example"}, "https://r.example", "https://p.example"),
        ({"HTTPS_PROXY": " http://p "}, "https://r.example", "http://p"),
        ({"HTTPS_PROXY": "http://p/path?x"}, "https://r.example", "http://p"),
        ({"HTTPS_PROXY": "http://[::1]:3128"}, "https://r.example", "http://[::1]:3128"),
        ({"HTTPS_PROXY": "http://p"}, "https://localhost:5000", None),
        ({"HTTPS_PROXY": "http://p"}, "https://127.8.9.1", None),
        ({"HTTPS_PROXY": "http://p"}, "https://[::1]:5000", None),
        ({"HTTPS_PROXY": "http://p"}, "https://[::ffff:127.0.0.1]", None),
        ({"HTTPS_PROXY": "http://p"}, "https://localhost.example", "http://p"),
        ({"HTTPS_PROXY": "http://p", "no_proxy": "r.example"}, "https://r.example", None),
        (
            {"HTTPS_PROXY": "http://p", "NO_PROXY": "x", "no_proxy": "r.example"},
            "https://r.example",
            "http://p",
        ),
    ],
)
def test_the_environment_s_proxy(environment, url, proxy):
    assert through(environment, url) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "direct", "proxied"),
    [
        ("*", ["https://r.example", "https://10.0.0.1"], []),
        ("a.example, *", ["https://r.example"], []),
        ("r.example", ["https://r.example", "https://R.Example:5000", "https://a.r.example"], ["https://xr.example"]),
        (".r.example", ["https://a.r.example"], ["https://r.example"]),
        ("*.r.example", ["https://a.b.r.example"], ["https://r.example"]),
        ("r.example:5000", ["https://r.example:5000"], ["https://r.example"]),
        ("r.example:443", ["https://r.example"], ["https://r.example:5000"]),
        (" R.EXAMPLE ,", ["https://r.example"], []),
        ("10.0.0.0/8", ["https://10.1.2.3", "https://[::ffff:10.1.2.3]"], ["https://11.0.0.1", "https://10.example"]),
        ("10.1.2.3/8", ["https://10.9.9.9"], []),
        ("fd00::/8", ["https://[fd12::1]:5000"], ["https://[fe80::1]"]),
        ("10.0.0.1", ["https://10.0.0.1", "https://10.0.0.1:5000"], ["https://10.0.0.11", "https://110.0.0.1"]),
        ("10.0.0.1:5000", ["https://10.0.0.1:5000"], ["https://10.0.0.1"]),
        ("fd00::1", ["https://[fd00:0::1]"], []),
        ("[fd00::1]", ["https://[fd00::1]"], []),
        ("[fd00::1]:5000", ["https://[fd00::1]:5000"], ["https://[fd00::1]"]),
        ("bücher.example", ["https://xn--bcher-kva.example", "https://bücher.example"], []),
        (":5000,,10.0.0.0/99,r.example:x", [], ["https://r.example", "https://10.0.0.1:5000"]),
        ("r.example b.example", [], ["https://r.example"]),
    ],
)  # fmt: skip
def test_who_is_asked_directly(no_proxy, direct, proxied):
    environment = {"HTTPS_PROXY": "http://p", "NO_PROXY": no_proxy}
    assert [through(environment, url) for url in direct] == [None] * len(direct)
    assert [through(environment, url) for url in proxied] == ["http://p"] * len(proxied)


@given(st.text(), st.text())
def test_any_list_is_read(text, host):
    Direct.parse(text).has(host, 443)


@pytest.mark.parametrize(
    "value",
    [
        "socks5://u:hunter2@p",
        "http://",
        "http://u:hunter2@p:x",
        "://hunter2",
        "http://u:hunter2@[::",
        "http://u%3Aa:hunter2@p",
    ],
)
def test_what_is_no_proxy_is_told_when_it_is_needed(value):
    proxies = Proxies.of({"HTTPS_PROXY": value})
    assert proxies.proxy_for(URL("https://localhost")) is None
    with pytest.raises(
        InvalidEndpointError, match="environment variable HTTPS_PROXY: no proxy of the form"
    ) as caught:
        proxies.proxy_for(URL("https://r.example"))
    assert "hunter2" not in str(caught.value) + repr(proxies)


def test_who_it_lets_pass():
    proxy = Proxy.parse("http://us%20er:p%40ss%C3%BC@p:3128", "x")
    assert base64.b64decode(proxy.authorization.removeprefix("Basic ")).decode() == "us er:p@ssü"
    assert "us" not in repr(proxy) + str(proxy.url)
    assert Proxy.parse("http://p", "x").authorization is None


class ProxyServer:
    """Takes CONNECT to anywhere, which is always the same place, and requests in absolute form, which it answers."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.target = ("", 0)
        self.refusal = b""
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self.refusal:
                writer.write(self.refusal)
                await writer.drain()
                return
            far_reader, far_writer = await asyncio.open_connection(*self.target)
            if head.startswith(b"CONNECT "):
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                method, url, rest = head.split(b" ", 2)
                path = URL(url.decode()).raw_path_qs.encode()
                far_writer.write(
                    b" ".join((method, path, rest.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)))
                )
            with contextlib.closing(far_writer):
                await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.close()

    def lines(self) -> list[str]:
        return [head.decode().splitlines()[0] for head in self.heads]


@pytest.fixture
async def proxy():
    made = ProxyServer()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://user:hunter2@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()


def address(registry):
    host, _, port = registry.host.partition(":")
    return host, int(port)


async def test_plain_http_goes_in_absolute_form(registry, proxy, kit):
    image = registry.add(kit.image(), "1")
    proxy.target = address(registry)
    hosts = HostsConfig(mirrors={"r.example": ["http://r.example:8080"]})
    async with Client(hosts, environment={"http_proxy": proxy.url}, retry=kit.quick) as client:
        told = await client.resolve(Reference.parse("r.example/team/app:1"))
    assert told.digest == image.digest
    assert proxy.lines() == ["HEAD http://r.example:8080/v2/team/app/manifests/1?ns=r.example HTTP/1.1"]
    assert b"Proxy-Authorization: Basic " in proxy.heads[0]


async def test_https_goes_by_connect_and_secrets_stay_apart(proxy, kit, tls_registry):
    proxy.target, _, seen, image = tls_registry
    hosts = HostsConfig(options={"r.example": HostOptions(skip_verify=True)})
    async with Client(hosts, environment={"HTTPS_PROXY": proxy.url}, retry=kit.quick) as client:
        ref = Reference.parse("r.example/team/app:1")
        for _ in range(2):
            _, data = await client.manifest(ref, credentials=Credentials("me", "mine"))
            assert data == image.manifest
    assert proxy.lines() == ["CONNECT r.example:443 HTTP/1.1"]  # and the connection is kept
    assert b"Proxy-Authorization: Basic " in proxy.heads[0]
    assert b"mine" not in proxy.heads[0]
    assert all("Proxy-Authorization" not in headers for headers in seen)


@pytest.fixture
async def tls_registry(kit, tmp_path):
    """A registry that speaks TLS: where it is, its context, the headers that it has seen, and its image."""
    import shutil
    import subprocess

    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs openssl to make a certificate")
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=r.example"
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([openssl, *command.split(), *files], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    image, seen = kit.image(), []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.headers)
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return web.Response(body=image.manifest)

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    yield runner.addresses[0][:2], context, seen, image
    await runner.cleanup()


@pytest.mark.parametrize("status", [b"407 Proxy Authentication Required", b"502 no", b"403 hunter2"])
async def test_a_proxy_that_refuses_is_named_without_its_password(proxy, kit, status):
    proxy.refusal = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
    async with Client(environment={"HTTPS_PROXY": proxy.url}, retry=kit.quick) as client:
        with pytest.raises(
            ConnectError, match=rf"the proxy http://127\.0\.0\.1:\d+ .*HTTP {status[:3].decode()}"
        ) as caught:
            await client.resolve(Reference.parse("r.example/team/app:1"))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_proxy_that_is_not_there_is_named(kit):
    environment = {"HTTPS_PROXY": "http://user:hunter2@127.0.0.1:1"}
    async with Client(environment=environment, retry=kit.quick) as client:
        with pytest.raises(ConnectError, match=r"through the proxy http://127\.0\.0\.1:1") as caught:
            await client.resolve(Reference.parse("r.example/team/app:1"))
    assert "hunter2" not in str(caught.value)


async def test_a_variable_that_is_no_proxy_fails_what_needs_it(registry, kit):
    registry.add(kit.image(), "1")
    environment = {"HTTPS_PROXY": "socks5://p", "HTTP_PROXY": "socks5://p"}
    async with Client(environment=environment, retry=kit.quick) as client:
        await client.resolve(registry.ref())  # on loopback
        with pytest.raises(ConnectError, match=r"HTTPS_PROXY.*SOCKS is not spoken"):
            await client.resolve(Reference.parse("r.example/team/app:1"))


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"r.example": "PROXY"}, True),
        ({"r.example": ""}, False),
        ({"r.example:8080": "PROXY"}, True),
        ({"*": "PROXY"}, True),
        ({"*": "PROXY", "r.example": ""}, False),
        ({"*": "PROXY", "r.example": None}, False),
        ({"127.0.0.1": "PROXY"}, False),
    ],
)
async def test_the_configuration_comes_before_the_environment(registry, proxy, kit, options, asked):
    proxy.target = address(registry)
    registry.add(kit.image(), "1")
    hosts = HostsConfig(
        mirrors={"r.example": ["http://r.example:8080"]},
        options={
            name: HostOptions(proxy=proxy.url if one == "PROXY" else one) for name, one in options.items()
        },
        mirrors_only=True,
    )
    environment = {} if asked else {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "r.example"}
    async with Client(hosts, environment=environment, connect_timeout=5, retry=kit.quick) as client:
        with contextlib.suppress(RegistryError):  # there is no such host
            await client.resolve(Reference.parse("r.example/team/app:1"))
    assert bool(proxy.heads) is asked


async def test_everybody_s_proxy_is_not_this_machine_s(registry, kit):
    registry.add(kit.image(), "1")
    hosts = HostsConfig(options={"*": HostOptions(proxy="http://127.0.0.1:1")})
    async with Client(hosts, environment={}, retry=kit.quick) as client:
        await client.resolve(registry.ref())


async def test_a_redirect_goes_by_its_own_host_s_rules(registries, proxy, kit):
    near, far = await registries(), await registries()
    image = far.add(kit.image(), "1")
    proxy.target = address(far)

    async def redirect(request: web.Request) -> web.Response:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return web.Response(
            status=307, headers={"Location": "http://cdn.example/v2/team/app/manifests/1?signed=yes"}
        )

    near.hook = redirect
    async with Client(environment={"HTTP_PROXY": proxy.url}, retry=kit.quick) as client:
        _, data = await client.manifest(near.ref(), credentials=Credentials("me", "mine"))
    assert data == image.manifest
    assert proxy.lines() == ["GET http://cdn.example/v2/team/app/manifests/1?signed=yes HTTP/1.1"]
    assert b"\r\nauthorization:" not in proxy.heads[0].lower()
    assert all("Proxy-Authorization" not in request.headers for request in near.requests)
