"""Calls through a real grpc.aio server on a unix socket."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
import structlog
from structlog.testing import capture_logs

from cri import errors
from cri.api.runtime import v1
from cri.rpc.table import TABLE, UNIMPLEMENTED
from cri.sandbox.host import HostError, WardenGoneError
from registratur import errors as registry

Code = grpc.StatusCode


def raising(error: Exception):
    def action(_request):
        raise error

    return action


def failure(call, request, **options) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, **options)
    return caught.value


def test_answers_pass_as_messages_and_as_bytes(grpc_stub, does) -> None:
    answer = v1.VersionResponse(version="0.1.0", runtime_name="cri-jails")
    does["Version"] = lambda _: answer
    assert grpc_stub.Version(v1.VersionRequest()) == answer
    does["Version"] = lambda _: bytes(answer)
    assert grpc_stub.Version(v1.VersionRequest()) == answer


def test_requests_arrive_whole(grpc_stub, does) -> None:
    seen = []
    request = v1.ExecSyncRequest(container_id="c1", cmd=["sh", "-c", ""], timeout=3)
    does["ExecSync"] = lambda got: seen.append(got) or v1.ExecSyncResponse()
    grpc_stub.ExecSync(request)
    assert seen == [request]


def test_streams(grpc_stub, does) -> None:
    answers = [v1.StreamImagesResponse(), bytes(v1.StreamImagesResponse())]
    does["StreamImages"] = lambda _: iter(answers)
    assert len(list(grpc_stub.StreamImages(v1.StreamImagesRequest()))) == 2


def test_stream_errors_come_after_what_was_sent(grpc_stub, does) -> None:
    def answers(_request):
        yield v1.StreamImagesResponse()
        raise errors.UnavailableError("gone")

    does["StreamImages"] = answers
    stream = grpc_stub.StreamImages(v1.StreamImagesRequest())
    next(stream)
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert (caught.value.code(), caught.value.details()) == (Code.UNAVAILABLE, "gone")


@pytest.mark.parametrize("name", sorted(UNIMPLEMENTED))
def test_what_is_not_there_yet_says_so(grpc_stub, name) -> None:
    rpc = next(rpc for rpcs in TABLE.values() for rpc in rpcs if rpc.name == name)
    call = getattr(grpc_stub, name)
    refused = failure((lambda request: list(call(request))) if rpc.stream else call, rpc.request())
    assert refused.code() == Code.UNIMPLEMENTED
    assert refused.details() == f"method {name} not implemented: {UNIMPLEMENTED[name]}"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        *((kind("why"), Code[kind.code]) for kind in errors.CRIError.__subclasses__()),
        (HostError("mount", "/x", "no"), Code.INTERNAL),
        (WardenGoneError("start", "c", "died"), Code.UNAVAILABLE),
        (registry.NotFoundError("why"), Code.NOT_FOUND),
        (registry.UnauthorizedError("why"), Code.UNAUTHENTICATED),
        (registry.InvalidReferenceError("why"), Code.INVALID_ARGUMENT),
        (registry.InvalidEndpointError("why"), Code.FAILED_PRECONDITION),
        (registry.IdleTimeoutError("why"), Code.UNAVAILABLE),
        (registry.RegistryError("why"), Code.UNKNOWN),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
def test_errors_are_mapped(grpc_stub, does, error, code) -> None:
    does["Status"] = raising(error)
    refused = failure(grpc_stub.Status, v1.StatusRequest(verbose=True))
    assert (refused.code(), refused.details()) == (code, str(error))


def test_every_registry_error_has_a_code() -> None:
    from cri.rpc.errors import code_of

    def all_of(kind):
        return [kind, *(found for sub in kind.__subclasses__() for found in all_of(sub))]

    assert all(code_of(kind("x")) is not None for kind in all_of(registry.RegistryError))


def test_unforeseen_errors_tell_the_log_and_not_the_caller(grpc_stub, does) -> None:
    does["Status"] = raising(ValueError("token=hunter2"))
    with capture_logs() as logs:
        refused = failure(grpc_stub.Status, v1.StatusRequest(verbose=True))
    assert refused.code() == Code.INTERNAL
    assert "ValueError" in refused.details()
    assert "hunter2" not in refused.details()
    (entry,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert isinstance(entry["exc_info"], ValueError)


def test_messages_may_name_paths_that_are_not_utf8(grpc_stub, does) -> None:
    does["Status"] = raising(errors.InternalError("no file /x\udcff"))
    assert failure(grpc_stub.Status, v1.StatusRequest()).details() == r"no file /x\udcff"


def test_long_messages_fit_into_the_headers(grpc_stub, does) -> None:
    does["Status"] = raising(errors.InternalError("ü" * 100_000))
    refused = failure(grpc_stub.Status, v1.StatusRequest())
    assert refused.code() == Code.INTERNAL
    assert refused.details().startswith("üüü")


def test_malformed_requests_never_reach_the_service(grpc_stub, grpc_channel, does) -> None:
    reached = []
    does["StopContainer"] = lambda request: reached.append(request) or v1.StopContainerResponse()
    raw = grpc_channel.unary_unary("/runtime.v1.RuntimeService/StopContainer")
    data = bytes(v1.StopContainerRequest(container_id="abc"))
    for bad in (data[:-1], b"\xff", b"\x0a\x03a\xffb", b"\x0a\xff\xff\xff\xff\x0f"):
        refused = failure(raw, bad)
        assert refused.code() == Code.INVALID_ARGUMENT
        assert "StopContainer" in refused.details()
    assert not reached
    raw(data)
    assert len(reached) == 1


def test_large_messages_pass_and_larger_ones_do_not(
    grpc_stub, does, grpc_create_channel, grpc_stub_cls
) -> None:
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc_create_channel(options=limits) as channel:
        stub = grpc_stub_cls(channel)
        does["ExecSync"] = lambda request: v1.ExecSyncResponse(stdout=request.cmd[0].encode())
        assert len(stub.ExecSync(v1.ExecSyncRequest(cmd=["x" * 15_000_000])).stdout) == 15_000_000
        refused = failure(stub.ExecSync, v1.ExecSyncRequest(cmd=["x" * 17_000_000]))
        assert refused.code() == Code.RESOURCE_EXHAUSTED


def test_a_deadline_cancels_the_method(grpc_stub, does, grpc_metrics) -> None:
    ended = threading.Event()

    async def hang():
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.set()
            raise

    does["RunPodSandbox"] = lambda _: hang()
    with capture_logs() as logs:
        refused = failure(grpc_stub.RunPodSandbox, v1.RunPodSandboxRequest(), timeout=0.2)
        assert ended.wait(5)
    assert refused.code() == Code.DEADLINE_EXCEEDED
    assert not [entry for entry in logs if entry["log_level"] == "error"]
    # The next call finds the server well, and the count right.
    does["RunPodSandbox"] = lambda _: v1.RunPodSandboxResponse()
    grpc_stub.RunPodSandbox(v1.RunPodSandboxRequest())
    labels = {"service": "runtime.v1.RuntimeService", "rpc": "RunPodSandbox"}
    get = grpc_metrics.registry.get_sample_value
    assert get("cri_jails_rpc_total", {**labels, "code": "CANCELLED"}) == 1
    assert get("cri_jails_rpc_in_flight", labels) == 0


def test_calls_are_counted_by_code(grpc_stub, does, grpc_metrics) -> None:
    labels = {"service": "runtime.v1.ImageService", "rpc": "RemoveImage"}
    does["RemoveImage"] = lambda _: v1.RemoveImageResponse()
    for _ in range(3):
        grpc_stub.RemoveImage(v1.RemoveImageRequest())
    does["RemoveImage"] = raising(errors.NotFoundError("no"))
    failure(grpc_stub.RemoveImage, v1.RemoveImageRequest())
    get = grpc_metrics.registry.get_sample_value
    assert get("cri_jails_rpc_total", {**labels, "code": "OK"}) == 3
    assert get("cri_jails_rpc_total", {**labels, "code": "NOT_FOUND"}) == 1
    assert get("cri_jails_rpc_duration_seconds_count", labels) == 4


def test_ids_are_bound_to_the_log_and_to_one_call_only(grpc_stub, does) -> None:
    seen = []

    def action(_request):
        seen.append(structlog.contextvars.get_contextvars())
        return v1.ContainerStatusResponse()

    does["ContainerStatus"] = action
    grpc_stub.ContainerStatus(v1.ContainerStatusRequest(container_id="c1"))
    grpc_stub.ContainerStatus(v1.ContainerStatusRequest())
    assert seen == [{"rpc": "ContainerStatus", "container": "c1"}, {"rpc": "ContainerStatus"}]
