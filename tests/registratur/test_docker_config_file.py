"""Docker's config.json, written: what stays, what goes, and that nothing is half done."""

import asyncio
import base64
import json
import os
import stat
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from registratur import DockerConfig, MalformedContentError, UnauthorizedError
from registratur.docker_config import HUB_ADDRESS, is_for
from registratur.docker_config_file import log_in, log_out, with_entry, without_entry

PAIR = base64.b64encode(b"me:hunter2").decode()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
HOSTS = st.sampled_from(
    [
        "r.example",
        "R.example",
        "https://r.example/v2/",
        "r.example:443",
        "r.example:5000",
        "r.example/team",
        "quay.io",
    ]
)
ENTRIES = st.dictionaries(
    HOSTS,
    st.fixed_dictionaries(
        {},
        optional={
            "auth": st.just(PAIR),
            "Auth": st.just(PAIR),
            "identitytoken": st.text(),
            "email": st.text(),
        },
    ),
)
KNOWN = ("auths", "credhelpers", "credsstore")


@st.composite
def documents(draw):
    others = draw(st.dictionaries(st.text(), VALUES, max_size=3))
    assume(not any(key.casefold() in KNOWN for key in others))
    known = draw(st.fixed_dictionaries({}, optional={"auths": ENTRIES | st.none()}))
    return others | known


def others_of(document):
    return {key: value for key, value in document.items() if key.casefold() != "auths"}


def entries_but(document, registry):
    return {key: entry for key, entry in (document.get("auths") or {}).items() if not is_for(key, registry)}


@given(documents(), st.sampled_from(["r.example", "r.example:5000", "docker.io", "localhost:5000"]))
def test_what_is_not_about_the_registry_stays(document, registry):
    written = with_entry(json.dumps(document).encode(), "config.json", registry, PAIR)
    found = json.loads(written)
    assert others_of(found) == others_of(document)
    assert entries_but(found, registry) == entries_but(document, registry)
    assert DockerConfig.parse(written, "config.json").known(registry).basic() == ("me", "hunter2")
    again = without_entry(written, "config.json", registry)
    assert (
        entries_but(json.loads(again), registry)
        == json.loads(again)["auths"]
        == entries_but(document, registry)
    )
    assert others_of(json.loads(again)) == others_of(document)
    assert without_entry(again, "config.json", registry) is None


@given(documents())
def test_a_login_leaves_no_other_secret_of_the_registry(document):
    found = json.loads(with_entry(json.dumps(document).encode(), "config.json", "r.example", ""))
    mine = {key: entry for key, entry in found["auths"].items() if is_for(key, "r.example")}
    assert list(mine) == ["r.example"]
    assert set(mine["r.example"]) <= {"email"}


def test_docker_hub_is_called_as_docker_does():
    before = json.dumps({"auths": {"docker.io": {"auth": PAIR, "email": "me@r.example"}}}).encode()
    found = json.loads(with_entry(before, "config.json", "docker.io", PAIR))
    assert found == {"auths": {HUB_ADDRESS: {"email": "me@r.example", "auth": PAIR}}}


