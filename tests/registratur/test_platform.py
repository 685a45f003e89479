import platform as machine

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


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("15.1-RELEASE-p2", (15, 1)),
        ("6.18.0-rc1+", (6, 18, 0)),
        ("10.0.17763.1217", (10, 0, 17763, 1217)),
        ("14", (14,)),
        ("1.2.3.4.5", (1, 2, 3, 4)),
        ("9" * 400, (999999999,)),
        ("RELEASE", ()),
        ("", ()),
        ("\N{ARABIC-INDIC DIGIT ONE}5", ()),
    ],
)
def test_release(version, release):
    assert Platform("freebsd", "amd64", os_version=version).release == release


@pytest.mark.parametrize(
    ("image", "node", "newer"),
    [
        ("15.1", "15.0-RELEASE-p4", True),
        ("16.0-CURRENT", "15.1-RELEASE", True),
        ("15.1", "15.1-RELEASE-p1", False),
        ("15.1.3", "15.1-RELEASE", False),
        ("15", "15.1-RELEASE", False),
        ("9.3", "15.1-RELEASE", False),
        ("", "15.1-RELEASE", False),
        ("15.1", "", False),
    ],
)
def test_a_newer_release(image, node, newer):
    ours = Platform("freebsd", "amd64", os_version=node)
    assert Platform("FreeBSD", "amd64", os_version=image).is_newer_than(ours) is newer
    assert not Platform("linux", "amd64", os_version=image).is_newer_than(ours)


@pytest.mark.parametrize(
    ("offered", "node", "chosen"),
    [
        (["14.3", "15.0", "15.1", "16.0"], "15.1-RELEASE-p2", "15.1"),
        (["16.0", "14.2", "14.3"], "15.1-RELEASE", "14.3"),
        (["17.0", "16.0"], "15.1-RELEASE", "16.0"),
        (["16.0", ""], "15.1-RELEASE", ""),
        (["", "15.1"], "15.1-RELEASE", "15.1"),
        (["", "14.3", "16.0"], "15.1-RELEASE", "14.3"),
        (["16.0", "14.3"], "", "16.0"),
    ],
)
def test_the_best_of_several_releases(offered, node, chosen):
    own = Platform("freebsd", "amd64", os_version=node)
    offers = [
        Descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            DIGEST,
            1,
            Platform("freebsd", "amd64", os_version=one),
        )
        for one in offered
    ]
    (found,) = choose(offers, [own])
    assert found.platform.os_version == chosen


def test_current():
    assert Platform.current().os_version == machine.release()
    other = "linux" if Platform.current().os != "linux" else "freebsd"
    assert Platform.current(other).os_version == ""
    assert Platform.current("freebsd").os == "freebsd"
    assert Platform.current() == Platform.current().normalized()
