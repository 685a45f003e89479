"""Docker's config.json: which credentials are for whom; and its helpers, as real programs."""

import asyncio
import base64
import json
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registratur import Credentials, DockerConfig, HostsConfig, MalformedContentError, UnauthorizedError
from registratur.credential_helpers import ask
from registratur.docker_config import HUB_ADDRESS


def made(**document):
    return DockerConfig.parse(json.dumps(document).encode(), "config.json")


def auth(user):
    return {"auth": base64.b64encode(f"{user}:hunter2".encode()).decode()}


def user(credentials):
    return None if credentials is None else credentials.basic()[0]


@pytest.mark.parametrize(
    "key",
    [
        "docker.io",
        "https://index.docker.io/v1/",
        "registry-1.docker.io",
        "index.docker.io",
        "https://Docker.io",
    ],
)
def test_docker_hub_has_many_names(key):
    config = made(auths={key: auth("u")})
    assert user(config.known("docker.io")) == "u"
    assert config.known("quay.io") is None


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("r.example", "r.example"),
        ("https://R.example/v2/", "r.example"),
        ("r.example:443", "r.example"),
        ("r.example", "r.example:443"),
        ("http://r.example:5000", "r.example:5000"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_spellings_of_a_host(key, registry):
    assert user(made(auths={key: auth("u")}).known(registry)) == "u"


@pytest.mark.parametrize(
    "other", ["r.example.evil", "example", "r.example:5000", "evil.r.example", "r.exampl"]
)
def test_for_nobody_else(other):
    assert made(auths={"r.example": auth("u")}).known(other) is None


def test_the_longest_part_of_a_path_wins():
    config = made(
        auths={"r.example": auth("all"), "r.example/team": auth("team"), "r.example/team/x": auth("x")}
    )
    assert user(config.known("r.example", "team/x/deep")) == "x"
    assert user(config.known("r.example", "team/y")) == "team"
    assert user(config.known("r.example", "teams/y")) == "all"


def test_kinds_of_credentials():
    config = made(
        auths={
            "plain": {"username": "u", "password": "hunter2"},
            "identity": {"auth": "dTo=", "identitytoken": "it"},
            "bearer": {"registrytoken": "rt"},
            "kept.by.a.helper": {},
        }
    )
    plain, identity, bearer = (config.auths[name] for name in ("plain", "identity", "bearer"))
    assert plain.basic() == ("u", "hunter2")
    assert (identity.identity_token, bearer.registry_token) == ("it", "rt")
    assert config.known("kept.by.a.helper") is None
    assert "hunter2" not in f"{config!r}{config.auths!r}"


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({"auths": []}, "auths"),
        ({"auths": {"a.b": "hunter2"}}, r"auths\.a\.b"),
        ({"auths": {"a.b": {"auth": ["hunter2"]}}}, r"auths\.a\.b"),
        ({"credHelpers": {"a.b": ["hunter2"]}}, "credHelpers"),
        ({"credsStore": {"a.b": "hunter2"}}, "credsStore"),
    ],
)
def test_what_is_wrong_is_named_and_not_shown(document, key):
    with pytest.raises(MalformedContentError, match=rf"config\.json: {key}:") as caught:
        made(**document)
    assert "hunter2" not in str(caught.value)


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_anything_is_read_or_refused(data):
    try:
        config = DockerConfig.parse(data, "config.json")
    except MalformedContentError:
        return
    assert config.known("r.example") is None


def test_a_huge_file(tmp_path):
    (tmp_path / "config.json").write_bytes(b" " * 5_000_000)
    with pytest.raises(MalformedContentError, match="has more than"):
        DockerConfig.read(tmp_path / "config.json")


