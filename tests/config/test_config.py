"""Where values come from, and what is said about wrong ones."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri import config
from cri.config import ConfigError, RegistryConfig
from cri.settings import SETTINGS, Setting

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
        ("log = 5", r"log is 5, but must be a table \[log\]"),
        ("registries = 5", r"registries is 5, but must be tables"),
        ("[registries]\n'docker.io' = 5", r'registries."docker.io" is 5, but must be a table'),
        ("[registries.x]\nskip_verify = 3", r'registries."x".skip_verify is 3, but must be true or false'),
        ("=", r"cri-jails.toml: not TOML"),
        (f"socket = '/{'x' * 200}'", r"cri-jails.toml: the socket path .* may have 103: choose a shorter"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        config.load(write(tmp_path, text), environment={})


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
    group=st.text(st.characters(exclude_categories=["Cs"])),
    registry=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
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
