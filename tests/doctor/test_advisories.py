"""Which kernels are open to which advisories."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.doctor.advisories import ADVISORIES, Kernel, judge
from cri.doctor.finding import Level


def verdicts(release: str, ident: str = "GENERIC", version: str = "") -> dict[str, Level]:
    kernel = Kernel(release, version or f"FreeBSD {release} {ident}", ident)
    return {finding.name.removesuffix(".jail"): finding.level for finding in judge(kernel)}


@pytest.mark.parametrize(
    ("release", "open_to"),
    [
        ("13.5-RELEASE-p8", {"SA-26:04", "SA-26:02"}),
        ("13.5-RELEASE-p10", set()),
        ("14.3-RELEASE", {"SA-26:04", "SA-26:02"}),
        ("14.3-RELEASE-p8", {"SA-26:04"}),
        ("14.3-RELEASE-p9", set()),
        ("14.4-RELEASE", {"SA-26:66"}),
        ("14.4-RELEASE-p9", {"SA-26:66"}),
        ("14.4-RELEASE-p10", set()),
        ("14.5-RELEASE-p1", set()),
        ("15.0-RELEASE", {"SA-26:66", "SA-26:38"}),
        ("15.0-RELEASE-p11", {"SA-26:66"}),
        ("15.0-RELEASE-p14", set()),
        ("15.1-RELEASE", {"SA-26:66", "SA-26:38"}),
        ("15.1-RELEASE-p1", {"SA-26:66"}),
        ("15.1-RELEASE-p4", set()),
        ("15.2-RELEASE", set()),
        ("16.0-RELEASE", set()),
    ],
)
def test_releases(release: str, open_to: set[str]) -> None:
    found = verdicts(release)
    told = {number for number, level in found.items() if level is Level.FAILURE}
    told |= {"SA-26:02"} if found["SA-26:02"] is Level.WARNING else set()
    assert told == open_to


def test_a_release_that_was_out_of_support_cannot_be_told() -> None:
    assert verdicts("14.2-RELEASE-p7") == {
        "SA-26:66": Level.WARNING,
        "SA-26:38": Level.OK,  # JAIL_AT_DESC came with 15.0
        "SA-26:04": Level.WARNING,
        "SA-26:02": Level.WARNING,
    }
    assert verdicts("14.3-RELEASE-p16")["SA-26:66"] is Level.WARNING


@pytest.mark.parametrize(
    ("release", "ident", "version"),
    [
        ("15.1-STABLE", "GENERIC", ""),
        ("16.0-CURRENT", "GENERIC", ""),
        ("15.1-RC2", "GENERIC", ""),
        ("", "", ""),
        ("15.1-RELEASE-p1", "MINE", ""),
        ("15.1-RELEASE-p9", "MINE", ""),
        (
            "15.1-RELEASE-p9",
            "GENERIC",
            "FreeBSD 15.1-RELEASE-p9 releng/15.1-n283500-0123456789ab-dirty GENERIC",
        ),
    ],
)
def test_what_others_built_cannot_be_told(release: str, ident: str, version: str) -> None:
    for finding in judge(Kernel(release, version, ident)):
        assert finding.level in (Level.WARNING, Level.NOTE)
        assert "cannot tell" in finding.message
        assert finding.remedy.endswith(f"FreeBSD-{finding.name}.asc")


def test_what_the_sources_of_an_own_kernel_call_themselves_is_said() -> None:
    lacking, *_ = judge(Kernel("15.1-RELEASE-p1", "", "MINE"))
    having, *_ = judge(Kernel("15.1-RELEASE-p4", "", "MINE"))
    assert "15.1-RELEASE-p1, lacks the fix" in lacking.message
    assert (lacking.level, having.level) == (Level.WARNING, Level.NOTE)
    assert "15.1-RELEASE-p4, has the fix" in having.message


def test_an_open_release_is_told_where_the_fix_is() -> None:
    finding, *_ = judge(Kernel("15.0-RELEASE-p13", "", "GENERIC"))
    assert "CVE-2026-101304" in finding.message
    assert "fixed in 15.0-RELEASE-p14" in finding.message
    assert "freebsd-update fetch install" in finding.remedy


@given(st.sampled_from(ADVISORIES), st.data())
def test_updating_never_opens_a_kernel(advisory, data) -> None:
    release = data.draw(st.sampled_from(sorted(advisory.fixed)))
    patch = data.draw(st.integers(0, 30))

    def is_open(level: int) -> bool:
        kernel = Kernel(f"{release[0]}.{release[1]}-RELEASE-p{level}", "", "GENERIC")
        finding = next(one for one in judge(kernel) if one.name == advisory.number)
        return finding.level is not Level.OK

    assert is_open(patch) >= is_open(patch + 1)
    assert is_open(patch) == (patch < advisory.fixed[release])


@given(st.text())
def test_any_release_name_is_judged(release: str) -> None:
    assert len(list(judge(Kernel(release, "", "GENERIC")))) == len(ADVISORIES)
