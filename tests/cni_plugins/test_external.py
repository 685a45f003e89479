"""External plugins: those that Debian has, in namespaces, and scripts that misbehave."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from cni_plugins import executables, results
from cni_plugins.errors import (
    ConfigurationError,
    ExternalPluginError,
    IncompatibleVersionError,
    UnknownPluginError,
)
from cni_plugins.external import ExternalPlugin
from cni_plugins.runtime_config import Bandwidth
from cni_plugins.settings import Settings
from cni_plugins.types import Interface, IPConfig, OwnStack, Result

DEBIAN = Path("/usr/lib/cni")
needs_debian = pytest.mark.skipif(
    not (DEBIAN / "host-local").exists(), reason="needs Debian's containernetworking-plugins in /usr/lib/cni"
)
RESULT = Result(
    interfaces=(Interface("eth0", "02:00:00:00:00:02", "/run/netns/pod"),),
    ips=(IPConfig(ip_interface("10.9.0.2/24"), ip_address("10.9.0.1"), 0),),
)


@pytest.fixture
def make(make_context, tmp_path):
    """Make an external plugin: one of Debian's by its type, or a script of this text."""

    def make(type_="widget", *, script=None, binaries=None, version="1.1.0", seconds=20.0, **settings):
        if script is not None:
            path = tmp_path / type_
            path.write_text(f"#!{sys.executable}\n{PREAMBLE}\n{script}\n")
            path.chmod(0o755)
        values = {"type": type_, **settings}
        return ExternalPlugin(
            Settings(values, f"network pods: plugin {type_}"),
            make_context(links_=object()),
            binaries=binaries or [tmp_path],
            version=version,
            seconds=seconds,
        )

    return make


PREAMBLE = """
import json, os, subprocess, sys, time
command = os.environ["CNI_COMMAND"]
told = sys.stdin.read()
config = json.loads(told)
def note(name):
    with open(os.path.join(os.path.dirname(__file__), name), "a") as file:
        file.write(json.dumps({"environment": dict(os.environ), "config": config}) + "\\n")
if command == "VERSION":
    note("versions")
    print(json.dumps({"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}))
    raise SystemExit
"""


def notes(directory, name):
    path = directory / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


ECHO = """
note("calls")
if command == "ADD":
    print(json.dumps({**config.get("prevResult", {}), "cniVersion": config["cniVersion"], "dns": {"domain": "d"}}))
"""


# What it is told


def test_what_it_is_told(make, make_request, tmp_path):
    plugin = make(script=ECHO, capabilities={"bandwidth": True}, size=3)
    request = make_request(
        OwnStack(), "c1", "eth1", previous=RESULT, args={"IgnoreUnknown": "1", "K8S_POD_NAME": "web"},
        bandwidth=Bandwidth(ingress_rate=8, ingress_burst=8),
    )  # fmt: skip
    result = plugin.add(request)
    assert result == replace(RESULT, dns=replace(RESULT.dns, domain="d"))
    plugin.check(replace(request, previous=result))
    plugin.delete(replace(request, previous=result))
    plugin.delete(replace(request, stack=None))
    plugin.gc([request])
    assert plugin.status() == []
    assert len(notes(tmp_path, "versions")) == 1
    calls = notes(tmp_path, "calls")
    assert [call["environment"].pop("CNI_COMMAND") for call in calls] == [
        "ADD", "CHECK", "DEL", "DEL", "GC", "STATUS",
    ]  # fmt: skip
    common = {"CNI_PATH": str(tmp_path), "PATH": calls[0]["environment"]["PATH"]}
    whose = {
        **common,
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web",
    }
    environments = [
        {key: value for key, value in call["environment"].items() if key != "LC_CTYPE"} for call in calls
    ]
    assert environments == [whose, whose, whose, {**whose, "CNI_NETNS": ""}, common, common]
    conf = {
        "type": "widget", "name": "pods", "cniVersion": "1.1.0", "size": 3, "capabilities": {"bandwidth": True},
    }  # fmt: skip
    runtime = {"runtimeConfig": {"bandwidth": {"ingressRate": 8, "ingressBurst": 8}}}
    assert calls[0]["config"] == {**conf, **runtime, "prevResult": results.to_json(RESULT)}
    assert calls[2]["config"] == {**conf, **runtime, "prevResult": results.to_json(result)}
    assert calls[4]["config"] == {
        **conf, "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth1"}],
    }  # fmt: skip
    assert calls[5]["config"] == conf


