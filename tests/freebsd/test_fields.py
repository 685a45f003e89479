"""What a request asks for and FreeBSD has not is refused by name, by the daemon on its socket; the rest is let through."""

from __future__ import annotations

import importlib.util
import json

import pytest

from .daemon import CRICTL, Daemon

pytestmark = [
    pytest.mark.node,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CRICTL is None, reason="there is no crictl in PATH"),
    pytest.mark.skipif(importlib.util.find_spec("grpc") is None, reason="grpcio is not installed"),
]

REFUSED = {
    "cpuset_mems": ("UNIMPLEMENTED", {"linux": {"resources": {"cpuset_mems": "0"}}}),
    "unified": ("UNIMPLEMENTED", {"linux": {"resources": {"unified": {"memory.high": "1"}}}}),
    "hugepage_limits": (
        "UNIMPLEMENTED",
        {"linux": {"resources": {"hugepage_limits": [{"page_size": "2MB", "limit": 1}]}}},
    ),
    "CDI_devices": ("UNIMPLEMENTED", {"CDI_devices": [{"name": "vendor.com/gpu=0"}]}),
    "seccomp_profile_path": (
        "UNIMPLEMENTED",
        {"linux": {"security_context": {"seccomp_profile_path": "localhost/x.json"}}},
    ),
    "PROPAGATION_BIDIRECTIONAL": (
        "UNIMPLEMENTED",
        {"mounts": [{"container_path": "/m", "host_path": "/tmp", "propagation": 2}]},
    ),
    "whole root": ("INVALID_ARGUMENT", {"mounts": [{"container_path": "//", "host_path": "/tmp"}]}),
    "inside /proc": ("INVALID_ARGUMENT", {"mounts": [{"container_path": "/proc/1", "host_path": "/tmp"}]}),
    "run_as_user": ("INVALID_ARGUMENT", {"linux": {"security_context": {"run_as_user": {"value": -1}}}}),
}
LET_THROUGH = {
    "linux": {
        "resources": {
            "cpu_shares": 2,
            "oom_score_adj": 999,
            "hugepage_limits": [{"page_size": "2MB"}],
            "unified": {"pids.max": "100"},
        },
        "security_context": {"seccomp": {"profile_type": 0}, "namespace_options": {"pid": 1}},
    }
}


def test_every_refusal_names_its_field_and_leaves_nothing(registry: str, daemon: Daemon) -> None:
    import grpc

    from cri.rpc import descriptors

    def call(rpc: str, **fields):
        method = descriptors.service("runtime.v1.RuntimeService").methods_by_name[rpc]
        request, response = (
            descriptors.strict_class(kind.full_name) for kind in (method.input_type, method.output_type)
        )
        return channel.unary_unary(
            f"/runtime.v1.RuntimeService/{rpc}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )(request(**fields), timeout=120)

    image = f"{registry}/rescue:latest"
    daemon.crictl("pull", image)
    metadata = {"name": "p", "namespace": "n", "uid": "u"}
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        with pytest.raises(grpc.RpcError, match=r"sysctls.*FreeBSD has no sysctls per jail"):
            call(
                "RunPodSandbox", config={"metadata": metadata, "linux": {"sysctls": {"kern.ipc.shmmax": "1"}}}
            )
        pod = call("RunPodSandbox", config={"metadata": metadata, "linux": {}}).pod_sandbox_id
        for words, (code, fields) in REFUSED.items():
            config = {"metadata": {"name": "c"}, "image": {"image": image}, **fields}
            with pytest.raises(grpc.RpcError, match=words) as refused:
                call("CreateContainer", pod_sandbox_id=pod, config=config)
            assert refused.value.code().name == code
        assert not call("ListContainers").containers
        config = {"metadata": {"name": "c"}, "image": {"image": image}, **LET_THROUGH}
        container = call("CreateContainer", pod_sandbox_id=pod, config=config).container_id
        call("StartContainer", container_id=container)
        verbose = call("ContainerStatus", container_id=container, verbose=True)
        assert json.loads(verbose.info["info"])["spec"]["resources"]["unified"] == {"pids.max": "100"}
        call("RemovePodSandbox", pod_sandbox_id=pod)
