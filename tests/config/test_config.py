"""Where values come from, and what is said about wrong ones."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri import config
from cri.config import Config, ConfigError, RegistryConfig
from cri.server import registry_hosts
from cri.settings import SETTINGS, Setting
from registratur import Reference

FULL = """
state_dir = "/s"
runtime_dir = "/r"
socket = "/r/x.sock"
socket_group = "wheel"
metrics_address = "[::1]:9325"
host = "linux"
snapshotter = "copy"
runtime_handlers = ["linux", "native"]
log = { level = "debug", format = "json" }
[image]
max_parallel_downloads = 8
idle_timeout = 5
[network]
bridge = "pods0"
subnets = ["fd00:1::/64"]
mtu = 1400
[registries."docker.io"]
mirrors = ["http://127.0.0.1:5000"]
ca_file = "/etc/ssl/mine.pem"
skip_verify = true
[registries."quay.io"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cri-jails.toml"
    path.write_text(text)
    return path


def test_the_defaults_are_complete() -> None:
    made = config.load(environment={})
    assert made.socket == Path("/var/run/cri-jails/cri-jails.sock")
    assert made.metrics_endpoint() is None
    assert set(made.sources) == {setting.key for setting in SETTINGS}


def test_a_full_file(tmp_path: Path) -> None:
    made = config.load(write(tmp_path, FULL), environment={})
    assert (made.state_dir, made.socket, made.snapshotter) == (Path("/s"), Path("/r/x.sock"), "copy")
    assert made.metrics_endpoint() == ("::1", 9325)
    assert made.runtime_handlers == ("linux", "native")
    assert (made.log.level, made.image.idle_timeout, made.network.mtu) == ("debug", 5.0, 1400)
    assert made.registries == {
        "docker.io": RegistryConfig(("http://127.0.0.1:5000",), Path("/etc/ssl/mine.pem"), skip_verify=True),
        "quay.io": RegistryConfig(),
    }


def test_precedence(tmp_path: Path) -> None:
    file = write(tmp_path, "[log]\nlevel = 'debug'\nformat = 'json'\n[network]\nmtu = 1400\n")
    environment = {"CRI_JAILS_LOG_LEVEL": "warning", "CRI_JAILS_NETWORK_MTU": "1300", "HOME": "/"}
    made = config.load(file, environment, {"network.mtu": "1200"})
    assert (made.log.format, made.log.level, made.network.mtu) == ("json", "warning", 1200)
    assert made.sources["log.format"] == str(file)
    assert made.sources["log.level"] == "CRI_JAILS_LOG_LEVEL"
    assert made.sources["network.mtu"] == "--network-mtu"
    assert made.sources["host"] == "default"


def test_the_socket_follows_the_runtime_dir() -> None:
    assert config.load(environment={"CRI_JAILS_RUNTIME_DIR": "/x"}).socket == Path("/x/cri-jails.sock")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_setting_by_every_way(tmp_path: Path, setting: Setting) -> None:
    samples = {
        "socket": "/s.sock",
        "metrics_address": "127.0.0.1:1",
        "host": "freebsd",
        "snapshotter": "zfs",
        "runtime_handlers": "a,b",
        "log.level": "error",
        "log.format": "json",
        "streaming.address": "[::1]:10250",
        "network.bridge": "br7",
        "tracing.endpoint": "http://[::1]:4317",
        "tracing.sampling_ratio": "0.25",
        "image.pinned": "busybox,localhost/x:*",
        "network.subnets": "10.1.0.0/24,fd01::/64",
        "network.masquerade": "false",
        "network.cluster": "10.0.0.0/8",
    }
    by_type = {int: "7", float: "7.5"}
    text = samples.get(setting.key) or by_type.get(type(setting.default), "/seven")
    by_flag = config.load(environment={}, flags={setting.key: text})
    by_variable = config.load(environment={setting.variable: text})
    by_file = config.load(write(tmp_path, config.dump(by_flag)), environment={})
    assert by_flag == by_variable == by_file
    assert by_flag != config.load(environment={})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stat_dir = '/x'", r"cri-jails.toml: unknown key stat_dir; did you mean state_dir\?"),
        ("[log]\nlevle = 'debug'", r"unknown key log.levle; did you mean log.level\?"),
        ("[imag]\nidle_timeout = 5", r"unknown key imag; did you mean image"),
        ("[registries.'docker.io']\nmirror = []", r'registries."docker.io".mirror; did you mean mirrors\?'),
        ("[network]\nmtu = 'big'", r"network.mtu is 'big', but must be a whole number from 0 to 65535"),
        ("[network]\nmtu = true", r"network.mtu is True, but must be a whole number"),
        (
            "[network]\nsubnets = ['10.0.0.1/8']",
            r"network.subnets is \['10.0.0.1/8'\], but must be one address prefix per address family",
        ),
        ('[image]\npinned = ["busy*"]', r"image.pinned is .*images' names.*docker.io/library/busy\*"),
        ("[image]\nidle_timeout = -1", r"image.idle_timeout is -1, but must be a number of seconds"),
        ("[image]\nidle_timeout = nan", r"image.idle_timeout is nan, but must be a number of seconds"),
        ("state_dir = 5", r"state_dir is 5, but must be an absolute path"),
        ("state_dir = 'here'", r"state_dir is 'here', but must be an absolute path"),
        ("host = 'plan9'", r"host is 'plan9', but must be one of auto, linux, freebsd"),
        ("metrics_address = '9325'", r"metrics_address is '9325', but must be HOST:PORT"),
        ("[streaming]\naddress = ''", r"streaming.address is '', but must be HOST:PORT, such as 127.0.0.1:0"),
        (
            "[streaming]\ncert_file = 'x'",
            r"streaming.cert_file is 'x', but must be an absolute path, or nothing",
        ),
        ("runtime_handlers = [1]", r"runtime_handlers is \[1\], but must be a list of strings"),
        (
            "[tracing]\nendpoint = 'localhost:4317'",
            r"endpoint is 'localhost:4317', but must be http://HOST:PORT or",
        ),
        ("[tracing]\nendpoint = 'http://host/v1/traces'", r"but must be http://HOST:PORT or"),
        ("[tracing]\nendpoint = 'http://host'", r"but must be http://HOST:PORT or"),
        (
            "[tracing]\nsampling_ratio = 1.5",
            r"tracing.sampling_ratio is 1.5, but must be a number from 0 to 1",
        ),
        ("[tracing]\nsampling_ratio = nan", r"but must be a number from 0 to 1"),
        ("log = 5", r"log is 5, but must be a table \[log\]"),
        ("registries = 5", r"registries is 5, but must be tables"),
        ("[registries]\n'docker.io' = 5", r'registries."docker.io" is int, but must be a table'),
        ("[registries.x]\nskip_verify = 3", r'registries."x".skip_verify is 3, but must be true or false'),
        ("=", r"cri-jails.toml: not TOML"),
        ("x = " + "[" * 5000, r"nested too deeply"),
        ('state_dir = "/a\\u0000b"', r"state_dir is '/a\\x00b', but must be UTF-8 without zero bytes"),
        (
            "[network]\nexternal_plugins = ['cni']",
            r"external_plugins is \['cni'\], but must be a list of absolute",
        ),
        ("[network]\nbridge = 'a b'", r"network.bridge is 'a b', but must be an interface name"),
        ("[network]\nbridge = '..'", r"network.bridge is '\.\.', but must be an interface name"),
        (f"[network]\nmtu = '{'9' * 5000}'", r"but must be a whole number from 0 to 65535"),
        (f"socket = '/{'x' * 200}'", r"cri-jails.toml: the socket path .* may have 103: choose a shorter"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        config.load(write(tmp_path, text), environment={})


def registries(tmp_path: Path, *names: str, body: str = "mirrors = ['http://127.0.0.1:5999']") -> Config:
    text = "".join(f"[registries.{config._toml(name)}]\n{body}\n" for name in names)
    return config.load(write(tmp_path, text), environment={})


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("Index.Docker.IO:443", "docker.io"),
        ("registry-1.docker.io", "registry-1.docker.io"),
        ("Quay.IO", "quay.io"),
        ("quay.io:443", "quay.io:443"),
        ("quay.io:0443", "quay.io:443"),
        ("localhost", "localhost"),
        ("registry:5000", "registry:5000"),
        ("[FD00:0:0::1]:5000", "[fd00::1]:5000"),
        ("192.0.2.1", "192.0.2.1"),
        ("*", "*"),
    ],
)
def test_a_registry_has_the_name_that_references_have(tmp_path: Path, name: str, kept: str) -> None:
    assert list(registries(tmp_path, name).registries) == [kept]
    if name != "*":
        meant = Reference.parse(f"{name.lower()}/busybox").registry
        hosts = registry_hosts(registries(tmp_path, name))
        assert str(hosts.endpoints(meant)[0].url).rstrip("/") == "http://127.0.0.1:5999"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("https://registry.example.org", "write 'registry.example.org', without the scheme"),
        ("http://registry.example.org:5000/", "write 'registry.example.org:5000', without the scheme"),
        ("localhost:5000/", "a path has no place in it; write 'localhost:5000'"),
        ("docker.io/library", "write 'docker.io'"),
        ("*.example.org", "stands for every other registry, alone"),
        ("**", "stands for every other registry, alone"),
        ("registry.example.org.", "no dot at the end; write 'registry.example.org'"),
        (" quay.io", "without spaces"),
        ("quay.io\t", "without spaces"),
        ("quay.io:", "write host or host:port"),
        ("quay.io:http", "write host or host:port"),
        ("quay.io:0", "0 is no port"),
        ("quay.io:65536", "65536 is no port"),
        ("::1", r"in brackets, '\[::1\]'"),
        ("[::g]:5000", "is no IPv6 address"),
        ("[fe80::1%eth0]", "write host or host:port"),
        ("bücher.example", "write it as DNS has it, 'xn--bcher-kva.example'"),
        ("user@quay.io", "must not hold credentials"),
        ("my_registry.example", "write host or host:port"),
        ("-.example", "write host or host:port"),
        ("", "write host or host:port"),
        ("registry", "no image reference can name"),
    ],
)
def test_a_registry_that_no_reference_can_name_is_refused(tmp_path: Path, name: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        registries(tmp_path, name)


def test_a_host_that_is_no_registry_may_have_what_concerns_hosts(tmp_path: Path) -> None:
    """A mirror, a token service, the place that a redirect leads to."""
    assert registries(tmp_path, "mirror", body="skip_verify = true").registries["mirror"].skip_verify


@pytest.mark.parametrize("names", [("docker.io", "Docker.io"), ("index.docker.io", "docker.io")])
def test_one_registry_twice_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r'registries."docker.io" is there twice'):
        registries(tmp_path, *names)