@pytest.mark.parametrize(
    ("version", "commands"),
    [("0.3.1", ["ADD", "DEL"]), ("0.4.0", ["ADD", "CHECK", "DEL"]), ("1.0.0", ["ADD", "CHECK", "DEL"])],
)
def test_an_older_version_has_fewer_commands(make, make_request, tmp_path, version, commands):
    plugin = make(script=ECHO, version=version)
    request = make_request(OwnStack(), previous=RESULT)
    plugin.add(request)
    plugin.check(request)
    plugin.delete(request)
    plugin.gc([request])
    assert plugin.status() == []
    calls = notes(tmp_path, "calls")
    assert [call["environment"]["CNI_COMMAND"] for call in calls] == commands
    assert all(call["config"]["cniVersion"] == version for call in calls)
    assert ("prevResult" in calls[-1]["config"]) == (version != "0.3.1")
    assert ("version" in calls[0]["config"]["prevResult"]["ips"][0]) == version.startswith("0.")


OF_LONG_AGO = """
if command == "VERSION":
    assert all(os.environ[f"CNI_{name}"] for name in ("CONTAINERID", "IFNAME", "NETNS", "PATH"))
    print(ANSWER)
    raise SystemExit(CODE)
note("calls")
if command == "ADD":
    print('{"ip4": {"ip": "10.9.0.3/24", "gateway": "10.9.0.1", "routes": [{"dst": "0.0.0.0/0"}]}}')
"""


@pytest.mark.parametrize(
    ("version", "answer", "code"),
    [
        ("0.1.0", {"cniVersion": "0.1.0", "code": 100, "msg": "unknown CNI_COMMAND: VERSION"}, 1),
        ("0.1.0", {"cniVersion": "0.2.0"}, 0),
        ("0.2.0", {"cniVersion": "0.2.0"}, 0),
        ("0.2.0", {"cniVersion": "0.2.0", "supportedVersions": ["0.1.0", "0.2.0"]}, 0),
    ],
)
def test_one_of_long_ago_is_understood(make, make_request, tmp_path, version, answer, code):
    """What libcni reads into the answers of plugins that are older than the question."""
    script = OF_LONG_AGO.replace("ANSWER", repr(json.dumps(answer))).replace("CODE", str(code))
    plugin = make(script=script, version=version)
    path = tmp_path / "widget"
    path.write_text(path.read_text().replace(PREAMBLE, PREAMBLE.partition("if command ==")[0]))
    result = plugin.add(make_request(OwnStack(), previous=RESULT))
    assert [(ip.address, ip.gateway) for ip in result.ips] == [
        (ip_interface("10.9.0.3/24"), ip_address("10.9.0.1"))
    ]
    assert [str(route.dst) for route in result.routes] == ["0.0.0.0/0"]
    (call,) = notes(tmp_path, "calls")
    told = call["config"]["prevResult"]
    assert told["ip4"] == {"ip": "10.9.0.2/24", "gateway": "10.9.0.1"}
    assert call["config"]["cniVersion"] == told["cniVersion"] == version
    with pytest.raises(IncompatibleVersionError, match=r"does not speak version 1\.1\.0"):
        make().add(make_request(OwnStack()))


@pytest.mark.parametrize(
    "text",
    [
        r"""b'{"dns": {"domain": "\\ud800"}}""" + "'",
        r"""b'{"dns": {"domain": "\xff"}}'""",
        """b'{"mtu": NaN}""" + "'",
        "b'[' * 100000",
    ],
)
def test_an_answer_that_is_no_text_is_told(make, make_request, text):
    code, message = failure(make, make_request, f"sys.stdout.buffer.write({text})")
    assert code == 6
    assert "its answer is no JSON object" in message.encode().decode()


