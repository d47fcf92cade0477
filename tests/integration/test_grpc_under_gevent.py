"""gRPC under gevent: what stops dead when it is done another way (docs/internals.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from typing import Any

import pytest

from tests.acceptance.processes import ROOT


@pytest.fixture(params=["emulator", "front"])
def endpoint(request: pytest.FixtureRequest) -> str:
    """The bare emulator, and the front: TLS and tokens; the variables that these need are in the environment."""
    if request.param == "emulator":
        return f"http://{request.getfixturevalue('pubsub_emulator')}"
    return str(request.getfixturevalue("front").endpoint)


def run(job: str, endpoint: str, count: int, **environment: str) -> dict[str, Any]:
    """Run a job of the script in a process of its own; what it found."""
    script = ROOT / "tests" / "integration" / "pubsub_gevent_script.py"
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(script), job, endpoint, project(), str(count)],
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


def test_sixty_long_polls_leave_publishes_acks_and_look_ups_alone(endpoint: str) -> None:
    found = run("many_polls", endpoint, 60)
    assert found["polls"] == 60
    assert found["served"], found
    assert found["errors"] == []
    assert found["answered"]
    assert found["stopped"]
    assert found["threads"] <= 16, found


def test_fifty_subprocesses_beside_busy_calls_all_end_well(endpoint: str) -> None:
    found = run("subprocesses", endpoint, 50)
    assert found["codes"] == [0] * 50
    assert found["received"] > 0
    assert found["errors"] == []
