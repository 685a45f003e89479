"""containerd's hosts.toml: what is read, what it does to requests, and what a bad file does."""

import os

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from registratur import (
    Client,
    ConnectError,
    Credentials,
    HostOptions,
    HostsConfig,
    InvalidEndpointError,
    RegistryHost,
    UnauthorizedError,
    read_hosts,
)
from registratur.hosts import PULL, PUSH, RESOLVE


@pytest.fixture
def write(tmp_path):
    def write(host, text, name="hosts.toml"):
        (tmp_path / host).mkdir(exist_ok=True)
        (tmp_path / host / name).write_text(text)
        return tmp_path

    return write


def addresses(config, registry, capability=PULL):
    return [str(one.address("a", "blobs", "d")) for one in config.endpoints(registry, capability)]


DOCKER = """
server = "https://docker.io"

[host."https://public.example"]
  capabilities = ["pull"]
[host."private.example:5000/v2"]
  capabilities = ["pull", "resolve"]
  ca = "private.crt"
[host."http://odd.example/api/registry"]
  override_path = true
  client = [["/etc/one.pem", "one.key"], ["both.pem", ""]]
  dial_timeout = "1m1.5s"
  skip_verify = true
  [host."http://odd.example/api/registry".header]
    x-custom-1 = ["a", "b"]
    x-custom-2 = "c"
"""


def test_the_order_and_what_each_is_for(write):
    config, told = read_hosts(write("docker.io", DOCKER))
    assert told == []
    public = "https://public.example/v2/a/blobs/d?ns=docker.io"
    private = "https://private.example:5000/v2/a/blobs/d?ns=docker.io"
    odd = "http://odd.example/api/registry/a/blobs/d?ns=docker.io"
    own = "https://registry-1.docker.io/v2/a/blobs/d"
    assert addresses(config, "docker.io") == [public, private, odd, own]
    assert addresses(config, "docker.io", RESOLVE) == [private, odd, own]
    assert addresses(config, "docker.io", PUSH) == [odd, own]
    assert addresses(config, "quay.io") == ["https://quay.io/v2/a/blobs/d"]


def test_the_options_of_each(write):
    folder = write("docker.io", DOCKER) / "docker.io"
    config, _ = read_hosts(folder.parent)
    public, private, odd, own = (one.options for one in config.endpoints("docker.io"))
    assert public is own is None
    assert private == HostOptions(extra_ca_files=(folder / "private.crt",))
    pairs = (("/etc/one.pem", folder / "one.key"), (folder / "both.pem", None))
    assert [(str(cert), key) for cert, key in odd.client_certificates] == [
        (str(cert), key) for cert, key in pairs
    ]
    assert odd.headers == (("x-custom-1", "a"), ("x-custom-1", "b"), ("x-custom-2", "c"))
    assert (odd.connect_timeout, odd.skip_verify) == (61.5, True)


def test_a_server_elsewhere_keeps_everybody_from_the_registry(write):
    config, _ = read_hosts(write("_default", 'server = "https://cache.example"'))
    for capability in (PULL, RESOLVE, PUSH):
        assert addresses(config, "quay.io", capability) == ["https://cache.example/v2/a/blobs/d?ns=quay.io"]


def test_a_default_is_for_those_without_a_directory(write):
    write("quay.io", "")
    config, _ = read_hosts(write("_default", '[host."https://m"]'))
    assert addresses(config, "quay.io") == ["https://quay.io/v2/a/blobs/d"]
    assert len(addresses(config, "ghcr.io")) == 2


@pytest.mark.parametrize("folder", ["r.example:5000", "r.example_5000_"])
def test_ports(write, folder):
    config, _ = read_hosts(write(folder, '[host."https://m"]'))
    assert len(addresses(config, "r.example:5000")) == 2
    assert len(addresses(config, "r.example")) == 1


def test_two_directories_of_one_registry(write):
    write("r.example_5000_", '[host."https://first"]')
    config, told = read_hosts(write("r.example:5000", '[host."https://second"]'))
    assert addresses(config, "r.example:5000")[0].startswith("https://first/")
    assert "is for the same registry" in told[0]


def test_a_host_that_is_the_server_too_is_asked_once_and_pushed_to(write):
    text = '[host."https://r.example"]\ncapabilities = ["pull", "resolve"]'
    config, _ = read_hosts(write("r.example", text))
    assert len(addresses(config, "r.example")) == len(addresses(config, "r.example", PUSH)) == 1


def test_nobody_may_push(write):
    config, _ = read_hosts(write("r.example", 'capabilities = ["pull"]'))
    with pytest.raises(InvalidEndpointError, match="capability 'push'"):
        config.endpoints("r.example", PUSH)


