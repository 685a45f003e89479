"""The launcher on Linux, without and with a container's tree."""

import errno
import os
import resource
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

from cri.sandbox.launcher.client import Launcher
from cri.sandbox.launcher.operations import FIRST_DESCRIPTOR, Operation
from cri.sandbox.launcher.plan import Step
from cri.sandbox.launcher.steps import execute, write
from cri.sandbox.linux import build_plan, capabilities, kernel, run_plan, stated
from cri.sandbox.linux.run_plan import Processes, Run
from cri.sandbox.spec import ContainerSpec, Credentials, MountSpec, ProcessSpec, Security
from cri.sandbox.warden.driver import Plan

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(
        not Path("/bin/busybox").exists() or os.geteuid() != 0, reason="needs root and busybox"
    ),
]
HERE = Path(__file__).parent
EXECS = 100
DEFAULT = capabilities.wanted(Security())
SYS_PTRACE = 1 << 19
ALL = kernel.bounding_capabilities()
APPLETS = [
    "sh",
    "cat",
    "ls",
    "true",
    "id",
    "echo",
    "ps",
    "mount",
    "touch",
    "readlink",
    "sleep",
    "stat",
    "pwd",
    "ulimit",
    "grep",
]


def streams(output):
    return Step(Operation.STREAMS, (-1, FIRST_DESCRIPTOR + 1, FIRST_DESCRIPTOR + 1, 0))


def test_a_program_runs_and_is_ours_to_reap(starter):
    def steps(end):
        script = "echo $$; ls /proc/self/fd; readlink /proc/self/exe"
        return [
            streams(end),
            Step(Operation.FORK),
            execute(["/bin/sh"], ["sh", "-c", script], {"PATH": "/bin"}),
        ], [end]

    launch, text = starter.output(steps)
    lines = text.split()
    assert int(lines[0]) == launch.pid
    assert lines[1:4] == ["0", "1", "2"]
    assert os.waitpid(launch.pid, 0)[1] == 0


def test_a_failure_says_which_step(starter):
    steps = [Step(Operation.UMASK, (0o22,)), write("/nowhere/at/all", "0"), Step(Operation.FORK)]
    launch = starter.launch(steps)
    assert (launch.failed, launch.error, launch.pid) == (1, errno.ENOENT, 0)


def test_what_is_no_plan_is_told(starter, monkeypatch):
    monkeypatch.setattr("cri.sandbox.launcher.client.encode", lambda *_: b"no plan")
    launch = starter.launch([])
    assert (launch.failed, launch.error) == (-1, errno.EINVAL)


def test_a_plan_may_be_large(starter):
    environment = {f"NAME{number}": "x" * 1000 for number in range(200)}

    def steps(end):
        last = execute(["/nowhere", "/bin/busybox"], ["busybox", "env"], environment)
        return [streams(end), Step(Operation.FORK), last], [end]

    launch, text = starter.output(steps)
    assert launch.failed is None
    assert dict(line.split("=") for line in text.splitlines()) == environment


def test_the_launcher_cannot_be_changed(starter):
    path = f"/proc/{starter.launcher.pid}/exe"
    with pytest.raises(OSError, match=r"Operation not permitted|Text file busy"):
        os.open(path, os.O_WRONLY)
    assert "memfd:" in str(Path(path).readlink())


