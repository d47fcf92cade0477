"""SIGHUP under load: a hundred reloads while tasks flow, good files and bad ones."""

from __future__ import annotations

import random
import signal
import threading
from typing import Any

import psutil
import pytest

import psq
from tests.acceptance.processes import wait_until
from tests.integration import jobs
from tests.integration.daemons import Psqd, Site

TASKS, RELOADS = 5000, 100
BASE = {"queues": {"default": {"concurrency": 40}}, "logging": {"tasks": "failures"}}

BAD: list[tuple[str, dict[str, Any]]] = [
    ("concurency", {"queues": {"default": {"concurency": 40}}}),
    ("no_such_module", {**BASE, "imports": ["tests.no_such_module"]}),
    ("cron", {**BASE, "schedule": {"nightly": {"cron": "99 3 * * *", "task": "tests.integration.jobs.noted"}}}),
]


def _descriptors(daemon: Psqd) -> int:
    return int(psutil.Process(daemon.worker_pid()).num_fds())


@pytest.mark.slow
def test_a_hundred_reloads_under_load_lose_nothing_and_run_nothing_twice(place: Site) -> None:
    seed = random.randrange(1 << 30)
    print(f"\nseed {seed}")
    chance = random.Random(seed)
    daemon = place.daemon("a", BASE).start()
    client = psq.connect(place.broker)
    q = psq.Queue(client, storage=None)
    assert psq.Queue(client, storage=place.storage).enqueue(jobs.adder, 1, 2).result(timeout=20) == 3
    pid, worker, before = daemon.pid, daemon.worker_pid(), _descriptors(daemon)

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

    place.wait_journal("end", TASKS, 180)
    assert failed == RELOADS // 10
    starts = place.runs("start")
    assert set(starts) == set(sent)
    twice = [task for task, count in starts.items() if count > 1]
    assert not twice, f"{len(twice)} tasks ran twice\n{daemon.log[-4000:]}"
    assert (daemon.pid, daemon.worker_pid()) == (pid, worker)
    wait_until(
        lambda: _descriptors(daemon) <= before + 3, 15, lambda: f"descriptors {before} -> {_descriptors(daemon)}"
    )
    assert daemon.stop() == 0
    place.nothing_left()