def test_what_is_said_of_the_server_is_said_of_its_host(write):
    """Where a redirect leads there, or a token service is asked."""
    write("r.example", "skip_verify = true")
    config, _ = read_hosts(write("elsewhere", 'server = "https://other"\nskip_verify = true'))
    assert config.options_for(URL("https://r.example/token")).skip_verify
    assert not config.options_for(URL("https://elsewhere/token")).skip_verify


def test_our_own_table_fills_in_the_rest(write):
    table = HostsConfig(
        mirrors={"quay.io": ()},
        options={
            "m.example": HostOptions(proxy="http://p:1", credentials=Credentials("u", "p")),
            "quay.io": HostOptions(proxy="http://q:1"),
        },
    )
    text = 'skip_verify = true\n[host."https://m.example"]\nskip_verify = true'
    config, _ = read_hosts(write("quay.io", text), table)
    mirror, own = config.endpoints("quay.io")
    both = mirror.options.over(config.options_for(mirror.url))
    assert (both.skip_verify, both.proxy) == (True, "http://p:1")
    assert config.credentials_for(mirror, None) == Credentials("u", "p")
    assert config.options_for(own.url).proxy == "http://q:1"
    assert config.options_for(own.url).skip_verify


def test_docker_s_certificates(write):
    folder = write("r.example", "", "ca.crt") / "r.example"
    for name in ("me.cert", "me.key", "notes.txt"):
        (folder / name).write_text("")
    config, told = read_hosts(folder.parent)
    (own,) = config.endpoints("r.example")
    assert told == []
    assert own.options == HostOptions(
        extra_ca_files=(folder / "ca.crt",), client_certificates=((folder / "me.cert", folder / "me.key"),)
    )
    (folder / "me.key").unlink()
    _, told = read_hosts(folder.parent)
    assert "no me.key beside me.cert" in told[0]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("server = 1", "server"),
        ("server = 'ftp://x'", "no http:// or https:// URL"),
        ("[host.'http://[']", "is no http://"),
        ("[host.'https://u:p@m']", "must not hold credentials"),
        ("host = 1", "host"),
        ("[host]\n'https://m' = 1", "m"),
        ("[host.'https://m']\ncapabilities = ['pull', 'fly']", r"host.\"https://m\".capabilities: 'fly'"),
        ("[host.'https://m']\ncapabilities = 'fly'", "capabilities"),
        ("skip_verify = 'yes'", "skip_verify"),
        ("override_path = 1", "override_path"),
        ("ca = 1", "ca"),
        ("ca = ['']", "ca"),
        ("client = [['a', 'b', 'c']]", "client"),
        ("client = {}", "client"),
        ("dial_timeout = '5'", "dial_timeout"),
        ("dial_timeout = '0s'", "dial_timeout"),
        ("dial_timeout = 5", "dial_timeout"),
        ("proxy = 'socks5://x'", "proxy"),
        ("[header]\n'a b' = 'c'", "header"),
        ('[header]\na = "b\\r\\nc: d"', "header.a"),
        ("[header]\na = 1", "header.a"),
        ("a = [", "no TOML"),
        ("a = " + "[" * 100_000, "no TOML"),
        ("#" * 1_100_000, "more than"),
    ],
)
def test_a_bad_file_stops_nothing_but_its_registry(write, text, key):
    write("quay.io", '[host."https://m"]')
    folder = write("docker.io", text)
    config, (told,) = read_hosts(folder)
    file = str(folder / "docker.io/hosts.toml")
    assert told.startswith(file)
    with pytest.raises(InvalidEndpointError, match=key.replace("[", r"\[")) as caught:
        config.endpoints("docker.io")
    assert file in str(caught.value)
    assert "u:p" not in told
    assert len(addresses(config, "quay.io")) == 2
    assert len(addresses(config, "ghcr.io")) == 1


def test_a_bad_default_stops_all_that_have_no_other(write):
    write("quay.io", "")
    config, _ = read_hosts(write("_default", "server = 1"))
    assert addresses(config, "quay.io")
    with pytest.raises(InvalidEndpointError, match="_default"):
        config.endpoints("ghcr.io")


def test_what_a_newer_release_may_have_is_passed_over_and_told(write):
    config, (one, two) = read_hosts(write("quay.io", 'sever = "x"\n[host."https://m"]\nnew = 1'))
    assert "sever is not known, and does nothing; did you mean server?" in one
    assert 'host."https://m".new' in two
    assert len(addresses(config, "quay.io")) == 2


def test_mirrors_in_both_places_are_one_too_many(write):
    table = HostsConfig(mirrors={"quay.io": ["https://ours"]})
    config, (told,) = read_hosts(write("quay.io", '[host."https://theirs"]'), table)
    assert "remove one of them" in told
    with pytest.raises(InvalidEndpointError, match="remove one of them"):
        config.endpoints("quay.io")


