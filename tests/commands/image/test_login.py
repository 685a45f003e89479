"""login and logout, at Docker's registry with htpasswd, and on a terminal."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import select
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dockerregistry import needs_registry, serving

SKOPEO = shutil.which("skopeo")


@pytest.fixture(scope="module", params=["htpasswd", None])
def registry(request, tmp_path_factory) -> Iterator[str]:
    """The address of a registry that knows `user`, or that lets anybody in."""
    with serving(tmp_path_factory.mktemp("registry"), htpasswd=request.param is not None) as address:
        yield address


@pytest.fixture
def typed(monkeypatch):
    """Puts something on standard input."""

    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


@pytest.fixture
def file(directory: Path) -> Path:
    return directory / "docker/config.json"


AUTH = {"auth": base64.b64encode(b"user:hunter2").decode()}


@needs_registry
@pytest.mark.parametrize("registry", ["htpasswd"], indirect=True)
async def test_what_the_registry_takes_is_written_down(registry, command, typed, file) -> None:
    file.parent.mkdir()
    file.write_text('{"auths": {"quay.io": {"auth": "eDp5"}}, "proxies": {"x": 1}}')
    typed(b"hunter2\n")
    ended = await command("login", registry, "-u", "user", "--password-stdin")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"logged in to {registry} as user; {file} has the credentials\n"
    assert json.loads(file.read_text()) == {
        "auths": {"quay.io": {"auth": "eDp5"}, registry: AUTH},
        "proxies": {"x": 1},
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ended = await command("logout", registry)
    assert (ended.status, ended.out) == (0, f"logged out from {registry}\n")
    assert json.loads(file.read_text()) == {"auths": {"quay.io": {"auth": "eDp5"}}, "proxies": {"x": 1}}
    ended = await command("logout", registry)
    assert (ended.status, ended.out) == (1, "")
    assert f"there are no credentials for {registry} in {file}: nobody is logged in there" in ended.err


@needs_registry
@pytest.mark.skipif(SKOPEO is None, reason="needs skopeo (Debian package of this name)")
@pytest.mark.parametrize("registry", ["htpasswd"], indirect=True)
async def test_others_read_what_is_written_and_the_other_way_round(registry, command, typed, file) -> None:
    def skopeo(*arguments: object) -> str:
        done = subprocess.run(
            [SKOPEO, *arguments], capture_output=True, text=True, check=True, input="hunter2"
        )
        return done.stdout.strip()

    typed(b"hunter2")
    await command("login", registry, "-u", "user", "--password-stdin")
    assert skopeo("login", "--get-login", "--authfile", file, registry) == "user"
    skopeo("logout", "--authfile", file, registry)
    assert (await command("logout", registry)).status == 1
    skopeo("login", "--tls-verify=false", "--authfile", file, "-u", "user", "--password-stdin", registry)
    assert (await command("logout", registry)).status == 0


@needs_registry
@pytest.mark.parametrize("registry", ["htpasswd"], indirect=True)
async def test_what_it_refuses_is_not(registry, command, typed, file) -> None:
    typed(b"hunter3")
    ended = await command("login", registry, "-u", "user", "--password-stdin")
    assert (ended.status, ended.out, file.exists()) == (1, "", False)
    assert f"login to {registry}: {registry} at http://{registry}: HTTP 401" in ended.err
    assert "hunter3" not in ended.err


@needs_registry
@pytest.mark.parametrize("registry", [None], indirect=True)
async def test_a_registry_that_asks_nobody(registry, command, typed, file) -> None:
    typed(b"whatever\r\n")
    ended = await command("login", registry, "-u", "user", "--password-stdin")
    assert ended.status == 0
    assert ended.out.endswith(f"{registry} lets anybody in, and has not looked at them\n")
    assert base64.b64decode(json.loads(file.read_text())["auths"][registry]["auth"]) == b"user:whatever"


@needs_registry
@pytest.mark.parametrize("registry", ["htpasswd"], indirect=True)
async def test_a_helper_has_it(registry, command, typed, file, directory, monkeypatch) -> None:
    helper = directory / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\n[ $1 = store ] && cat >{directory}/kept\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    file.parent.mkdir()
    file.write_text('{"credsStore": "test"}')
    typed(b"hunter2")
    ended = await command("login", registry, "-u", "user", "--password-stdin")
    assert "; the credential helper test has the credentials" in ended.out
    kept = json.loads((directory / "kept").read_text())
    assert kept == {"ServerURL": registry, "Username": "user", "Secret": "hunter2"}
    assert json.loads(file.read_text()) == {"credsStore": "test", "auths": {registry: {}}}


@needs_registry
@pytest.mark.parametrize("registry", ["htpasswd"], indirect=True)
def test_on_a_terminal_both_are_asked_for_and_the_password_is_not_shown(registry, file, directory) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cri", "image", "login", registry],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=os.environ | {"DOCKER_CONFIG": str(file.parent)}, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    os.close(theirs)
    shown = b""

    def expect(what: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + 20
        while what not in shown:
            assert select.select([ours], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(ours, 4096)

    try:
        expect(b"Username: ")
        os.write(ours, b"user\n")
        expect(f"Password of user at {registry}: ".encode())
        os.write(ours, b"hunter2\n")
        expect(b"has the credentials")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"hunter2" not in shown
    assert json.loads(file.read_text()) == {"auths": {registry: AUTH}}


@pytest.mark.parametrize(
    ("arguments", "data", "told"),
    [
        (["-u", "user"], b"hunter2", "give it on standard input, with --password-stdin"),
        (["--password-stdin"], b"hunter2", "Give --username"),
        ([], b"", "Give --username"),
        (["-u", "", "--password-stdin"], b"hunter2", "'' is no user name"),
        (["-u", "a:b", "--password-stdin"], b"hunter2", "no colon or control"),
        (["-u", "user", "--password-stdin"], b"", "the password is empty"),
        (["-u", "user", "--password-stdin"], b"hunter2\nhunter2", "more than one line?"),
        (["-u", "user", "--password-stdin"], b"hunter2" * 10_000, "longer than 65536"),
        (["-u", "user", "--password-stdin"], b"hunter2\xff", "is not UTF-8"),
    ],
)
async def test_what_cannot_be_used(command, typed, file, arguments, data, told) -> None:
    typed(data)
    ended = await command("login", "127.0.0.1:1", *arguments)
    assert (ended.status, ended.out, file.exists()) == (1, "", False)
    assert told in ended.err
    assert "hunter2" not in ended.err


@pytest.mark.parametrize(
    ("registry", "told"),
    [
        ("https://r.example", "write 'r.example', without the scheme"),
        ("r.example/team", "write 'r.example'"),
        ("", "is no registry's name"),
    ],
)
@pytest.mark.parametrize("action", ["login", "logout"])
async def test_what_is_no_registry(command, registry, told, action) -> None:
    ended = await command(action, registry)
    assert (ended.status, told in ended.err) == (1, True)


@needs_registry
@pytest.mark.parametrize("registry", ["htpasswd"], indirect=True)
async def test_the_registry_is_reached_as_the_daemon_reaches_it(
    registry, command, typed, file, directory
) -> None:
    config, hosts = directory / "config.toml", directory / "hosts" / registry / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    config.write_text(f'[image]\nhosts_dir = "{directory}/hosts"\ncredentials_file = "{directory}/none"\n')
    for text, status, told in (
        ("server = [", 1, str(hosts)),
        ('server = "http://127.0.0.1:1"', 1, "give them for 127.0.0.1:1"),
        (f'server = "http://{registry}"', 0, ""),
    ):
        hosts.write_text(text)
        typed(b"hunter2")
        ended = await command("login", "--config", config, registry, "-u", "user", "--password-stdin")
        assert (ended.status, file.exists()) == (status, not status)
        assert told in ended.err
    assert ended.err == ""


async def test_nobody_there(command, typed, file) -> None:
    typed(b"hunter2")
    ended = await command("login", "127.0.0.1:1", "-u", "user", "--password-stdin")
    assert (ended.status, file.exists()) == (1, False)
    assert "login to 127.0.0.1:1: http://127.0.0.1:1/v2/: Cannot connect" in ended.err


async def test_a_file_that_is_torn_is_told_and_left(command, file, directory) -> None:
    file.parent.mkdir()
    file.write_text('{"auths": {"r.example": {"au')
    ended = await command("logout", "r.example")
    assert (ended.status, f"{file} is no JSON" in ended.err) == (1, True)
    assert file.read_text() == '{"auths": {"r.example": {"au'
    ended = await command("logout", "r.example", "--creds-file", directory)
    assert (ended.status, "is no regular file; the credentials there are as they were" in ended.err) == (
        1,
        True,
    )


async def test_nobody_knows_where_credentials_are(command, monkeypatch) -> None:
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setattr(Path, "home", homeless)
    ended = await command("logout", "r.example")
    assert (ended.status, "give a file with --creds-file" in ended.err) == (1, True)


async def test_without_docker_config_it_is_in_the_home(command, monkeypatch, directory) -> None:
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setenv("HOME", str(directory))
    (directory / ".docker").mkdir()
    (directory / ".docker/config.json").write_text(json.dumps({"auths": {"r.example": AUTH}}))
    assert (await command("logout", "r.example")).status == 0
    assert json.loads((directory / ".docker/config.json").read_text()) == {"auths": {}}
