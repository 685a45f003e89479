"""Limits of cgroups on kernels in memory: orders that they take, and what is left of what they do not."""

import errno
import os
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox import wire
from cri.sandbox.host import HalfUpdatedError, HostError, LimitRefusedError
from cri.sandbox.linux import cgroup_files, cgroup_tree, cgroups
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.spec import Resources

PAGE = 4096
NONE_V1 = str((1 << 63) - PAGE)
V1 = {name: f"/{name}/g" for name in ("pids", "memory", "cpu", "cpuset", "hugetlb")}


class Kernel:
    """Files of a group, and what the kernel says to a value for them."""

    def __init__(self, files):
        self.files = dict(files)
        self.writes = []
        self.refused = {}
        """Errors by file, besides those of the rules: how many writes go well before, and the error."""
        self.used = 0
        """Bytes of memory that cannot be reclaimed."""

    def read(self, path):
        if path not in self.files:
            raise cgroup_files.failed("read", path, OSError(errno.ENOENT, "No such file"))
        return self.files[path]

    def number(self, path):
        text = self.files.get(path, "")
        return int(text) if text.isdigit() else None

    def write(self, path, value):
        try:
            self.files[path] = self._accepted(path, value)
        except OSError as error:
            raise cgroup_files.failed(f"write {value} to", path, error) from error
        self.writes.append(path.rpartition("/")[2])

    def _accepted(self, path, value):
        if path not in self.files:
            raise OSError(errno.ENOENT, "No such file or directory")
        if path in self.refused:
            good, number = self.refused[path]
            self.refused[path] = good - 1, number
            if good <= 0:
                raise OSError(number, os.strerror(number))
        name = path.rpartition("/")[2]
        rule = getattr(self, f"_{name.replace('.', '_')}", None)
        if rule is None or (found := rule(path, value)) is None:
            return value
        return found

    @staticmethod
    def _refuse(number=errno.EINVAL):
        raise OSError(number, os.strerror(number))

    def _cpuset_cpus(self, _, value):
        if not set(value.split(",")) <= {"0", "1", "2", "3", "0-1", "0-3", ""}:
            self._refuse()

    def _pids_max(self, _, value):
        if value != "max" and int(value) < 0:
            self._refuse()


class KernelV1(Kernel):
    """With a parent that has half a CPU, if that is so, and swap accounting."""

    def __init__(self, share=None, *, swap=True):
        super().__init__(
            {
                "/cpu/g/cpu.shares": "1024",
                "/cpu/g/cpu.cfs_period_us": "100000",
                "/cpu/g/cpu.cfs_quota_us": "-1",
                "/pids/g/pids.max": "max",
                "/cpuset/g/cpuset.cpus": "0-3",
                "/cpuset/g/cpuset.mems": "0",
                "/hugetlb/g/hugetlb.2MB.limit_in_bytes": NONE_V1,
                "/memory/g/memory.limit_in_bytes": NONE_V1,
            }
            | ({"/memory/g/memory.memsw.limit_in_bytes": NONE_V1} if swap else {})
        )
        self.share = share

    def _fits(self, period, quota):
        if not 1000 <= period <= 1_000_000 or 0 <= quota < 1000:
            self._refuse()
        if quota > 0 and self.share is not None and Fraction(quota, period) > self.share:
            self._refuse()

    def _cpu_cfs_period_us(self, _, value):
        self._fits(int(value), int(self.files["/cpu/g/cpu.cfs_quota_us"]))

    def _cpu_cfs_quota_us(self, _, value):
        self._fits(int(self.files["/cpu/g/cpu.cfs_period_us"]), int(value))

    def _memory_limit_in_bytes(self, path, value):
        wanted = int(NONE_V1) if value == "-1" else int(value) // PAGE * PAGE
        if wanted > int(self.files.get(path.replace("limit", "memsw.limit"), NONE_V1)):
            self._refuse()
        if wanted < self.used:
            self._refuse(errno.EBUSY)
        return str(wanted)

    def _memory_memsw_limit_in_bytes(self, path, value):
        wanted = int(NONE_V1) if value == "-1" else int(value) // PAGE * PAGE
        if wanted < int(self.files[path.replace("memsw.limit", "limit")]):
            self._refuse()
        return str(wanted)


