"""Sixty queues in one daemon, each with its own poll out: a task on any of them starts soon."""

from __future__ import annotations

import time

import pytest

import psq
from tests.integration import jobs
from tests.integration.daemons import Site

QUEUES = [f"q{number}" for number in range(60)]


@pytest.mark.slow
def test_a_task_on_each_of_sixty_queues_is_served_within_two_seconds(place: Site) -> None:
    daemon = place.daemon("a", {"queues": {name: {"concurrency": 2} for name in QUEUES}}).start()
    client = psq.connect(place.broker)
    sent: dict[str, float] = {}
    for name in QUEUES:
        began = time.monotonic()
        sent[psq.Queue(client, name, storage=None).enqueue(jobs.noted, name).id] = began
    place.wait_journal("run", len(QUEUES), 60)
    waits = sorted(float(line[3]) - sent[line[1]] for line in place.journal("run"))
    print(f"\n{place.broker.partition(':')[0]}: median {waits[30]:.3f} s, last {waits[-1]:.3f} s")
    assert waits[-1] <= 2.0, daemon.log
    assert daemon.stop() == 0
    place.nothing_left()