def test_the_first_plugin_has_no_previous_result(make, make_request, tmp_path):
    make(script=ECHO).add(make_request(OwnStack()))
    assert "prevResult" not in notes(tmp_path, "calls")[0]["config"]


def test_an_ipam_plugin_is_told_the_whole_configuration(make_context, make_request, make, tmp_path):
    make(script=ECHO)
    whole = Settings({"type": "bridge", "ipam": {"type": "widget"}}, "network pods: plugin bridge")
    plugin = ExternalPlugin(whole.part("ipam"), make_context(links_=object()), binaries=[tmp_path])
    plugin.add(make_request(OwnStack()))
    (call,) = notes(tmp_path, "calls")
    assert call["config"] == {**whole.values, "name": "pods", "cniVersion": "1.1.0"}


def test_nothing_of_our_environment_is_told(make, make_request, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN", "secret")
    make(script=ECHO).add(make_request(OwnStack()))
    assert "secret" not in (tmp_path / "calls").read_text()


# What cannot be


@pytest.mark.parametrize("type_", ["../widget", "/bin/sh", "..", ".", ""])
def test_a_type_is_no_path(make, type_):
    with pytest.raises(ConfigurationError, match="without slashes"):
        make(type_)


def test_an_executable_that_is_not_there(make, tmp_path):
    (tmp_path / "widget").write_text("not executable")
    with pytest.raises(UnknownPluginError, match=f"'widget' is not installed.*{tmp_path}"):
        make()
    (tmp_path / "widget").unlink()
    (tmp_path / "widget").mkdir()
    with pytest.raises(UnknownPluginError):
        make()


def test_the_first_directory_wins(make, make_request, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    make(script=ECHO)
    (second / "widget").write_text("#!/bin/false\n")
    (second / "widget").chmod(0o755)
    make(binaries=[tmp_path, second]).add(make_request(OwnStack()))
    assert notes(tmp_path, "calls")[0]["environment"]["CNI_PATH"] == f"{tmp_path}:{second}"


def test_a_version_that_it_does_not_speak(make, make_request):
    plugin = make(script=ECHO, version="0.3.0")
    with pytest.raises(
        IncompatibleVersionError, match=r"does not speak version 0\.3\.0 of CNI, but 0\.3\.1, 0\.4\.0"
    ):
        plugin.add(make_request(OwnStack()))
    (problem,) = plugin.status()
    assert "change the configuration's cniVersion" in problem


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: elsewhere a namespace is no path")
def test_a_namespace_without_a_path(make, make_request):
    with pytest.raises(ConfigurationError, match="network namespace is 'jail'"):
        make(script=ECHO).add(make_request(OwnStack(), netns="jail"))


@pytest.mark.parametrize("args", [{"A": "1;B=2"}, {"A=B": "1"}, {"A;B": "1"}])
def test_arguments_that_would_be_others(make, make_request, args):
    with pytest.raises(ConfigurationError, match="cannot be told"):
        make(script=ECHO).add(make_request(OwnStack(), args=args))


# What it does wrong


def failure(make, make_request, script, **settings):
    plugin = make(script=script, **settings)
    with pytest.raises(ExternalPluginError) as caught:
        plugin.add(make_request(OwnStack()))
    message = str(caught.value)
    assert message.startswith("network pods: plugin widget: ADD of pod/eth0: ")
    return caught.value.code, message


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("print(json.dumps(dict(cniVersion='1.1.0', code=11, msg='busy', details='try later')))\nsys.exit(1)",
         11, "busy: try later"),
        ("print(json.dumps(dict(code=7, msg='no size')))", 7, "no size"),
        ("print(json.dumps(dict(code=7)))\nsys.exit(1)", 7, "error 7"),
        ("sys.exit('out of\\nluck \\x1b[1m')", 999, "ended with code 1, and told no error but: out of luck ?[1m"),
        ("print('garbage')\nsys.exit(3)", 999, "ended with code 3, and told no error but: garbage"),
        ("os.kill(os.getpid(), 9)", 999, "killed by signal 9, and told no error"),
        ("print('garbage')", 6, "its answer is no JSON object, but 'garbage'"),
        ("print('[1]')", 6, "its answer is no JSON object, but '[1]'"),
        ("", 6, "its answer is no JSON object, but ''"),
        ("print('[' * 100000)", 6, "its answer is no JSON object"),
        ("print(json.dumps({'ips': [{'address': 'x'}]}))", 6, "'x' does not appear to be"),
        ("print(json.dumps({'ips': 5}))", 6, "no result of CNI"),
        ("sys.stderr.write('a' * 10**6 + 'the end')\nsys.exit(1)", 999, "aaa" + "the end"),
    ],
)  # fmt: skip
def test_what_it_does_wrong_is_told(make, make_request, script, code, message):
    found, said = failure(make, make_request, script)
    assert (found, message in said) == (code, True), said
    assert len(said) < 1300


