from __future__ import annotations

import asyncio
import base64
import json
import os
import sys

import pytest

from cri.api.runtime import v1
from cri.errors import CRIError, InvalidArgumentError


class DeniedError(CRIError):
    code = "UNAUTHENTICATED"


@pytest.fixture
def remote(node, kit):
    """The image that a pull brings."""

    def pull(request):
        if node.find(kit.id("a")) is None:
            node.images.append(kit.image("a", "docker.io/library/busybox:latest"))
        return v1.PullImageResponse(image_ref=kit.id("a"))

    node.answers["PullImage"] = pull
    return node


@pytest.fixture
def keys(directory):
    """Writes config.json where the command looks for it."""

    def write(document):
        (directory / "docker").mkdir(exist_ok=True)
        (directory / "docker/config.json").write_text(json.dumps(document))
        return directory / "docker/config.json"

    return write


def auth(user):
    return {"auth": base64.b64encode(f"{user}:hunter2".encode()).decode()}


async def test_size_and_time_are_told_at_the_end(image, remote, kit) -> None:
    ended = await image("pull", "busybox")
    assert (ended.status, ended.err) == (0, "")
    what = f"docker.io/library/busybox:latest: {kit.id('a')}"
    assert ended.out.startswith(f"pulled {what} (4.86MB in ")
    assert ended.out.endswith(" s)\n")
    (asked,) = remote.asked(v1.PullImageRequest)
    assert (asked.image.image, asked.auth) == ("busybox", None)


async def test_what_is_here_is_up_to_date(image, remote, kit) -> None:
    remote.images.append(kit.image("a", "busybox"))
    ended = await image("pull", "busybox")
    assert ended.out == f"docker.io/library/busybox:latest is up to date: {kit.id('a')}\n"
    assert (await image("pull", "-q", "busybox")).out == f"{kit.id('a')}\n"


async def test_credentials_are_those_of_the_registry_and_bound_to_it(image, remote, keys) -> None:
    keys({"auths": {"r.example": auth("all"), "https://r.example/team": auth("team"), "quay.io": auth("q")}})
    await image("pull", "r.example/team/x", "r.example/x", "quay.io/x", "other.example/x")
    asked = [request.auth for request in remote.asked(v1.PullImageRequest)]
    assert [None if one is None else base64.b64decode(one.auth) for one in asked] == [
        b"team:hunter2", b"all:hunter2", b"q:hunter2", None,
    ]  # fmt: skip
    assert [one.server_address for one in asked if one] == ["r.example", "r.example", "quay.io"]


async def test_credentials_of_helpers(image, remote, keys, directory, monkeypatch) -> None:
    helper = directory / "docker-credential-test"
    answer = json.dumps({"ServerURL": "x", "Username": "<token>", "Secret": "hunter2"})
    helper.write_text(f"#!{sys.executable}\nprint({answer!r})\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    keys({"credHelpers": {"r.example": "test"}})
    assert (await image("pull", "r.example/x")).status == 0
    (asked,) = remote.asked(v1.PullImageRequest)
    assert (asked.auth.identity_token, asked.auth.server_address) == ("hunter2", "r.example")


async def test_a_helper_between_calls_makes_grpc_say_nothing(remote, keys, directory) -> None:
    helper = directory / "docker-credential-test"
    helper.write_text("#!/bin/sh\necho credentials not found in native keychain; exit 1\n")
    helper.chmod(0o755)
    keys({"credsStore": "test"})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cri", "image", "pull", "--address", str(remote.socket), "busybox", "a", "b", "c",
        env=os.environ | {"DOCKER_CONFIG": str(directory / "docker"), "PATH": f"{directory}:{os.environ['PATH']}"},
        stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, len(out.splitlines()), err) == (0, 4, b"")


async def test_a_helper_that_is_missing_is_told_and_nothing_pulled(image, remote, keys) -> None:
    keys({"credHelpers": {"r.example": "missing"}})
    ended = await image("pull", "r.example/x")
    assert (ended.status, remote.asked(v1.PullImageRequest)) == (1, [])
    assert "'docker-credential-missing' is not there; install it" in ended.err


async def test_a_file_that_is_given_must_be_there_and_readable(image, remote, directory) -> None:
    ended = await image("pull", "--creds-file", directory / "none", "busybox")
    assert ended.status == 1
    assert f"there is no file {directory}/none; cri-jails image login makes it" in ended.err
    (directory / "bad").write_text('{"auths": {"docker.io": {"auth": ["hunter2"]}}}')
    ended = await image("pull", "--creds-file", directory / "bad", "busybox")
    assert (ended.status, "hunter2" in ended.err) == (1, False)
    assert "auths.docker.io: is not what it has to be" in ended.err
    ended = await image("pull", "--creds-file", directory, "busybox")
    assert (ended.status, "Is a directory" in ended.err) == (1, True)
    assert remote.asked(v1.PullImageRequest) == []


async def test_who_is_refused_is_told_to_log_in(image, remote, keys) -> None:
    def deny(request):
        raise DeniedError("r.example/x:latest from https://r.example: HTTP 401")

    remote.answers["PullImage"] = deny
    ended = await image("pull", "r.example/x")
    assert ended.err == (
        "cri-jails: r.example/x:latest from https://r.example: HTTP 401; log in with: cri-jails image login r.example\n"
    )
    file = keys({"auths": {"r.example": auth("me")}})
    ended = await image("pull", "r.example/x")
    assert f"those in {file} were not enough; log in with" in ended.err
    assert ended.status == 1


async def test_the_others_are_pulled_all_the_same(image, remote) -> None:
    good = remote.answers["PullImage"]

    def pull(request):
        if "bad" in request.image.image:
            raise InvalidArgumentError("nothing can be done")
        return good(request)

    remote.answers["PullImage"] = pull
    ended = await image("pull", "-q", "UPPER", "r.example/bad", "busybox")
    assert (ended.status, len(ended.out.splitlines())) == (1, 1)
    assert "'library/UPPER' is no repository name: it must be lower case" in ended.err
    assert "pull r.example/bad: nothing can be done" in ended.err


async def test_an_interrupted_pull_says_what_becomes_of_it(remote, directory) -> None:
    begun = asyncio.Event()

    async def hang(request):
        begun.set()
        await asyncio.sleep(60)

    remote.answers["PullImage"] = hang
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cri", "image", "pull", "--address", str(remote.socket), "busybox",
        env=os.environ | {"DOCKER_CONFIG": str(directory)},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await asyncio.wait_for(begun.wait(), 30)
    process.send_signal(2)
    _, err = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, err.decode()) == (
        130,
        "cri-jails: pull busybox: interrupted; what the daemon has begun it goes on with\n",
    )
