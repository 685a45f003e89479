"""The allocator against a model of it: a dictionary."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cni_plugins import AddressesExhaustedError, AddressInUseError, Allocator, ConfigurationError, KernelError

owners = st.sampled_from([f"pod-{n}" for n in range(12)])


class Reservations(RuleBasedStateMachine):
    """Any sequence of calls keeps every address with one owner, and refuses only when none is left."""

    @initialize(
        subnet=st.sampled_from(
            ["10.88.0.0/29", "10.88.0.0/30", "10.88.0.0/31", "fd00::/125", "fd00::/127", "fd00::/64"]
        ),
        data=st.data(),
    )
    def start(self, subnet, data):
        self.subnet = ip_network(subnet)
        hosts = (
            list(self.subnet.hosts())
            if self.subnet.num_addresses < 10
            else [self.subnet[n] for n in range(1, 9)]
        )
        if self.subnet.prefixlen == self.subnet.max_prefixlen - 1:
            hosts = list(self.subnet)
        first = data.draw(st.integers(0, len(hosts) - 1))
        last = data.draw(st.integers(first, len(hosts) - 1))
        self.hosts, self.range = hosts, hosts[first : last + 1]
        gateway = data.draw(st.sampled_from(hosts))
        self.allocator = Allocator(self.subnet, gateway, range_start=self.range[0], range_end=self.range[-1])
        self.model = {}

    def free(self):
        return set(self.range) - set(self.model.values()) - {self.allocator.gateway}

    @rule(owner=owners)
    def reserve(self, owner):
        free, known = self.free(), self.model.get(owner)
        if known is None and not free:
            with pytest.raises(AddressesExhaustedError, match=str(self.subnet)):
                self.allocator.reserve(owner)
            return
        interface = self.allocator.reserve(owner)
        assert interface.network == self.subnet
        assert interface.ip == known if known is not None else interface.ip in free
        self.model[owner] = interface.ip

    @rule(owner=owners)
    def release(self, owner):
        self.allocator.release(owner)
        self.model.pop(owner, None)

    @rule(owner=owners, data=st.data())
    def restore(self, owner, data):
        address = data.draw(st.sampled_from(self.hosts))
        taken = address == self.allocator.gateway or any(
            (other == owner) != (held == address)
            for other, held in self.model.items()
            if other == owner or held == address
        )
        if taken:
            with pytest.raises(AddressInUseError, match=owner):
                self.allocator.restore(owner, address)
        else:
            self.allocator.restore(owner, address)
            self.model[owner] = address

    @rule()
    def restart(self):
        """A new allocator with the old one's reservations is the same as the old one."""
        before = self.allocator
        self.allocator = Allocator(
            before.subnet, before.gateway, range_start=before.range_start, range_end=before.range_end
        )
        for owner, address in before.reservations().items():
            self.allocator.restore(owner, address)

    @invariant()
    def every_address_has_one_owner(self):
        if hasattr(self, "model"):
            held = {owner: interface.ip for owner, interface in self.allocator.reservations().items()}
            assert held == self.model
            assert len(set(held.values())) == len(held)


TestReservations = Reservations.TestCase


def test_addresses_go_round_so_that_a_released_one_rests():
    allocator = Allocator(ip_network("10.88.0.0/29"))
    assert str(allocator.reserve("a")) == "10.88.0.2/29"
    allocator.release("a")
    assert [str(allocator.reserve(owner).ip) for owner in "bcde"] == [f"10.88.0.{n}" for n in (3, 4, 5, 6)]
    assert str(allocator.reserve("f").ip) == "10.88.0.2"


def test_the_round_goes_on_after_a_restart():
    allocator = Allocator(ip_network("10.88.0.0/24"))
    allocator.restore("a", ip_address("10.88.0.7"))
    assert str(allocator.reserve("b").ip) == "10.88.0.8"


def test_a_full_subnet_says_what_to_do():
    allocator = Allocator(ip_network("10.88.0.0/30"))
    allocator.reserve("a")
    with pytest.raises(
        AddressesExhaustedError, match=r"10\.88\.0\.0/30.*10\.88\.0\.1 to 10\.88\.0\.2.*larger subnet"
    ):
        allocator.reserve("b")


def test_an_address_outside_a_narrowed_range_may_be_restored():
    allocator = Allocator(ip_network("10.88.0.0/24"), range_end=ip_address("10.88.0.9"))
    allocator.restore("a", ip_interface("10.88.0.200/24"))
    assert allocator.reserve("a") == ip_interface("10.88.0.200/24")
    assert allocator.reserve("b").ip <= ip_address("10.88.0.9")


@pytest.mark.parametrize("address", ["10.88.1.5", "10.88.0.0", "10.88.0.255", "fd00::1"])
def test_an_address_that_is_no_host_s_cannot_be_restored(address):
    with pytest.raises(ConfigurationError, match=r"10\.88\.0\.1 to 10\.88\.0\.254"):
        Allocator(ip_network("10.88.0.0/24")).restore("a", ip_address(address))


@pytest.mark.parametrize(
    ("subnet", "settings"),
    [
        ("10.88.0.1/32", {}),
        ("10.88.0.0/24", {"gateway": ip_address("10.88.1.1")}),
        ("10.88.0.0/24", {"range_start": ip_address("10.88.0.9"), "range_end": ip_address("10.88.0.8")}),
        ("10.88.0.0/24", {"range_end": ip_address("10.88.0.255")}),
    ],
)
def test_settings_that_contradict_each_other_are_refused(subnet, settings):
    with pytest.raises(ConfigurationError, match=subnet.split("/")[0]):
        Allocator(ip_network(subnet), **settings)


def test_threads_never_share_an_address():
    allocator = Allocator(ip_network("10.88.0.0/22"))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(allocator.reserve, map(str, range(800))))
    assert len(set(found)) == 800


@given(st.integers(1, 130), st.text(), st.text())
def test_a_kernel_error_says_everything_and_can_be_pickled(errno, operation, text):
    error = KernelError(errno, operation, "interface x", text)
    again = pickle.loads(pickle.dumps(error))
    assert (again.errno, again.operation, again.object, again.text) == (errno, operation, "interface x", text)
    assert str(again) == str(error)
    assert "interface x" in str(error)
