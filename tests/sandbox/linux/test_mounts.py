"""What is mounted in real containers: images, volumes that an image declares, options, and the order of it all."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from baustelle import overlay
from cri.sandbox.host import HostError, UnfitRequestError
from cri.sandbox.spec import DeviceSpec, MountSpec, ProcessSpec, Propagation, Security

pytestmark = pytest.mark.node

CHAIN = "sha256:" + "a" * 64
"""The image of busybox that `node` has."""
ONE, TWO, OPEN = (f"sha256:{letter * 64}" for letter in "bcd")


@pytest.fixture
async def stacked(node):
    """An image of two layers, the second of which hides something of the first."""
    snapshots = node.host.snapshots
    first = await snapshots.begin(ONE, None)
    for name in ("data/private", "etc", "gone"):
        (first / name).mkdir(parents=True)
    (first / "data/seed").write_text("from the image")
    (first / "etc/name").write_text("one")
    (first / "data").chmod(0o1770)
    os.chown(first / "data", 1000, 1001)
    os.chown(first / "data/private", 1000, 1001)
    (first / "file").write_text("a file")
    await snapshots.commit(ONE)
    second = await snapshots.begin(TWO, ONE)
    (second / "etc").mkdir(exist_ok=True)
    (second / "etc/name").write_text("two")
    (second / "out").symlink_to("/../../../etc")
    (second / "far").symlink_to("/proc/1/root")
    (second / "way").symlink_to("data")
    (second / "kernel").symlink_to("/proc/sys")
    (second / "all").symlink_to("/")
    if snapshots.overlay_whiteouts:
        os.mknod(second / "gone", 0o20600, 0)
    else:
        (second / "gone").rmdir()
    await snapshots.commit(TWO)
    return (ONE, TWO)


def image(layers, path="", target="/image", **values) -> MountSpec:
    return MountSpec("", target, readonly=True, image_layers=tuple(layers), image_path=path, **values)


both = pytest.mark.parametrize("node", ["overlay", "copy"], indirect=True)


@both
async def test_an_image_as_a_volume(pod, stacked):
    mounts = (
        image(stacked),
        image(stacked, "etc", "/etc/below"),
        image(stacked, "etc/name", "/name"),
        image(stacked, "out", "/out"),
        image((CHAIN,), "bin", "/tools"),
        image((CHAIN,), "/bin", "/dead", options=("noexec",)),
    )
    script = """
        cat /image/etc/name /etc/below/name /name /out/name; ls /image; touch /image/x /name /etc/below/x
        /tools/echo runs; /dead/echo runs not; echo end
    """
    record, output = await pod.run("sh", "-c", script, mounts=mounts)
    assert record.exit_code == 0
    assert output.startswith("twotwotwotwo")
    assert "gone" not in output.split()
    assert output.count("Read-only file system") == 3
    assert "runs" in output.splitlines()
    assert "/dead/echo: Permission denied" in output


async def test_a_layer_that_removes_all_below_it_does_so_in_a_volume_too(pod, stacked):
    snapshots = pod.node.host.snapshots
    last = await snapshots.begin(OPEN, TWO)
    (last / "only").mkdir()
    fd = os.open(last, os.O_RDONLY)
    overlay.mark_opaque(fd)
    os.close(fd)
    await snapshots.commit(OPEN)
    record, output = await pod.run("ls", "/image", mounts=(image((*stacked, OPEN)),))
    assert (record.exit_code, output.split()) == (0, ["only"])


@both
async def test_what_an_image_lacks_is_told_at_once(pod, stacked):
    for number, path in enumerate(("nowhere", "etc/nowhere", "gone", "etc/name/x", "data/../../nowhere")):
        spec = pod.container("true", name=f"c{number}", mounts=(image(stacked, path),))
        with pytest.raises(UnfitRequestError, match=f"mount on /image: the image has no {path}"):
            await pod.node.host.create_container(spec)


async def test_no_link_of_an_image_leads_to_the_node(pod, stacked):
    spec = pod.container("sh", "-c", "ls /image", mounts=(image(stacked, "far"),))
    with pytest.raises(UnfitRequestError):
        await pod.node.host.create_container(spec)


async def test_an_image_on_a_file_is_refused_when_it_starts(pod, stacked):
    with pytest.raises(HostError, match="mount on /etc/passwd"):
        await pod.start(pod.container("true", mounts=(image(stacked, "etc", "/etc/passwd"),)))


@pytest.mark.parametrize("target", ["/kernel", "/kernel/kernel", "/all"])
async def test_no_link_of_an_image_leads_a_volume_to_the_kernel(pod, stacked, tmp_path, target):
    spec = replace(
        pod.container("true", mounts=(MountSpec(str(tmp_path), target),)), layers=(CHAIN, *stacked)
    )
    with pytest.raises(
        UnfitRequestError, match=f"mount on {target}: it leads to the root, or into /proc, in"
    ):
        await pod.start(spec)


async def test_what_lxcfs_shows_is_mounted_inside_proc(pod, tmp_path):
    (tmp_path / "uptime").write_text("1.00 1.00\n")
    spec = pod.container("cat", "/proc/uptime", mounts=(MountSpec(str(tmp_path / "uptime"), "/proc/uptime"),))
    await pod.start(spec)
    assert (await pod.exit_of(spec)).exit_code == 0
    assert pod.output(spec) == "1.00 1.00"


# -- Volumes that an image declares


def declared(pod, name: str, *targets: str) -> tuple[MountSpec, ...]:
    directory = Path(pod.spec.directory, name, "volumes")
    return tuple(MountSpec(str(directory / str(number)), target) for number, target in enumerate(targets))


@pytest.mark.parametrize("readonly", [False, True])
async def test_a_volume_begins_with_what_the_image_has(pod, stacked, readonly):
    spec = pod.container(
        "sh",
        "-c",
        "exec 2>&1; cd /data && stat -c '%a %u %g' . private && cat seed && echo x > data && pwd; touch /x; cat /way/data; touch /fresh/x && stat -c %a /fresh",
        mounts=declared(pod, "c", "/data", "/fresh"),
        security=Security(readonly_root=readonly),
    )
    spec = replace(spec, layers=(CHAIN, *stacked))
    old = os.umask(0o077)
    try:
        await pod.start(spec)
    finally:
        os.umask(old)
    await pod.exit_of(spec)
    output = pod.output(spec)
    assert output.splitlines()[:2] == ["1770 1000 1001", "755 1000 1001"]
    assert "from the image/data" in output
    assert output.count("Read-only file system") == readonly
    assert output.splitlines()[-2:] == ["x", "755"]
    assert sorted(path.name for path in Path(spec.directory, "volumes/0").iterdir()) == [
        "data",
        "private",
        "seed",
    ]
    writable = pod.node.host.snapshots.writable(spec)
    assert not (writable / "data/data").exists()


@pytest.mark.parametrize("node", ["copy"], indirect=True)
async def test_a_volume_begins_with_what_a_copy_has(pod):
    script = "ls /etc/; echo x > /etc/new; echo y > /new/y && cat /new/y"
    spec = pod.container("sh", "-c", script, mounts=declared(pod, "c", "/etc", "/new"))
    await pod.start(spec)
    await pod.exit_of(spec)
    assert pod.output(spec).split() == ["group", "passwd", "y"]
    assert not (pod.node.host.snapshots.writable(spec) / "etc/new").exists()


async def test_volumes_differ_and_go_with_their_container(pod):
    first = pod.container("sh", "-c", "echo a > /data/x", name="a", mounts=declared(pod, "a", "/data"))
    await pod.start(first)
    await pod.exit_of(first)
    _, output = await pod.run("ls", "/data", name="b", mounts=declared(pod, "b", "/data"))
    assert output == ""
    assert Path(first.directory, "volumes/0/x").read_text() == "a\n"


async def test_links_do_not_lead_out(pod, node, tmp_path):
    """Neither where a volume is, nor what is copied into it."""
    snapshots = node.host.snapshots
    root = await snapshots.begin(OPEN, None)
    (root / "bin").mkdir()
    (root / "real").mkdir()
    (root / "real/here").write_text("x")
    (root / "out").symlink_to(f"../../../..{tmp_path}")
    (root / "run").symlink_to("real")
    (root / "dangling").symlink_to("/made/for/it")
    (root / "loop").symlink_to("loop")
    await snapshots.commit(OPEN)
    (tmp_path / "secret").write_text("secret")
    mounts = declared(pod, "c", "/out", "/run", "/dangling")
    spec = pod.container("/bin/sh", "-c", "ls /out /real /made/for/it", mounts=mounts)
    spec = replace(spec, layers=(OPEN, CHAIN))
    await pod.start(spec)
    await pod.exit_of(spec)
    output = pod.output(spec)
    assert "secret" not in output
    assert "here" in output
    assert not (tmp_path / "volumes").exists()
    for name, target in (("f", "/real/here"), ("l", "/loop")):
        wrong = pod.container("true", name=name, mounts=declared(pod, name, target))
        wrong = replace(wrong, layers=(OPEN, CHAIN))
        with pytest.raises(HostError):
            await node.host.create_container(wrong)


async def test_the_configs_mount_wins_by_whatever_name(pod, node, tmp_path):
    """Where a link makes two paths one."""
    snapshots = node.host.snapshots
    root = await snapshots.begin(OPEN, None)
    (root / "run").mkdir()
    (root / "var/lib").mkdir(parents=True)
    (root / "var/run").symlink_to("/run")
    await snapshots.commit(OPEN)
    (tmp_path / "mine").touch()
    for name, user, volume in (
        ("a", "/run/x", "/var/run/x"),
        ("b", "/var/run/x", "/run/x"),
        ("c", "/run", "/var/run"),
    ):
        mounts = (*declared(pod, name, volume), MountSpec(str(tmp_path), user))
        spec = pod.container("ls", "/var/run/x" if name != "c" else "/run", name=name, mounts=mounts)
        spec = replace(spec, layers=(OPEN, CHAIN))
        await pod.start(spec)
        await pod.exit_of(spec)
        assert "mine" in pod.output(spec).split(), name


# -- Order, options, and what lies on our own mounts


@pytest.mark.parametrize("outer", ["/m", "/m/", "//m", "/./m", "/x/../m"])
async def test_parents_first(pod, tmp_path, outer):
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in-{name}").touch()
    mounts = (MountSpec(str(tmp_path / "inner"), "/m/deep"), MountSpec(str(tmp_path / "outer"), outer))
    assert (await pod.run("ls", "/m/deep", mounts=mounts))[1] == "in-inner"


async def test_options_hold_for_what_is_mounted_below(pod, tmp_path):
    (tmp_path / "v/below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "v/below"], check=True)
    try:
        options = MountSpec(str(tmp_path / "v"), "/v", options=("noexec", "nosuid", "nodev"), readonly=True)
        plain = MountSpec(str(tmp_path / "v"), "/plain", propagation=Propagation.HOST_TO_CONTAINER)
        script = "grep -o ' /\\(v\\|plain\\)\\(/below\\)\\? [^ ]* [^ ]*' /proc/mounts"
        _, output = await pod.run("sh", "-c", script, mounts=(options, plain))
    finally:
        subprocess.run(["umount", "-R", tmp_path / "v"], check=False)
        subprocess.run(["umount", tmp_path / "v/below"], check=False)
    found = {line.split()[0]: set(line.split()[2].split(",")) for line in output.splitlines()}
    for target in ("/v", "/v/below"):
        assert {"noexec", "nosuid", "nodev"} <= found[target]
    assert "ro" in found["/v"]
    assert "rw" in found["/v/below"]
    assert not {"noexec", "nosuid"} & found["/plain"]


async def test_on_and_below_dev(pod, tmp_path):
    (tmp_path / "log").write_text("")
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm/mine").touch()
    (tmp_path / "pool").mkdir()
    mounts = (
        MountSpec(str(tmp_path / "log"), "/dev/termination-log"),
        MountSpec(str(tmp_path / "shm"), "/dev/shm"),
        MountSpec(str(tmp_path / "pool"), "/dev/pool"),
        MountSpec("", "/dev/huge", tmpfs=True),
        MountSpec("/sys", "/sys", readonly=True),
    )
    devices = (DeviceSpec("/dev/zero", "/dev/pool/zero"), DeviceSpec("/dev/zero", "/dev/termination-log"))
    script = "echo told > /dev/termination-log; ls /dev/shm; head -c 2 /dev/pool/zero | wc -c; touch /dev/huge/x; ls /sys/class/net | wc -l; echo x > /dev/null && echo fine"
    _, output = await pod.run("sh", "-c", script, mounts=mounts, devices=devices)
    assert output.split()[:2] == ["mine", "2"]
    assert output.split()[-1] == "fine"
    assert (tmp_path / "log").read_text() == "told\n"


async def test_masked_files_are_not_the_nodes_null(pod):
    before = Path("/dev/null").stat().st_mode
    script = "chmod 600 /etc/passwd; wc -c < /etc/passwd"
    _, output = await pod.run("sh", "-c", script, security=Security(masked_paths=("/etc/passwd",)))
    assert output == "0"
    assert Path("/dev/null").stat().st_mode == before


async def test_a_terminal_beside_the_nodes_dev(pod):
    process = ProcessSpec(("sh", "-c", "tty; echo x > /dev/null && echo fine"), tty=True)
    spec = pod.container(process=process, mounts=(MountSpec("/dev", "/dev"),))
    await pod.start(spec)
    assert (await pod.exit_of(spec)).exit_code == 0
    assert "fine" in pod.output(spec)


async def test_a_plan_of_an_older_daemon(pod, tmp_path):
    """It says nothing of devices, nor of images: a pod of this release may outlive a downgrade."""
    spec = pod.container(
        "sh",
        "-c",
        "echo x > /dev/null; head -c 2 /dev/mine | wc -c; mknod /tmp/mem c 1 1; head -c 1 /tmp/mem || echo kept",
        devices=(DeviceSpec("/dev/zero", "/dev/mine"),),
    )
    await pod.node.host.create_container(spec)
    path = Path(spec.directory, "spec.json")
    plan = json.loads(path.read_text())
    plan["host"] = {name: plan["host"][name] for name in ("root", "cgroup")}
    plan["host"]["cgroup"]["directories"].pop("devices", None)
    path.write_text(json.dumps(plan))
    await pod.warden.start(spec)
    await pod.exit_of(spec)
    assert pod.output(spec).splitlines()[0] == "2"
    assert "kept" in pod.output(spec).splitlines()  # another pipe than the error
