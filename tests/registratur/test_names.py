"""Registries under every name that they may be spoken of; tests/config has what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registratur import HostOptions, HostsConfig, Reference
from registratur.errors import InvalidEndpointError
from registratur.names import can_be_referenced, registry_name, spellings

MIRROR = "http://m:5000"


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("docker.io", "docker.io"),
        ("docker.io", "registry-1.docker.io"),
        ("docker.io", "docker.io:443"),
        ("registry-1.docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("GHCR.io", "ghcr.io"),
        ("ghcr.io", "Ghcr.io"),
        ("ghcr.io:443", "ghcr.io"),
        ("ghcr.io", "ghcr.io:443"),
        ("[::1]:5000", "[0:0::1]:5000"),
        ("[FD00::A]", "[fd00::a]:443"),
    ],
)
def test_what_is_said_of_a_registry_is_found(written, asked):
    first, *_ = HostsConfig(mirrors={written: [MIRROR]}).endpoints(asked)
    assert str(first).rstrip("/") == MIRROR
    assert first.registry == asked


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("ghcr.io", "ghcr.io:5000"),
        ("ghcr.io:80", "ghcr.io"),
        ("docker.io", "hub.docker.com"),
        ("h.io", "x.h.io"),
    ],
)
def test_other_ports_and_hosts_are_others(written, asked):
    (own,) = HostsConfig(mirrors={written: [MIRROR]}).endpoints(asked)
    assert not own.is_mirror


def test_the_very_name_comes_first():
    config = HostsConfig(mirrors={"h.io": ["http://a"], "h.io:443": ["http://b"], "*": ["http://c"]})
    assert [config.endpoints(name)[0].url.host for name in ("h.io", "h.io:443", "g.io")] == ["a", "b", "c"]


def test_one_name_in_two_spellings_is_refused():
    for what in (
        {"mirrors": {"H.io": [], "h.io": []}},
        {"options": {"docker.io": HostOptions()} | {"Docker.IO": HostOptions()}},
    ):
        with pytest.raises(InvalidEndpointError, match="is named twice"):
            HostsConfig(**what)


def test_options_of_docker_s_registry_are_its_host_s():
    options = HostOptions(skip_verify=True)
    config = HostsConfig(options={"docker.io": options})
    (own,) = config.endpoints("docker.io")
    assert config.options_for(own.url) == options


def test_options_of_all_others():
    everybody, one = HostOptions(skip_verify=True), HostOptions()
    config = HostsConfig(options={"*": everybody, "one.example": one})
    assert [
        config.options_for(config.endpoints(name)[-1].url) for name in ("one.example", "two.example")
    ] == [one, everybody]
    (own,) = config.endpoints("localhost:5000")
    assert own.url.scheme == "http"  # nobody has said that it speaks TLS


@given(st.text(max_size=12))
def test_any_text_is_a_name_for_ever_or_refused(text):
    try:
        name = registry_name(text)
    except InvalidEndpointError:
        return
    assert registry_name(name) == name
    assert name in set(spellings(text))
    if can_be_referenced(name):
        assert Reference.parse(f"{name}/x").registry == name
