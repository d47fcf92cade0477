"""gRPC under gevent: what stops dead when it is done another way (docs/internals.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from typing import Any

from tests.acceptance.processes import ROOT


def run(job: str, emulator: str, count: int, **environment: str) -> dict[str, Any]:
    """Run a job of the script in a process of its own; what it found."""
    script = ROOT / "tests" / "integration" / "pubsub_gevent_script.py"
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(script), job, f"http://{emulator}", project(), str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fork()" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def project() -> str:
    return f"g-{uuid.uuid4().hex[:10]}"


def test_sixty_long_polls_leave_publishes_acks_and_look_ups_alone(pubsub_emulator: str) -> None:
    found = run("many_polls", pubsub_emulator, 60)
    assert found["polls"] == 60
    assert found["served"], found
    assert found["errors"] == []
    assert found["answered"]
    assert found["stopped"]
    assert found["threads"] <= 16, found


def test_fifty_subprocesses_beside_busy_calls_all_end_well(pubsub_emulator: str) -> None:
    found = run("subprocesses", pubsub_emulator, 50)
    assert found["codes"] == [0] * 50
    assert found["received"] > 0
    assert found["errors"] == []
