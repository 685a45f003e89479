"""Every finding of a FreeBSD node, made to appear one at a time on a node that is well."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from cni_plugins.errors import KernelError
from cri.doctor import examination, freebsd
from cri.doctor.finding import Finding, Level
from cri.doctor.pf import State
from cri.sandbox.freebsd.calls import Mount

WORST = (Level.FAILURE, Level.WARNING, Level.NOTE, Level.OK)


def found(findings: Iterable[Finding], level: Level) -> Finding:
    """The one finding of a level."""
    (one,) = [finding for finding in findings if finding.level is level]
    return one


def worst(findings: Iterable[Finding]) -> Level:
    return min((finding.level for finding in findings), key=WORST.index)


def enabled() -> State:
    return State(running=True, missing=[])


def disabled() -> State:
    return State(running=False, missing=[])


def test_a_good_node_has_nothing_worse_than_a_note(node, settings) -> None:
    checks = [check for check in freebsd.checks(node, settings) if check.name != "pf"]
    findings = [*examination.run(checks), *freebsd.packet_filter(node, enabled)]
    assert {finding.level for finding in findings} <= {Level.OK, Level.NOTE}, findings
    assert {finding.name for finding in findings} >= {"kernel", "modules", "zfs", "pf", "SA-26:66.jail"}


def test_the_kernel(node) -> None:
    assert next(freebsd.kernel(node)).level is Level.OK
    node.parameters.discard("meta")
    node.set("kern.osreldate", 1_403_000)
    assert next(freebsd.kernel(node)).level is Level.NOTE
    node.set("kern.osreldate", 1_305_000)
    assert next(freebsd.kernel(node)).level is Level.FAILURE
    node.set("kern.osreldate", 1_600_001)
    assert next(freebsd.kernel(node)).level is Level.NOTE


@pytest.mark.parametrize(
    ("module", "level", "command"),
    [
        ("nullfs", Level.FAILURE, "kldload nullfs && sysrc kld_list+=nullfs"),
        ("if_epair", Level.FAILURE, "kldload if_epair && sysrc kld_list+=if_epair"),
        ("linux64elf", Level.NOTE, "kldload linux64 && sysrc kld_list+=linux64"),
    ],
)
def test_a_missing_module(node, module, level, command) -> None:
    node.modules.discard(module)
    finding = found(freebsd.modules(node), level)
    assert finding.message.startswith(f"{module} is missing")
    assert finding.remedy == command


def test_racct(node) -> None:
    node.set("kern.racct.enable", 0, width=1)
    off = found(freebsd.racct(node), Level.WARNING)
    assert off.remedy.startswith("echo 'kern.racct.enable=1' >> /boot/loader.conf")
    del node.sysctls["kern.racct.enable"]
    assert "built without RACCT" in found(freebsd.racct(node), Level.WARNING).message


def test_vimage(node) -> None:
    node.parameters.discard("vnet")
    assert worst(freebsd.vimage(node)) is Level.FAILURE


def test_in_a_jail(node) -> None:
    node.set("security.jail.jailed", 1)
    node.set("security.jail.vnet", 1)
    assert worst(freebsd.jail(node)) is Level.NOTE
    for children, level in ((0, Level.FAILURE), (1, Level.FAILURE), (100, Level.WARNING), (1000, Level.NOTE)):
        node.set("security.jail.children.max", children)
        finding = next(freebsd.jail(node))
        assert (finding.level, str(children) in finding.message) == (level, True)
    node.set("security.jail.vnet", 0)
    assert worst(freebsd.jail(node)) is Level.FAILURE


@pytest.mark.parametrize(
    ("securelevel", "level"),
    [(-1, Level.OK), (0, Level.OK), (1, Level.WARNING), (2, Level.WARNING), (3, Level.FAILURE)],
)
def test_securelevel(node, securelevel, level) -> None:
    node.set("kern.securelevel", securelevel)
    assert worst(freebsd.securelevel(node)) is level


def test_a_directory_that_was_left_open(tmp_path) -> None:
    assert worst(freebsd.inherited_directories()) is Level.OK
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        finding = found(freebsd.inherited_directories(), Level.WARNING)
    finally:
        os.close(descriptor)
    assert str(descriptor) in finding.message
    assert "EN-24:17" in finding.message


def test_forwarding_counts_for_the_family_of_the_pods(node) -> None:
    node.set("net.inet.ip.forwarding", 0)
    assert found(freebsd.forwarding(node, ["10.88.0.0/16"]), Level.NOTE).remedy == (
        "sysctl net.inet.ip.forwarding=1 && sysrc gateway_enable=YES"
    )
    node.set("net.inet6.ip6.forwarding", 0)
    both = list(freebsd.forwarding(node, ["fd00::/64"]))
    assert {finding.level for finding in both} == {Level.NOTE}
    assert "pods have no addresses of it" in both[0].message
    assert "the daemon turns it on" in both[1].message


def test_pf(node) -> None:
    def refused() -> State:
        raise KernelError(errno.EACCES, "open", "/dev/pf")

    def broken() -> State:
        raise KernelError(errno.ENODEV, "read", "the main ruleset")

    def uncompiled() -> State:
        raise ModuleNotFoundError("No module named 'cni_plugins.freebsd._pf'")

    assert worst(freebsd.packet_filter(node, enabled)) is Level.OK
    assert worst(freebsd.packet_filter(node, disabled)) is Level.FAILURE
    assert "cannot tell" in found(freebsd.packet_filter(node, refused), Level.WARNING).message
    assert "not compiled" in found(freebsd.packet_filter(node, uncompiled), Level.WARNING).message
    with pytest.raises(KernelError, match="main ruleset"):
        list(freebsd.packet_filter(node, broken))
    deaf = State(running=True, missing=[], host=["net.pf.filter_local is off"])
    assert "filter_local" in found(freebsd.packet_filter(node, lambda: deaf), Level.WARNING).message
    node.modules.discard("pf")
    assert worst(freebsd.packet_filter(node, enabled)) is Level.FAILURE


def test_every_line_that_pf_conf_lacks_is_a_failure(node) -> None:
    line = 'rdr-anchor "cni-rdr/*"'
    failure = found(freebsd.packet_filter(node, lambda: State(running=True, missing=[line])), Level.FAILURE)
    assert f"`{line}`" in failure.message
    assert "pf.conf" in failure.remedy


def test_zfs(node, settings) -> None:
    assert worst(freebsd.zfs(node, settings)) is Level.OK
    node.mounted[0] = Mount((1, 1), "ufs", "/dev/ada0p2", "/")
    note = found(freebsd.zfs(node, settings), Level.NOTE)
    assert note.remedy == f"zfs create -o mountpoint={settings.state_dir} POOL/cri-jails"
    assert worst(freebsd.zfs(node, dataclasses.replace(settings, snapshotter="zfs"))) is Level.FAILURE
    node.modules.discard("zfsctrl")
    assert "zfs_enable" in found(freebsd.zfs(node, settings), Level.NOTE).remedy


def test_the_runtime_directory(node, settings) -> None:
    assert worst(freebsd.runtime_directory(node, settings.runtime_dir)) is Level.OK
    assert worst(freebsd.runtime_directory(node, Path("/var/run/cri-jails"))) is Level.OK
    finding = found(freebsd.runtime_directory(node, Path("/home/x/run")), Level.WARNING)
    assert finding.remedy.startswith("echo 'tmpfs /home/x/run tmpfs")


def test_the_mount_of_a_path(tmp_path) -> None:
    def mount(target: str, kind: str = "ufs") -> Mount:
        return Mount((0, 0), kind, "x", target)

    (tmp_path / "link").symlink_to("/var")
    mounts = [
        mount("/", "zfs"),
        mount("/var"),
        mount("/var/db", "tmpfs"),
        mount("/varnish"),
        mount("/var", "nullfs"),
    ]

    def kind(path: str | Path) -> str | None:
        at = freebsd.mount_of(mounts, Path(path))
        return at.kind if at else None

    assert (kind("/"), kind("/home"), kind("/var"), kind("/var/db/x/y")) == ("zfs", "zfs", "nullfs", "tmpfs")
    assert kind("/variety") == "zfs"
    assert kind(tmp_path / "link" / "db" / "new") == "tmpfs"
    assert freebsd.mount_of([], Path("/")) is None


def test_a_check_that_cannot_look_says_so(node, settings) -> None:
    def sysctl(name: str) -> bytes:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), name)

    node.sysctl = sysctl
    findings = examination.run([check for check in freebsd.checks(node, settings) if check.name == "racct"])
    assert [(finding.name, finding.level) for finding in findings] == [("racct", Level.WARNING)]
    assert findings[0].message == "cannot tell: kern.racct.enable Operation not permitted"