def test_keys_have_no_case():
    found = json.loads(
        with_entry(b'{"Auths": {"quay.io": {}}, "AUTHS": null}', "config.json", "r.example", PAIR)
    )
    assert found == {"Auths": {"quay.io": {}, "r.example": {"auth": PAIR}}, "AUTHS": None}


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b'{"auths": []}', b'{"auths": {"a.b": "hunter2"}}', b'{"a": NaN}', b'{"a": 1e999}', b"\xff",
     b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000],
)  # fmt: skip
async def test_a_file_that_cannot_be_kept_is_left_alone(data, tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(data)
    with pytest.raises(MalformedContentError, match=r"config\.json") as caught:
        await log_in(file, "r.example", "me", "hunter2")
    assert "hunter2" not in str(caught.value)
    assert file.read_bytes() == data
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("before", [None, b"", b"\n", b"{}"])
async def test_a_new_file_is_for_its_owner_alone(before, tmp_path):
    file = tmp_path / "docker" / "config.json"
    if before is not None:
        file.parent.mkdir()
        file.write_bytes(before)
        file.chmod(0o644)
    assert await log_in(file, "r.example", "me", "hunter2") == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    if before is None:
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert json.loads(file.read_bytes()) == {"auths": {"r.example": {"auth": PAIR}}}
    assert await log_out(file, "r.example")
    assert not await log_out(file, "r.example")
    assert json.loads(file.read_bytes()) == {"auths": {}}
    assert [path.name for path in file.parent.iterdir()] == ["config.json"]


async def test_no_file_to_log_out_from(tmp_path):
    assert not await log_out(tmp_path / "config.json", "r.example")
    assert list(tmp_path.iterdir()) == []


async def test_a_link_stays_one(tmp_path):
    (tmp_path / "kept").mkdir()
    link = tmp_path / "config.json"
    link.symlink_to("kept/real.json")
    await log_in(link, "r.example", "me", "hunter2")
    assert link.is_symlink()
    assert "r.example" in json.loads((tmp_path / "kept/real.json").read_bytes())["auths"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_the_owner_stays(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{}")
    os.chown(file, 1234, 2345)
    await log_in(file, "r.example", "me", "hunter2")
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 2345)


async def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("fifo", "circle", ".", "fifo/config.json"):
        with pytest.raises(OSError, match=r".") as caught:
            await log_in(tmp_path / name, "r.example", "me", "hunter2")
        assert not isinstance(caught.value, FileNotFoundError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "fifo"]


async def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "config.json"
    file.write_text('{"auths": {"quay.io": {}}}')

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        await log_in(file, "r.example", "me", "hunter2")
    assert file.read_text() == '{"auths": {"quay.io": {}}}'
    assert list(tmp_path.iterdir()) == [file]


HELPER = """#!{python}
import json, pathlib, sys
kept = pathlib.Path({kept!r})
known = json.loads(kept.read_text()) if kept.exists() else {{}}
verb, data = sys.argv[1], sys.stdin.read()
if "locked.example" in data:
    print("locked:", data)
    sys.exit(1)
if verb == "store":
    entry = json.loads(data)
    known[entry["ServerURL"]] = [entry["Username"], entry["Secret"]]
elif data not in known:
    print("credentials not found in native keychain")
    sys.exit(1)
elif verb == "erase":
    del known[data]
else:
    print(json.dumps({{"ServerURL": data, "Username": known[data][0], "Secret": known[data][1]}}))
kept.write_text(json.dumps(known))
"""


class TestHelpers:
    @pytest.fixture
    def kept(self, tmp_path, monkeypatch):
        file = tmp_path / "docker-credential-test"
        file.write_text(HELPER.format(python=sys.executable, kept=str(tmp_path / "kept")))
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return lambda: json.loads((tmp_path / "kept").read_text())

    @pytest.mark.parametrize("document", [{"credsStore": "test"}, {"credHelpers": {"r.example": "test"}}])
    async def test_the_secret_goes_to_the_helper_only(self, kept, tmp_path, document):
        file = tmp_path / "config.json"
        file.write_text(json.dumps(document | {"auths": {"r.example": {"auth": PAIR}}}))
        assert await log_in(file, "r.example", "me", "hunter2") == "test"
        assert kept() == {"r.example": ["me", "hunter2"]}
        assert json.loads(file.read_text()) == document | {"auths": {"r.example": {}}}
        assert await log_out(file, "r.example")
        assert kept() == {}
        assert json.loads(file.read_text()) == document | {"auths": {}}
        assert not await log_out(file, "r.example")

    async def test_docker_hub_is_called_as_docker_does(self, kept, tmp_path):
        (tmp_path / "config.json").write_text('{"credsStore": "test"}')
        await log_in(tmp_path / "config.json", "docker.io", "me", "hunter2")
        assert list(kept()) == [HUB_ADDRESS]

    async def test_one_that_fails_changes_nothing_and_shows_no_secret(self, kept, tmp_path):
        file = tmp_path / "config.json"
        file.write_text('{"credsStore": "test"}')
        with pytest.raises(UnauthorizedError, match="failed with 1: locked") as caught:
            await log_in(file, "locked.example", "me", "hunter2")
        assert "hunter2" not in str(caught.value)
        assert "<secret>" in str(caught.value)
        assert file.read_text() == '{"credsStore": "test"}'

    async def test_what_others_write_meanwhile_stays(self, kept, tmp_path):
        file, slow = tmp_path / "config.json", tmp_path / "docker-credential-slow"
        slow.write_text((tmp_path / "docker-credential-test").read_text().replace("import", "import time,", 1)
                        .replace("kept =", "time.sleep(1)\nkept =", 1))  # fmt: skip
        slow.chmod(0o755)
        file.write_text('{"credHelpers": {"r.example": "slow"}}')
        first = asyncio.create_task(log_in(file, "r.example", "me", "hunter2"))
        await asyncio.sleep(0.2)
        await log_in(file, "quay.io", "me", "hunter2")
        await first
        assert json.loads(file.read_text())["auths"] == {"quay.io": {"auth": PAIR}, "r.example": {}}
