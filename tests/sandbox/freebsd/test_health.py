"""When RuntimeReady is false, and what a node that is ready has to do without."""

from __future__ import annotations

import errno
import os

import pytest

from cri.sandbox.fake.freebsd import FakeFreeBSD
from cri.sandbox.freebsd import health, sysctls
from cri.sandbox.host import HostError


def set_number(kernel: FakeFreeBSD, name: str, value: int) -> None:
    kernel.sysctls[name] = value.to_bytes(4, "little", signed=True)


@pytest.fixture
def kernel(monkeypatch) -> FakeFreeBSD:
    """Of a node that lacks nothing, asked by root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    kernel = FakeFreeBSD()
    kernel.modules |= {"nullfs", "devfs"}
    set_number(kernel, "kern.racct.enable", 1)
    return kernel


def test_a_good_node(kernel, tmp_path) -> None:
    assert health.condition(kernel, tmp_path) == health.Condition(ok=True)
    assert health.condition(kernel, tmp_path / "not-yet") == health.Condition(ok=True)


def test_not_root(kernel, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1001)
    found = health.condition(kernel, tmp_path)
    assert (found.ok, found.reason) == (False, "NotRoot")


def test_a_missing_module(kernel, tmp_path) -> None:
    kernel.modules.discard("nullfs")
    found = health.condition(kernel, tmp_path)
    assert (found.ok, found.reason) == (False, "KernelModuleMissing")
    assert found.message == "no kernel module nullfs: kldload nullfs && sysrc kld_list+=nullfs"


def test_a_kernel_without_vimage(kernel, tmp_path) -> None:
    kernel.missing.add("vnet")
    found = health.condition(kernel, tmp_path)
    assert (found.ok, found.reason) == (False, "VimageMissing")


@pytest.mark.parametrize(("children", "ok"), [(0, False), (1, False), (2, True)])
def test_a_node_that_is_a_jail(kernel, tmp_path, children, ok) -> None:
    set_number(kernel, "security.jail.children.max", children)
    found = health.condition(kernel, tmp_path)
    assert (found.ok, found.reason) == (ok, "" if ok else "ChildJailsForbidden")
    assert ok or "children.max" in found.message


def test_a_state_directory_that_cannot_be_written(kernel, tmp_path, monkeypatch) -> None:
    values = (4096, 4096, 1, 1, 1, 1, 1, 1, os.ST_RDONLY, 255)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))
    found = health.condition(kernel, tmp_path)
    assert (found.ok, found.reason) == (False, "StateDirectoryReadOnly")


@pytest.mark.parametrize("compiled_in", [True, False])
def test_without_racct_pods_run_and_the_remedy_is_named(kernel, tmp_path, compiled_in) -> None:
    if compiled_in:
        set_number(kernel, "kern.racct.enable", 0)
    else:
        del kernel.sysctls["kern.racct.enable"]
    found = health.condition(kernel, tmp_path)
    assert (found.ok, found.reason) == (True, "RacctDisabled")
    assert "kern.racct.enable=1" in found.message


@pytest.mark.skipif(os.uname().sysname == "FreeBSD", reason="Linux only: here the binding can be imported")
def test_a_binding_that_cannot_be_imported() -> None:
    with pytest.raises(HostError, match=r"the kernel binding cannot be imported.*pip install"):
        health.load_calls()


@pytest.mark.parametrize(
    ("value", "number"),
    [(b"\1", 1), (b"\0", 0), (b"\xff\xff\xff\xff", -1), ((1 << 40).to_bytes(8, "little"), 1 << 40)],
)
def test_numbers_of_any_width(kernel, value, number) -> None:
    kernel.sysctls["a.b"] = value
    assert sysctls.number(kernel, "a.b") == number


def test_text(kernel) -> None:
    kernel.sysctls["kern.version"] = b"FreeBSD 15.1-RELEASE-p1 CRIJAILS\n\0"
    assert sysctls.text(kernel, "kern.version") == "FreeBSD 15.1-RELEASE-p1 CRIJAILS"


def test_only_a_variable_that_is_not_there_is_none(kernel) -> None:
    assert sysctls.text(kernel, "no.such") is None
    assert sysctls.number(kernel, "no.such") is None

    def refuse(name: str) -> bytes:
        raise PermissionError(errno.EPERM, "Operation not permitted", name)

    kernel.sysctl = refuse
    with pytest.raises(PermissionError):
        sysctls.number(kernel, "a.b")
