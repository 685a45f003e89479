"""What is the same for every new process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox.host import HostError, StartError
from cri.sandbox.warden import launch


def test_candidates():
    assert launch.candidates(("/bin/sh",), {}) == ["/bin/sh"]
    assert launch.candidates(("./sh",), {}) == ["./sh"]
    assert launch.candidates(("sh",), {"PATH": "/a::/b"}) == ["/a/sh", "./sh", "/b/sh"]
    assert launch.candidates(("sh",), {})[-1] == "/bin/sh"
    for argv in ((), ("",)):
        with pytest.raises(StartError, match="no command"):
            launch.candidates(argv, {})


def test_environment():
    env = launch.environment({"HOME": "/mine"}, home="/root", hostname="pod", tty=True)
    assert env == {"PATH": launch.DEFAULT_PATH, "HOME": "/mine", "HOSTNAME": "pod", "TERM": "xterm"}
    assert launch.environment({"PATH": ""}, home="/", hostname="", tty=False) == {"PATH": "", "HOME": "/"}
    assert launch.parse_env(("A=1", "B=x=y", "A=2", "=no", "EMPTY=")) == {"A": "2", "B": "x=y", "EMPTY": ""}


@given(st.booleans(), st.text(), st.text(), st.text(), st.none() | st.integers(1, 130))
def test_errors_travel(start, operation, subject, reason, number):
    error = (StartError if start else HostError)(operation, subject, reason, number)
    got = launch.unpack_error(launch.pack_error(error))
    assert (type(got), str(got), got.errno) == (type(error), str(error), number)