@pytest.mark.parametrize(
    "mirror", ["m:5000", "ftp://m", "", "http://user:hunter2@m", "http://m?x", "http://m:x"]
)
def test_a_mirror_that_is_no_url_is_refused_at_start(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(ConfigError, match=r'registries."quay.io": mirror of quay.io') as caught:
        registries(tmp_path, "quay.io", body=f"mirrors = ['{mirror}']")
    assert "hunter2" not in str(caught.value)


def test_a_table_without_mirrors_takes_the_place_of_the_others(tmp_path: Path) -> None:
    """What is pulled from there needs a login, and a mirror of all others' would give it to whoever asks."""
    text = "[registries.'*']\nmirrors = ['http://m']\n[registries.'Private.example']\n"
    hosts = registry_hosts(config.load(write(tmp_path, text), environment={}))
    for name in ("private.example", "Private.example", "private.example:443"):
        (endpoint,) = hosts.endpoints(name)
        assert (endpoint.is_mirror, endpoint.url.host) == (False, "private.example")
    assert len(hosts.endpoints("quay.io")) == 2


PROXY = "http://user:hunter2@proxy.example:3128"


@pytest.mark.parametrize(
    ("value", "kept"),
    [(f"'{PROXY}'", PROXY), ("'proxy:3128'", "proxy:3128"), ("false", ""), ("'false'", ""), ("''", "")],
)
def test_a_proxy_of_a_registry(tmp_path: Path, value: str, kept: str) -> None:
    loaded = registries(tmp_path, "quay.io", body=f"proxy = {value}")
    assert loaded.registries["quay.io"].proxy == kept
    assert registry_hosts(loaded).options["quay.io"].proxy == kept
    shown = config.dump(loaded) + repr(loaded) + repr(registry_hosts(loaded))
    assert "hunter2" not in shown
    assert "user" not in config.dump(loaded)
    assert registries(tmp_path, "quay.io").registries["quay.io"].proxy is None


@pytest.mark.parametrize(
    "value",
    [
        "'socks5://user:hunter2@proxy'",
        "true",
        "5",
        "'http://user:hunter2@'",
        "'http://a:hunter2@p:x'",
        "'hunter2@'",
    ],
)
def test_a_proxy_that_is_none_is_refused_without_its_password(tmp_path: Path, value: str) -> None:
    with pytest.raises(
        ConfigError, match=r'registries."quay.io".proxy is .*, but must be http://HOST:PORT'
    ) as caught:
        registries(tmp_path, "quay.io", body=f"proxy = {value}")
    assert "hunter2" not in str(caught.value)


def test_no_password_in_what_is_said_of_a_variable() -> None:
    for text in (f'{{"quay.io" = {{proxy = "{PROXY}"', f'{{"quay.io" = "{PROXY}"}}'):
        with pytest.raises(ConfigError) as caught:
            config.load(environment={"CRI_JAILS_REGISTRIES": text})
        assert "hunter2" not in str(caught.value)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfstate_dir = '/x'\n")
    assert config.load(tmp_path / "bom.toml", environment={}).state_dir == Path("/x")


def test_what_is_no_utf_8_in_a_variable() -> None:
    with pytest.raises(ConfigError, match="must be UTF-8"):
        config.load(environment={"CRI_JAILS_STATE_DIR": "/\udcff"})


def test_wrong_variables() -> None:
    with pytest.raises(ConfigError, match=r"CRI_JAILS_LOG_LEVL; did you mean CRI_JAILS_LOG_LEVEL\?"):
        config.load(environment={"CRI_JAILS_LOG_LEVL": "debug"})
    with pytest.raises(ConfigError, match=r"CRI_JAILS_NETWORK_MTU: network.mtu is '-1'"):
        config.load(environment={"CRI_JAILS_NETWORK_MTU": "-1"})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: No such file"):
        config.load(tmp_path / "no.toml", environment={})
    (tmp_path / "latin.toml").write_bytes(b"state_dir = '/\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(tmp_path / "latin.toml", environment={})


paths = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).map(
    lambda text: "/" + text
)


@given(
    state=paths,
    group=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    registry=st.from_regex(r"[a-z0-9]{1,9}([.][a-z0-9]{1,9}|:[1-9][0-9]{0,3})", fullmatch=True),
)
def test_a_dump_is_toml_that_loads_to_the_same(
    tmp_path_factory, state: str, group: str, registry: str
) -> None:
    file = tmp_path_factory.mktemp("dump") / "x.toml"
    made = config.load(environment={}, flags={"state_dir": state, "socket_group": group})
    file.write_text(config.dump(made) + f"[registries.{config._toml(registry)}]\nmirrors = ['http://m']\n")
    again = config.load(file, environment={})
    assert (again.state_dir, again.socket_group) == (made.state_dir, group)
    assert set(again.registries) == {registry}
    assert tomllib.loads(config.dump(again))["registries"] == {registry: {"mirrors": ["http://m"]}}


def test_a_dump_names_sources(tmp_path: Path) -> None:
    file = write(tmp_path, FULL)
    dumped = config.dump(config.load(file, {"CRI_JAILS_LOG_LEVEL": "error"}, {"network.mtu": "9000"}))
    assert f'host = "linux"  # {file}' in dumped
    assert 'level = "error"  # CRI_JAILS_LOG_LEVEL' in dumped
    assert "mtu = 9000  # --network-mtu" in dumped
    assert '[registries."docker.io"]' in dumped
    assert f"skip_verify = true  # {file}" in dumped


def test_the_deployed_example_names_every_setting_with_its_default(tmp_path) -> None:
    example = (Path(__file__).parents[2] / "deploy/cri-jails.toml").read_text()
    assert config.load(_written(tmp_path, example), environment={}) == config.load(None, environment={})
    # With the comment marks taken off the settings, it still says the defaults, and says them all.
    settings = "\n".join(
        line.removeprefix("# ")
        for line in example.partition("# How registries")[0].splitlines()
        if not line.startswith("#") or (" = " in line and not line.endswith("."))
    )
    loaded = config.load(_written(tmp_path, settings), environment={})
    assert loaded == config.load(None, environment={})
    assert {key for key, source in loaded.sources.items() if source != "default"} == {s.key for s in SETTINGS}


def _written(directory: Path, text: str) -> Path:
    file = directory / "config.toml"
    file.write_text(text)
    return file


def test_registries_without_a_file() -> None:
    given = '{"docker.io" = {mirrors = ["https://m.example.org"]}, "*" = {skip_verify = true}}'
    by_variable = config.load(None, environment={"CRI_JAILS_REGISTRIES": given})
    assert by_variable.registries["docker.io"].mirrors == ("https://m.example.org",)
    both = config.load(
        None,
        environment={"CRI_JAILS_REGISTRIES": given},
        flags={"registries": '{"docker.io" = {skip_verify = true}}'},
    )
    assert both.registries["docker.io"].mirrors == ()
    assert both.registries["*"].skip_verify
    for wrong, message in (
        ("x", "no inline table"),
        ('{"a" = {mirror = []}}', "did you mean mirrors"),
        ("1", "must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            config.load(None, environment={"CRI_JAILS_REGISTRIES": wrong})


def test_the_driver_s_defaults_are_the_configuration_s():
    """They stand twice: the configuration knows no driver, and a driver no configuration."""
    from cri.sandbox.freebsd.jails import Policy

    freebsd = config.load(None, environment={}).freebsd
    assert Policy(frozenset(freebsd.allow), freebsd.devfs_ruleset) == Policy()
