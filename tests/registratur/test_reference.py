import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from registratur import InvalidReferenceError, Reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"

components = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
repositories = st.lists(components, min_size=1, max_size=4).map("/".join)
hosts = st.from_regex(
    r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?){1,3}", fullmatch=True
)
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
registries = st.one_of(
    st.builds(str.__add__, hosts, ports),
    st.builds(str.__add__, st.sampled_from(["localhost", "[::1]"]), ports),
).filter(lambda host: host != "index.docker.io")
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)
digests = st.one_of(
    st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
    st.from_regex(r"sha512:[0-9a-f]{128}", fullmatch=True),
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.29-2", "docker.io/library/busybox:1.29-2"),
        ("a/b", "docker.io/a/b:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("Registry/x", "Registry/x:latest"),
        ("registry.k8s.io/e2e-test-images/busybox:1.29-2", "registry.k8s.io/e2e-test-images/busybox:1.29-2"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"host:1/a/b:t@{DIGEST}", f"host:1/a/b:t@{DIGEST}"),
        ("host.org/a__b/c--d/e.f:T_1.x-", "host.org/a__b/c--d/e.f:T_1.x-"),
    ],
)
def test_normalises_as_docker_does(text, normal):
    assert str(Reference.parse(text)) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":latest",
        "busybox:",
        "busybox@",
        "busybox:latest\n",
        "Busybox",
        "a/B",
        "a//b",
        "/a",
        "a/",
        "host.org/",
        "a___b",
        "a..b",
        "-a",
        "a-",
        "a:b:c",
        f"busybox:{'t' * 129}",
        "busybox@sha256:abc",
        f"busybox@sha256:{HEX.upper()}",
        f"busybox@md5:{HEX[:32]}",
        f"busybox@{DIGEST}@{DIGEST}",
        HEX,
        "host.org:/a",
        "host.org:x/a",
        "-host.org/a",
        "user@host.org/a",
        "http://host.org/a",
        "busybox:té",
        "a/" * 130 + "a",
    ],
)
def test_refuses_what_is_no_reference(text):
    with pytest.raises(InvalidReferenceError):
        Reference.parse(text)


def test_parts():
    ref = Reference.parse(f"busybox:1@{DIGEST}")
    assert (ref.registry, ref.repository, ref.tag, ref.digest) == (
        "docker.io",
        "library/busybox",
        "1",
        DIGEST,
    )
    assert ref.name == "docker.io/library/busybox"
    assert ref.tagged == "docker.io/library/busybox:1"
    assert ref.digested == f"docker.io/library/busybox@{DIGEST}"
    assert ref.target == DIGEST, "a digest beats a tag"
    pinned = Reference.parse(f"busybox@{DIGEST}")
    assert pinned.tag is None
    assert pinned.tagged is None
    assert Reference.parse("busybox").digested is None


@given(registries, repositories, st.one_of(st.none(), tags), st.one_of(st.none(), digests))
def test_round_trip(registry, repository, tag, digest):
    if tag is None and digest is None:
        tag = "latest"
    ref = Reference(registry, repository, tag, digest)
    assert Reference.parse(str(ref)) == ref


@given(st.one_of(st.text(), st.from_regex(r"[a-zA-Z0-9./:@_\[\]-]{0,40}", fullmatch=True)))
@example("a@")
def test_parsing_is_stable_and_only_raises_its_own_error(text):
    try:
        ref = Reference.parse(text)
    except InvalidReferenceError:
        return
    assert Reference.parse(str(ref)) == ref
