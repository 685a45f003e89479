"""The command, as people meet it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cri import cli
from cri._version import __version__


def test_version(capsys) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"cri-jails {__version__}\n"


def test_config_dump(tmp_path: Path, capsys) -> None:
    file = tmp_path / "c.toml"
    file.write_text("host = 'linux'\n")
    assert cli.main(["config", "dump", "--config", str(file), "--log-level", "error"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert (shown["host"], shown["log"]["level"]) == ("linux", "error")


def test_a_wrong_configuration_is_one_line_and_status_2(tmp_path: Path, capsys) -> None:
    file = tmp_path / "c.toml"
    file.write_text("hots = 'linux'\n")
    for command in (["serve"], ["config", "dump"]):
        assert cli.main([*command, "--config", str(file)]) == 2
        assert capsys.readouterr().err == f"cri-jails: {file}: unknown key hots; did you mean host?\n"


@pytest.mark.parametrize("arguments", [[], ["config"], ["serve", "--no-such-flag"], ["nonsense"]])
def test_wrong_usage(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: cri-jails" in capsys.readouterr().err


def test_help_names_every_setting(capsys) -> None:
    from cri.settings import SETTINGS

    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(setting.flag in shown for setting in SETTINGS)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["version"], ["config", "dump"], ["image", "--help"], ["image", "pull", "--help"]],
)
def test_the_fast_path_imports_nothing_heavy(arguments) -> None:
    program = (
        "import sys; sys.argv = ['cri-jails', *sys.argv[1:]]\n"
        "from cri.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'sqlmodel', 'sqlalchemy', 'pydantic', 'aiohttp', 'structlog', 'betterproto2', 'asyncio', 'registratur'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"


def test_python_m_cri() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cri", "version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cri-jails {__version__}\n"