def test_things_that_are_no_registries(write, tmp_path):
    write("lost+found", "")
    (tmp_path / "README").write_text("")
    os.mkfifo(tmp_path / "fifo")
    _, (told,) = read_hosts(tmp_path)
    assert "lost+found" in told


def test_no_directory(tmp_path):
    table = HostsConfig(mirrors={"quay.io": ["https://ours"]})
    config, (told,) = read_hosts(tmp_path / "none", table)
    assert config == table
    assert "there is no such directory" in told
    (tmp_path / "file").write_text("")
    config, (told,) = read_hosts(tmp_path / "file", table)
    with pytest.raises(InvalidEndpointError, match="cannot be read"):
        config.endpoints("ghcr.io")


def test_a_file_that_is_a_directory_or_a_fifo(write, tmp_path):
    (tmp_path / "quay.io" / "hosts.toml").mkdir(parents=True)
    (tmp_path / "ghcr.io").mkdir()
    os.mkfifo(tmp_path / "ghcr.io" / "hosts.toml")
    _, told = read_hosts(tmp_path)
    assert len(told) == 2


@given(text=st.text(max_size=200))
def test_any_text_is_read_or_told_of(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "quay.io").mkdir()
    (folder / "quay.io" / "hosts.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    config, told = read_hosts(folder)
    assert config.broken or config.endpoints("quay.io")
    assert all("hosts.toml" in one for one in told)


class TestRequests:
    """What a server sees."""

    @pytest.fixture
    async def mirror(self, registries):
        return await registries()

    async def test_headers_stay_with_their_host(self, registry, mirror, write, kit):
        text = f'server = "{registry.url}"\n[host."{mirror.url}".header]\nX-Meta-Auth = "hunter2"\nAccept = "never"'
        config, _ = read_hosts(write(registry.host, text))
        assert "hunter2" not in repr(config)
        image = registry.add(kit.image(), "1")

        async def away(request):
            raise web.HTTPTemporaryRedirect(f"{registry.url}{request.path}")

        mirror.hook = away
        async with Client(config, retry=kit.quick) as client:
            assert (await client.manifest(registry.ref()))[0].digest == image.digest
        assert mirror.requests[0].headers["X-Meta-Auth"] == "hunter2"
        assert mirror.requests[0].headers.getall("Accept") == [registry.requests[0].headers["Accept"]]
        assert all("X-Meta-Auth" not in request.headers for request in registry.requests)

    async def test_tags_are_asked_of_those_who_may_say(self, registry, mirror, write, kit):
        config, _ = read_hosts(
            write(registry.host, f'[host."{mirror.url}"]\ncapabilities = ["pull"]\noverride_path = true')
        )
        image, lie = registry.add(kit.image(), "1"), mirror.add(kit.image("freebsd"), "1")
        assert lie.digest != image.digest
        async with Client(config, retry=kit.quick) as client:
            assert (await client.resolve(registry.ref())).digest == image.digest
            assert mirror.requests == []
            await client.manifest(registry.ref(), image.digest)
            assert mirror.requests[0].path == f"/team/app/manifests/{image.digest}"

    async def test_a_broken_file_is_what_the_pull_says(self, registry, write, kit):
        config, _ = read_hosts(write(registry.host, "server = 1"))
        async with Client(config) as client:
            with pytest.raises(InvalidEndpointError, match=r"hosts\.toml: server: is '1'"):
                await client.resolve(registry.ref())
        assert registry.requests == []

    async def test_a_missing_certificate_is_named(self, registry, write, kit):
        for key in ("ca", "client"):
            config, _ = read_hosts(write(registry.host, f'{key} = "none.pem"'))
            async with Client(config, retry=kit.quick) as client:
                with pytest.raises(ConnectError, match=r"cannot load the .*none\.pem"):
                    await client.resolve(registry.ref())

    async def test_another_server_never_sees_the_registrys_secret(self, registry, mirror, write, kit):
        config, _ = read_hosts(write("_default", f'server = "{mirror.url}"'))

        async def guard(_):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

        mirror.hook = guard
        async with Client(config, retry=kit.quick) as client:
            with pytest.raises(UnauthorizedError):
                await client.resolve(registry.ref(), Credentials("user", "hunter2"))
        assert all("Authorization" not in request.headers for request in mirror.requests)


def test_a_host_may_be_given_in_words_of_the_library():
    host = RegistryHost("https://m", frozenset({PULL}))
    config = HostsConfig(mirrors={"quay.io": [host]})
    assert len(config.endpoints("quay.io")) == 2
    assert len(config.endpoints("quay.io", RESOLVE)) == 1
