import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registratur import (
    ImageConfig,
    Index,
    MalformedContentError,
    Manifest,
    Platform,
    RegistryError,
    UnsupportedContentError,
    media,
    parse_manifest,
)
from registratur.fields import Fields

DIGEST = "sha256:" + "ab" * 32
DESCRIPTOR = {"mediaType": "x/y", "digest": DIGEST, "size": 7}

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)
keys = st.sampled_from(
    [
        "mediaType",
        "manifests",
        "layers",
        "config",
        "digest",
        "size",
        "platform",
        "annotations",
        "rootfs",
        "diff_ids",
        "os",
        "Cmd",
        "Env",
        "Labels",
    ]
)


def parse(document):
    return parse_manifest(json.dumps(document).encode())


def test_index():
    platform = {"os": "linux", "architecture": "arm64", "variant": "v8"}
    index = parse(
        {"mediaType": media.OCI_INDEX, "manifests": [DESCRIPTOR | {"platform": platform}, DESCRIPTOR]}
    )
    assert isinstance(index, Index)
    assert [entry.platform for entry in index.manifests] == [Platform("linux", "arm64"), None]


def test_manifest():
    manifest = parse({"mediaType": media.DOCKER_MANIFEST, "config": DESCRIPTOR, "layers": [DESCRIPTOR] * 2})
    assert isinstance(manifest, Manifest)
    assert manifest.config.digest == DIGEST
    assert [layer.size for layer in manifest.layers] == [7, 7]


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        ({"manifests": []}, media.OCI_INDEX),
        ({"config": DESCRIPTOR, "layers": []}, media.OCI_MANIFEST),
        ({"config": DESCRIPTOR | {"mediaType": media.DOCKER_CONFIG}, "layers": []}, media.DOCKER_MANIFEST),
    ],
)
def test_shape_decides_where_the_media_type_is_missing(document, media_type):
    assert parse(document).media_type == media_type


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ([], MalformedContentError),
        ({"manifests": [], "layers": []}, MalformedContentError),
        ({"manifests": [], "Config": DESCRIPTOR}, MalformedContentError),
        ({"mediaType": media.OCI_INDEX, "layers": []}, MalformedContentError),
        ({"mediaType": media.OCI_MANIFEST, "manifests": []}, MalformedContentError),
        ({"mediaType": media.OCI_MANIFEST, "layers": []}, MalformedContentError),
        ({"config": DESCRIPTOR | {"size": -1}}, MalformedContentError),
        ({"config": DESCRIPTOR | {"size": True}}, MalformedContentError),
        ({"config": DESCRIPTOR | {"size": "7"}}, MalformedContentError),
        ({"config": DESCRIPTOR | {"digest": "md5:0"}}, MalformedContentError),
        ({"config": DESCRIPTOR | {"digest": None}}, MalformedContentError),
        ({"schemaVersion": 1, "fsLayers": []}, UnsupportedContentError),
        ({"mediaType": "application/json"}, UnsupportedContentError),
        ({}, UnsupportedContentError),
    ],
)
def test_refuses(document, error):
    with pytest.raises(error):
        parse(document)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000])
def test_refuses_what_is_no_json(data):
    with pytest.raises(MalformedContentError, match="is no JSON"):
        parse_manifest(data)


@given(st.dictionaries(keys, st.one_of(json_values, st.lists(st.just(DESCRIPTOR)), st.just(DESCRIPTOR))))
def test_garbage_raises_only_our_errors(document):
    data = json.dumps(document).encode()
    for reader in (parse_manifest, ImageConfig.parse):
        try:
            reader(data)
        except RegistryError:
            continue


def config(**run):
    return ImageConfig.parse(
        json.dumps(
            {"os": "freebsd", "architecture": "amd64", "rootfs": {"diff_ids": [DIGEST]}, "config": run}
        ).encode()
    )


def test_config():
    read = config(
        User="www:80",
        Env=["A=1", "B="],
        Entrypoint=["/bin/e"],
        Cmd=None,
        WorkingDir="/w",
        ExposedPorts={"80/tcp": {}},
        Volumes={"/data": {}},
        Labels={"Key": "passed over"},
        StopSignal="SIGQUIT",
    )
    assert read == ImageConfig(
        platform=Platform("freebsd", "amd64"),
        diff_ids=(DIGEST,),
        user="www:80",
        env=("A=1", "B="),
        entrypoint=("/bin/e",),
        working_dir="/w",
        exposed_ports=("80/tcp",),
        volumes=("/data",),
        stop_signal="SIGQUIT",
    )


