"""A minute of chaos; `python -m tests.chaos.run` has more."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]


def test_everything_is_exact_after_each_round(capsys) -> None:
    run = pytest.importorskip("tests.chaos.run", reason="run it from the checkout: python -m pytest")
    with capsys.disabled():
        assert run.run(minutes=1, seed=20261130, clients=4) == 0
