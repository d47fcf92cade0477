"""Status and readiness over stand-ins."""

from __future__ import annotations

import json
import time

import pytest

from psqd.worker.status import not_ready, ready, snapshot
from tests.unit.daemon_standins import Receiver, Service, daemon

NOW = 100_000.0


def receiver(**values: object) -> Receiver:
    made = Receiver(answered_at=NOW - 1, poll_seconds=60.0)
    made.__dict__.update(values)
    return made


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, ""),
        ({"answered_at": NOW - 119}, ""),
        ({"answered_at": NOW - 121}, "no receive was answered for 121 s"),
        ({"answered_at": NOW - 121, "error": "UNAVAILABLE"}, "no receive was answered for 121 s: UNAVAILABLE"),
        ({"answered_at": NOW - 9_000, "asked_at": NOW - 5}, ""),  # it was full for hours and has just asked again
        ({"answered_at": NOW - 9_000, "asked_at": NOW - 130}, "no receive was answered for 130 s"),
        ({"answered_at": 0.0}, "no receive was answered yet"),
        ({"answered_at": 0.0, "asked_at": NOW - 1}, ""),  # it has just been declared, and its first poll is out
        ({"answered_at": 0.0, "asked_at": NOW - 1, "error": "denied"}, "no receive was answered yet: denied"),
        ({"answered_at": NOW - 11, "requests": 0, "error": "is gone"}, "receives fail: is gone"),
        ({"answered_at": NOW - 9, "requests": 0, "error": "UNAVAILABLE"}, ""),
        ({"answered_at": NOW - 50, "asked_at": NOW - 1, "error": "UNAVAILABLE"}, ""),  # it tries again
        ({"missing": "its topic was deleted", "requests": 1}, "its topic was deleted"),  # though it answers
        ({"answered_at": 0.0, "error": "at redis://u:hunter2@h"}, "no receive was answered yet: at redis://***@h"),
        ({"answered_at": NOW - 3, "poll_seconds": 0.25}, "no receive was answered for 3 s"),
    ],
)
def test_a_queue_is_ready_while_its_receives_are_answered(values: dict[str, object], why: str) -> None:
    consumer = daemon().consumers["default"]
    consumer.receiver = receiver(**values)
    assert not_ready(consumer, NOW) == why


def test_a_queue_whose_slots_are_all_taken_asks_for_nothing_and_is_ready() -> None:
    consumer = daemon().consumers["default"]
    consumer.receiver = receiver(answered_at=NOW - 9_000, requests=0)
    consumer.running, consumer.prefetched = 9, 1
    assert not_ready(consumer, NOW) == ""
    consumer.running = 8
    assert not_ready(consumer, NOW) == "no receive was answered for 9000 s"


@pytest.mark.parametrize(
    ("state", "problem", "why"),
    [
        ("declaring", "", "being declared"),
        ("stopped", "", "being declared"),
        ("declaring", "the broker can't be reached: x", "the broker can't be reached: x"),
        ("paused", "", "paused"),
        ("running", "", "it receives nothing"),
    ],
)
def test_a_queue_without_a_receiver_is_not_ready_and_says_why(state: str, problem: str, why: str) -> None:
    made = daemon()
    consumer = made.consumers["default"]
    consumer.receiver, consumer.state, consumer.problem = None, state, problem
    assert ready(made) == (False, {"default": [why]})


def test_a_queue_that_drains_does_not_count() -> None:
    made = daemon("default", "gone")
    made.consumers["gone"].state = "draining"
    made.consumers["gone"].receiver = None
    assert ready(made) == (True, {})


def test_what_is_wrong_with_the_whole_daemon_stands_first() -> None:
    made = daemon()
    made.state, made.broker_problem, made.keeper_alive = "paused", "https://u:p@h is away", False
    assert ready(made) == (
        False,
        {"": ["the daemon is paused", "broker: https://***@h is away", "the keeper is dead"]},
    )


def test_the_snapshot_is_json_and_tells_what_an_operator_asks() -> None:
    made = daemon("default", "fleet", busy=True)
    made.consumers["fleet"].spec = made.consumers["fleet"].spec.__class__("fleet", broadcast=True, member="host-0")
    made.reloads.last_error = "bad: redis://u:hunter2@h"
    document = json.loads(json.dumps(snapshot(made)))
    assert document["ready"] is True
    assert document["reloads"] == {
        "ok": 3,
        "failed": 1,
        "last_at": "2026-11-24T22:40:00.000+00:00",
        "last_error": "bad: redis://***@h",
    }
    assert document["services"][1] == {"name": "scheduler", "alive": True, "restarts": 2, "last_error": "KeyError: 1"}
    assert document["storage"] == {"url": "sqlite:///tmp/psq.db", "pending_bytes": 77}
    assert document["hub"]["blocked_seconds"] == 1.5
    assert (document["hub"]["threads"], document["hub"]["most_threads"]) == (7, 26)
    assert document["process"]["rss_bytes"] > 1_000_000
    assert document["log"] == {"dropped": 5}
    queue = document["queues"]["default"]
    assert queue["tasks"] == {"finished": 40, "failed": 2}
    assert queue["dead"] == {"not allowed": 1}
    assert (queue["running"], queue["prefetched"], queue["held"]) == (2, 1, 3)
    assert queue["receive"]["in_flight"] == 1
    assert queue["mean_wait"] == pytest.approx(1000.010125)
    assert document["queues"]["fleet"]["broadcast"] == "host-0"


def test_without_storage_and_before_the_first_task_the_snapshot_has_nulls() -> None:
    made = daemon()
    made.storage, made.reloads.last_at = None, 0.0
    made.consumers["default"].receiver = None
    document = snapshot(made)
    assert document["storage"] is None
    assert document["reloads"]["last_at"] is None
    assert document["queues"]["default"]["mean_run"] is None
    assert "receive" not in document["queues"]["default"]


def test_between_many_queues_others_may_run() -> None:
    pauses: list[float] = []
    snapshot(daemon(*(f"q{n}" for n in range(1_000))), lambda: pauses.append(time.monotonic()))
    assert len(pauses) == 20


def test_a_queue_that_goes_while_the_snapshot_pauses_breaks_nothing() -> None:
    made = daemon(*(f"q{n}" for n in range(100)))
    document = snapshot(made, made.consumers.clear)
    assert len(document["queues"]) == 100


def test_services_may_be_many() -> None:
    made = daemon()
    made.services = [Service("a", alive=False, last_error="x://u:p@h")]
    assert snapshot(made)["services"][0] == {"name": "a", "alive": False, "restarts": 0, "last_error": "x://***@h"}