class KernelV2(Kernel):
    def __init__(self):
        super().__init__(
            {
                "/g/cpu.weight": "100",
                "/g/cpu.max": "max 100000",
                "/g/memory.max": "max",
                "/g/memory.high": "max",
                "/g/memory.swap.max": "max",
                "/g/pids.max": "max",
                "/g/cpuset.cpus": "",
                "/g/cpuset.mems": "",
                "/g/hugetlb.2MB.max": "max",
            }
        )

    def _cpu_weight(self, _, value):
        if not 1 <= int(value) <= 10_000:
            self._refuse(errno.ERANGE)

    def _cpu_max(self, _, value):
        quota, period = value.split()
        if not 1000 <= int(period) <= 1_000_000 or (quota != "max" and int(quota) < 1000):
            self._refuse()

    def _memory_max(self, _, value):
        return value if value == "max" else str(int(value) // PAGE * PAGE)

    _memory_swap_max = _memory_max


@pytest.fixture
def install(monkeypatch):
    """Put a kernel in the place of this one's; nothing runs in its groups, and all of them are made."""

    def put(kernel):
        for name in ("read", "write", "number"):
            monkeypatch.setattr(cgroup_files, name, getattr(kernel, name))
        monkeypatch.setattr(Group, "_make_late", lambda *_: [])
        monkeypatch.setattr(Group, "processes", lambda _: set())
        return kernel

    return put


def group(kernel):
    return Group(2, {"": "/g"}) if isinstance(kernel, KernelV2) else Group(1, V1)


def apply(kernel, before, **changes):
    """What the limits are after an update of `before`."""
    given = Resources(**changes)
    whole = wire.merged(before, given)
    group(kernel).apply(given, whole)
    return whole


# Version 1


@pytest.mark.parametrize(
    ("old", "new", "order"),
    [
        ((100_000, 50_000), (50_000, 25_000), ["cpu.cfs_quota_us", "cpu.cfs_period_us"]),
        ((50_000, 25_000), (100_000, 50_000), ["cpu.cfs_period_us", "cpu.cfs_quota_us"]),
        ((100_000, 20_000), (50_000, 25_000), ["cpu.cfs_quota_us", "cpu.cfs_period_us"]),
        ((100_000, 50_000), (100_000, 20_000), ["cpu.cfs_quota_us"]),
        ((100_000, 50_000), (50_000, -1), ["cpu.cfs_quota_us", "cpu.cfs_period_us"]),
        ((100_000, -1), (200_000, 100_000), ["cpu.cfs_period_us", "cpu.cfs_quota_us"]),
    ],
)
def test_period_and_quota_below_half_a_cpu(install, old, new, order):
    kernel = install(KernelV1(Fraction(1, 2)))
    before = apply(kernel, Resources(), cpu_period=old[0], cpu_quota=old[1])
    kernel.writes.clear()
    apply(kernel, before, cpu_period=new[0], cpu_quota=new[1])
    assert kernel.writes == order
    assert (kernel.files["/cpu/g/cpu.cfs_period_us"], kernel.files["/cpu/g/cpu.cfs_quota_us"]) == tuple(
        map(str, new)
    )


SHARES = st.tuples(st.integers(2000, 1_000_000), st.integers(1000, 1_000_000) | st.just(-1)).filter(
    lambda share: share[1] <= share[0] // 2
)


@given(SHARES, SHARES)
def test_every_share_that_fits_below_the_parent_is_taken(old, new):
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = KernelV1(Fraction(1, 2))
        for name in ("read", "write", "number"):
            monkeypatch.setattr(cgroup_files, name, getattr(kernel, name))
        for period, quota in (old, new):
            for setting in cgroups.cgroup_limits.settings_v1(
                V1, Resources(cpu_period=period, cpu_quota=quota)
            ):
                kernel.write(setting.path, setting.value)
        assert kernel.files["/cpu/g/cpu.cfs_quota_us"] == str(new[1])


MEMORY = st.tuples(st.integers(1, 1000), st.integers(0, 1000) | st.none()).map(
    lambda pages: (pages[0] * PAGE, -1 if pages[1] is None else (pages[0] + pages[1]) * PAGE)
)


@given(MEMORY, MEMORY)
def test_memory_and_swap_in_every_direction(old, new):
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = KernelV1()
        for name in ("read", "write", "number"):
            monkeypatch.setattr(cgroup_files, name, getattr(kernel, name))
        for limit, together in (old, new):
            given = Resources(memory_limit=limit, memory_swap_limit=together)
            for setting in cgroups.cgroup_limits.settings_v1(V1, given):
                kernel.write(setting.path, setting.value)
        together = NONE_V1 if new[1] < 0 else str(new[1])
        assert kernel.files["/memory/g/memory.limit_in_bytes"] == str(new[0])
        assert kernel.files["/memory/g/memory.memsw.limit_in_bytes"] == together


def test_memory_alone(install):
    kernel = install(KernelV1())
    before = apply(kernel, Resources(), memory_limit=100 * PAGE, memory_swap_limit=150 * PAGE)
    with pytest.raises(
        HostError, match=r"memory_limit_in_bytes .*: set memory_swap_limit_in_bytes to no less"
    ):
        apply(kernel, before, memory_limit=200 * PAGE)
    with pytest.raises(HostError, match=r"memory and swap together have"):
        apply(kernel, before, memory_swap_limit=50 * PAGE)
    apply(kernel, before, memory_limit=120 * PAGE)
    apply(kernel, before, memory_limit=-1)  # with swap, or else the limit of both would be that of memory
    assert kernel.files["/memory/g/memory.memsw.limit_in_bytes"] == NONE_V1
    kernel = install(KernelV1(swap=False))
    apply(kernel, Resources(), memory_limit=PAGE, memory_swap_limit=2 * PAGE)
    assert kernel.files["/memory/g/memory.limit_in_bytes"] == str(PAGE)


def test_what_version_1_cannot_do_is_refused(install):
    kernel = install(KernelV1())
    with pytest.raises(HostError, match=r"set unified io.max: this node has cgroups of version 1"):
        apply(kernel, Resources(), unified={"io.max": "1"}, cpu_shares=2)
    del kernel.files["/hugetlb/g/hugetlb.2MB.limit_in_bytes"]
    with pytest.raises(HostError, match="No such file"):
        apply(kernel, Resources(), hugepage_limits={"2MB": 0}, cpu_shares=2)
    assert kernel.writes == []
    lacking = Group(1, {"cpu": "/cpu/g"})
    for changes in ({"cpuset_cpus": "0"}, {"cpuset_mems": "0"}, {"hugepage_limits": {"2MB": 1}}):
        with pytest.raises(HostError, match="this node has no cgroup controller"):
            lacking.apply(Resources(**changes))
    lacking.apply(Resources(hugepage_limits={"2MB": 0}))


# Version 2


def test_values_of_version_2(install):
    kernel = install(KernelV2())
    before = apply(
        kernel, Resources(), cpu_shares=1024, cpu_quota=50_000, cpu_period=200_000, memory_limit=100 * PAGE,
        memory_swap_limit=150 * PAGE, pids_limit=7, cpuset_cpus="0-1", cpuset_mems="0", hugepage_limits={"2MB": 0},
        unified={"memory.high": "99"},
    )  # fmt: skip
    assert kernel.files == {
        "/g/cpu.weight": "39",
        "/g/cpu.max": "50000 200000",
        "/g/memory.max": str(100 * PAGE),
        "/g/memory.high": "99",
        "/g/memory.swap.max": str(50 * PAGE),
        "/g/pids.max": "7",
        "/g/cpuset.cpus": "0-1",
        "/g/cpuset.mems": "0",
        "/g/hugetlb.2MB.max": "0",
    }
    # An update of a part leaves the other part of the same file.
    now = apply(kernel, before, cpu_quota=80_000)
    assert kernel.files["/g/cpu.max"] == "80000 200000"
    now = apply(kernel, now, cpu_period=100_000)
    assert kernel.files["/g/cpu.max"] == "80000 100000"
    now = apply(kernel, now, cpu_quota=-1)
    assert kernel.files["/g/cpu.max"] == "max 100000"
    now = apply(kernel, now, memory_limit=120 * PAGE)
    assert (kernel.files["/g/memory.max"], kernel.files["/g/memory.swap.max"]) == (
        str(120 * PAGE),
        str(30 * PAGE),
    )
    now = apply(kernel, now, memory_swap_limit=120 * PAGE)
    assert kernel.files["/g/memory.swap.max"] == "0"
    now = apply(kernel, now, memory_swap_limit=-1)
    assert kernel.files["/g/memory.swap.max"] == "max"
    apply(kernel, now, memory_limit=-1, pids_limit=-1)
    assert (kernel.files["/g/memory.max"], kernel.files["/g/pids.max"]) == ("max", "max")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unified": {"../x": "1"}}, "a controller's file was expected"),
        ({"unified": {"cgroup.kill": "1"}}, "a controller's file was expected"),
        ({"unified": {"no.such": "1"}}, "No such file"),
        ({"memory_swap_limit": 5}, "needs one of memory"),
        (
            {"memory_limit": 5 * PAGE, "memory_swap_limit": 4 * PAGE},
            "set memory_swap_limit_in_bytes to no less",
        ),
        ({"memory_limit": -1, "memory_swap_limit": 4 * PAGE}, "set memory_swap_limit_in_bytes to no less"),
        ({"hugepage_limits": {"1GB": 1}}, "No such file"),
        ({"cpuset_cpus": "9999"}, "Invalid argument"),
    ],
)
def test_what_version_2_cannot_do_is_refused(install, changes, message):
    kernel = install(KernelV2())
    before = dict(kernel.files)
    with pytest.raises(HostError, match=message):
        apply(kernel, Resources(), cpu_shares=2, **changes)
    assert kernel.files == before


