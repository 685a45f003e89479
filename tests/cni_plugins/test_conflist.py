"""Network configurations, and the one of a directory that counts."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins import ConfDirectory, ConfigurationError, NetworkList
from cni_plugins.errors import IncompatibleVersionError, MalformedConfigurationError
from cni_plugins.types import CNI_VERSIONS

BRIDGE = {"type": "bridge", "bridge": "br0"}
LIST = {"name": "pods", "cniVersion": "1.0.0", "plugins": [BRIDGE, {"type": "portmap"}]}


def test_a_list_is_read_and_comes_back() -> None:
    network = NetworkList.from_json({**LIST, "disableCheck": True}, "here")
    assert (network.name, network.cni_version, network.disable_check) == ("pods", "1.0.0", True)
    assert [plugin["type"] for plugin in network.plugins] == ["bridge", "portmap"]
    assert NetworkList.from_json(network.to_json(), "there") == network


def test_a_single_plugin_is_a_list_of_one() -> None:
    network = NetworkList.from_json({**BRIDGE, "name": "pods", "cniVersion": "0.3.1"})
    assert [plugin["type"] for plugin in network.plugins] == ["bridge"]


def test_of_several_versions_the_latest_that_is_spoken_is_taken() -> None:
    offered = {**LIST, "cniVersions": ["9.0.0", "0.4.0", "1.1.0", "1.0.0"]}
    assert NetworkList.from_json(offered).cni_version == "1.1.0"


@pytest.mark.parametrize("told", [{}, {"cniVersion": ""}, {"cniVersion": None}, {"cniVersions": []}])
@pytest.mark.parametrize("single", [True, False])
def test_one_that_does_not_say_its_version_is_of_the_oldest(tmp_path, told, single) -> None:
    """As libcni takes it; Flannel's and Weave's configurations were so for years (kubernetes#84808)."""
    parts = BRIDGE if single else {"plugins": [BRIDGE]}
    write(tmp_path / "10.conf", {"name": "cbr0", **told, **parts})
    network = ConfDirectory(tmp_path).look().network
    assert network.cni_version == "0.1.0"
    assert NetworkList.from_json(network.to_json()) == network


@pytest.mark.parametrize("version", CNI_VERSIONS)
def test_every_version_there_ever_was_is_spoken(version) -> None:
    assert NetworkList.from_json({**BRIDGE, "name": "pods", "cniVersion": version}).cni_version == version


def test_the_version_counts_beside_the_versions() -> None:
    offered = {**LIST, "cniVersion": "1.0.0", "cniVersions": ["0.4.0", "9.0.0"]}
    assert NetworkList.from_json(offered).cni_version == "1.0.0"


@pytest.mark.parametrize(("told", "meant"), [("true", True), ("False", False), (True, True), (None, False)])
def test_switches_of_the_list_may_be_words(told, meant) -> None:
    network = NetworkList.from_json({**LIST, "disableCheck": told, "disableGC": told})
    assert (network.disable_check, network.disable_gc) == (meant, meant)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no JSON"),
        (b'{"name": "pods", "plu', "no JSON"),
        (b'{"name": "p\xff"}', "no JSON"),
        (b'{"name": "pods", "cniVersion": "1.0.0", "type": "\\ud800"}', "half a surrogate pair"),
        (b'{"mtu": NaN}', "NaN is no number of JSON"),
        (b'{"mtu": ' + b"9" * 5000 + b"}", "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * (1 << 20) + b"{}", "longer than"),
        (b"[]", "list where an object is expected"),
    ],
)
def test_what_cannot_be_read_is_a_problem_that_can_be_told(tmp_path, text, words) -> None:
    (tmp_path / "10.conflist").write_bytes(text)
    found = ConfDirectory(tmp_path).look()
    assert found.network is None
    assert words in found.problems[0].encode().decode()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"name": ""}, ConfigurationError, "name is ''"),
        ({"name": "../x"}, ConfigurationError, "name is '../x'"),
        ({"name": 5}, ConfigurationError, "name is 5, but must be a string"),
        ({"cniVersion": "2.0.0"}, IncompatibleVersionError, "'2.0.0' is none of 0.1.0"),
        ({"cniVersion": "0.9"}, IncompatibleVersionError, "'0.9' is none of"),
        ({"cniVersion": 1.0}, ConfigurationError, "cniVersion is 1.0, but must be a string"),
        ({"cniVersions": ["9.0.0"], "cniVersion": None}, IncompatibleVersionError, "'9.0.0' is none of"),
        ({"cniVersions": "1.0.0"}, ConfigurationError, "cniVersions is '1.0.0', but must be a list"),
        ({"plugins": []}, ConfigurationError, "plugins is"),
        ({"plugins": [{"bridge": "x"}]}, ConfigurationError, r"plugins\[0\]: type is None"),
        ({"plugins": ["bridge"]}, ConfigurationError, "a list of objects"),
        ({"disableGC": "no"}, ConfigurationError, "disableGC is 'no', but must be true or false"),
    ],
)
def test_what_breaks_the_specification_is_named(change, error, words) -> None:
    with pytest.raises(error, match=words) as caught:
        NetworkList.from_json({**LIST, **change}, "file")
    assert str(caught.value).startswith("file")
    assert caught.value.to_json("1.0.0")["code"] == error.code


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*LIST, "type", "x"]), inner, max_size=4)
    ),
)


