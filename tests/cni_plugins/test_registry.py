"""Plugins that somebody else's distribution offers."""

import sys

import pytest

from cni_plugins import ConfigurationError, UnknownPluginError, registry
from cni_plugins.plugin import Plugin

WIDGET = """
from cni_plugins.plugin import Plugin
from cni_plugins.types import Result

class Widget(Plugin):
    type = "widget"
    def __init__(self, settings, context): ...
    def add(self, request): return Result()
    def delete(self, request): ...
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution with entry points, as pip leaves it."""

    def install(points: str) -> None:
        (tmp_path / "widgets_for_tests.py").write_text(WIDGET)
        information = tmp_path / "widgets_for_tests-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: widgets-for-tests\nVersion: 1.0\n"
        )
        (information / "entry_points.txt").write_text(f"[cni_plugins]\n{points}\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("widgets_for_tests", None)


def test_ours_are_there_without_being_installed() -> None:
    for type_ in (
        "bandwidth",
        "bridge",
        "host-local",
        "loopback",
        "masquerade",
        "portmap",
        "ptp",
        "static",
        "tuning",
    ):
        assert registry.find(type_).type == type_
        assert issubclass(registry.find(type_), Plugin)


def test_others_are_found_by_their_entry_points(installed) -> None:
    installed("widget = widgets_for_tests:Widget")
    assert registry.find("widget").type == "widget"
    assert "widget" in registry.types()


def test_ours_come_first(installed) -> None:
    installed("bridge = widgets_for_tests:Widget")
    assert registry.find("bridge").type == "bridge"


def test_what_leads_nowhere_or_to_no_plugin_is_named(installed) -> None:
    installed("gone = widgets_for_tests:Nothing\nlost = no_such_module:X\nwrong = widgets_for_tests:Result")
    for type_, words in (("gone", "Nothing"), ("lost", "no_such_module"), ("wrong", "which is no Plugin")):
        with pytest.raises(ConfigurationError, match=words):
            registry.find(type_)


def test_an_unknown_type_is_named_with_what_there_is() -> None:
    with pytest.raises(UnknownPluginError, match="'calico' is not installed; there are bandwidth, bridge"):
        registry.find("calico")