@pytest.mark.parametrize("key", ["cmd", "Cmd", "CMD"])
def test_keys_match_in_any_case_as_in_go(key):
    assert config(**{key: ["/bin/sh"]}).cmd == ("/bin/sh",)


def test_the_last_spelling_wins_as_in_go():
    data = b'{"rootfs":{"diff_ids":[]},"config":{"Cmd":["a"],"cmd":["b"]}}'
    assert ImageConfig.parse(data).cmd == ("b",)


def test_a_bare_string_is_a_command_of_one_word():
    assert config(Entrypoint="/init").entrypoint == ("/init",)


def test_lone_surrogates_are_replaced_as_in_go():
    assert config(Env=["A=\ud800x"]).env == ("A=\ufffdx",)


def test_an_artifact_is_no_image():
    with pytest.raises(UnsupportedContentError, match="artifact"):
        ImageConfig.parse(b"{}")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"User": "99999999999999999999999999999"}, "'User' names the id 9+: the highest there can be is 4294967294"),
        ({"User": "0:4294967295"}, "the id 4294967295"),
        ({"User": "a" * 1025}, "'User' has 1025 bytes"),
        ({"User": "a\0"}, "'User' has a NUL byte"),
        ({"Cmd": ["a", "\0"]}, "'Cmd' has a NUL byte"),
        ({"Env": ["A=\0"]}, "'Env' has a NUL byte"),
        ({"WorkingDir": "/" + "a/" * 2048}, "'WorkingDir' has 4097 bytes"),
        ({"Volumes": {"/a\0": {}}}, "'Volumes' has a NUL byte"),
        ({"StopSignal": "\0"}, "'StopSignal' has a NUL byte"),
    ],
)  # fmt: skip
def test_what_no_process_can_be_given_is_refused(config, words) -> None:
    with pytest.raises(MalformedContentError, match=words):
        _read_config(config)


@pytest.mark.parametrize("user", ["0", "4294967294:4294967294", "1000:1000", "me:us", "", ":5", "12ab"])
def test_users_that_there_may_be(user) -> None:
    assert _read_config({"User": user}).user == user


def test_a_size_of_more_than_63_bits_is_refused() -> None:
    with pytest.raises(MalformedContentError, match=r"'size' must be an integer from 0 to 2\^63 - 1"):
        Fields("manifest", {"size": 1 << 63}).integer("size")


def _read_config(config) -> ImageConfig:
    document = {"os": "linux", "architecture": "amd64", "config": config, "rootfs": {"type": "layers"}}
    return ImageConfig.parse(json.dumps(document).encode())


def test_more_layers_than_can_be_stacked():
    document = {"mediaType": media.OCI_MANIFEST, "config": DESCRIPTOR, "layers": [DESCRIPTOR] * 1000}
    assert len(parse_manifest(json.dumps(document).encode()).layers) == 1000
    for count, error, told in (
        (1001, UnsupportedContentError, "more than 1000 layers"),
        (100_000, MalformedContentError, "more than 100000 values"),
    ):
        document["layers"] = [DESCRIPTOR] * count
        with pytest.raises(error, match=told):
            parse_manifest(json.dumps(document).encode())


@pytest.mark.parametrize("size", [-1, 2**62 + 1, 2**64, 1.5, "7", True, None])
def test_impossible_sizes(size):
    document = {
        "mediaType": media.OCI_MANIFEST,
        "config": DESCRIPTOR,
        "layers": [DESCRIPTOR | {"size": size}],
    }
    with pytest.raises(MalformedContentError, match="size"):
        parse_manifest(json.dumps(document).encode())


def test_sizes_that_are_too_much_together():
    layers = [DESCRIPTOR | {"size": 2**61}] * 3
    document = {"mediaType": media.OCI_MANIFEST, "config": DESCRIPTOR, "layers": layers}
    with pytest.raises(MalformedContentError, match="bytes"):
        parse_manifest(json.dumps(document).encode())
