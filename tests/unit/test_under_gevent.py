"""The client in a process that gevent has patched; each case is a function of gevent_script.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = (
    "group_commit_completed_by_native_threads",
    "a_killed_waiter_leaves_its_item",
    "an_enqueue_that_is_killed_is_still_sent",
    "a_killed_waiter_for_a_result_hurts_nobody",
    "waiters_of_several_hubs_share_a_poller",
    "a_poller_whose_hub_runs_no_more_is_replaced",
    "a_batch_is_of_its_greenlet",
    "a_task_in_the_hubs_callback_may_add",
)


@pytest.mark.parametrize("case", CASES)
def test_under_gevent(case: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.gevent_script", case],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout == "well\n", done.stdout + done.stderr
    assert done.returncode == 0
