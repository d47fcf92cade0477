"""Worker greenlets: started on demand, resized at any time, interrupted at the end."""

from __future__ import annotations

import time

import gevent
from gevent.event import Event

from psq.brokers.base import Delivery, QueueSpec
from psq.errors import TaskInterrupted
from psqd.worker.pool import Pool


def delivery(arrived_at: float = 0.0) -> Delivery:
    made = Delivery(QueueSpec("q"), "1", b"", {}, 0.0, 0.0, None)
    made.arrived_at = arrived_at
    return made


def settle() -> None:
    """Let all greenlets go on until they wait."""
    gevent.idle()
    gevent.sleep(0)


class Runs:
    """Deliveries that run until they are let go."""

    def __init__(self) -> None:
        self.begun: list[Delivery] = []
        self.ended: list[Delivery] = []
        self.interrupted: list[Delivery] = []
        self.gate = Event()

    def __call__(self, it: Delivery) -> None:
        self.begun.append(it)
        try:
            self.gate.wait()
            self.ended.append(it)
        except TaskInterrupted:
            self.interrupted.append(it)


def test_deliveries_run_in_order_and_never_more_than_the_size() -> None:
    runs = Runs()
    pool = Pool("q", 3, runs)
    items = [delivery() for _ in range(10)]
    pool.put(items)
    settle()
    assert runs.begun == items[:3]
    assert (pool.running, len(pool.ready)) == (3, 7)
    runs.gate.set()
    settle()
    assert runs.ended == items
    assert pool.running == 0


def test_greenlets_are_reused() -> None:
    seen = set()
    pool = Pool("q", 5, lambda it: seen.add(id(gevent.getcurrent())))
    for _ in range(50):
        pool.put([delivery()])
        settle()
    assert len(seen) == 1


def test_a_larger_size_starts_what_waits_at_once() -> None:
    runs = Runs()
    pool = Pool("q", 1, runs)
    pool.put([delivery() for _ in range(4)])
    settle()
    pool.size = 4
    settle()
    assert len(runs.begun) == 4


def test_a_smaller_size_interrupts_nothing_and_holds_from_the_next_task_on() -> None:
    runs = Runs()
    pool = Pool("q", 4, runs)
    pool.put([delivery() for _ in range(6)])
    settle()
    pool.size = 1
    settle()
    assert pool.running == 4
    runs.gate.set()
    settle()
    assert len(runs.ended) == 6
    runs.gate.clear()
    pool.put([delivery() for _ in range(3)])
    settle()
    assert pool.running == 1
    assert not runs.interrupted


def test_idle_greenlets_end_when_the_size_shrinks_and_come_back_when_it_grows() -> None:
    runs = Runs()
    runs.gate.set()
    pool = Pool("q", 8, runs)
    pool.put([delivery() for _ in range(8)])
    settle()
    for size in (2, 8, 1, 8):
        pool.size = size
        settle()
        runs.gate.clear()
        before = len(runs.begun)
        pool.put([delivery() for _ in range(8)])
        settle()
        assert len(runs.begun) - before == size
        runs.gate.set()
        settle()
        assert len(runs.begun) - before == 8


def test_what_waits_is_taken_back_by_age_and_does_not_run() -> None:
    runs = Runs()
    pool = Pool("q", 1, runs)
    items = [delivery(float(n)) for n in range(5)]
    pool.put(items)
    settle()
    assert pool.take_back(older_than=3.0) == items[1:3]
    assert pool.take_back() == items[3:]
    runs.gate.set()
    settle()
    assert runs.begun == items[:1]
    last = delivery()
    pool.put([last])
    settle()
    assert runs.ended == [items[0], last]


def test_join_waits_for_what_runs() -> None:
    runs = Runs()
    pool = Pool("q", 2, runs)
    pool.put([delivery(), delivery()])
    settle()
    assert not pool.join(0.01)
    gevent.spawn(runs.gate.set)
    assert pool.join(5)


def test_kill_interrupts_what_runs_and_ends_what_is_idle() -> None:
    runs = Runs()
    pool = Pool("q", 3, runs)
    pool.put([delivery(), delivery()])
    settle()
    assert pool.kill(5)
    assert len(runs.interrupted) == 2


def test_kill_tells_when_a_task_swallows_the_interrupt() -> None:
    def swallow(it: Delivery) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                gevent.sleep(30)
            except TaskInterrupted:
                continue

    pool = Pool("q", 1, swallow)
    pool.put([delivery()])
    settle()
    assert not pool.kill(0.05)
    for greenlet in list(pool._greenlets):
        greenlet.kill(block=False)
