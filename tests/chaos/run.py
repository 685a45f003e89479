#!/usr/bin/env python3
"""Chaos: random calls, random kills, kernel failures, damaged files; and whether everything is exact after each round.

    python -m tests.chaos.run [--minutes M] [--seed N] [--clients N]

As root on Linux or FreeBSD, from the checkout. Exits 1 with what differs, and leaves the daemon's log then.
"""

from __future__ import annotations

import os

# It starts processes beside gRPC's threads, and has no use for gRPC in what it forks: on FreeBSD that crashed.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import argparse
import collections
import contextlib
import functools
import http.server
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from cri.api.runtime import v1
from tests.chaos import damage, inventory
from tests.chaos.injection import system
from tests.chaos.load import Client, Load

REPOSITORY = Path(__file__).parents[2]
SETTLE = 30.0
"""Seconds in which what is not exact right after a start must have become so."""
ONE_IN = 60
"""Calls of the kernel, of which one fails in a round with failures."""
BRIDGE = f"chaos{os.getpid() % 100_000}"
FREEBSD = system() == "freebsd"

State = v1.ContainerState


class NotExactError(AssertionError):
    """What differs."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def copy_programs(root: Path) -> None:
    """This FreeBSD's own, with the libraries that they need."""
    needed = {"/libexec/ld-elf.so.1"}
    for name in ("sh", "sleep", "echo"):
        shutil.copy2(f"/bin/{name}", root / "bin" / name)
        shown = subprocess.run(
            ["ldd", "-f", "%p\\n", f"/bin/{name}"], check=True, capture_output=True, text=True
        )
        needed |= set(shown.stdout.split())
    for path in needed:
        if path.startswith("/"):
            copy = root / path.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)


