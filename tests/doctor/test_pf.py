"""What the doctor asks of pf(4)'s binding, which only FreeBSD has."""

from __future__ import annotations

import sys

import pytest

from cri.doctor import pf


@pytest.mark.skipif(sys.platform.startswith("freebsd"), reason="it is compiled there")
def test_where_the_binding_is_not_compiled_that_is_said() -> None:
    with pytest.raises(ImportError, match=r"_pf|_kernel"):
        pf.state()


@pytest.mark.node
@pytest.mark.skipif(not sys.platform.startswith("freebsd"), reason="FreeBSD only: pf(4)")
def test_the_state_of_this_host() -> None:
    state = pf.state()
    assert isinstance(state.running, bool)
    assert set(state.missing) <= {'nat-anchor "cni-rdr/*"', 'rdr-anchor "cni-rdr/*"'}
