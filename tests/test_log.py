"""What reaches the log, and what must not."""

from __future__ import annotations

import contextlib
import io
import json
import logging

import pytest
import structlog

from cri import log


@contextlib.contextmanager
def configured(level: str, format_: str, stream: io.StringIO):
    """Logs to a stream; puts logging back afterwards."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    structlog.contextvars.clear_contextvars()
    log.configure(level, format_, stream)
    try:
        yield
    finally:
        root.handlers[:], level_before = before
        root.setLevel(level_before)
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()


@pytest.fixture
def lines():
    """Configures JSON logs and returns them, parsed."""
    stream = io.StringIO()
    with configured("debug", "json", stream):
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_context_and_names(lines) -> None:
    with structlog.contextvars.bound_contextvars(sandbox="s1"):
        structlog.get_logger("cri.test").info("made", addresses=["10.0.0.1"])
    (entry,) = lines()
    entry.pop("timestamp")
    assert entry == {
        "event": "made",
        "sandbox": "s1",
        "logger": "cri.test",
        "level": "info",
        "addresses": ["10.0.0.1"],
    }


def test_secrets_are_redacted_at_any_depth(lines) -> None:
    structlog.get_logger("x").info(
        "pull",
        password="p1",
        request={
            "auth": {"username": "u"},
            "list": [{"identity_token": "p2"}],
            "headers": {"Authorization": "p3"},
        },
    )
    logging.getLogger("y").warning("foreign", extra={"registry_token": "p4"})
    text = json.dumps(lines())
    assert not [secret for secret in ("p1", "p2", "p3", "p4", '"u"') if secret in text]
    assert text.count(log.REDACTED) == 5


def test_other_libraries_go_the_same_way_with_tracebacks(lines) -> None:
    try:
        fail_beside_a_secret()
    except ValueError:
        logging.getLogger("grpc.aio").exception("in grpc")
        structlog.get_logger("cri").exception("in ours")
    foreign, ours = lines()
    assert foreign["logger"] == "grpc.aio"
    for entry in (foreign, ours):
        assert "ValueError: broken by 7" in entry["exception"]
        assert "Traceback" in entry["exception"]


def test_levels(lines) -> None:
    logging.getLogger("aiohttp.access").info("chatter")
    structlog.get_logger("cri").debug("detail")
    assert [entry["event"] for entry in lines()] == ["detail"]


def fail_beside_a_secret() -> None:
    secret = "hunter" + "2"
    raise ValueError(f"broken by {len(secret)}")


def test_the_console_shows_tracebacks_without_local_variables() -> None:
    stream = io.StringIO()
    with configured("info", "console", stream):
        try:
            fail_beside_a_secret()
        except ValueError:
            structlog.get_logger("cri").exception("failed", container="c1")
    shown = stream.getvalue()
    assert "container" in shown
    assert "ValueError: broken by 7" in shown
    assert "hunter2" not in shown
    assert "\x1b" not in shown
