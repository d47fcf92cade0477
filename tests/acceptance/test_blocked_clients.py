"""Tasks that block in Google clients of their own: each takes a native thread, and the others go on."""

from __future__ import annotations

import json
import statistics
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

import psq
from tests.acceptance.processes import free_ports, wait_until
from tests.front.client import Front
from tests.integration import clients
from tests.integration.daemons import Site

BLOCKED, SECONDS = 50, 10.0


class Watch:
    """Sees when the result of a daemon's task is stored, and when its ack is answered."""

    def __init__(self, port: int, queue: str, front: Front) -> None:
        self._url, self._queue, self._front = f"http://127.0.0.1:{port}/status", queue, front

    def wait(self, count: int) -> tuple[float, float]:
        """Monotonic instants at which so many were seen: acks sent, which is after the result; acks answered."""
        return self._until(self._sent, count), self._until(self._answered, count)

    def _sent(self) -> int:
        return int(self._front.stats()["calls"].get("Acknowledge", 0))

    def _answered(self) -> int:
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            return int(json.load(answer)["queues"][self._queue]["acked"])

    @staticmethod
    def _until(count: Callable[[], int], wanted: int) -> float:
        while count() < wanted:
            time.sleep(0.002)
        return time.monotonic()


@dataclass
class Waits:
    """Seconds, by kind."""

    results: list[float] = field(default_factory=list)
    acks: list[float] = field(default_factory=list)
    look_ups: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            f"{name} median {statistics.median(found) * 1000:.0f} ms, worst {max(found) * 1000:.0f}"
            for name, found in vars(self).items()
        ]
        return "; ".join(parts)


@pytest.mark.slow
@pytest.mark.alone
def test_fifty_tasks_blocked_in_google_clients_hold_up_no_ack_no_result_and_no_look_up(
    front_site: Site, front: Front
) -> None:
    place, port = front_site, free_ports(1)
    queues = {"blocked": {"concurrency": BLOCKED}, "quick": {"concurrency": 5}, "empty": {"concurrency": 1}}
    config = {"queues": queues, "imports": ["tests.integration.clients"], "http": {"bind": f"127.0.0.1:{port}"}}
    front.manners(round_trip=0.01)
    daemon = place.daemon("a", config).start()
    project = place.broker.partition("://")[2].partition("?")[0]
    client = psq.connect(place.broker)
    blocked, quick = (psq.Queue(client, name, storage=place.storage) for name in ("blocked", "quick"))
    empty = f"projects/{project}/subscriptions/psq-empty-shared"
    go = place.folder / "go"
    waiting = blocked.enqueue_many(
        [(clients.wait_in_pull, (front.endpoint, empty, SECONDS, str(go)), {}) for _ in range(BLOCKED)]
    )
    place.wait_journal("made", BLOCKED, 60)
    go.touch()
    wait_until(lambda: front.stats()["polls_by"].get(empty, 0) > BLOCKED * 0.8, 10, place.logs)

    watch, waits = Watch(port, "quick", front), Waits()
    for number in range(1, 16):
        task = quick.enqueue(clients.look_up)
        sent, answered = watch.wait(number)
        waits.results.append(sent - float(place.journal("looked")[-1][3]))
        waits.acks.append(answered - sent)
        waits.look_ups.append(task.result(timeout=30))
    assert not place.journal("waited"), "they were to be blocked all the while"
    print(f"\n{BLOCKED} blocked: {waits}")
    assert statistics.median(waits.results) < 0.1, waits
    assert statistics.median(waits.acks) < 0.1, waits
    assert statistics.median(waits.look_ups) < 0.1, waits
    assert [task.result(timeout=60) for task in waiting] == ["waited"] * BLOCKED
    assert daemon.stop() == 0
    place.nothing_left()