def test_without_a_controller_of_version_2(install):
    kernel = install(KernelV2())
    for name in ("cpuset.cpus", "memory.swap.max", "hugetlb.2MB.max"):
        del kernel.files[f"/g/{name}"]
    apply(kernel, Resources(), memory_limit=PAGE, memory_swap_limit=PAGE, hugepage_limits={"2MB": 0})
    assert kernel.files["/g/memory.max"] == str(PAGE)
    with pytest.raises(HostError, match="No such file"):
        apply(kernel, Resources(), cpuset_cpus="0")


# What a container has set of its own


def cpus(text):
    ends = [part.partition("-") for part in text.split(",") if part]
    return {cpu for first, _, last in ends for cpu in range(int(first), int(last or first) + 1)}


class KernelBelow(KernelV1):
    """With an inner group, and groups of the container's own in that."""

    BELOW = ("/g/container", "/g/container/a", "/g/container/a/b", "/g/container/c")

    def __init__(self, **values):
        super().__init__()
        for path, value in list(self.files.items()):
            for below in self.BELOW:
                self.files[path.replace("/g", below)] = value
        self.files |= values

    def below(self, top):
        return sorted((path for path in self._groups(top) if path != top), key=len, reverse=True)

    def _groups(self, top):
        return {path.rpartition("/")[0] for path in self.files if path.startswith(f"{top}/")}

    def _around(self, path):
        """What is above, and what is right below."""
        group, _, name = path.rpartition("/")
        above = group.rpartition("/")[0]
        below = [one for one in self._groups(group) if one.rpartition("/")[0] == group]
        return self.files.get(f"{above}/{name}"), [self.files[f"{one}/{name}"] for one in below]

    def _cpuset_cpus(self, path, value):
        wanted = cpus(value)
        above, below = self._around(path)
        if not wanted <= cpus(above or "0-3"):
            self._refuse(errno.EACCES)
        if not all(wanted >= cpus(one) for one in below):
            self._refuse(errno.EBUSY)

    def _cpu_cfs_quota_us(self, path, value):
        self._check_shares({path: value})

    def _cpu_cfs_period_us(self, path, value):
        self._check_shares({path: value})

    def _check_shares(self, change):
        files = self.files | change

        def share(group):
            quota, period = (int(files[f"{group}/cpu.cfs_{name}_us"]) for name in ("quota", "period"))
            KernelV1._fits(self, period, quota)
            return None if quota < 0 else Fraction(quota, period)

        def check(group, most):
            own = share(group)
            if own is not None and most is not None and own > most:
                self._refuse()
            for one in self._groups(group):
                if one.rpartition("/")[0] == group:
                    check(one, most if own is None else own)

        check("/cpu/g", None)

    def use(self, monkeypatch):
        for name in ("read", "write", "number"):
            monkeypatch.setattr(cgroup_files, name, getattr(self, name))
        monkeypatch.setattr(cgroup_tree, "paths", self.below)
        monkeypatch.setattr(Group, "has_inner", True)
        monkeypatch.setattr(Group, "processes", lambda _: set())


