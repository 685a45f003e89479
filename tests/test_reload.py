"""SIGHUP: what is taken over, what is not, and what a bad file does."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog

from cni_plugins import ConfigurationError
from cri import config as configuration
from cri import reload as reloading
from cri.config import Config
from cri.reload import RELOADED, OnHangup, Reloader
from cri.server import registry_hosts
from cri.settings import SETTINGS
from registratur import InvalidEndpointError


class Daemon:
    """What a reload changes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.hosts: list[object] = []
        self.networks: list[object] = []
        self.shown: Config = self.read()
        self.levels: list[tuple[str, str]] = []
        self.reloader = Reloader(
            self.read(),
            read=self.read,
            hosts=registry_hosts,
            registries=SimpleNamespace(configure=self.hosts.append),
            network=self,
            changed=lambda config: setattr(self, "shown", config),
        )

    def read(self) -> Config:
        return configuration.load(self.file, environment={}, flags={"log.format": "console"})

    async def prepare(self, config):
        if config.mtu == 1:
            raise ConfigurationError("no network has an MTU of 1")
        return lambda: self.networks.append(config)

    async def reload(self, text: str) -> list[dict]:
        self.file.write_text(text)
        with structlog.testing.capture_logs() as logs:
            await self.reloader.reload()
        return logs


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch) -> Daemon:
    file = tmp_path / "config.toml"
    file.write_text('socket_group = "wheel"\n[network]\nbridge = "br1"\n')
    daemon = Daemon(file)
    monkeypatch.setattr(reloading.logs, "configure", lambda *values: daemon.levels.append(values))
    return daemon


async def test_a_bad_file_of_a_registry_is_named_and_stops_nothing_else(daemon, tmp_path) -> None:
    hosts = tmp_path / "certs.d"
    for registry, text in (("quay.io", "server = 1"), ("ghcr.io", '[host."https://m.example.org"]')):
        (hosts / registry).mkdir(parents=True)
        (hosts / registry / "hosts.toml").write_text(text)
    text = f'[image]\nhosts_dir = "{hosts}"\n'
    (bad, done, _) = await daemon.reload(text)
    assert f"{hosts}/quay.io/hosts.toml: server: is '1'" in bad["problem"]
    assert "image.hosts_dir" in done["changed"]
    assert daemon.shown.image.hosts_dir == hosts
    assert str(daemon.hosts[-1].endpoints("ghcr.io")[0].url) == "https://m.example.org"
    with pytest.raises(InvalidEndpointError, match=r"quay\.io"):
        daemon.hosts[-1].endpoints("quay.io")
    (hosts / "quay.io" / "hosts.toml").write_text("")
    assert not any("problem" in one for one in await daemon.reload(text))
    assert daemon.hosts[-1].endpoints("quay.io")


async def test_the_operator_s_credentials_are_read_anew(daemon, tmp_path) -> None:
    file = tmp_path / "config.json"
    text = f'[image]\ncredentials_file = "{file}"\n'
    (bad, *_) = await daemon.reload(text)
    assert "No such file" in bad["problem"]
    assert daemon.hosts[-1].keychain is None
    file.write_text('{"auths": {"quay.io": {"auth": 1, "password": "hunter2"}}}')
    (bad, *_) = await daemon.reload(text)
    assert f"{file}: auths.quay.io" in bad["problem"]
    file.write_text(
        '{"auths": {"quay.io": {"username": "u", "password": "hunter2"}}, "credsStore": "desktop"}'
    )
    (bad, *rest) = await daemon.reload(text)
    assert "'desktop'" in bad["problem"]
    assert "hunter2" not in f"{bad}{rest}"
    hosts = daemon.hosts[-1]
    (own,) = hosts.endpoints("quay.io")
    assert hosts.credentials_for(own, None).username == "u"


async def test_what_can_be_is_taken_over_and_the_rest_is_named(daemon) -> None:
    (done, rest) = await daemon.reload(
        'socket_group = "operator"\nmetrics_address = "127.0.0.1:1"\n[log]\nlevel = "debug"\n'
        '[network]\nbridge = "br2"\nexternal_plugins = ["/opt/cni/bin"]\n'
        '[registries."docker.io"]\nmirrors = ["https://mirror.example.org"]\nproxy = "http://u:secret@proxy:1"\n'
    )
    assert done["changed"] == ["log.level", "network.bridge", 'registries."docker.io"']
    assert rest["settings"] == ["socket_group", "metrics_address", "network.external_plugins"]
    assert "restart" in rest["remedy"]
    assert "secret" not in f"{done}{rest}"
    assert daemon.levels == [("debug", "console")]
    assert [network.bridge for network in daemon.networks] == ["br2"]
    assert list(daemon.hosts[-1].mirrors) == ["docker.io"]
    shown = configuration.dump(daemon.shown)
    assert 'socket_group = "wheel"' in shown
    assert 'bridge = "br2"' in shown
    assert "external_plugins = []" in shown
    assert "mirror.example.org" in shown
    # Back again: nothing is owed any more.
    (done,) = await daemon.reload('socket_group = "wheel"\n[network]\nbridge = "br2"\n')
    assert done["changed"] == ["log.level", 'registries."docker.io"']
    assert "mirror.example.org" not in configuration.dump(daemon.shown)
    assert daemon.hosts[-1].mirrors == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[log]\nlevel = 7", "log.level is 7"),
        ("[log]\nlevel = 'debug'\n[network]\nmtu = 1", "MTU of 1"),
        ("[log", "not TOML"),
        ("socked = '/x'", "did you mean socket"),
        ('[log]\nlevel = "debug"\n[registries."docker.io"]\nmirrors = ["nowhere"]', "docker.io"),
    ],
)
async def test_a_bad_file_changes_nothing(daemon, text, reason) -> None:
    (said,) = await daemon.reload(text)
    assert said["log_level"] == "error"
    assert reason in said["error"]
    assert "stays as it is" in said["remedy"]
    assert (daemon.levels, daemon.networks, daemon.hosts) == ([], [], [])
    daemon.file.unlink()
    with structlog.testing.capture_logs() as logs:
        await daemon.reloader.reload()
    assert "cannot read the configuration" in logs[0]["error"]


async def test_a_file_that_says_the_same_has_certificates_read_anew(daemon) -> None:
    (done,) = await daemon.reload(daemon.file.read_text())
    assert done["changed"] == []
    assert len(daemon.hosts) == 1
    assert (daemon.levels, daemon.networks) == ([], [])


async def test_a_signal_counts_that_comes_before_the_daemon_serves(daemon) -> None:
    hangup = OnHangup()
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.01)
        daemon.file.write_text("[log]\nlevel = 'warning'\n")
        serving = asyncio.create_task(hangup.serve(daemon.reloader))
        async with asyncio.timeout(5):
            while not daemon.levels:
                await asyncio.sleep(0.01)
        serving.cancel()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
    assert daemon.levels == [("warning", "console")]


def test_what_is_reloaded_is_in_the_table() -> None:
    assert {setting.key for setting in SETTINGS} >= RELOADED
