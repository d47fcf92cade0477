"""What is told of a task that keeps the hub, while it does."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from psq.retry import RetryPolicy
from psqd.worker.invocation import Invocation
from psqd.worker.outcome import Finished
from psqd.worker.watchdog import LIMIT, PAUSE, Watchdog


class Rig:
    """A watchdog of this thread, a heartbeat, and a clock that tests turn."""

    def __init__(self) -> None:
        self.now = self.beat = 1000.0
        self.told: list[tuple[str, str]] = []
        self.dog = Watchdog(lambda: self.beat, lambda *said: self.told.append(said), clock=lambda: self.now)

    def looks(self, seconds: float) -> None:
        """It looks as often as it does in so much time."""
        for _ in range(int(seconds / PAUSE)):
            self.now += PAUSE
            self.dog.look()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def call(function: Callable[[], object]) -> object:
    """Call a function as a task's."""
    message: Any = SimpleNamespace(id="t1\n", function="m:f", args=[], kwargs={}, time_limit=None, soft_time_limit=None)
    resolved: Any = SimpleNamespace(function=function, options=None)
    task: Any = None
    return Invocation(None, None, RetryPolicy(), None, None, lambda module: True).run(message, task, resolved, False)


def test_a_hub_that_turns_is_not_told(rig: Rig) -> None:
    for _ in range(20):
        rig.looks(PAUSE)
        rig.beat = rig.now
    assert rig.told == []


def test_a_task_that_does_not_yield_is_named_once_with_where_it_is(rig: Rig) -> None:
    def a_long_way() -> None:
        rig.looks(10.0)

    assert isinstance(call(a_long_way), Finished)
    ((text, stack),) = rig.told
    assert text.startswith("task t1\\n (m:f) does not yield: for 1.0 s no other task")
    assert "in a_long_way" in stack
    assert "in _call" not in stack, "frames of ours are nobody's business"


def test_what_is_no_task_is_told_with_its_whole_stack(rig: Rig) -> None:
    rig.looks(LIMIT)
    ((text, stack),) = rig.told
    assert text.startswith("the hub stands still")
    assert "in test_what_is_no_task_is_told_with_its_whole_stack" in stack


def test_the_next_stall_is_told_too(rig: Rig) -> None:
    for _ in range(3):
        rig.beat = rig.now
        rig.looks(5.0)
    assert len(rig.told) == 3


def test_a_process_that_was_stopped_is_no_stall(rig: Rig) -> None:
    rig.now += 3600  # and this thread with it
    rig.dog.look()
    rig.beat = rig.now
    rig.looks(PAUSE)
    assert rig.told == []


def test_where_there_is_to_be_no_heartbeat_nothing_is_told(rig: Rig) -> None:
    rig.beat = inf
    rig.looks(10.0)
    assert rig.told == []
