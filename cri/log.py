"""Logs: structlog to standard error, for people or as JSON, with everything that uses `logging` routed the same way."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

SECRET_KEYS = frozenset({"password", "auth", "identity_token", "registry_token", "authorization"})
"""Keys whose values never reach a log, at whatever depth; compared without case, `-` as `_`."""

REDACTED = "[redacted]"


def configure(level: str = "info", format_: str = "console", stream: TextIO | None = None) -> None:
    """Set up logging for the process: `level` as in `log.level`, `format_` as in `log.format`."""
    output = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    render: list[Processor]
    if format_ == "json":
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        # The rich tracebacks that structlog prefers would print local variables, and with them secrets.
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=output.isatty(), exception_formatter=plain)]
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Libraries chatter about their own affairs below this.
    for name in ("asyncio", "aiohttp", "grpc", "sqlalchemy", "websockets"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def redact(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take the values of secret keys out of an event (a structlog processor)."""
    for key, value in event.items():
        event[key] = REDACTED if _secret(key) else _redacted(value)
    return event


def _secret(key: object) -> bool:
    return isinstance(key, str) and key.lower().replace("-", "_") in SECRET_KEYS


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: REDACTED if _secret(key) else _redacted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_redacted(one) for one in value]
    return value
