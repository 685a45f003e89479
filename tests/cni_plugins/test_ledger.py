"""What survives the process, and what must not be given twice."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cni_plugins.errors import ClaimedError, LedgerError
from cni_plugins.ledger import Entry, Ledger

ENTRY = Entry("pods", "a/eth0", "a", {"name": "pods"}, {"containerId": "a"})


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "network.db", "boot-1")
    yield made
    made.close()


def test_an_attachment_is_there_from_begin_to_forget(ledger, tmp_path) -> None:
    assert ledger.entry("pods", "a/eth0") is None
    ledger.begin(ENTRY)
    assert ledger.entry("pods", "a/eth0") == ENTRY
    ledger.finish("pods", "a/eth0", {"ips": []})
    other = Ledger(tmp_path / "network.db", "boot-2")
    (entry,) = other.entries(container="a")
    assert entry.result == {"ips": []}
    assert not entry.of_this_boot
    other.forget("pods", "a/eth0")
    other.forget("pods", "a/eth0")
    assert other.entries() == []
    other.close()


def test_a_claim_has_one_owner(ledger) -> None:
    ledger.claim("addresses", "10.0.0.2", "a")
    ledger.claim("addresses", "10.0.0.2", "a")
    ledger.claim("others", "10.0.0.2", "b")
    with pytest.raises(ClaimedError, match=r"10.0.0.2 in addresses, wanted by b, belongs to a"):
        ledger.claim("addresses", "10.0.0.2", "b")
    assert ledger.release("addresses", "a") == ["10.0.0.2"]
    assert ledger.release("addresses", "a") == []
    ledger.claim("addresses", "10.0.0.2", "b")
    assert ledger.claims("addresses") == [("10.0.0.2", "b")]


def test_several_claims_are_all_or_none(ledger) -> None:
    ledger.claim("ports", "tcp/81", "a")
    with pytest.raises(ClaimedError, match="belongs to a"):
        ledger.claim_all("ports", ("tcp/80", "tcp/81"), "b")
    assert ledger.claims("ports") == [("tcp/81", "a")]


def test_claims_of_an_earlier_boot_are_void(ledger, tmp_path) -> None:
    ledger.claim("addresses", "10.0.0.2", "a")
    same, later = Ledger(tmp_path / "network.db", "boot-1"), None
    assert same.claims("addresses")
    same.close()
    later = Ledger(tmp_path / "network.db", "boot-2")
    assert later.claims("addresses") == []
    later.close()


def test_threads_never_share_a_claim(ledger) -> None:
    def take(owner: int) -> int:
        won = 0
        for value in range(50):
            try:
                ledger.claim("pool", str(value), str(owner))
                won += 1
            except ClaimedError:
                continue
        return won

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 50


def test_a_killed_process_loses_nothing(tmp_path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from cni_plugins.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), 'b')\n"
        "for n in range(100): ledger.claim('pool', str(n), 'o')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "l.db")], check=False, cwd=Path.cwd()
    )
    assert ended.returncode == -signal.SIGKILL
    ledger = Ledger(tmp_path / "l.db", "b")
    assert len(ledger.claims("pool")) == 100
    ledger.close()


def test_notes_are_kept(ledger) -> None:
    assert ledger.noted("podCIDR") is None
    ledger.note("podCIDR", "10.0.0.0/24")
    ledger.note("podCIDR", "10.1.0.0/24")
    assert ledger.noted("podCIDR") == "10.1.0.0/24"


def test_only_the_owner_reads_it_and_it_closes_when_nobody_is_at_it(tmp_path) -> None:
    ledger = Ledger(tmp_path / "l.db", "b")
    ledger.note("a", "b")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    stop = []

    def write() -> None:
        while not stop:
            try:
                ledger.note("a", "b")
            except LedgerError:
                return

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(write)
        ledger.close()
        stop.append(True)
    with pytest.raises(LedgerError):
        ledger.noted("a")
