"""host-local: its settings, and any sequence of calls against a model of the leases: a dictionary."""

import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cni_plugins.errors import (
    AddressesExhaustedError,
    ClaimedError,
    ConfigurationError,
    LedgerError,
    NotAttachedError,
)
from cni_plugins.leases import NodeLeases
from cni_plugins.ledger import Ledger
from cni_plugins.ranges import RangeSet
from cni_plugins.settings import Settings
from cni_plugins.types import DNS, Route

owners = st.sampled_from([f"pod-{n}" for n in range(12)])


def range_set(*ranges):
    return RangeSet.from_settings([Settings(each, "here") for each in ranges], "here")


class LeasesMachine(RuleBasedStateMachine):
    """Every address has one owner, one asking twice has one address, and only a full set refuses."""

    @initialize(
        subnets=st.sampled_from(
            [
                ["10.88.0.0/29"],
                ["10.88.0.0/30"],
                ["10.88.0.0/31"],
                ["10.88.0.0/30", "10.77.0.0/29"],
                ["fd00::/125"],
                ["fd00::/127"],
                ["fd00::/64"],
            ]
        ),
        data=st.data(),
    )
    def start(self, subnets, data):
        self.range, self.hosts, gateways = [], [], set()
        ranges = []
        for subnet in map(ip_network, subnets):
            hosts = [subnet[n] for n in range(1, min(subnet.num_addresses - 1, 9))] or list(subnet)
            first = data.draw(st.integers(0, len(hosts) - 1))
            last = data.draw(st.integers(first, len(hosts) - 1))
            gateway = data.draw(st.sampled_from(hosts))
            ranges.append(
                {
                    "subnet": str(subnet),
                    "gateway": str(gateway),
                    "rangeStart": str(hosts[first]),
                    "rangeEnd": str(hosts[last]),
                }
            )
            self.range += hosts[first : last + 1]
            gateways.add(gateway)
        self.hosts = [address for address in self.range if address not in gateways]
        self.set = range_set(*ranges)
        self.ledger = Ledger(None, "boot")
        self.leases = NodeLeases(self.ledger).network("pods")
        self.model = {}

    def teardown(self):
        self.ledger.close()

    @rule(owner=owners)
    def lease(self, owner):
        free, known = set(self.hosts) - set(self.model.values()), self.model.get(owner)
        if known is None and not free:
            with pytest.raises(AddressesExhaustedError, match=str(self.set)):
                self.leases.lease(owner, [(self.set, None)])
            return
        (address,) = self.leases.lease(owner, [(self.set, None)])
        assert address == known if known is not None else address in free
        self.model[owner] = address

    @rule(owner=owners, data=st.data())
    def request(self, owner, data):
        if not self.hosts or owner in self.model:
            return
        address = data.draw(st.sampled_from(self.hosts))
        holder = next((other for other, held in self.model.items() if held == address), None)
        if holder is None:
            assert self.leases.lease(owner, [(self.set, address)]) == [address]
            self.model[owner] = address
        else:
            with pytest.raises(ClaimedError, match=f"{address}, wanted by {owner}, belongs to {holder};"):
                self.leases.lease(owner, [(self.set, address)])

    @rule(owner=owners)
    def release(self, owner):
        self.leases.release(owner)
        self.model.pop(owner, None)

    @rule(live=st.sets(owners))
    def collect(self, live):
        self.leases.release_others(live)
        self.model = {owner: address for owner, address in self.model.items() if owner in live}

    @rule()
    def restart(self):
        self.leases = NodeLeases(self.ledger).network("pods")

    @invariant()
    def what_is_written_down_is_the_model(self):
        if hasattr(self, "model"):
            claims = self.ledger.claims("addresses of network pods")
            assert {owner: ip_address(value) for value, owner in claims} == self.model
            assert all(self.leases.held(owner) == [address] for owner, address in self.model.items())


TestLeases = LeasesMachine.TestCase


@pytest.fixture
def host_local(make_context, make_plugin):
    """Make a host-local plugin of its settings on one ledger."""
    context = make_context()
    return lambda **settings: make_plugin(context, "host-local", **settings)


@pytest.fixture
def add(make_request):
    """ADD for an owner; return the addresses."""
    return lambda plugin, owner, **words: [
        str(ip.address) for ip in plugin.add(make_request(None, owner, **words)).ips
    ]


