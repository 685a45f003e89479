"""The FreeBSD port says what the distribution needs and holds what it installs; its files are what their programs read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cri import config
from cri._version import __version__
from cri.doctor import freebsd

ROOT = Path(__file__).parents[2]
PORTS = ROOT / "deploy" / "freebsd" / "ports"
PORT = PORTS / "sysutils" / "cri-jails"
FILES = PORT / "files"
PORTS_OF_OURS = sorted(path.parent for path in PORTS.glob("*/*/Makefile"))

MAKEFILE = (PORT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def variable(makefile: str, name: str) -> str:
    """The value of a make(1) variable, its lines joined."""
    match = re.search(rf"^{name}=[ \t]*((?:.*\\\n)*.*)", makefile, re.MULTILINE)
    assert match, f"no {name}"
    return " ".join(match[1].replace("\\\n", " ").split())


def dependencies(makefile: str, name: str) -> dict[str, tuple[str, str]]:
    """Of each Python package among some dependencies: which versions, and the port that has it."""
    found = {}
    for word in variable(makefile, name).split():
        match = re.fullmatch(
            r"\$\{PYTHON_PKGNAMEPREFIX\}([\w.-]+?)([<>=].*):([\w-]+/py-[\w.-]+)@\$\{PY_FLAVOR\}", word
        )
        assert match, word
        found[match[1]] = (match[2], match[3])
    return found


def installed(name: str) -> str:
    """A file of the port as it is after installation in /usr/local."""
    return (FILES / name).read_text().replace("%%PREFIX%%", "/usr/local")


def requirement(line: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"([\w.-]+)(>=|==)([\d.]+)", line)
    assert match, line
    return match[1], match[2], match[3]


@pytest.mark.parametrize("line", PROJECT["project"]["dependencies"])
def test_every_dependency_has_its_port(line: str) -> None:
    name, relation, version = requirement(line)
    versions, origin = dependencies(MAKEFILE, "RUN_DEPENDS")[name]
    assert origin.partition("/py-")[2] == name
    assert re.match(rf">={re.escape(version)}(,\d+)?(<|$)", versions), f"{versions} for {line}"
    assert ("<" in versions) == (relation == "=="), f"{versions} for {line}"


def test_no_port_that_nothing_needs() -> None:
    needed = {requirement(line)[0] for line in PROJECT["project"]["dependencies"]}
    assert set(dependencies(MAKEFILE, "RUN_DEPENDS")) == needed | {"sqlite3"}


def test_every_requirement_of_the_build_has_its_port() -> None:
    found = dependencies(MAKEFILE, "BUILD_DEPENDS")
    for line in PROJECT["build-system"]["requires"]:
        name, version = line.split(">=")
        assert found[name][0].startswith(f">={version}")


@pytest.mark.parametrize("name", ["betterproto2", "grpcio-health-checking"])
def test_what_the_ports_tree_lacks_is_in_the_overlay(name: str) -> None:
    _, origin = dependencies(MAKEFILE, "RUN_DEPENDS")[name]
    makefile = (PORTS / origin / "Makefile").read_text()
    assert variable(makefile, "PORTNAME") == name
    versions, _ = dependencies(MAKEFILE, "RUN_DEPENDS")[name]
    assert tuple(map(int, variable(makefile, "DISTVERSION").split("."))) >= tuple(
        map(int, re.findall(r"[\d.]+", versions)[0].split("."))
    )


@pytest.mark.parametrize("port", PORTS_OF_OURS, ids=lambda port: port.name)
def test_a_port_is_complete(port: Path) -> None:
    makefile = (port / "Makefile").read_text()
    assert makefile.endswith("\n.include <bsd.port.mk>\n")
    assert len(variable(makefile, "COMMENT")) <= 70
    assert not re.match(r"(a|an|the) ", variable(makefile, "COMMENT"), re.IGNORECASE)
    assert "autoplist" in variable(makefile, "USE_PYTHON").split()
    assert all(len(line) <= 80 for line in (port / "pkg-descr").read_text().splitlines())
    assert variable(makefile, "CATEGORIES").split()[0] == port.parent.name
    if port != PORT:  # what is not released has no distfile yet
        distinfo = (port / "distinfo").read_text()
        assert re.search(
            rf"^SHA256 \([\w.-]+-{variable(makefile, 'DISTVERSION')}\.tar\.gz\) = [0-9a-f]{{64}}$",
            distinfo,
            re.MULTILINE,
        )


def test_versions() -> None:
    assert variable(MAKEFILE, "DISTVERSION") == __version__
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert variable(MAKEFILE, "USES") == f"python:{least}+"


def wheel_files(directory: Path) -> set[str]:
    """What a wheel would hold, without compiling anything."""
    program = (
        "import distutils.core as core, sys\n"
        "made = core.run_setup('setup.py', ['--quiet', 'build', '--build-base', sys.argv[1]], stop_after='commandline')\n"
        "command = made.get_command_obj('build_py')\n"
        "command.ensure_finalized()\n"
        "print('FILES')\n"
        "print('\\n'.join(command.get_outputs(include_bytecode=0)))\n"
        "print(command.build_lib)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import setuptools\n{program}", str(directory)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    *files, top = done.stdout.partition("FILES\n")[2].splitlines()
    return {os.path.relpath(file, top) for file in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    return wheel_files(tmp_path_factory.mktemp("build"))


def test_the_wheel_holds_every_module(wheel: set[str]) -> None:
    packages = ("cri", "registratur", "baustelle", "cni_plugins")
    modules = {
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert modules <= wheel, modules - wheel


def test_the_sources_of_the_kernel_bindings_are_distributed(wheel: set[str]) -> None:
    sources = {
        str(path.relative_to(ROOT))
        for package in ("cri", "cni_plugins", "baustelle")
        for suffix in ("c", "h", "pyi", "proto")
        for path in (ROOT / package).rglob(f"*.{suffix}")
        if suffix in ("pyi", "proto") or not path.name.startswith("_")  # those are made by cffi
    }
    assert sources <= wheel, f"package-data in pyproject.toml lacks {sources - wheel}"


def test_every_kernel_binding_for_freebsd_is_compiled_at_install() -> None:
    setup = (ROOT / "setup.py").read_text()
    for path in (
        *(ROOT / "cri/sandbox/freebsd").glob("_*_build.py"),
        *(ROOT / "cni_plugins/freebsd").glob("_*_build.py"),
    ):
        assert str(path.relative_to(ROOT)) in setup


def plist() -> set[str]:
    """Where pkg-plist has files, from PREFIX on."""
    names = {"%%ETCDIR%%": "etc/cri-jails", "%%EXAMPLESDIR%%": "share/examples/cri-jails"}
    found = set()
    for line in (PORT / "pkg-plist").read_text().splitlines():
        path = line.split()[-1]
        for name, value in names.items():
            path = path.replace(name, value)
        if not line.startswith("@dir"):
            found.add(path)
    return found


def test_the_packing_list_has_what_the_port_installs_and_nothing_of_the_wheel(wheel: set[str]) -> None:
    names = {"${ETCDIR}": "etc/cri-jails", "${EXAMPLESDIR}": "share/examples/cri-jails", "${PREFIX}/": ""}
    targets = set()
    for target in re.findall(r"\$\{INSTALL_(?:DATA|SCRIPT)\} \S+ \$\{STAGEDIR\}(\S+)", MAKEFILE):
        path = target
        for name, value in names.items():
            path = path.replace(name, value)
        targets.add(path)
    assert targets == plist()
    assert not {Path(path).name for path in plist()} & {Path(path).name for path in wheel}


def test_every_file_of_the_port_is_used() -> None:
    generated = {f"{name}.in" for name in variable(MAKEFILE, "SUB_FILES").split()}
    generated.add(f"{variable(MAKEFILE, 'USE_RC_SUBR')}.in")
    plain = set(re.findall(r"\$\{FILESDIR\}/(\S+)", MAKEFILE))
    assert {path.name for path in FILES.iterdir()} == generated | plain


@pytest.mark.parametrize("name", ["cri_jails.in", "reopen-log.in"])
def test_scripts_parse(name: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(installed(name))
    assert "%%" not in script.read_text()
    subprocess.run(["sh", "-n", script], check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, "-s", "sh", script], check=True)


def run_script(tmp_path: Path, *commands: str, **settings: str) -> str:
    """Run the rc script with an rc.subr that only tells what rc.subr would work with."""
    subr = tmp_path / "rc.subr"
    subr.write_text(
        "load_rc_config() { :; }\n"
        'run_rc_command() { for v in $SHOWN; do eval "printf \'%s=%s\\n\' $v \\"\\$$v\\""; done; "$@"; }\n'
    )
    script = tmp_path / "cri_jails"
    script.write_text(installed("cri_jails.in").replace("/etc/rc.subr", str(subr)))
    done = subprocess.run(
        ["sh", script, *commands], env={**os.environ, **settings}, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_the_script_gives_the_flags_to_the_daemon_and_not_to_its_supervisor(tmp_path: Path) -> None:
    shown = run_script(
        tmp_path, "true", SHOWN="cri_jails_flags command_args", cri_jails_flags="--log-level debug"
    )
    flags, arguments = shown.splitlines()[0], " ".join(shown.splitlines()[1:])
    assert flags == "cri_jails_flags="
    assert (
        "cri-jails serve --config /usr/local/etc/cri-jails/cri-jails.toml --log-level debug </dev/null"
        in arguments
    )
    assert "-m 0 " in arguments, "a supervisor that reads the output waits for the wardens"


def test_the_script_looks_for_the_modules_that_the_doctor_wants(tmp_path: Path) -> None:
    shown = run_script(tmp_path, "true", SHOWN="required_modules").removeprefix("required_modules=")
    assert set(shown.split()) == {
        module.file or module.name
        for module, level in freebsd.MODULES
        if level is freebsd.Level.FAILURE and module.name != "devfs"  # cannot be unloaded
    } | {"pf"}  # which the doctor has a check of its own for


def test_the_script_has_the_commands_that_it_documents(tmp_path: Path) -> None:
    shown = run_script(
        tmp_path, "true", SHOWN="extra_commands reload_cmd reopen_cmd configtest_cmd doctor_cmd"
    )
    values = dict(line.split("=", 1) for line in shown.splitlines())
    text = installed("cri_jails.in")
    for command in values["extra_commands"].split():
        assert re.search(rf"^# {command}\s", text, re.MULTILINE)
        assert f"\n{values[f'{command}_cmd']}()\n" in text


def test_a_reload_is_for_the_daemon_and_a_rotation_for_the_log(tmp_path: Path) -> None:
    shown = run_script(tmp_path, "true", SHOWN="daemon_pidfile command_args")
    pidfile = shown.splitlines()[0].removeprefix("daemon_pidfile=")
    assert f" -p {pidfile} " in shown
    assert 'pkill -HUP -L -F "$daemon_pidfile"' in installed("cri_jails.in")
    assert "cri_jails onereopen" in installed("reopen-log.in")
    unit = (ROOT / "deploy/systemd/cri-jails.service").read_text()
    assert "\nExecReload=/bin/kill -HUP $MAINPID\n" in unit


def test_the_script_is_not_for_service_jails(tmp_path: Path) -> None:
    assert run_script(tmp_path, "true", SHOWN="cri_jails_svcj", cri_jails_svcj="YES") == "cri_jails_svcj=NO\n"


def test_the_sample_configuration_loads(tmp_path: Path) -> None:
    file = tmp_path / "cri-jails.toml"
    file.write_text(installed("cri-jails.toml.in"))
    made = config.load(file, environment={})
    assert (str(made.state_dir), str(made.socket)) == (
        "/var/db/cri-jails",
        "/var/run/cri-jails/cri-jails.sock",
    )


def test_the_commented_settings_of_the_sample_load(tmp_path: Path) -> None:
    uncommented = re.sub(r"^# (?=\[|\w+ = )", "", installed("cri-jails.toml.in"), flags=re.MULTILINE)
    file = tmp_path / "cri-jails.toml"
    file.write_text(uncommented)
    made = config.load(file, environment={})
    assert made.socket_group == "wheel"
    assert made.registries["docker.io"].mirrors


def test_newsyslog_rotates_the_log_of_the_script(tmp_path: Path) -> None:
    (line,) = [line for line in installed("newsyslog.conf.in").splitlines() if not line.startswith("#")]
    log, _, mode, *_, flags, command = line.split()
    assert f"cri_jails_logfile:={log}}}" in installed("cri_jails.in")
    assert mode == "600"
    assert "R" in flags
    assert command.removeprefix("/usr/local/") in plist()


def test_the_anchors_are_those_that_status_asks_for() -> None:
    """tests/cni_plugins/test_pf.py has the same lines from what the pf backend says."""
    lines = {
        line for line in (FILES / "pf.conf").read_text().splitlines() if line and not line.startswith("#")
    }
    assert lines - {"pass out all keep state"} == {'nat-anchor "cni-rdr/*"', 'rdr-anchor "cni-rdr/*"'}


def test_the_message_names_what_the_doctor_would() -> None:
    message = installed("pkg-message.in")
    assert "kern.racct.enable=1" in message
    assert "unix:///var/run/cri-jails/cri-jails.sock" in message
    for module, _ in freebsd.MODULES:
        if module.name != "devfs":
            assert (module.file or module.name) in message