CPU_LISTS = st.sampled_from(["0", "1", "0-1", "2-3", "0,3", "0-3", "1-2"])
QUOTAS = st.tuples(
    st.sampled_from([10_000, 50_000, 100_000]), st.sampled_from([-1, 2_000, 40_000, 90_000, 300_000])
)


@given(updates=st.lists(st.tuples(CPU_LISTS | st.none(), QUOTAS | st.none()), max_size=4), data=st.data())
def test_what_a_container_has_set_does_not_stand_in_the_way(updates, data):
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = KernelBelow()
        kernel.use(monkeypatch)
        limits = Resources()
        for listed, share in updates:
            for below in kernel.BELOW:  # what the kernel lets the container do there
                with suppress(HostError):
                    kernel.write(f"/cpuset{below}/cpuset.cpus", data.draw(CPU_LISTS))
                with suppress(HostError):
                    kernel.write(
                        f"/cpu{below}/cpu.cfs_quota_us", data.draw(st.sampled_from(["-1", "2000", "90000"]))
                    )
            update = Resources(
                cpuset_cpus=listed,
                cpu_period=share and share[0],
                cpu_quota=share and share[1],
                memory_limit=9 * PAGE,
            )
            limits = wire.merged(limits, update)
            group(kernel).apply(update, limits)
            if listed:
                for directory in ("/cpuset/g", "/cpuset/g/container"):
                    assert kernel.files[f"{directory}/cpuset.cpus"] == listed
            if share:
                for directory in ("/cpu/g", "/cpu/g/container"):
                    assert kernel.files[f"{directory}/cpu.cfs_quota_us"] == str(share[1])
            assert kernel.files["/memory/g/container/memory.limit_in_bytes"] == str(9 * PAGE)


