"""What is said when there is no daemon, or one that does not do as it is told; and the command line itself."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from cri.commands.image import daemon as client
from cri.commands.image.errors import CommandError
from cri.errors import UnsupportedError

ACTIONS = ["pull", "ls", "inspect", "history", "rm", "prune", "df"]


def arguments(action) -> list[str]:
    return [action, *(["x"] if action in ("pull", "inspect", "history", "rm") else [])]


@pytest.mark.parametrize("action", ACTIONS)
async def test_no_daemon(command, directory, action) -> None:
    config = directory / "config.toml"
    config.write_text(f'runtime_dir = "{directory}/run"\n')
    ended = await command(*arguments(action), "--config", config)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == (
        f"cri-jails: no daemon: there is no socket {directory}/run/cri-jails.sock; start it (cri-jails serve), "
        "or give its configuration with --config, or its socket with --address\n"
    )


async def test_a_socket_that_nobody_listens_at(command, directory) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(directory / "s"))
    ended = await command("ls", "--address", directory / "s")
    assert f"no daemon: nobody listens at {directory}/s; start it" in ended.err
    assert ended.status == 1


async def test_what_is_no_address(command, directory) -> None:
    for address, told in (
        ("", "Connection refused"),
        ("/" + "x" * 200, "too long"),
        (str(directory), "refused"),
    ):
        ended = await command("ls", "--address", address)
        assert ended.status == 1
        assert told in ended.err or "nobody listens" in ended.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_a_socket_that_is_for_others(node, directory) -> None:
    directory.chmod(0o755)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        with pytest.raises(CommandError, match="is not for this user: be root, or a member of the group"):
            client.Daemon(node.socket)
    finally:
        os.seteuid(0)
        os.setegid(0)


async def test_a_relative_address(node, command, directory, monkeypatch) -> None:
    monkeypatch.chdir(directory)
    assert (await command("ls", "-q", "--address", "s")).status == 0
    assert (await command("ls", "-q", "--address", "unix://s")).status == 0


async def test_the_configuration_is_read_as_the_daemon_reads_it(
    node, command, directory, monkeypatch
) -> None:
    config = directory / "config.toml"
    config.write_text(
        f'socket = "{node.socket}"\n[registries."r.example"]\nmirrors = ["https://m.example"]\n'
    )
    assert (await command("ls", "-q", "--config", config)).status == 0
    monkeypatch.setenv("CRI_JAILS_SOCKET", str(node.socket))
    assert (await command("ls", "-q")).status == 0
    config.write_text("sokket = 1\n")
    ended = await command("ls", "--config", config)
    assert (ended.status, "did you mean socket?" in ended.err) == (2, True)


async def test_a_daemon_that_says_nothing(node, image, monkeypatch) -> None:
    monkeypatch.setattr(client, "SECONDS", 0.3)
    node.answers["ImageFsInfo"] = lambda _: asyncio.sleep(60)
    ended = await image("df")
    assert (ended.status, "has not answered" in ended.err) == (1, True)


async def test_a_daemon_that_serves_less(node, image) -> None:
    def older(request):
        raise UnsupportedError("not here")

    node.answers["StreamImages"] = older
    ended = await image("ls")
    assert (ended.status, "does not serve StreamImages: is it an older release?" in ended.err) == (1, True)


async def test_a_daemon_that_ends_meanwhile(node, image) -> None:
    def die(request):
        raise RuntimeError("a bug")

    node.answers["ImageFsInfo"] = die
    ended = await image("df")
    assert ended.status == 1
    assert "ImageFsInfo: internal error (RuntimeError); the log of cri-jails has the details" in ended.err


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["push", "x"],
        ["pull"],
        ["pull", "--creds", "x"],
        ["pull", "--password", "x", "y"],
        ["ls", "-o", "yaml"],
        ["ls", "-q", "-o", "json"],
        ["inspect"],
        ["inspect", "a", "b"],
        ["rm"],
        ["prune", "x"],
        ["login"],
        ["login", "r.example", "--password", "hunter2"],
        ["logout", "--address", "x", "r.example"],
    ],
)
def test_wrong_usage(wrong, capsys) -> None:
    from cri import cli

    with pytest.raises(SystemExit) as caught:
        cli.main(["image", *wrong])
    assert caught.value.code == 2
    assert "usage: cri-jails" in capsys.readouterr().err


@pytest.mark.parametrize("action", [None, *ACTIONS, "login", "logout"])
def test_help_tells_the_exit_status(action, capsys) -> None:
    from cri import cli

    with pytest.raises(SystemExit) as caught:
        cli.main(["image", *([action] if action else []), "--help"])
    assert caught.value.code == 0
    assert "Exit status: 0 if all went well" in " ".join(capsys.readouterr().out.split())


async def test_names_that_are_no_text(image) -> None:
    ended = await image("ls", "caf\udce9")
    assert (ended.status, ended.err) == (1, "cri-jails: 'caf\\udce9' is not UTF-8\n")


async def test_a_reader_that_has_had_enough(node, kit) -> None:
    node.images = [kit.image("a", *(f"r.example/{'x' * 200}:{one}" for one in range(2000)))]
    shell = f"{sys.executable} -m cri image ls --address {node.socket} | head -n 1; echo ${{PIPESTATUS[0]}}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", shell, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3], env=os.environ | {"PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    out, err = await process.communicate()
    assert (out.splitlines()[-1], err) == (b"1", b"")


async def test_any_locale_can_show_it(node, kit) -> None:
    node.images = [kit.image("a", "r.example/x:1")]
    node.info = {"info": '{"imageSpec": {"history": [{"created_by": "größe 日本"}]}}'}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cri", "image", "history", "--address", str(node.socket), "r.example/x:1",
        stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert "größe \\u65e5\\u672c".encode("latin-1") in out
