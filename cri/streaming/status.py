"""How the client of an exec or attach is told its end: on the error stream, by a Status of Kubernetes or as plain text."""

from __future__ import annotations

import json

from cri.streaming.session import Outcome

V4_AND_LATER = ("v4.", "v5.")


def error_stream(outcome: Outcome, protocol: str) -> bytes:
    """What the error stream says in this protocol (`v4.channel.k8s.io`, `` and so on); empty if nothing.

    From v4 on it is the JSON of a metav1.Status, which has the exit code as a cause. Before, it was text for people, and
    silence in case of success.
    """
    return status_json(outcome) if protocol.startswith(V4_AND_LATER) else plain_text(outcome)


def plain_text(outcome: Outcome) -> bytes:
    """The outcome for people; empty for success."""
    if outcome.error:
        return outcome.error.encode()
    return _exit_message(outcome).encode() if outcome.exit_code else b""


def status_json(outcome: Outcome) -> bytes:
    """The outcome as a metav1.Status."""
    status: dict[str, object] = {"metadata": {}, "status": "Success"}
    if outcome.error:
        status |= {
            "status": "Failure",
            "message": f"Internal error occurred: {outcome.error}",
            "reason": "InternalError",
            "details": {"causes": [{"message": outcome.error}]},
            "code": 500,
        }
    elif outcome.exit_code:
        status |= {
            "status": "Failure",
            "message": _exit_message(outcome),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(outcome.exit_code)}]},
        }
    return json.dumps(status, separators=(",", ":")).encode()


def _exit_message(outcome: Outcome) -> str:
    return f"command terminated with non-zero exit code: {outcome.exit_code}"
