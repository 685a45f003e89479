"""Errors say everything, also after they have been to another process."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from cni_plugins.errors import KernelError


@given(st.integers(1, 130), st.text(), st.text())
def test_a_kernel_error_says_everything_and_can_be_pickled(errno, operation, text):
    error = KernelError(errno, operation, "interface x", text)
    again = pickle.loads(pickle.dumps(error))
    assert (again.errno, again.operation, again.object, again.text) == (errno, operation, "interface x", text)
    assert str(again) == str(error)
    assert "interface x" in str(error)
