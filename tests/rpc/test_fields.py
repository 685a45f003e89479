"""The table of fields and the proto say the same, and requests are held to the table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, UnsupportedError
from cri.rpc import descriptors, fields, messages
from cri.rpc.fields import page, rules
from cri.rpc.fields.table import ROOTS, TABLE, Fate
from cri.rpc.fields.walk import root_of

ROOT = Path(__file__).parents[2]


def paths(descriptor, above: str):
    """Every field below a message, as the table has them: not below what is ignored or refused as a whole."""
    for field in descriptor.fields:
        path = f"{above}.{field.name}"
        yield path
        row = TABLE.get(path)
        whole = row is not None and {row.linux.fate, row.freebsd.fate} <= {Fate.IGNORED, Fate.REFUSED}
        if (
            field.message_type is not None
            and not descriptors.is_map(field)
            and not root_of(field)
            and not whole
        ):
            yield from paths(field.message_type, path)


def test_every_field_of_the_proto_is_in_the_table_and_no_other() -> None:
    found = [
        path
        for root in ROOTS
        for path in paths(descriptors.pool().FindMessageTypeByName(f"runtime.v1.{root}"), root)
    ]
    assert sorted(TABLE) == sorted(found)


def test_every_row_says_something_on_both_systems() -> None:
    assert [path for path, row in TABLE.items() if not (row.linux.text and row.freebsd.text)] == []


def test_the_page_is_made_from_the_table() -> None:
    assert (ROOT / "docs/fields.md").read_text() == page.text(), "run scripts/generate-fields"


def test_the_script_finds_a_page_that_is_old() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/generate-fields", "--check"], check=False)
    assert done.returncode == 0


def test_capabilities_are_those_of_the_driver() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("Linux only: the driver's names")
    from cri.sandbox.linux import capabilities

    assert set(capabilities._BITS) | {"ALL"} == rules.CAPABILITIES


def refuse(request, system: str = "linux") -> str:
    with pytest.raises((InvalidArgumentError, UnsupportedError)) as refused:
        fields.check(messages.strict(request), system)
    return f"{refused.value.code}: {refused.value}"


def create(**config) -> v1.CreateContainerRequest:
    return v1.CreateContainerRequest(pod_sandbox_id="s", config=v1.ContainerConfig(**config))


def run(**config) -> v1.RunPodSandboxRequest:
    return v1.RunPodSandboxRequest(config=v1.PodSandboxConfig(**config))


def secure(**context) -> v1.CreateContainerRequest:
    made = v1.LinuxContainerSecurityContext()
    for name, value in context.items():
        setattr(made, name, value)  # __init__ warns of fields that are deprecated
    return create(linux=v1.LinuxContainerConfig(security_context=made))


def limit(**values) -> v1.UpdateContainerResourcesRequest:
    return v1.UpdateContainerResourcesRequest(container_id="c", linux=v1.LinuxContainerResources(**values))


def dns(**values) -> v1.RunPodSandboxRequest:
    return run(dns_config=v1.DnsConfig(**values))


def mounted(**values) -> v1.CreateContainerRequest:
    return create(mounts=[v1.Mount(container_path="/a", host_path="/b"), v1.Mount(**values)])


UNSUPPORTED = {
    "config.CDI_devices": create(CDI_devices=[v1.CdiDevice(name="vendor.com/gpu=0")]),
    "config.annotations: key": create(annotations={"cdi.k8s.io/x": "vendor.com/gpu=0"}),
    "config.linux.security_context.apparmor_profile is 'localhost/mine'": secure(apparmor_profile="localhost/mine"),
    "config.linux.security_context.seccomp_profile_path is 'localhost/": secure(seccomp_profile_path="localhost/x"),
    "config.windows": create(windows=v1.WindowsContainerConfig(resources=v1.WindowsContainerResources(cpu_count=1))),
    "config.linux.security_context.capabilities.add_ambient": secure(
        capabilities=v1.Capability(add_ambient_capabilities=["CHOWN"])
    ),
    "config.mounts[1].uidMappings": mounted(uid_mappings=[v1.IdMapping(length=1)]),
    "config.linux.security_context.namespace_options.userns_options.uids": secure(
        namespace_options=v1.NamespaceOption(
            userns_options=v1.UserNamespace(mode=v1.NamespaceMode.NODE, uids=[v1.IdMapping(length=1)])
        )
    ),
}  # fmt: skip
INVALID = {
    "config.hostname is 'a\\nb'": run(hostname="a\nb"),
    "config.hostname is 'aaaa": run(hostname="a" * 65),
    "config.hostname is 'a b'": run(hostname="a b"),
    "config.dns_config.servers[1] is": dns(servers=["192.0.2.1", "192.0.2.2\nnameserver 192.0.2.3"]),
    "config.dns_config.searches[0] is": dns(searches=["a b"]),
    "config.dns_config.options[0] is ''": dns(options=[""]),
    "config.log_directory is 'logs'": run(log_directory="logs"),
    "config.log_directory is '/a\\x00": run(log_directory="/a\0b"),
    "config.metadata.name is": run(metadata=v1.PodSandboxMetadata(name="a\tb")),
    "config.metadata.uid is": run(metadata=v1.PodSandboxMetadata(uid="u" * 1025)),
    "config.port_mappings[0].protocol is 7": run(port_mappings=[v1.PortMapping(protocol=v1.Protocol(7))]),
    "config.port_mappings[0].host_port is -1": run(port_mappings=[v1.PortMapping(host_port=-1)]),
    "config.linux.cgroup_parent is": run(linux=v1.LinuxPodSandboxConfig(cgroup_parent="/a/../b")),
    "config.linux.sysctls: key is 'a b'": run(linux=v1.LinuxPodSandboxConfig(sysctls={"a b": "1"})),
    "config.linux.sysctls['a.b'] is": run(linux=v1.LinuxPodSandboxConfig(sysctls={"a.b": "1\n2"})),
    "config.envs[0].key is 'a=b'": create(envs=[v1.KeyValue(key="a=b")]),
    "config.envs[0].value: must be": create(envs=[v1.KeyValue(key="a", value=b"s3cret\0")]),
    "config.args[1]: must be": create(args=["a", "b\0c"]),
    "config.working_dir is 'here'": create(working_dir="here"),
    "config.log_path is 'aaaa": create(log_path="a" * 256),
    "config.stop_signal is 99": create(stop_signal=v1.Signal(99)),
    "config.mounts[1].propagation is 9": mounted(propagation=v1.MountPropagation(9)),
    "config.mounts[1].host_path is 'x'": mounted(host_path="x"),
    "config.mounts[1].container_path is": mounted(container_path="/a\0"),
    "run_as_user.value is -1": secure(run_as_user=v1.Int64Value(value=-1)),
    "run_as_user.value is 4294967295": secure(run_as_user=v1.Int64Value(value=(1 << 32) - 1)),
    "run_as_group.value is": secure(run_as_group=v1.Int64Value(value=1 << 40)),
    "supplemental_groups[1] is -3": secure(supplemental_groups=[1, -3]),
    "masked_paths[0] is 'proc'": secure(masked_paths=["proc"]),
    "add_capabilities[0] is 'FLY'": secure(capabilities=v1.Capability(add_capabilities=["FLY"])),
    "seccomp.profile_type is 5": secure(seccomp=v1.SecurityProfile(profile_type=v1.SecurityProfileProfileType(5))),
    "linux.cpu_period is 999": limit(cpu_period=999),
    "linux.cpu_quota is -2": limit(cpu_quota=-2),
    "linux.cpu_shares is -1": limit(cpu_shares=-1),
    "linux.memory_limit_in_bytes is -2": limit(memory_limit_in_bytes=-2),
    "linux.oom_score_adj is 1001": limit(oom_score_adj=1001),
    "linux.cpuset_cpus is '3-1'": limit(cpuset_cpus="3-1"),
    "linux.cpuset_mems is '0,'": limit(cpuset_mems="0,"),
    "linux.hugepage_limits[0].page_size is '2M'": limit(hugepage_limits=[v1.HugepageLimit(page_size="2M")]),
    "linux.hugepage_limits[0].limit is": limit(hugepage_limits=[v1.HugepageLimit(page_size="2MB", limit=1 << 63)]),
    "linux.unified: key is '../x'": limit(unified={"../x": "1"}),
    "container_id is": limit(),
}  # fmt: skip
INVALID["container_id is"].container_id = "c\n"


@pytest.mark.parametrize("says", UNSUPPORTED)
def test_what_there_is_not_is_refused_by_its_name(says) -> None:
    assert refuse(UNSUPPORTED[says]).startswith(f"UNIMPLEMENTED: {says}")


@pytest.mark.parametrize("says", INVALID)
def test_what_cannot_be_is_refused_by_its_name(says) -> None:
    told = refuse(INVALID[says])
    assert told.startswith("INVALID_ARGUMENT: ")
    assert says in told
    assert "must be" in told or "no such" in told
    assert "s3cret" not in told


@pytest.mark.parametrize(
    "request_", [limit(cpuset_mems="0"), run(linux=v1.LinuxPodSandboxConfig(sysctls={"kernel.shmmax": "1"}))]
)
def test_freebsd_refuses_what_only_linux_has(request_) -> None:
    fields.check(messages.strict(request_), "linux")
    assert refuse(request_, "freebsd").startswith("UNIMPLEMENTED: ")


@pytest.mark.parametrize(
    "harmless",
    [
        create(windows=v1.WindowsContainerConfig(security_context=v1.WindowsContainerSecurityContext())),
        run(windows=v1.WindowsPodSandboxConfig()),
        secure(seccomp_profile_path="runtime/default", apparmor_profile="unconfined"),
        secure(seccomp_profile_path="unconfined", apparmor_profile="runtime/default"),
        secure(selinux_options=v1.SeLinuxOption(), run_as_user=v1.Int64Value(value=0)),
        secure(namespace_options=v1.NamespaceOption(userns_options=v1.UserNamespace(mode=v1.NamespaceMode.NODE))),
        limit(cpu_quota=-1, cpu_period=100_000, cpu_shares=2, memory_limit_in_bytes=-1, oom_score_adj=-997),
        limit(hugepage_limits=[v1.HugepageLimit(page_size="1GB"), v1.HugepageLimit(page_size="64KB")]),
        limit(cpuset_cpus="0-3,7", unified={"memory.high": "max", "memory.oom.group": "1"}),
        limit(memory_swap_limit_in_bytes=-1),
        create(annotations={"a": "\0"}, labels={"b": "line\nline"}, command=[""], stdin_once=True),
        dns(servers=["fe80::1%eth0"], searches=["."], options=["ndots:5"]),
        v1.CreateContainerRequest(sandbox_config=v1.PodSandboxConfig(hostname="a b", log_directory="x")),
        v1.ListContainersRequest(filter=v1.ContainerFilter(label_selector={"a": "b\0"})),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("system", ["linux", "freebsd"])
def test_what_a_kubelet_may_send_is_let_through(harmless, system) -> None:
    fields.check(messages.strict(harmless), system)


def test_a_field_of_a_newer_release_is_passed_over() -> None:
    strict = messages.strict(create(command=["a"]))
    newer = type(strict).FromString(strict.SerializeToString() + b"\xca\x3e\x03abc")
    fields.check(newer, "linux")


def test_no_other_request_has_a_nul_byte_and_no_password_is_shown() -> None:
    told = refuse(v1.PullImageRequest(auth=v1.AuthConfig(password="s3cret\0")))
    assert told == "INVALID_ARGUMENT: auth.password: must be without NUL bytes"