def test_what_is_refused_leaves_what_a_container_has_set(monkeypatch):
    kernel = KernelBelow()
    kernel.use(monkeypatch)
    apply(kernel, Resources(), cpuset_cpus="0-1", cpu_quota=90_000, cpu_period=100_000)
    for below in ("a/b", "a"):
        kernel.write(f"/cpuset/g/container/{below}/cpuset.cpus", "1")
    kernel.write("/cpu/g/container/a/cpu.cfs_quota_us", "5000")
    files = dict(kernel.files)
    kernel.refused = {"/pids/g/pids.max": (0, errno.EIO)}
    with pytest.raises(HostError, match=r"pids\.max"):
        apply(kernel, Resources(), cpuset_cpus="2", cpu_quota=10_000, pids_limit=5)
    assert kernel.files == files


def test_what_a_container_keeps_from_being_shown_does_not_matter(monkeypatch):
    kernel = KernelBelow()
    kernel.use(monkeypatch)
    inner = "/memory/g/container/memory"
    kernel.write(f"{inner}.limit_in_bytes", str(PAGE))
    kernel.write(f"{inner}.memsw.limit_in_bytes", str(PAGE))
    kernel.refused = {"/pids/g/container/pids.max": (0, errno.EIO)}
    whole = apply(kernel, Resources(), memory_limit=3 * PAGE, pids_limit=5)
    assert kernel.files["/memory/g/memory.limit_in_bytes"] == str(3 * PAGE)
    assert kernel.files["/pids/g/pids.max"] == "5"
    assert kernel.files[f"{inner}.limit_in_bytes"] == str(PAGE)
    # Nor when it is to be put back.
    kernel.refused = {
        "/memory/g/memory.limit_in_bytes": (0, errno.EBUSY),
        "/pids/g/container/pids.max": (1, errno.EIO),
    }
    with pytest.raises(HostError, match="busy") as caught:
        apply(kernel, whole, memory_limit=2 * PAGE, pids_limit=7)
    assert not isinstance(caught.value, HalfUpdatedError)


