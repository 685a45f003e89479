"""The checks that every system shares, and the command."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import resource
import sys
from pathlib import Path

import pytest

from cri import cli
from cri.doctor import common, examination, linux
from cri.doctor.finding import Check, Finding, Level, ok
from cri.sandbox.host import HostError


def only(findings) -> Finding:
    (one,) = findings
    return one


@pytest.mark.parametrize(("uid", "level"), [(0, Level.OK), (1001, Level.FAILURE)])
def test_root(monkeypatch, uid, level) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert only(common.root()).level is level


def test_libraries(monkeypatch) -> None:
    assert only(common.libraries()).level in (Level.OK, Level.NOTE)
    needed = [
        "aiohttp>=3",
        "no-such-library==1",
        "Neither.this_one ; python_version > '3'",
        "pytest ; extra == 'dev'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needed)
    finding = only(common.libraries())
    assert finding.level is Level.FAILURE
    assert finding.remedy == "python3 -m pip install no-such-library Neither.this_one"


def test_sockets(settings) -> None:
    settings = dataclasses.replace(settings, runtime_dir=Path("/var/run/cri-jails"))
    assert only(common.sockets(settings)).level is Level.OK
    assert only(common.sockets(dataclasses.replace(settings, socket_group="0"))).level is Level.OK
    nobody = only(common.sockets(dataclasses.replace(settings, socket_group="no-such-group")))
    assert (nobody.level, nobody.remedy.split()[-1]) == (Level.FAILURE, "no-such-group")
    # The endpoint's path may be short while those of the wardens are not.
    long = only(common.sockets(dataclasses.replace(settings, runtime_dir=Path("/" + "x" * 90))))
    assert long.level is Level.FAILURE
    assert "warden.sock" in long.message


def test_the_state_directory(tmp_path, monkeypatch) -> None:
    place = tmp_path / "state"
    assert only(common.state_directory(place)).level is Level.OK
    place.mkdir(mode=0o755)
    assert only(common.state_directory(place)).level is Level.WARNING
    place.chmod(0o700)
    assert only(common.state_directory(place)).level is (
        Level.OK if place.stat().st_uid == 0 else Level.WARNING
    )
    (tmp_path / "file").touch()
    assert only(common.state_directory(tmp_path / "file")).level is Level.FAILURE


@pytest.mark.parametrize(
    ("free", "inodes", "levels"),
    [
        (50.0, 500, {Level.OK}),
        (14.0, 500, {Level.WARNING}),
        (0.5, 500, {Level.FAILURE}),
        (50.0, 4, {Level.OK, Level.WARNING}),
    ],
)
def test_space(monkeypatch, tmp_path, free, inodes, levels) -> None:
    gib = common.GIB // 4096
    values = (4096, 4096, 100 * gib, int(free * gib), int(free * gib), 100, inodes, inodes, 0, 255)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))
    # 500 of 100 inodes free stands for a file system that makes them as it goes.
    assert {finding.level for finding in common.space(tmp_path / "not" / "yet")} == levels


def test_descriptors(monkeypatch) -> None:
    for limit, level in ((256, Level.WARNING), (4096, Level.OK), (resource.RLIM_INFINITY, Level.OK)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert only(common.descriptors()).level is level


def test_linux_overlay(tmp_path) -> None:
    filesystems = tmp_path / "filesystems"
    filesystems.write_text("nodev\ttmpfs\nnodev\toverlay\n\text4\n")
    assert only(linux.overlay("auto", filesystems)).level is Level.OK
    filesystems.write_text("nodev\ttmpfs\n")
    assert only(linux.overlay("auto", filesystems)).level is Level.NOTE
    assert only(linux.overlay("overlay", filesystems)).level is Level.FAILURE


def test_linux_seccomp(monkeypatch) -> None:
    monkeypatch.setattr(linux.selection, "missing", str)
    assert only(linux.seccomp()).level is Level.OK
    monkeypatch.setattr(linux.selection, "missing", lambda: "there is no library")
    finding = only(linux.seccomp())
    assert finding.level is Level.WARNING
    assert "refused: there is no library" in finding.message
    assert "libseccomp2" in finding.remedy


def test_linux_forwarding(tmp_path) -> None:
    (tmp_path / "ipv4").mkdir()
    (tmp_path / "ipv4" / "ip_forward").write_text("1\n")
    (tmp_path / "ipv6" / "conf" / "all").mkdir(parents=True)
    (tmp_path / "ipv6" / "conf" / "all" / "forwarding").write_text("0\n")
    assert only(linux.forwarding(["10.0.0.0/8"], tmp_path)).level is Level.OK
    finding = only(linux.forwarding(["fd00::/64"], tmp_path))
    assert finding.level is Level.NOTE
    assert finding.remedy.endswith(".ipv6.conf.all.forwarding=1")


def test_a_check_that_cannot_look_does_not_hide_what_it_has_seen() -> None:
    def half():
        yield ok("half", "seen")
        raise PermissionError(13, "Permission denied", "/x")

    seen, missing = examination.run([Check("half", half)])
    assert seen.message == "seen"
    assert (missing.level, missing.message) == (Level.WARNING, "cannot tell: /x Permission denied")


def test_a_binding_that_cannot_be_imported_is_a_failure_with_a_remedy(settings) -> None:
    if sys.platform.startswith("freebsd"):
        pytest.skip("Linux only: here the binding can be imported")
    findings = examination.examine(dataclasses.replace(settings, host="freebsd"))
    assert findings[-1].name == "binding"
    assert findings[-1].level is Level.FAILURE
    assert "pip install" in findings[-1].remedy


def test_a_system_without_a_driver(settings, monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "netbsd10")
    with pytest.raises(HostError, match="netbsd"):
        examination.examine(settings)


def test_the_command(tmp_path, capsys) -> None:
    flags = ["--state-dir", str(tmp_path / "state"), "--host", "freebsd"]
    if sys.platform.startswith("linux"):
        assert cli.main(["doctor", "--json", *flags]) == 1
        levels = {one["name"]: one["level"] for one in json.loads(capsys.readouterr().out)["findings"]}
        assert levels["binding"] == "failure"
        assert cli.main(["doctor", *flags]) == 1
        assert "\x1b" not in capsys.readouterr().out
    assert cli.main(["doctor", "--host", "beos"]) == 2
    assert "beos" in capsys.readouterr().err


def test_the_command_where_there_is_no_driver(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "platform", "sunos5")
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("cri-jails: examine host sunos")


def test_help_tells_the_exit_status(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Exit status: 0 if there is no failure, 1 if there is one, 2 if" in shown
    assert "--state-dir" in shown
