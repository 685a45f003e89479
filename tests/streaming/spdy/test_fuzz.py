"""A short run of the fuzzer beside this; longer ones are for people."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

from structlog.testing import capture_logs


async def test_damaged_conversations_end_in_order() -> None:
    spec = importlib.util.spec_from_file_location("spdy_fuzz", Path(__file__).with_name("fuzz.py"))
    assert spec is not None
    assert spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with capture_logs() as logs:
        assert await fuzz.fuzz(2, seed) > 20
    assert {entry["log_level"] for entry in logs} <= {"warning"}