def test_what_is_stated_is_what_a_program_gets(starter):
    def steps(end):
        script = (
            "umask; ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/timerslack_ns /proc/self/personality"
        )
        last = execute(["/bin/busybox"], ["sh", "-c", script], {})
        return [*stated.steps(raised=stated.may_raise()), streams(end), Step(Operation.FORK), last], [end]

    launch, text = starter.output(steps)
    assert launch.failed is None, (launch.failed, os.strerror(launch.error))
    most = 524288 if stated.may_raise() else min(524288, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert text.split() == ["0022", "1024", str(most), "0", "50000", "00000000"]


def test_it_starts_whatever_numbers_are_free(program):
    saved = os.dup(3) if Path("/proc/self/fd/3").exists() else None
    try:
        if saved is not None:
            os.close(3)
        launcher = Launcher(program)
        launcher.close()
        assert os.waitpid(launcher.pid, 0)[1] == 0
    finally:
        if saved is not None:
            os.dup2(saved, 3)
            os.close(saved)


class Container:
    """A tree, and what runs in it."""

    def __init__(self, starter, directory, **changes):
        self.starter = starter
        root = directory / "layer"
        for name in ("bin", "etc", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "out").symlink_to("/not/there/yet")
        (root / "to-proc").symlink_to("/proc")
        shutil.copy("/bin/busybox", root / "bin/busybox")
        for applet in APPLETS:
            os.link(root / "bin/busybox", root / "bin" / applet)
        (directory / "root").mkdir()
        security = Security(
            masked_paths=("/proc/kcore", "/proc/acpi", "/sys/firmware", "/bin/touch"),
            readonly_paths=("/proc/sys", "/tmp", "/nothing"),
        )
        spec = ContainerSpec("c", "s", str(directory), (), ProcessSpec(("sh",)), security=security, **changes)
        plan = Plan(spec, {"root": {"kind": "copy", "source": str(root), "target": str(directory / "root")}})
        self.build = build_plan.Builder(plan, {}, 1, "/dev/shm").build()
        self.built = starter.launch(self.build.steps, self.build.descriptors)
        self.sent = dict(zip(self.build.sent, self.built.sent.values(), strict=False))
        self.given = []
        self.spec = spec

    def why(self):
        failed = self.built.failed
        return None if failed is None else (self.build.steps[failed].subject, os.strerror(self.built.error))

    def run(self, script, **changes):
        def steps(end):
            run = Run(
                argv=["sh", "-c", script],
                candidates=["/sbin/sh", "/bin/sh"],
                env={"PATH": "/bin"},
                cwd="/tmp",
                credentials=Credentials(1000, 1000, (1000, 2000)),
                drop=0,
                capabilities=0,
                no_new_privileges=True,
                mounts=self.sent["mounts"],
                stdio=(-1, end, end),
                null=self.sent["null"],
                masked_proc=[path for path in self.spec.security.masked_paths if path.startswith("/proc/")],
                readonly_proc=[
                    path for path in self.spec.security.readonly_paths if path.startswith("/proc/")
                ],
                **{"processes": Processes.NEW, **changes},
            )
            self.steps, descriptors = run_plan.plan(run)
            return self.steps, descriptors

        launch, text = self.starter.output(steps)
        assert launch.failed is None, (self.steps[launch.failed].subject, os.strerror(launch.error))
        return launch, text

    def start(self, argv, **changes):
        """A program's pid, when it runs."""
        given = {
            "env": {"PATH": "/bin"},
            "cwd": "/tmp",
            "credentials": Credentials(1000, 1000, (1000,)),
            "drop": 0,
            "capabilities": 0,
            "no_new_privileges": False,
            "processes": Processes.NEW,
        }
        where = {"mounts": self.sent["mounts"], "null": self.sent["null"]}
        candidates = [argv[0] if "/" in argv[0] else f"/bin/{argv[0]}"]
        steps, descriptors = run_plan.plan(
            Run(argv=argv, candidates=candidates, **where, **(given | changes))
        )
        launch = self.starter.launch(steps, descriptors)
        assert launch.failed is None, (steps[launch.failed].subject, os.strerror(launch.error))
        return launch.pid

    def close(self):
        for descriptor in self.built.sent.values():
            os.close(descriptor)


@pytest.fixture
def container(starter, tmp_path):
    made = []

    def make(**changes):
        directory = tmp_path / str(len(made))
        directory.mkdir(exist_ok=True)
        made.append(Container(starter, directory, **changes))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_tree_is_built_and_a_program_runs_in_it(container):
    here = container()
    assert here.why() is None
    launch, text = here.run(
        "echo $$; pwd; id; ls -a /; ls /proc/self/fd; echo x > /dev/null; ls /sys/firmware; grep -E 'Cap|NoNew|Sig' /proc/self/status; cat /proc/mounts"
    )
    lines = text.splitlines()
    assert lines[:2] == ["1", "/tmp"]
    assert "uid=1000 gid=1000" in lines[2]
    assert "CapPrm:\t0000000000000000" in lines
    assert "NoNewPrivs:\t1" in lines
    assert launch.pid > 1


def test_a_volume_follows_links_inside_the_root_only(container, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("of the volume")
    here = container(
        mounts=(MountSpec(str(volume), "/out/deep"), MountSpec("/dev/null", "/etc/nothing", readonly=True))
    )
    assert here.why() is None
    _, text = here.run("cat /not/there/yet/deep/file; stat -c %F /etc/nothing")
    assert text == "of the volumecharacter special file\n"
    os.mknod(volume / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    here = container(mounts=(MountSpec(str(volume / "null"), "/etc/nothing"),))
    assert here.why() is None
    _, text = here.run("stat -c %a /etc/nothing")
    assert text == "666\n"  # the container's own, not that of the volume
    for hidden in ("/to-proc", "/to-proc/sys", "/tmp/.."):
        other = container(mounts=(MountSpec(str(volume), hidden),))
        assert other.built.error == errno.EXDEV, hidden
        assert other.why() == (f"mount on {hidden}", "Invalid cross-device link")


def test_an_exec_is_complete_when_it_is_born(container):
    here = container()
    first, _ = here.run("exec >&- 2>&-; exec sleep 100")
    pids = os.open(f"/proc/{first.pid}/ns/pid", os.O_RDONLY)
    try:
        _, text = here.run("echo $$; ps; id -u", processes=Processes.SHARED, pids=pids)
    finally:
        os.close(pids)
        os.kill(first.pid, 9)
    lines = text.splitlines()
    assert lines[0] == "2"
    assert any("sleep 100" in line for line in lines)
    assert here.steps.index(next(s for s in here.steps if s.operation is Operation.FORK)) > here.steps.index(
        next(s for s in here.steps if s.operation is Operation.CAPABILITIES)
    )


def test_who_may_trace_finds_nothing_of_the_node(container, tmp_path):
    """CVE-2016-9962's kind, from inside, with SYS_PTRACE, in a process namespace that is shared with what comes."""
    (tmp_path / "0/layer/bin").mkdir(parents=True)
    subprocess.run(
        ["cc", "-static", "-O1", "-o", tmp_path / "0/layer/bin/watch", HERE / "watch.c"], check=True
    )
    here = container()
    secret = tmp_path / "node-only"
    secret.write_text("a file of the node")
    log = tmp_path / "watched"
    with log.open("wb") as output:
        watcher = here.start(
            ["/bin/watch", "2", str(EXECS), str(secret)],
            stdio=(-1, output.fileno(), output.fileno()),
            credentials=Credentials(0, 0, (0,)),
            capabilities=DEFAULT | SYS_PTRACE,
            drop=ALL & ~(DEFAULT | SYS_PTRACE),
        )
    pids = os.open(f"/proc/{watcher}/ns/pid", os.O_RDONLY)
    try:
        while b"watching" not in log.read_bytes():
            pass
        for _ in range(EXECS):
            pid = here.start(
                ["true"],
                processes=Processes.SHARED,
                pids=pids,
                credentials=Credentials(0, 0, (0,)),
                capabilities=DEFAULT,
                drop=ALL & ~DEFAULT,
            )
            os.waitpid(pid, 0)
            time.sleep(0.001)
    finally:
        os.close(pids)
        os.kill(watcher, 9)
    lines = log.read_text().splitlines()[1:]
    assert len(lines) > EXECS // 20  # most end before they are seen
    found = set()
    for line in lines:
        _, got, permitted, *links = line.split(" ", 3)
        assert got == "0", line
        if permitted == "-":
            continue  # it ended while it was looked at
        assert int(permitted, 16) == DEFAULT, line
        found |= {link for text in links for link in text.replace(" (deleted)", "").split()}
    assert found <= {"/", "/tmp", "/dev/null", "/bin/true", "/memfd:cri-jails-launcher", "sock", "pipe"}
    assert "/memfd:cri-jails-launcher" in found  # it was seen early enough


def test_the_executable_of_the_way_in_is_nobodys(container):
    """CVE-2019-5736's kind: what /proc/self/exe leads to is this launcher's copy, which ends for want of a warden."""
    here = container()
    pid = here.start(["/proc/self/exe"])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    Path(f"/proc/{here.starter.launcher.pid}/exe").chmod(0)  # as root in a container could
    assert os.waitpid(here.start(["true"]), 0)[1] == 0
