"""What the error stream says."""

import json

from cri.streaming.session import Outcome
from cri.streaming.status import error_stream


def test_old_protocols_are_silent_about_success():
    for protocol in ("", "channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io", "base64.channel.k8s.io"):
        assert error_stream(Outcome(), protocol) == b""
        assert b"code: 3" in error_stream(Outcome(exit_code=3), protocol)


def test_a_status_from_v4_on():
    for protocol in ("v4.channel.k8s.io", "v4.base64.channel.k8s.io", "v5.channel.k8s.io"):
        assert json.loads(error_stream(Outcome(), protocol)) == {"metadata": {}, "status": "Success"}
        assert json.loads(error_stream(Outcome(exit_code=3), protocol)) == {
            "metadata": {},
            "status": "Failure",
            "message": "command terminated with non-zero exit code: 3",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
        }
        failed = json.loads(error_stream(Outcome(error="it did not start"), protocol))
        assert (failed["reason"], failed["code"]) == ("InternalError", 500)
        assert failed["message"].endswith("it did not start")