# Whole, or put back

EVERYTHING = {
    "cpu_shares": 512, "cpu_quota": 20_000, "cpu_period": 50_000, "memory_limit": 300 * PAGE, "memory_swap_limit": 400 * PAGE,
    "pids_limit": 9, "cpuset_cpus": "1", "cpuset_mems": "0", "hugepage_limits": {"2MB": 1 << 21},
}  # fmt: skip
LESS = EVERYTHING | {
    "memory_limit": 200 * PAGE,
    "memory_swap_limit": 250 * PAGE,
    "cpu_quota": 10_000,
    "cpu_period": 100_000,
}


@pytest.mark.parametrize("make", [KernelV1, KernelV2])
@pytest.mark.parametrize("old", [{}, LESS, EVERYTHING | {"cpu_quota": -1, "memory_swap_limit": -1}])
def test_whatever_is_refused_the_others_are_put_back(install, make, old):
    kernel = install(make())
    before = apply(kernel, Resources(), **old)
    files = dict(kernel.files)
    refused = 0
    for path in files:
        kernel.refused = {path: (0, errno.EINVAL)}
        try:
            apply(kernel, before, **EVERYTHING)
        except HalfUpdatedError:
            raise
        except HostError as error:
            assert path in str(error)  # noqa: PT017
            refused += 1
            assert kernel.files == files, path
        kernel.refused = {}
        kernel.files = dict(files)
    assert refused >= 2


def test_what_is_too_much_for_what_runs(install):
    kernel = install(KernelV1())
    before = apply(kernel, Resources(), memory_limit=500 * PAGE, memory_swap_limit=600 * PAGE, cpu_shares=100)
    files, kernel.used = dict(kernel.files), 400 * PAGE
    with pytest.raises(LimitRefusedError, match=r"busy \(more is in use than can be reclaimed\)"):
        apply(kernel, before, cpu_shares=200, memory_limit=300 * PAGE, memory_swap_limit=300 * PAGE)
    assert kernel.files == files


def test_version_2_is_not_given_a_limit_that_it_would_kill_for(install, monkeypatch):
    kernel = install(KernelV2())
    kernel.files |= {"/g/memory.current": str(500 * PAGE)}
    stat = {
        "anon": 350 * PAGE,
        "inactive_file": 50 * PAGE,
        "active_file": 30 * PAGE,
        "slab_reclaimable": 20 * PAGE,
    }
    monkeypatch.setattr(cgroup_files, "fields", lambda path: stat if path == "/g/memory.stat" else {})
    before = apply(kernel, Resources(), memory_limit=600 * PAGE, cpu_shares=100)
    before = apply(kernel, before, memory_limit=400 * PAGE)
    files = dict(kernel.files)
    with pytest.raises(LimitRefusedError, match=f"{400 * PAGE} bytes are in use that cannot be reclaimed"):
        apply(kernel, before, cpu_shares=200, memory_limit=399 * PAGE)
    assert kernel.files == files
    stat["anon"] = 0
    stat["inactive_file"] = 0  # whatever has become of it: more, or none at all, is taken
    apply(kernel, before, memory_limit=401 * PAGE)
    assert apply(kernel, before, memory_limit=-1).memory_limit == -1
    assert kernel.files["/g/memory.max"] == "max"


