"""What of a request becomes a spec, and what is refused by looking at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.api.runtime import v1
from cri.errors import InvalidArgumentError
from cri.sandbox import translate
from cri.sandbox.host import Features
from cri.sandbox.spec import PortMapping


def spec(*ports: v1.PortMapping, network: v1.NamespaceMode = v1.NamespaceMode.POD, **values):
    options = v1.NamespaceOption(network=network)
    config = v1.PodSandboxConfig(
        metadata=v1.PodSandboxMetadata(name="web", uid="u-1", namespace="default"),
        port_mappings=list(ports),
        **values,
        linux=v1.LinuxPodSandboxConfig(
            security_context=v1.LinuxSandboxSecurityContext(namespace_options=options)
        ),
    )
    return translate.sandbox_spec(
        "s",
        config,
        directory=Path("/d"),
        runtime_directory=Path("/r"),
        features=Features(recursive_readonly_mounts=True),
    )


def port(host_port: int, container_port: int = 80, **values) -> v1.PortMapping:
    return v1.PortMapping(host_port=host_port, container_port=container_port, **values)


def test_host_ports_of_every_protocol() -> None:
    made = spec(
        port(8080),
        port(53, 5353, protocol=v1.Protocol.UDP, host_ip="192.0.2.1"),
        port(5000, protocol=v1.Protocol.SCTP, host_ip="fd00::1"),
    )
    assert made.uid == "u-1"
    assert made.port_mappings == (
        PortMapping("tcp", 8080, 80),
        PortMapping("udp", 53, 5353, "192.0.2.1"),
        PortMapping("sctp", 5000, 80, "fd00::1"),
    )


def test_a_port_without_a_host_port_is_only_told() -> None:
    assert spec(port(0, 80)).port_mappings == ()


def test_a_wrong_annotation_is_told_before_anything_is_made() -> None:
    with pytest.raises(InvalidArgumentError, match="egress-bandwidth"):
        spec(annotations={"kubernetes.io/egress-bandwidth": "fast"})


def test_with_the_node_s_network_there_is_nothing_to_map() -> None:
    assert spec(port(80, 80), network=v1.NamespaceMode.NODE).port_mappings == ()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (port(70000), r"port_mappings\[0\].host_port is 70000"),
        (port(-1), r"port_mappings\[0\].host_port is -1"),
        (port(80, 0), r"port_mappings\[0\].container_port is 0"),
        (port(80, host_ip="here"), r"port_mappings\[0\].host_ip is 'here'"),
        (port(80, host_ip="224.0.0.1"), r"port_mappings\[0\].host_ip is '224.0.0.1': .*more than one host"),
        (port(80, protocol=7), r"port_mappings\[0\].protocol is"),
    ],
)
def test_a_mapping_that_cannot_be_is_named(wrong, words) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        spec(wrong)
