"""SIGHUP under load: a hundred reloads while tasks flow, good files and bad ones."""

from __future__ import annotations

import random
import signal
import threading
from typing import Any

import pytest

import psq
from tests.acceptance.processes import wait_until
from tests.integration import jobs
from tests.integration.daemons import Site

TASKS, RELOADS = 5000, 100
SLOTS = 40
BASE = {"queues": {"default": {"concurrency": SLOTS}}, "logging": {"tasks": "failures"}}

BAD: list[tuple[str, dict[str, Any]]] = [
    ("concurency", {"queues": {"default": {"concurency": 40}}}),
    ("no_such_module", {**BASE, "imports": ["tests.no_such_module"]}),
    ("cron", {**BASE, "schedule": {"nightly": {"cron": "99 3 * * *", "task": "tests.integration.jobs.noted"}}}),
]


def _census(place: Site, client: psq.Client) -> dict[str, int]:
    """What the worker has, with all its slots having been in use."""
    q = psq.Queue(client, storage=place.storage)
    for result in q.enqueue_many([(jobs.nap, (0.2,), {}) for _ in range(4 * SLOTS)]):
        result.result(timeout=60)
    counted: dict[str, int] = q.enqueue(jobs.census).result(timeout=20)
    return counted


@pytest.mark.slow
def test_a_hundred_reloads_under_load_lose_nothing_and_run_nothing_twice(strict_place: Site) -> None:
    place = strict_place
    seed = random.randrange(1 << 30)
    print(f"\nseed {seed}")
    chance = random.Random(seed)
    daemon = place.daemon("a", BASE).start()
    client = psq.connect(place.broker)
    q = psq.Queue(client, storage=None)
    before = _census(place, client)
    pid, worker = daemon.pid, daemon.worker_pid()
    warm = len(place.runs("end"))

    sent: list[str] = []

    def send() -> None:
        for start in range(0, TASKS, 50):
            sent.extend(r.id for r in q.enqueue_many([(jobs.nap, (0.05,), {}) for _ in range(start, start + 50)]))

    sender = threading.Thread(target=send)
    sender.start()
    failed = 0
    for number in range(RELOADS):
        mark = daemon.mark()
        if number % 10 == 9:
            word, config = BAD[(number // 10) % len(BAD)]
            daemon.configure(config)
            daemon.signal(signal.SIGHUP)
            daemon.wait_line("reload failed.*", since=mark)
            wait_until(lambda w=word, m=mark: w in "\n".join(daemon.lines[m:]), 10, daemon.log)
            failed += 1
            continue
        queues = {"default": {"concurrency": chance.choice([1, 5, 40, 80])}}
        for extra in chance.sample(range(6), chance.randrange(5)):
            queues[f"extra-{extra}"] = {"concurrency": chance.randrange(1, 20)}
        daemon.configure({**BASE, "queues": queues})
        daemon.signal(signal.SIGHUP)
        daemon.wait_line("reloaded: ", since=mark)
    mark = daemon.mark()
    daemon.configure(BASE)
    daemon.signal(signal.SIGHUP)
    daemon.wait_line("reloaded: ", since=mark)
    sender.join()

    place.wait_journal("end", warm + TASKS, 180)
    assert failed == RELOADS // 10
    starts = place.runs("start")
    assert set(sent) <= set(starts)
    assert len(starts) == warm + TASKS
    twice = [task for task, count in starts.items() if count > 1]
    assert not twice, f"{len(twice)} tasks ran twice\n{daemon.log[-4000:]}"
    assert (daemon.pid, daemon.worker_pid()) == (pid, worker)
    after: dict[str, int] = {}

    def as_before() -> bool:
        """Timers of the polls that were cancelled last are still there for two seconds."""
        after.update(_census(place, client))
        return all(after[what] <= before[what] + 3 for what in before)

    wait_until(as_before, 20, lambda: f"before {before}, after {after}")
    print(f"before {before}, after {after}")
    assert daemon.stop() == 0
    place.nothing_left()