class TestWithoutHelpers:
    """As a daemon has it."""

    def test_a_registry_with_a_helper_is_refused_with_a_remedy(self):
        config = made(credHelpers={"r.example": "pass"}, auths={"quay.io": auth("u")})
        with pytest.raises(
            UnauthorizedError, match=r"r\.example: config\.json .*'pass'.*not run here.*imagePullSecrets"
        ):
            config.known("r.example")
        assert user(config.known("quay.io")) == "u"
        assert "'pass'" in config.remarks()[0]

    def test_a_store_for_all_keeps_nobody_from_asking_without(self):
        assert made(credsStore="desktop").known("r.example") is None

    def test_a_pull_s_own_credentials_need_no_helper(self):
        hosts = HostsConfig(keychain=made(credHelpers={"r.example": "pass"}))
        (own,) = hosts.endpoints("r.example")
        assert hosts.credentials_for(own, Credentials("u", "p")) == Credentials("u", "p")
        with pytest.raises(UnauthorizedError, match="not run here"):
            hosts.credentials_for(own, None)

    def test_mirrors_get_what_is_theirs(self):
        keychain = made(auths={"m.example:5000": auth("mirror"), "r.example": auth("own")})
        hosts = HostsConfig(mirrors={"r.example": ["https://m.example:5000", "https://n"]}, keychain=keychain)
        found = [hosts.credentials_for(one, None) for one in hosts.endpoints("r.example")]
        assert [user(one) for one in found] == ["mirror", None, "own"]

    def test_the_daemon_knows_no_helpers(self):
        code = "import cri.server, registratur, sys; print('registratur.credential_helpers' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
        assert done.stdout.strip() == "False"


HELPER = """#!{python}
import sys, os, time, json
assert sys.argv[1] == "get"
server = sys.stdin.read()
with open({log!r}, "a") as log:
    log.write(server + "\\n")
if server == "unknown.example":
    print("credentials not found in native keychain")
    sys.exit(1)
if server == "locked.example":
    print("the keychain is locked", file=sys.stderr)
    sys.exit(1)
if server == "slow.example":
    print(os.getpid(), file=open({log!r} + ".pid", "w"), flush=True)
    time.sleep(60)
if server == "odd.example":
    print("hunter2")
    sys.exit(0)
user = "<token>" if server == "token.example" else "me"
print(json.dumps({{"ServerURL": server, "Username": user, "Secret": "hunter2"}}))
"""


class TestHelpers:
    @pytest.fixture
    def log(self, tmp_path, monkeypatch):
        file = tmp_path / "docker-credential-test"
        file.write_text(HELPER.format(python=sys.executable, log=str(tmp_path / "log")))
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return tmp_path / "log"

    async def test_is_asked_for_its_registry(self, log):
        config = made(credHelpers={"r.example": "test"}, auths={"quay.io": auth("u")})
        found = await config.find("r.example", "a/b", ask)
        assert found.basic() == ("me", "hunter2")
        assert found.belong_to("r.example")
        assert not found.belong_to("other.example")
        assert user(await config.find("quay.io", "a/b", ask)) == "u"
        assert log.read_text().split() == ["r.example"]

    async def test_docker_hub_is_called_as_docker_does(self, log):
        found = await made(credsStore="test").find("docker.io", "library/x", ask)
        assert log.read_text().split() == [HUB_ADDRESS]
        assert found.belong_to("docker.io")

    async def test_an_identity_token(self, log):
        found = await ask("test", "token.example")
        assert (found.identity_token, found.username) == ("hunter2", "")

    async def test_what_it_does_not_know_is_in_the_file_or_nowhere(self, log):
        config = made(credsStore="test", auths={"unknown.example": auth("u")})
        assert user(await config.find("unknown.example", "", ask)) == "u"
        assert await ask("test", "unknown.example") is None

    async def test_failures_say_what_it_said(self, log):
        with pytest.raises(UnauthorizedError, match="failed with 1: the keychain is locked"):
            await ask("test", "locked.example")
        with pytest.raises(UnauthorizedError, match="what is no credentials") as caught:
            await ask("test", "odd.example")
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("name", ["none", "../test", "a/b", ""])
    async def test_no_such_helper(self, log, name):
        with pytest.raises(UnauthorizedError, match="is not there; install it"):
            await ask(name, "r.example")
        assert not log.exists()

    async def test_a_slow_one_is_ended(self, log):
        start = time.monotonic()
        with pytest.raises(UnauthorizedError, match="has not answered within"):
            await ask("test", "slow.example", timeout=3)
        assert time.monotonic() - start < 30
        pid = int((await asyncio.to_thread(log.with_name("log.pid").read_text)).strip())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
