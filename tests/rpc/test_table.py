"""The table of RPCs against the CRI and against services."""

from __future__ import annotations

import dataclasses

import pytest

from cri.api.runtime import v1
from cri.rpc.table import (
    IMAGE_SERVICE,
    RUNTIME_SERVICE,
    TABLE,
    UNIMPLEMENTED,
    RpcTableError,
    check_service,
    check_table,
)


def test_the_table_is_the_cri() -> None:
    check_table()
    assert sum(len(rpcs) for rpcs in TABLE.values()) == 43


def test_only_known_rpcs_are_unimplemented() -> None:
    assert set(UNIMPLEMENTED) <= {rpc.name for rpcs in TABLE.values() for rpc in rpcs}
    assert all(UNIMPLEMENTED.values())


def changed(name: str, /, **changes) -> dict:
    return {
        service: [dataclasses.replace(rpc, **changes) if rpc.name == name else rpc for rpc in rpcs]
        for service, rpcs in TABLE.items()
    }


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (changed("Version", name="Verison"), "has no RPC Verison.*RuntimeService/Version is missing"),
        ({**TABLE, IMAGE_SERVICE: TABLE[IMAGE_SERVICE][1:]}, "ImageService/ListImages is missing"),
        (
            {**TABLE, IMAGE_SERVICE: (*TABLE[IMAGE_SERVICE], TABLE[IMAGE_SERVICE][0])},
            "ListImages is there twice",
        ),
        (
            changed("Version", request=v1.StatusRequest),
            "Version: the request is runtime.v1.VersionRequest, not StatusRe",
        ),
        (
            changed("Version", response=v1.StatusResponse),
            "Version: the response is runtime.v1.VersionResponse",
        ),
        (changed("Version", stream=True), "Version: streams otherwise"),
        (changed("StreamImages", stream=False), "StreamImages: streams otherwise"),
    ],
)
def test_a_wrong_table_is_refused(table, expected: str) -> None:
    with pytest.raises(RpcTableError, match=expected):
        check_table(table)


def test_a_wrong_service_is_refused(grpc_servicer) -> None:
    runtime, _image = grpc_servicer
    rpcs = TABLE[RUNTIME_SERVICE]
    check_service(runtime, rpcs)
    for attribute, value, expected in (
        ("version", lambda request: None, "version must be a coroutine function"),
        ("version", None, "version for Version is missing"),
        ("stream_containers", runtime.version, "stream_containers must be an asynchronous generator"),
        (
            "checkpoint_pod",
            runtime.version,
            "CheckpointPod is listed as unimplemented, but there is checkpoint_p",
        ),
    ):
        setattr(runtime, attribute, value)
        with pytest.raises(RpcTableError, match=expected):
            check_service(runtime, rpcs)
        delattr(runtime, attribute)