@given(json_values, st.sampled_from(CNI_VERSIONS))
def test_any_json_is_a_network_or_the_typed_error(told, version) -> None:
    for value in (told, {**LIST, "cniVersion": version, "plugins": told}):
        try:
            network = NetworkList.from_json(value)
        except ConfigurationError:
            continue
        assert NetworkList.from_json(network.to_json()) == network


def write(path, told) -> None:
    path.write_text(told if isinstance(told, str) else json.dumps(told))


def test_the_first_valid_file_by_name_counts(tmp_path) -> None:
    directory = ConfDirectory(tmp_path)
    assert directory.look().network is None
    write(tmp_path / "20.conflist", {**LIST, "name": "twenty"})
    write(tmp_path / "30.conf", {**BRIDGE, "name": "thirty", "cniVersion": "1.0.0"})
    write(tmp_path / "05.txt", "not looked at")
    assert directory.look().network.name == "twenty"
    write(tmp_path / "10.json", "{")
    found = directory.look()
    assert found.network.name == "twenty"
    assert "10.json: no JSON" in found.problems[0]


def test_changes_are_seen_and_nothing_is_read_twice(tmp_path) -> None:
    directory = ConfDirectory(tmp_path)
    file = tmp_path / "10.conflist"
    write(file, LIST)
    first = directory.look()
    assert directory.look() is first
    write(tmp_path / "new", {**LIST, "name": "other"})
    (tmp_path / "new").rename(file)
    assert directory.look().network.name == "other"
    file.unlink()
    assert directory.look().network is None


def test_a_directory_that_is_missing_comes_and_goes(tmp_path) -> None:
    directory = ConfDirectory(tmp_path / "net.d")
    assert directory.look().problems == ()
    (tmp_path / "net.d").mkdir()
    write(tmp_path / "net.d" / "a.conflist", LIST)
    assert directory.look().network.name == "pods"


def test_a_link_that_leads_nowhere_is_a_problem_of_its_own(tmp_path) -> None:
    (tmp_path / "10.conflist").symlink_to("/nonexistent/x")
    write(tmp_path / "20.conflist", LIST)
    found = ConfDirectory(tmp_path).look()
    assert found.network.name == "pods"
    assert "10.conflist" in found.problems[0]


def test_an_error_has_a_code() -> None:
    assert MalformedConfigurationError.code == 6


def test_what_is_no_file_and_links_in_circles_are_problems_of_their_own(tmp_path) -> None:
    os.mkfifo(tmp_path / "05.conflist")
    (tmp_path / "06.conflist").symlink_to("06.conflist")
    (tmp_path / "07.conflist").mkdir()
    write(tmp_path / "20.conflist", LIST)
    found = ConfDirectory(tmp_path).look()
    assert found.network.name == "pods"
    assert [name in problem for name, problem in zip(("05", "06", "07"), found.problems, strict=True)] == [
        True
    ] * 3