@contextlib.contextmanager
def registry(base: Path) -> Iterator[str]:
    """The address of a file server that has `chaos:latest`: a shell and sleep(1)."""
    programs = base / "context/root/bin"
    programs.mkdir(parents=True)
    if FREEBSD:
        copy_programs(base / "context/root")
    else:
        shutil.copy("/bin/busybox", programs / "sh")
        for name in ("sleep", "echo"):
            (programs / name).hardlink_to(programs / "sh")
    for name in ("tmp", "etc", "proc", "dev"):
        (base / "context/root" / name).mkdir()
    (base / "context/root/etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (base / "context/Containerfile").write_text("FROM scratch\nCOPY root/ /\nENV PATH=/bin\n")
    subprocess.run(
        [
            *(sys.executable, "-m", "baustelle", "build", "-f", base / "context/Containerfile"),
            *("-t", "localhost/chaos:latest", "--layout", base / "layout", "--tree", base / "tree"),
            base / "context",
        ],
        check=True,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
    )
    handler = functools.partial(Quiet, directory=base / "tree")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"localhost:{server.server_port}/chaos:latest"
        server.shutdown()


class Daemon:
    """The daemon, again and again on the same directories."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.log = base / "daemon.log"
        self.starts: list[float] = []
        (base / "logs").mkdir()
        (base / "config.toml").write_text(
            f'state_dir = "{base}/state"\nruntime_dir = "{base}/run"\n[log]\nformat = "json"\n'
            f'[network]\nbridge = "{BRIDGE}"\nsubnets = ["10.253.0.0/16"]\nconf_dir = "{base}/net.d"\n'
        )

    def start(self, *, failing: int = 0) -> None:
        """Start it and wait until it answers; with `failing`, on an unreliable kernel of that seed."""
        module = ["tests.chaos.failing_daemon"] if failing else ["cri", "serve", "--config"]
        more = [str(ONE_IN), str(failing)] if failing else []
        began = time.monotonic()
        for _ in range(5 if failing else 1):  # it may fail to start on such a kernel, saying why
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", *module, self.base / "config.toml", *more],
                    stdout=log,
                    stderr=log,
                    cwd=REPOSITORY,
                )
            if self._answers():
                break
        else:
            raise NotExactError("the daemon does not start")
        self.starts.append(time.monotonic() - began)

    def _answers(self) -> bool:
        client = Client(self.base / "run/cri-jails.sock")
        until = time.monotonic() + (240 if FREEBSD else 60)
        try:
            while time.monotonic() < until and self.process.poll() is None:
                with contextlib.suppress(grpc.RpcError):
                    client("Version", 1)
                    return True
        finally:
            client.close()
        return False

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        self.process.send_signal(number)
        self.process.wait(60)

    def spawner(self) -> int:
        """The pid of its spawner."""
        told = subprocess.run(
            ["ps", "-ax" if FREEBSD else "-e", "-o", "pid=", "-o", "ppid="],
            check=True,
            capture_output=True,
            text=True,
        )
        pairs = (tuple(map(int, line.split())) for line in told.stdout.splitlines())
        return next((pid for pid, parent in pairs if parent == self.process.pid), 0)


def differences(load: Load, client: Client) -> list[str]:
    """What of the node is not as the daemon says, or not right in itself."""
    sandboxes = {one.id: one.state for one in client("ListPodSandbox").items}
    containers = {one.id: one for one in client("ListContainers").containers}
    there = inventory.take(load.base, BRIDGE, load.containers)
    ready = {one for one, state in sandboxes.items() if state == v1.PodSandboxState.SANDBOX_READY}
    running = {one for one, each in containers.items() if each.state == State.CONTAINER_RUNNING}
    made = running | {one for one, each in containers.items() if each.state == State.CONTAINER_CREATED}
    alive = {one for one in made if containers[one].pod_sandbox_id in ready}
    found: list[str] = []

    def same(what: str, is_: object, should: object) -> None:
        if is_ != should:
            found.append(f"{what}: there is {is_!r}, there should be {should!r}")

    same("wardens", there.wardens, ready)
    same("leases", there.leases, ready)
    same("interfaces on the bridge", there.interfaces, len(ready))
    # A creation that was cut off between its record and its directory, and could not be undone, is listed and has none.
    bare = set(sandboxes) - ready - there.sandbox_directories
    bare -= {one.pod_sandbox_id for one in containers.values()}
    same("sandboxes' directories", there.sandbox_directories | bare, set(sandboxes))
    same("containers' directories", there.container_directories, set(containers))
    same("sandboxes' records", there.sandbox_records, set(sandboxes))
    same("containers' records", there.container_records, set(containers))
    if FREEBSD:
        same("pods' jails", there.pods, ready)
        same("containers with mounts", there.mounts, there.groups)
    else:
        same("mounts on the node", there.mounts, set())
        addresses = {
            client("PodSandboxStatus", pod_sandbox_id=one).status.network.ip for one in sorted(ready)
        }
        same("translated addresses", {one for one in there.addresses if one.startswith("10.253.")}, addresses)
    same("cgroups or jails of containers", there.groups, alive)
    same("containers with processes", {one for one, pids in there.processes.items() if pids}, running)
    for container, each in containers.items():
        found += wrong_end(load, client, container, each.pod_sandbox_id)
    for condition in client("Status").status.conditions:
        if not condition.status:
            found.append(f"{condition.type}: {condition.reason}: {condition.message}")
    return found


def wrong_end(load: Load, client: Client, container: str, sandbox: str) -> list[str]:
    """What is wrong with how a container has ended, if it has."""
    status = client("ContainerStatus", container_id=container).status
    known = load.containers.get(container)
    if status.state != State.CONTAINER_EXITED or known is None:
        return []
    right = {(known.code, "Completed" if known.code == 0 else "Error"), (128, "StartError")}
    if known.asked_to_end or sandbox in load.stopped | load.lost_wardens:
        right |= {(137, "Error"), (143, "Error")}
    if sandbox in load.lost_wardens:
        right.add((255, "Error"))
    told = (status.exit_code, status.reason)
    return [] if told in right else [f"container {container} has ended with {told}: {status.message}"]


def settle(load: Load) -> None:
    """Wait until everything is exact. Raises NotExactError with what is not in the end."""
    client = Client(load.base / "run/cri-jails.sock")
    until = time.monotonic() + SETTLE * (3 if FREEBSD else 1)
    try:
        while found := differences(load, client):
            if time.monotonic() > until:
                raise NotExactError("\n".join(found))
            time.sleep(0.3)
    finally:
        client.close()


def remove_all(load: Load) -> None:
    """Remove all pods; nothing may be in the way."""
    client = Client(load.base / "run/cri-jails.sock")
    for sandbox in client("ListPodSandbox").items:
        load.end(sandbox.id)
        client("StopPodSandbox", pod_sandbox_id=sandbox.id)
        client("RemovePodSandbox", pod_sandbox_id=sandbox.id)
    client.close()
    load.forget()


def take_over(load: Load) -> None:
    """Know of what was made for clients that did not hear of it."""
    client = Client(load.base / "run/cri-jails.sock")
    listed = client("ListPodSandbox").items
    load.pods = {one.id: load.pods.get(one.id, {}) for one in listed}
    for container in client("ListContainers").containers:
        known = load.containers.get(container.id)
        if known is not None:
            load.pods[container.pod_sandbox_id][container.id] = known
    client.close()


def chaos(
    load: Load, daemon: Daemon, chance: random.Random, seconds: float, clients: int, failing: int
) -> None:
    """Calls and kills for a while; the daemon is killed and started again meanwhile."""
    calling = threading.Thread(target=load.run, args=(seconds, clients))
    calling.start()
    while calling.is_alive():
        time.sleep(chance.uniform(0.1, 1.0) * (5 if FREEBSD else 1))
        if chance.randrange(6) == 0:
            daemon.end(chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
            load.kills["daemon"] += 1
            daemon.start(failing=failing)
        else:
            load.kill_something(chance, daemon.spawner())
    calling.join()


def pull(load: Load) -> None:
    """See that there is an image: a client may have removed it, or what was damaged was its."""
    client = Client(load.base / "run/cri-jails.sock")
    client("PullImage", image=v1.ImageSpec(image=load.image))
    client.close()


def damaged(load: Load, daemon: Daemon, chance: random.Random) -> str:
    """Damage one file while there is no daemon; what it was."""
    daemon.end()
    path = chance.choice(damage.files(load.base))
    kind = chance.choice(damage.KINDS)
    damage.damage(path, kind, chance)
    # What was theirs may have been a pod's or a container's end.
    load.lost_wardens.update(load.pods)
    return f"{path.relative_to(load.base)} {kind}"


def rounds(load: Load, daemon: Daemon, chance: random.Random, minutes: float, clients: int) -> int:
    """Round after round; how many there were."""
    until = time.monotonic() + minutes * 60
    number = 0
    while number == 0 or time.monotonic() < until:
        number += 1
        pull(load)
        failing = number if number % 3 == 2 else 0
        if failing:
            daemon.end(signal.SIGTERM)
            daemon.start(failing=failing)
        chaos(load, daemon, chance, chance.uniform(5, 15) * (3 if FREEBSD else 1), clients, failing)
        daemon.end()
        daemon.start()
        take_over(load)
        what = "failures" if failing else "kills"
        settle(load)
        if number % 3 == 0:
            what = damaged(load, daemon, chance)
            daemon.start()
            take_over(load)
            try:
                settle(load)
            except NotExactError as error:
                raise NotExactError(f"after {what}:\n{error}") from None
            remove_all(load)
            settle(load)
        print(f"round {number}: exact after {what}; {len(load.pods)} pods", flush=True)
    remove_all(load)
    settle(load)
    return number


def main() -> int:
    """Parse the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--clients", type=int, default=2 if FREEBSD else 4)
    options = parser.parse_args()
    return run(options.minutes, options.seed, options.clients)


def run(minutes: float, seed: int, clients: int) -> int:
    """Do it; 0 if everything was exact every time."""
    print(f"seed {seed}", flush=True)
    chance = random.Random(seed)
    base = Path(tempfile.mkdtemp(prefix="cri-chaos-"))
    failed = True
    with registry(base) as image:
        daemon = Daemon(base)
        load = Load(base, image, seed)
        daemon.start()
        try:
            number = rounds(load, daemon, chance, minutes, clients)
            failed = False
        except NotExactError as error:
            print(f"NOT EXACT\n{error}\nlog: {daemon.log}", flush=True)
        finally:
            report(load, daemon)
            if daemon.process.poll() is None:
                if failed:
                    with contextlib.suppress(Exception):
                        remove_all(load)
                daemon.end(signal.SIGTERM)
    if failed:
        return 1
    shutil.rmtree(base)
    print(f"{number} rounds, each exact")
    return 0


def report(load: Load, daemon: Daemon) -> None:
    """Print what was done."""
    print(f"calls: {dict(load.calls)}\nkills: {dict(load.kills)}, daemon starts: {len(daemon.starts)}")
    print("what clients were told most:")
    for text, count in load.errors.most_common(15):
        print(f"  {count} {text}")
    events: collections.Counter[str] = collections.Counter()
    for line in daemon.log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, AttributeError):
            entry = json.loads(line)
            if entry.get("level") in ("error", "critical") or "exception" in entry:
                raised = str(entry.get("exception") or "").strip().splitlines()[-1:]
                events[" ".join([str(entry.get("event"))[:80], *raised])] += 1
    print("errors in the log:")
    for text, count in events.most_common(20):
        print(f"  {count} {text}")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
