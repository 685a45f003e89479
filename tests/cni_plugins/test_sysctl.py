"""Kernel parameters of a stack that the process is not in."""

import errno
from pathlib import Path

import pytest

from cni_plugins import KernelError


@pytest.fixture
def sysctl(make_namespace):
    from cni_plugins.linux import sysctl

    return sysctl


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/1.rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
        ("net/ipv4/conf/eth0.1/rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
        ("kernel", "kernel"),
    ],
)
def test_names_are_read_as_sysctl_does(sysctl, name, path):
    assert sysctl.path(name) == Path("/proc/sys") / path


@pytest.mark.node
def test_a_parameter_is_the_stack_s_alone(sysctl, host, pod):
    before = Path("/proc/sys/net/ipv4/ip_default_ttl").read_text()
    sysctl.write(host, "net.ipv4.ip_default_ttl", "77")
    assert sysctl.read(host, "net.ipv4.ip_default_ttl") == "77"
    assert sysctl.read(pod, "net.ipv4.ip_default_ttl") == "64"
    assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() == before


@pytest.mark.node
def test_failures_are_named_and_leave_no_descriptor(sysctl, host):
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(
        KernelError, match=r"cannot set to 1 sysctl net\.ipv4\.nothing: No such file"
    ) as caught:
        sysctl.write(host, "net.ipv4.nothing", "1")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(KernelError, match="Invalid argument"):
        sysctl.write(host, "net.ipv4.ip_forward", "x")
    assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.node
def test_a_stack_that_is_gone_is_told(sysctl):
    class Gone:
        def socket(self, family, kind, protocol):
            raise OSError(errno.EBADF, "gone")

    with pytest.raises(KernelError, match="make the pod anew"):
        sysctl.read(Gone(), "net.ipv4.ip_forward")
