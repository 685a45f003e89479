"""Kubernetes' annotations for bandwidth."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins import Bandwidth
from cri import pod_bandwidth
from cri.errors import InvalidArgumentError
from cri.pod_bandwidth import EGRESS, INGRESS


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10M", 10**7),
        ("1k", 1000),
        ("1.5Mi", 1572864),
        ("2e6", 2 * 10**6),
        ("1000000m", 1000),
        (".5G", 5 * 10**8),
    ],
)
def test_quantities(text, rate) -> None:
    assert pod_bandwidth.of({INGRESS: text}).ingress_rate == rate
    assert pod_bandwidth.of({EGRESS: text}).egress_rate == rate


def test_without_annotations_there_is_no_limit() -> None:
    assert pod_bandwidth.of({"a": "b", INGRESS: ""}) is None


def test_what_has_no_rate_has_no_burst() -> None:
    assert pod_bandwidth.of({EGRESS: "1M"}) == Bandwidth(0, 0, 10**6, (1 << 31) - 1)


@pytest.mark.parametrize("text", ["fast", "10 M", "-1M", "10m", "2P", "1e99", "10Mb", "٣M"])
def test_what_is_no_quantity_or_out_of_bounds_is_named(text) -> None:
    with pytest.raises(InvalidArgumentError, match="ingress-bandwidth"):
        pod_bandwidth.of({INGRESS: text})


@given(st.text(max_size=12))
def test_any_text_is_a_limit_or_the_typed_error(text) -> None:
    with contextlib.suppress(InvalidArgumentError):
        pod_bandwidth.of({INGRESS: text})
