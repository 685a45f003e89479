import pytest

from registratur import Descriptor, Platform
from registratur.selection import choose

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/x86_64", "linux/amd64"),
        ("FreeBSD/amd64", "freebsd/amd64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/amd64/v1", "linux/amd64"),
        ("freebsd/i386", "freebsd/386"),
        ("freebsd/riscv", "freebsd/riscv64"),
    ],
)
def test_normal_form(text, normal):
    assert str(Platform.parse(text)) == normal


@pytest.mark.parametrize("text", ["linux", "linux/", "/amd64", "linux/arm/v7/x", ""])
def test_refuses(text):
    with pytest.raises(ValueError, match="is no platform"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("node", "image", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64", "linux/amd64/v3", None),
        ("linux/amd64/v3", "linux/amd64", 2),
        ("linux/arm/v7", "linux/arm/v6", 1),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm64/v9", "linux/arm64", 1),
        ("linux/arm64/v8.2", "linux/arm64/v8.2", 0),
        ("linux/arm64", "linux/arm/v7", None),
        ("freebsd/amd64", "linux/amd64", None),
    ],
)
def test_rank(node, image, rank):
    assert Platform.parse(node).rank(Platform.parse(image)) == rank


def entries(*platforms):
    return [
        Descriptor("application/vnd.oci.image.manifest.v1+json", DIGEST, n, text and Platform.parse(text))
        for n, text in enumerate(platforms)
    ]


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        (["linux/amd64", "freebsd/amd64"], ["freebsd/amd64", "linux/amd64"], [1]),
        (["linux/amd64", "linux/arm64"], ["freebsd/amd64", "linux/amd64"], [0]),
        (["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], ["linux/arm/v7"], [2]),
        (["linux/arm/v5", "linux/arm/v6"], ["linux/arm/v7"], [1]),
        (["unknown/unknown", "linux/amd64", "linux/amd64"], ["linux/amd64"], [1]),
        ([None, "linux/arm64", None], ["linux/amd64"], [0, 2]),
        ([None, "linux/amd64"], ["linux/amd64"], [1]),
        (["linux/arm64"], ["linux/amd64"], []),
    ],
)
def test_choice_from_an_index(offered, wanted, chosen):
    found = choose(entries(*offered), [Platform.parse(text) for text in wanted])
    assert [entry.size for entry in found] == chosen


def test_current():
    assert Platform.current("freebsd").os == "freebsd"
    assert Platform.current() == Platform.current().normalized()