def gone(pid, patience=5.0):
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: looks at processes in /proc")
def test_one_that_hangs_is_killed_with_its_children(make, make_request, tmp_path):
    script = """
child = subprocess.Popen(["sleep", "600"])
open(os.path.join(os.path.dirname(__file__), "pids"), "w").write(f"{os.getpid()} {child.pid}")
sys.stderr.write("waiting for the moon")
sys.stderr.flush()
time.sleep(600)
"""
    plugin = make(script=script, seconds=20)
    plugin._check_version()  # in its own time
    plugin._seconds = 1.0
    begin = time.monotonic()
    with pytest.raises(
        ExternalPluginError, match=r"no end after 1 s, so it was killed \(it said: waiting for"
    ) as error:
        plugin.add(make_request(OwnStack()))
    assert error.value.code == 999
    assert time.monotonic() - begin < 5
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(map(gone, pids))


def test_one_that_says_too_much_is_killed(make, make_request):
    _, said = failure(make, make_request, "while True: sys.stdout.write('x' * 65536)")
    assert f"longer than {executables.MOST_OUTPUT} bytes" in said


def test_one_that_leaves_a_child_with_its_output_is_not_waited_for(make, make_request, tmp_path):
    script = """
child = subprocess.Popen(["sleep", "30"])
open(os.path.join(os.path.dirname(__file__), "pid"), "w").write(str(child.pid))
print(json.dumps({"cniVersion": "1.1.0"}))
"""
    begin = time.monotonic()
    assert make(script=script).add(make_request(OwnStack())) == Result()
    assert time.monotonic() - begin < 15
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_one_that_does_not_listen(make_context, make_request, tmp_path):
    path = tmp_path / "widget"
    path.write_text(
        "#!/bin/sh\nexec <&-\n"
        'if [ "$CNI_COMMAND" = VERSION ]; then echo \'{"supportedVersions": ["1.1.0"]}\'; else echo "{}"; fi\n'
    )
    path.chmod(0o755)
    settings = Settings({"type": "widget", "long": "x" * 1_000_000}, "network pods: plugin widget")
    plugin = ExternalPlugin(settings, make_context(links_=object()), binaries=[tmp_path])
    assert plugin.add(make_request(OwnStack())) == Result()


@pytest.mark.parametrize("answer", ["{}", '{"supportedVersions": "1.1.0"}', "[]", "x"])
def test_one_that_does_not_tell_its_versions(make_context, make_request, tmp_path, answer):
    path = tmp_path / "widget"
    path.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")
    path.chmod(0o755)
    settings = Settings({"type": "widget"}, "network pods: plugin widget")
    plugin = ExternalPlugin(settings, make_context(links_=object()), binaries=[tmp_path])
    with pytest.raises(ExternalPluginError, match="VERSION: ") as caught:
        plugin.add(make_request(OwnStack()))
    assert caught.value.code == 6
    assert len(plugin.status()) == 1


def test_one_that_is_no_program(make, make_request, tmp_path):
    plugin = make(script=ECHO)
    (tmp_path / "widget").write_bytes(b"\x7fELF nonsense")
    with pytest.raises(ExternalPluginError, match=r"cannot run .*Exec format error"):
        plugin.add(make_request(OwnStack()))
    (tmp_path / "widget").unlink()
    with pytest.raises(ExternalPluginError, match="No such file"):
        plugin.add(make_request(OwnStack()))


