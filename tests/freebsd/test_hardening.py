"""What a jail is allowed if nothing is asked for: rows of SECURITY.md."""

from __future__ import annotations

import subprocess

import pytest

from cri.api.runtime import v1

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]  # an emulated machine is slow


def parameters(name: str) -> dict[str, str]:
    """Of a jail, by name; those that are allowed, or not, as jail(8) shows them: allow.x, allow.nox."""
    shown = subprocess.run(
        ["jls", "-n", "-j", name], check=True, capture_output=True, text=True
    ).stdout.split()
    return {word.partition("=")[0]: word.partition("=")[2] for word in shown}


def allowed(found: dict[str, str]) -> set[str]:
    return {
        name for name in found if name.startswith("allow.") and not name.rpartition(".")[2].startswith("no")
    }


def context(**fields: object) -> v1.LinuxContainerConfig:
    return v1.LinuxContainerConfig(security_context=v1.LinuxContainerSecurityContext(**fields))


async def test_rights_of_a_jail(machine) -> None:
    pod = await machine.pod()
    plain = await machine.container(pod, name="plain")
    found = parameters(f"cri-{pod}.c{plain}")
    # (suser is what makes root of a jail its root at all.)
    assert allowed(found) - {"allow.suser"} == {
        "allow.raw_sockets",
        "allow.reserved_ports",
        "allow.unprivileged_proc_debug",
    }
    assert (found["enforce_statfs"], found["children.max"]) == ("2", "0")
    for number, dropped in enumerate((["NET_RAW"], ["ALL"])):
        less = await machine.container(
            pod, name=f"less{number}", linux=context(capabilities=v1.Capability(drop_capabilities=dropped))
        )
        assert "allow.raw_sockets" not in allowed(parameters(f"cri-{pod}.c{less}"))
    assert parameters(f"cri-{pod}")["children.max"] == "0"


async def test_no_new_privileges(machine) -> None:
    pod = await machine.pod()
    for asked, bit in ((True, 0x8000), (False, 0)):
        container = await machine.container(pod, name=f"c{bit}", linux=context(no_new_privs=asked))
        running, _ = machine.pods.running(container)
        command = ["ps", "-o", "flags2=", "-p", str(running.record.pid)]
        flags = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert int(flags, 16) & 0x8000 == bit  # P2_NO_NEW_PRIVS of sys/proc.h