def test_a_share_that_does_not_fit_is_explained(install):
    kernel = install(KernelV1(Fraction(1, 2)))
    with pytest.raises(
        LimitRefusedError, match="raised before those of its containers, and lowered after them"
    ):
        apply(kernel, Resources(), cpu_period=100_000, cpu_quota=60_000)


@pytest.mark.parametrize("make", [KernelV1, KernelV2])
def test_what_cannot_be_put_back_is_told(install, make):
    kernel = install(make())
    weight = "/cpu/g/cpu.shares" if make is KernelV1 else "/g/cpu.weight"
    pids = "/pids/g/pids.max" if make is KernelV1 else "/g/pids.max"
    kernel.refused = {weight: (1, errno.EIO), pids: (0, errno.EPERM)}
    with pytest.raises(
        HalfUpdatedError, match=r"Operation not permitted; and what had been changed .* stays"
    ) as caught:
        apply(kernel, Resources(cpu_shares=1024), **EVERYTHING)
    assert caught.value.changed == Resources(cpu_shares=512)
    assert caught.value.errno == errno.EPERM


@pytest.mark.parametrize(
    "error", [HostError("note", "it", "no"), OSError(errno.ENOSPC, "disk full"), ZeroDivisionError("x")]
)
def test_a_last_step_that_fails_puts_all_back(install, error):
    kernel = install(KernelV1())
    files = dict(kernel.files)

    def finish():
        assert kernel.files != files
        raise error

    with pytest.raises(HostError):
        group(kernel).apply(Resources(**EVERYTHING), finish=finish)
    assert kernel.files == files


def test_what_is_so_already_is_not_written(install):
    kernel = install(KernelV2())
    before = apply(kernel, Resources(), **EVERYTHING)
    kernel.writes.clear()
    apply(kernel, before, **EVERYTHING)
    assert kernel.writes == []


PAGES = st.integers(1, 9).map(lambda pages: pages * PAGE) | st.just(-1) | st.none()
VALUES = st.builds(
    Resources,
    cpu_period=st.none() | st.integers(1, 2_000_000),
    cpu_quota=st.none() | st.just(-1) | st.integers(1, 2_000_000),
    cpu_shares=st.none() | st.integers(1, 300_000),
    memory_limit=PAGES,
    memory_swap_limit=PAGES,
    pids_limit=st.none() | st.just(-1) | st.integers(1, 9),
    cpuset_cpus=st.none() | st.sampled_from(["0", "0-1", "9"]),
    hugepage_limits=st.dictionaries(st.sampled_from(["2MB", "1GB"]), st.integers(0, 3)),
)


@pytest.mark.parametrize("make", [lambda: KernelV1(Fraction(3, 2)), KernelV2])
@given(updates=st.lists(VALUES, max_size=5))
def test_any_updates_one_after_the_other(make, updates):
    """The files are what the limits say, whatever was refused on the way."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel, twin, limits = make(), make(), Resources()
        monkeypatch.setattr(Group, "_make_late", lambda *_: [])
        monkeypatch.setattr(Group, "processes", lambda _: set())

        def use(one):
            for name in ("read", "write", "number"):
                monkeypatch.setattr(cgroup_files, name, getattr(one, name))
            return group(one)

        for update in updates:
            files = dict(kernel.files)
            try:
                use(kernel).apply(update, wire.merged(limits, update))
            except HalfUpdatedError:
                raise
            except HostError:
                assert kernel.files == files
            else:
                limits = wire.merged(limits, update)
        # All at once on another one is the same; what memory and swap once had, an unlimited memory has taken along.
        with suppress(HostError):
            use(twin).apply(replace(limits, memory_swap_limit=None, memory_limit=None))
            memory = {path for path in twin.files if "memory" in path}
            assert {p: v for p, v in kernel.files.items() if p not in memory} == {
                p: v for p, v in twin.files.items() if p not in memory
            }