def test_status_tells_what_it_says(make):
    script = 'print(json.dumps(dict(code=50, msg="the moon is full")))\nsys.exit(1)'
    assert make(script=script).status() == ["network pods: plugin widget: STATUS: the moon is full"]


def test_who_asks_for_the_versions_waits_for_nobody_and_asks_once(make, monkeypatch):
    """One that hangs for one caller must not hang for all: they ask at the same time, or this ends with an error."""
    together, run = threading.Barrier(3, timeout=20), executables.run

    def meet(path, environment, *arguments, **named):
        if environment["CNI_COMMAND"] == "VERSION":
            together.wait()
        return run(path, environment, *arguments, **named)

    monkeypatch.setattr(executables, "run", meet)
    plugin = make(script="")
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: plugin.status(), range(3))) == [[], [], []]
    together.abort()
    assert plugin.status() == []


def test_nothing_is_left_open(make, make_request):
    plugin = make(script=ECHO)
    plugin.add(make_request(OwnStack()))
    directory = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    before = len(list(directory.iterdir()))
    plugin.add(make_request(OwnStack()))
    assert len(list(directory.iterdir())) == before


# Debian's


@needs_debian
@pytest.mark.node
def test_debian_s_loopback(make, make_request, pod):
    plugin = make("loopback", binaries=[DEBIAN], version="1.0.0")
    request = make_request(pod, "c1", "lo", netns=f"/proc/{os.getpid()}/fd/{pod.move_target}")
    result = plugin.add(request)
    assert [(one.name, one.mac) for one in result.interfaces] == [("lo", "00:00:00:00:00:00")]
    assert str(result.ips[0].address) == "127.0.0.1/8"
    assert pod.sysctl("net.ipv4.conf.lo.forwarding") in ("0", "1")
    plugin.check(replace(request, previous=result))
    plugin.delete(replace(request, previous=result))
    with pytest.raises(ExternalPluginError):
        plugin.check(replace(request, previous=result))
    plugin.delete(replace(request, stack=None))


@needs_debian
def test_debian_s_host_local(make, make_request, tmp_path):
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.2.0/29"}]],
        "dataDir": str(tmp_path / "leases"),
    }
    plugin = make("host-local", binaries=[DEBIAN], version="1.0.0", ipam=ipam)
    addresses = []
    for number in range(5):
        result = plugin.add(make_request(OwnStack(), f"c{number}"))
        assert result.interfaces == ()
        addresses.append(str(result.ips[0].address))
    assert addresses == [f"10.1.2.{number}/29" for number in range(2, 7)]
    with pytest.raises(ExternalPluginError, match="no IP addresses available in range set") as caught:
        plugin.add(make_request(OwnStack(), "c5"))
    assert caught.value.code == 999
    plugin.check(make_request(OwnStack(), "c1", previous=RESULT))
    plugin.delete(make_request(OwnStack(), "c1"))
    plugin.delete(make_request(OwnStack(), "c1"))
    with pytest.raises(ExternalPluginError, match="c1"):
        plugin.check(make_request(OwnStack(), "c1", previous=RESULT))
    assert str(plugin.add(make_request(OwnStack(), "c6")).ips[0].address) == "10.1.2.3/29"
    assert stat.S_ISDIR((tmp_path / "leases").stat().st_mode)


@needs_debian
def test_debian_s_static_and_its_versions(make, make_request):
    ipam = {"type": "static", "addresses": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1"}]}
    result = make("static", binaries=[DEBIAN], version="0.4.0", ipam=ipam).add(make_request(OwnStack()))
    assert result.ips == (IPConfig(ip_interface("10.1.2.3/24"), ip_address("10.1.2.1")),)
    problems = make("static", binaries=[DEBIAN], version="9.9.9", ipam=ipam).status()
    assert "does not speak version 9.9.9" in problems[0]
