"""Leases against a configuration that has changed."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

from cri.network import BridgeNetwork
from cri.sandbox.fake import FakeHost, FakeKernel
from cri.state import LeaseRecord, Store


async def test_leases_of_a_former_subnet_do_not_keep_the_daemon_from_starting(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "state.db")
    await store.save(LeaseRecord(address="10.88.0.2", network="critest-none", owner="s"))
    host = FakeHost(FakeKernel(), tmp_path)
    network = BridgeNetwork(host, store, bridge="critest-none", subnet=ip_network("192.0.2.0/24"), mtu=1500)

    class NoBridge:
        def ensure(self) -> None:
            return

    network._bridge = NoBridge()
    await network.open()
    assert "s" in {lease.owner for lease in store.leases.values()}
    await store.close()