def test_the_result_has_an_address_of_every_set_in_their_order(host_local, make_request, tmp_path):
    (tmp_path / "resolv.conf").write_text(
        "# nameserver 192.0.2.9\n; search no\nnameserver 192.0.2.1\nnameserver 2001:db8::1 \n"
        "domain example.org\nsearch a.example b.example\noptions ndots:5 edns0\nnameserver\n\n"
    )
    plugin = host_local(
        ranges=[
            [{"subnet": "fd00:88::/64"}],
            [{"subnet": "10.88.0.0/16", "rangeStart": "10.88.1.20", "rangeEnd": "10.88.3.50"}],
            [{"subnet": "172.16.5.0/24", "gateway": "172.16.5.254"}],
        ],
        routes=[{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.88.0.9", "mtu": 1400, "priority": 7}],
        resolvConf=str(tmp_path / "resolv.conf"),
        dataDir="/passed/over",
    )
    result = plugin.add(make_request(None))
    assert [(str(ip.address), str(ip.gateway)) for ip in result.ips] == [
        ("fd00:88::2/64", "fd00:88::1"),
        ("10.88.1.20/16", "10.88.0.1"),
        ("172.16.5.1/24", "172.16.5.254"),
    ]
    assert not result.interfaces
    assert result.routes == (
        Route(ip_network("0.0.0.0/0")),
        Route(ip_network("10.0.0.0/8"), ip_address("10.88.0.9"), mtu=1400, priority=7),
    )
    assert result.dns == DNS(
        ("192.0.2.1", "2001:db8::1"), "example.org", ("a.example", "b.example"), ("ndots:5", "edns0")
    )


def test_a_single_range_at_the_top_comes_first(host_local, add):
    plugin = host_local(subnet="10.1.0.0/24", rangeStart="10.1.0.9", ranges=[[{"subnet": "10.2.0.0/24"}]])
    assert add(plugin, "a") == ["10.1.0.9/24", "10.2.0.2/24"]


def test_the_runtime_s_ranges_come_before_the_configuration_s(host_local, add):
    plugin = host_local(subnet="10.1.0.0/24")
    assert add(plugin, "a", ip_ranges=(({"subnet": "10.3.0.0/24"},),)) == ["10.3.0.2/24", "10.1.0.2/24"]
    alone = host_local(capabilities={"ipRanges": True})
    assert add(alone, "b", ip_ranges=(({"subnet": "10.3.0.0/24"},),)) == ["10.3.0.3/24"]
    with pytest.raises(ConfigurationError, match="ipRanges: there is none"):
        add(alone, "c")
    with pytest.raises(ConfigurationError, match="overlap"):
        add(plugin, "c", ip_ranges=(({"subnet": "10.1.0.0/28"},),))


def test_requested_addresses_come_from_arguments_of_any_kind(make_context, host_local, add):
    plugin = host_local(subnet="10.1.0.0/24", ranges=[[{"subnet": "fd00::/64"}]])
    assert add(plugin, "a", ips=(ip_interface("fd00::77/48"), ip_address("10.1.0.7"))) == [
        "10.1.0.7/24",
        "fd00::77/64",
    ]
    assert add(plugin, "b", args={"IP": "10.1.0.9"}) == ["10.1.0.9/24", "fd00::78/64"]
    whole = Settings(
        {"ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}, "args": {"cni": {"ips": ["10.1.0.66"]}}},
        "network x: plugin bridge",
    )
    context = make_context()
    assert add(context.delegate(whole.part("ipam")), "c") == ["10.1.0.66/24"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("10.1.0.1", "gateway"),
        ("10.9.0.1", "no range is left for the requested 10.9.0.1"),
        ("10.1.0.7,10.1.0.8", "no range is left for the requested 10.1.0.8"),
        ("10.1.0.255", "no range"),
        ("many", "'many'"),
    ],
)
def test_a_requested_address_that_cannot_be_had_is_refused(host_local, add, address, message):
    plugin = host_local(subnet="10.1.0.0/24")
    with pytest.raises(ConfigurationError, match=message):
        add(plugin, "a", args={"IP": address})
    assert add(plugin, "b") == ["10.1.0.2/24"]


def test_a_requested_address_that_is_taken_names_its_owner(host_local, add):
    plugin = host_local(subnet="10.1.0.0/24", ranges=[[{"subnet": "10.2.0.0/24"}]])
    add(plugin, "first", args={"IP": "10.2.0.7"})
    with pytest.raises(ClaimedError, match=r"10\.2\.0\.7, wanted by second/eth0, belongs to first/eth0"):
        add(plugin, "second", args={"IP": "10.2.0.7"})
    # ...and what it was given of the first set before is free again.
    assert add(plugin, "third", args={"IP": "10.1.0.3"})[0] == "10.1.0.3/24"


def test_whoever_asks_again_gets_the_same_addresses(make_context, make_plugin, add):
    first = make_context()
    settings = {"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "fd00::/64"}]]}
    plugin = make_plugin(first, "host-local", **settings)
    addresses = add(plugin, "a"), add(plugin, "b")
    assert (add(plugin, "a"), add(plugin, "b")) == addresses
    again = make_plugin(make_context(ledger=first.ledger), "host-local", **settings)
    assert (add(again, "a"), add(again, "b")) == addresses


def test_two_lists_of_a_network_share_its_addresses(make_context, make_plugin, add):
    one = make_context()
    other = make_context(ledger=one.ledger)
    found = [
        add(make_plugin(context, "host-local", subnet="10.1.0.0/24"), f"{n}")
        for n, context in enumerate((one, other))
    ]
    assert found == [["10.1.0.2/24"], ["10.1.0.3/24"]]


def test_a_range_that_another_network_has_leases_of_is_refused(make_context, make_plugin, make_request, add):
    ledger = Ledger(None, "boot")
    contexts = {name: make_context(network=name, ledger=ledger) for name in ("pods", "others")}
    theirs = make_plugin(contexts["others"], "host-local", subnet="10.1.0.0/24", rangeEnd="10.1.0.99")
    ours = make_plugin(contexts["pods"], "host-local", subnet="10.1.0.0/16")
    beside = make_plugin(contexts["pods"], "host-local", subnet="10.1.0.0/24", rangeStart="10.1.0.100")
    assert ours.status() == []
    add(theirs, "a")
    add(theirs, "b")
    refusal = r"network pods: 10\.1\.0\.1 to .* overlaps network others, which has leased 2 of"
    with pytest.raises(ConfigurationError, match=refusal):
        add(ours, "c")
    assert theirs.status() == beside.status() == []
    assert add(beside, "c") == ["10.1.0.100/24"]
    ledger._indexes.clear()  # as after a restart
    with pytest.raises(ConfigurationError, match=refusal):
        add(ours, "d")
    (problem,) = ours.status()
    assert "overlaps network others" in problem
    theirs.gc([])
    assert add(ours, "d") == ["10.1.0.101/16"]
    ledger.close()


def test_a_range_whose_gateway_a_pod_has_is_refused(host_local, add, make_request):
    wide = host_local(subnet="10.44.0.0/16")
    narrow = host_local(subnet="10.44.1.0/24")
    assert add(wide, "a", args={"IP": "10.44.1.1"}) == ["10.44.1.1/16"]
    refusal = r"the gateway 10\.44\.1\.1 of .* is the address of a/eth0 in network pods; delete that pod"
    with pytest.raises(ConfigurationError, match=refusal):
        add(narrow, "b")
    (problem,) = narrow.status()
    assert "a/eth0" in problem
    wide.delete(make_request(None, "a"))
    assert narrow.status() == []
    assert add(narrow, "b") == ["10.44.1.2/24"]


@pytest.mark.parametrize("restarted", [False, True])
def test_no_pod_gets_the_gateway_of_another_range(
    make_context, make_plugin, make_request, add, tmp_path, restarted
):
    def start(network="pods", **settings):
        context = make_context(network=network, ledger=ledger)
        return make_plugin(context, "host-local", **settings)

    ledger = Ledger(tmp_path / "ledger", "boot")
    wide = {"subnet": "10.44.0.0/24", "rangeEnd": "10.44.0.4"}
    assert add(start(**wide), "a") == ["10.44.0.2/24"]  # so its round is there already
    narrow = start(network="others", subnet="10.44.0.0/29", gateway="10.44.0.3", rangeStart="10.44.0.5")
    assert add(narrow, "b") == ["10.44.0.5/29"]
    narrow.delete(make_request(None, "b"))
    if restarted:
        ledger.close()
        ledger = Ledger(tmp_path / "ledger", "boot")
    with pytest.raises(ClaimedError, match=r"10\.44\.0\.3, wanted by c/eth0, is that of a gateway"):
        add(start(**wide), "c", args={"IP": "10.44.0.3"})
    assert add(start(**wide), "c") == ["10.44.0.4/24"]
    with pytest.raises(AddressesExhaustedError):
        add(start(**wide), "d")
    ledger.close()


def test_a_gateway_that_cannot_be_written_down_is_not_remembered(host_local, add, monkeypatch):
    plugin = host_local(subnet="10.88.0.0/30")

    def full(*_):
        raise LedgerError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(plugin._context.ledger, "claim_all", full)
        with pytest.raises(LedgerError):
            add(plugin, "a")
    assert not plugin._context.ledger.claims("gateways")
    add(plugin, "a")
    assert [value for value, _ in plugin._context.ledger.claims("gateways")] == ["10.88.0.1"]


def test_a_changed_configuration_knows_the_leases_of_the_one_before(host_local, add, make_request):
    before = host_local(subnet="10.1.0.0/24")
    assert add(before, "a") == ["10.1.0.2/24"]
    after = host_local(subnet="10.1.0.0/25")
    assert add(after, "b") == ["10.1.0.3/25"]
    before.delete(make_request(None, "a"))
    with pytest.raises(ClaimedError, match="b/eth0"):
        add(before, "c", args={"IP": "10.1.0.3"})
    assert add(after, "c", args={"IP": "10.1.0.2"}) == ["10.1.0.2/25"]


def test_addresses_go_round_so_that_a_released_one_rests(host_local, add, make_request):
    plugin = host_local(subnet="10.88.0.0/29")
    assert add(plugin, "a") == ["10.88.0.2/29"]
    plugin.delete(make_request(None, "a"))
    assert [add(plugin, owner) for owner in "bcde"] == [[f"10.88.0.{n}/29"] for n in (3, 4, 5, 6)]
    assert add(plugin, "f") == ["10.88.0.2/29"]


def test_the_round_goes_through_all_ranges_of_a_set(host_local, add):
    plugin = host_local(
        ranges=[[{"subnet": "10.2.0.0/30"}, {"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.5"}]]
    )
    assert [add(plugin, owner)[0] for owner in "abc"] == ["10.2.0.2/30", "10.1.0.5/29", "10.1.0.6/29"]
    with pytest.raises(
        AddressesExhaustedError, match=r"10\.2\.0\.0/30, 10\.1\.0\.5 .*, 3 are leased; remove pods"
    ):
        add(plugin, "d")


def test_the_round_goes_on_after_restart_and_reboot(make_context, make_plugin, make_request, add, tmp_path):
    settings = {"subnet": "10.88.0.0/24"}

    def start(boot):
        return make_plugin(make_context(ledger=Ledger(tmp_path / "ledger", boot)), "host-local", **settings)

    plugin = start("1")
    assert add(plugin, "a") == ["10.88.0.2/24"]
    assert add(plugin, "b") == ["10.88.0.3/24"]
    plugin.delete(make_request(None, "b"))
    plugin._context.ledger.close()
    plugin = start("1")
    assert add(plugin, "c") == ["10.88.0.4/24"]
    plugin._context.ledger.close()
    plugin = start("2")  # the leases of the boot before are void
    assert add(plugin, "a") == ["10.88.0.5/24"]
    plugin._context.ledger.close()


def test_what_cannot_be_written_down_is_not_leased(host_local, add, monkeypatch):
    plugin = host_local(subnet="10.88.0.0/30")

    def full(*_):
        raise LedgerError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(plugin._context.ledger, "claim_all", full)
        with pytest.raises(LedgerError):
            add(plugin, "a")
    assert add(plugin, "b") == ["10.88.0.2/30"]


def test_a_set_that_is_full_leaves_the_sets_before_it_alone(host_local, add, make_request):
    plugin = host_local(ranges=[[{"subnet": "10.1.0.0/29"}], [{"subnet": "10.2.0.0/30"}]])
    add(plugin, "a")
    for owner in range(9):
        with pytest.raises(
            AddressesExhaustedError, match=r"network pods.*10\.2\.0\.1 to 10\.2\.0\.2 .*, 1 are leased"
        ):
            add(plugin, f"b{owner}")
    plugin.delete(make_request(None, "a"))
    assert add(plugin, "c")[1] == "10.2.0.2/30"


def test_gc_keeps_the_leases_of_those_who_are_there(host_local, add, make_request):
    plugin = host_local(subnet="10.1.0.0/29")
    for owner in "abcde":
        add(plugin, owner)
    plugin.gc([make_request(None, "b"), make_request(None, "e"), make_request(None, "never")])
    claims = plugin._context.ledger.claims("addresses of network pods")
    assert claims == [("10.1.0.3", "b/eth0"), ("10.1.0.6", "e/eth0")]


def test_check_finds_the_lease(host_local, make_request):
    plugin = host_local(subnet="10.1.0.0/29")
    request = make_request(None, "a")
    result = plugin.add(request)
    request = make_request(None, "a", previous=result)
    plugin.check(request)
    plugin.delete(request)
    with pytest.raises(NotAttachedError, match=r"a/eth0 has no lease for 10\.1\.0\.2"):
        plugin.check(request)
    plugin.delete(request)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "ranges is None"),
        ({"ranges": []}, "ranges is "),
        ({"ranges": [[]]}, "has no range"),
        ({"ranges": {}}, "a list"),
        ({"ranges": [{}]}, "a list"),
        ({"ranges": [[{}]]}, "subnet"),
        ({"subnet": "10.1.0.3/24"}, "host bits, 10.1.0.0/24"),
        ({"subnet": "10.1.0.0/33"}, "such as"),
        ({"subnet": "10.1.0.1/32"}, "no room"),
        ({"subnet": "::ffff:10.1.0.0/120"}, "form of IPv4"),
        ({"subnet": "10.1.0.0/24", "gateway": "fd00::1"}, "gateway.*IPv4"),
        ({"subnet": "10.1.0.0/24", "gateway": "10.1.0.255"}, "gateway"),
        ({"subnet": "10.1.0.0/24", "gateway": "here"}, "gateway"),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.1.1.1"}, "rangeStart"),
        ({"subnet": "10.1.0.0/24", "rangeStart": "fd00::1"}, "rangeStart"),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.0"}, "from 10.1.0.1 to 10.1.0.254"),
        ({"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.255"}, "from 10.1.0.1 to 10.1.0.254"),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}, "swap"),
        ({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]}, "IPv4 and IPv6"),
        ({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/25"}]]}, "overlap"),
        ({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]}, "overlap"),
        ({"subnet": "10.1.0.0/24", "routes": [{}]}, "dst"),
        ({"subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]}, "gw"),
    ],
)
def test_settings_that_cannot_work_are_refused(host_local, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        host_local(**settings)


def test_ranges_of_one_subnet_need_not_overlap(host_local, add):
    plugin = host_local(
        ranges=[
            [{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.9"}],
            [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10"}],
        ]
    )
    assert add(plugin, "a") == ["10.1.0.2/24", "10.1.0.10/24"]


def test_a_gateway_outside_the_subnet_leaves_all_its_addresses(host_local, add):
    plugin = host_local(subnet="10.1.0.0/24", gateway="169.254.1.1")
    assert add(plugin, "a") == ["10.1.0.1/24"]


def test_a_missing_resolv_conf_names_itself_before_anything_is_leased(host_local, add):
    plugin = host_local(subnet="10.1.0.0/24", resolvConf="/nowhere/resolv.conf")
    with pytest.raises(ConfigurationError, match=r"/nowhere/resolv\.conf: No such file"):
        add(plugin, "a")
    assert not plugin._context.ledger.claims("addresses of network pods")


def test_threads_never_share_an_address(make_context, make_plugin, add):
    context = make_context()
    plugins = [
        make_plugin(context, "host-local", subnet=subnet) for subnet in ("10.88.0.0/22", "10.88.0.0/21")
    ]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: add(plugins[n % 2], f"{n}")[0].split("/")[0], range(800)))
    assert len(set(found)) == 800


def test_a_dense_block_in_the_way_costs_nothing():
    """A walk through 50,000 leases would take tens of milliseconds each time."""
    ledger = Ledger(None, "boot")
    ranges = range_set({"subnet": "10.88.0.0/16"})
    first = ip_address("10.88.0.2")
    ledger.claim_all("addresses of network pods", [str(first + n) for n in range(50_000)], "dense")
    leases = NodeLeases(ledger).network("pods")
    leases.lease("warm", [(ranges, None)])
    best = 1.0
    for number in range(20):
        leases._rounds[ranges]._go_behind(first)  # as if the round had just begun
        before = time.perf_counter()
        leases.lease(f"{number}", [(ranges, None)])
        best = min(best, time.perf_counter() - before)
    assert best < 0.003
    ledger.close()
