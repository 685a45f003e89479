from pathlib import Path

import pytest
from yarl import URL

from registratur import Credentials, HostOptions, HostsConfig
from registratur.errors import InvalidEndpointError, UnauthorizedError
from registratur.retry import RetryPolicy, parse_retry_after

SECRET = Credentials("user", "hunter2")


def urls(config, registry):
    return [str(endpoint) for endpoint in config.endpoints(registry)]


@pytest.mark.parametrize(
    ("registry", "url"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("ghcr.io", "https://ghcr.io"),
        ("host.example:5000", "https://host.example:5000"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.1.2.3:5000", "http://127.1.2.3:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
        ("localhost.example", "https://localhost.example"),
    ],
)
def test_plain_http_is_for_loopback_only(registry, url):
    assert [u.rstrip("/") for u in urls(HostsConfig(), registry)] == [url]


def test_a_loopback_registry_with_tls_options_speaks_tls():
    config = HostsConfig(options={"localhost:5000": HostOptions(ca_file=Path("ca.pem"))})
    assert urls(config, "localhost:5000") == ["https://localhost:5000"]


def test_order_of_mirrors():
    config = HostsConfig(mirrors={"docker.io": ["http://m1:5000", "https://m2/cache"], "*": ["http://any:1"]})
    assert urls(config, "docker.io") == ["http://m1:5000", "https://m2/cache", "https://registry-1.docker.io"]
    assert urls(config, "ghcr.io") == ["http://any:1", "https://ghcr.io"]
    assert urls(HostsConfig(mirrors={"ghcr.io": [], "*": ["http://any:1"]}), "ghcr.io") == ["https://ghcr.io"]


def test_mirrors_only():
    config = HostsConfig(mirrors={"*": ["http://any:1"], "ghcr.io": []}, mirrors_only=True)
    assert urls(config, "docker.io") == ["http://any:1"]
    assert urls(config, "ghcr.io") == ["https://ghcr.io"]


def test_a_registry_listed_as_its_own_mirror_is_no_mirror():
    (endpoint,) = HostsConfig(mirrors={"r.example:5000": ["http://r.example:5000"]}).endpoints(
        "r.example:5000"
    )
    assert not endpoint.is_mirror
    assert endpoint.url.scheme == "http"


def test_addresses():
    mirror, own = HostsConfig(mirrors={"docker.io": ["http://m:5000/pre/"]}).endpoints("docker.io")
    assert str(mirror.address("a/b", "manifests", "t")) == "http://m:5000/pre/v2/a/b/manifests/t?ns=docker.io"
    assert str(own.address("a/b", "blobs", "d")) == "https://registry-1.docker.io/v2/a/b/blobs/d"


@pytest.mark.parametrize(
    "url", ["m:5000", "ftp://m", "http://", "http://u:p@m", "http://m?x=1", "http://[", "http://m:0x"]
)
def test_bad_mirrors(url):
    with pytest.raises(InvalidEndpointError) as caught:
        HostsConfig(mirrors={"docker.io": [url]})
    assert "u:p" not in str(caught.value)


def test_options_of_a_port_beat_those_of_the_host():
    by_port, by_host = HostOptions(skip_verify=True), HostOptions(ca_file=Path("x"))
    config = HostsConfig(options={"h:1": by_port, "h": by_host})
    assert config.options_for(URL("https://h:1/x")) == by_port
    assert config.options_for(URL("https://h/x")) == by_host
    assert config.options_for(URL("https://other/x")) == HostOptions()


def test_credentials_stay_with_their_registry():
    theirs = Credentials("mirror", "m")
    config = HostsConfig(
        mirrors={"docker.io": ["http://m1:1", "http://m2:2"]},
        options={"m2:2": HostOptions(credentials=theirs)},
    )
    sent = [config.credentials_for(endpoint, SECRET) for endpoint in config.endpoints("docker.io")]
    assert sent == [None, theirs, SECRET]


@pytest.mark.parametrize(
    ("address", "registry", "belongs"),
    [
        ("", "r.example", True),
        ("r.example", "r.example", True),
        ("https://R.example/v2/", "r.example", True),
        ("r.example:443", "r.example", False),
        ("other.example", "r.example", False),
        ("https://index.docker.io/v1/", "docker.io", True),
        ("docker.io", "registry-1.docker.io", True),
        ("r.example.evil", "r.example", False),
    ],
)
def test_server_address_binds(address, registry, belongs):
    assert Credentials("u", "p", server_address=address).belong_to(registry) is belongs


def test_credentials_never_show():
    secret = Credentials("user", "hunter2", "idtok", "regtok", "YTpi", "r.example")
    for shown in (repr(secret), str(secret), f"{secret}"):
        assert not any(word in shown for word in ("user", "hunter2", "idtok", "regtok", "YTpi"))


@pytest.mark.parametrize(
    ("credentials", "pair"),
    [
        (Credentials("u", "p:q"), ("u", "p:q")),
        (Credentials(auth="dTpwOnE="), ("u", "p:q")),
        (Credentials(auth="dTpwAAA="), ("u", "p")),
        (Credentials(identity_token="t"), None),
    ],
)
def test_basic_pair(credentials, pair):
    assert credentials.basic() == pair


@pytest.mark.parametrize("auth", ["%%%", "dXNlcg==", "/////w=="])
def test_garbled_auth(auth):
    with pytest.raises(UnauthorizedError, match="base64") as caught:
        Credentials(auth=auth).basic()
    assert caught.value.__cause__ is None


def test_retry_after():
    assert parse_retry_after(" 7 ") == 7
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert parse_retry_after("soon") is None
    assert parse_retry_after("-1") is None
    assert parse_retry_after("Fri, 31 Dec 9999 23:59:59 GMT") > 0


def test_backoff_is_bounded():
    policy = RetryPolicy(tries=9, base=1, cap=4)
    assert 60 <= policy.delay(0, "60") <= 66
    assert policy.delay(0, "0") == 0
    assert not policy.is_too_long("120")
    assert policy.is_too_long("121")
    assert policy.is_too_long("Fri, 31 Dec 9999 23:59:59 GMT")
    assert not policy.is_too_long("soon")
    assert not policy.is_too_long(None)
    assert 0.5 <= policy.delay(0) <= 1
    assert 2 <= policy.delay(50) <= 4
