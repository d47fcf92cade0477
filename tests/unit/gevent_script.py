"""Run by test_under_gevent.py, one case a process: what differs where gevent has patched everything."""

# ruff: noqa: E402  (patched before anything else is imported)
from __future__ import annotations

import sys

from gevent import monkey

monkey.patch_all()

from collections.abc import Sequence
from typing import Any

import gevent
from gevent import get_hub

import psq
from psq.concurrency import native_thread, original
from psq.group_commit import Finish, GroupCommit
from psq.poller import Poller
from psq.storages.base import FINISHED, TaskRecord
from tests.unit.memory import MemoryBroker, MemoryStorage
from tests.unit.sample_tasks import adder

native_sleep = original("time", "sleep")


class Again(Exception):
    """A transient error."""


def group_commit_completed_by_native_threads() -> None:
    """Requests end in native threads, some with transient errors; nobody is forgotten."""
    failed: set[int] = set()

    def start(items: Sequence[int], finish: Finish) -> None:
        def serve() -> None:
            native_sleep(0.001)
            first = items[0]
            if first % 7 == 0 and first not in failed:
                failed.add(first)
                finish(Again())
            else:
                finish([item + 1 for item in items])

        native_thread(serve)

    group: GroupCommit[int] = GroupCommit(
        start, max_items=20, max_bytes=10_000, in_flight=2, transient=lambda error: isinstance(error, Again)
    )
    jobs = [gevent.spawn(group.submit, number, 1) for number in range(500)]
    gevent.joinall(jobs, timeout=30, raise_error=True)
    assert [job.value for job in jobs] == list(range(1, 501))
    assert failed
    assert group.idle()


def a_killed_waiter_leaves_its_item() -> None:
    """Kill all who wait: what they brought is still sent, and others go on."""
    held: list[Finish] = []
    sent: list[int] = []

    def start(items: Sequence[int], finish: Finish) -> None:
        sent.extend(items)
        held.append(finish)

    group: GroupCommit[int] = GroupCommit(start, max_items=100, max_bytes=100)
    jobs = [gevent.spawn(group.submit, number, 1) for number in range(5)]
    gevent.sleep(0)
    assert sent == [0]
    gevent.killall(jobs)
    survivor = gevent.spawn(group.submit, 5, 1)
    gevent.sleep(0)
    held[0](None)
    assert sent == [0, 1, 2, 3, 4, 5]
    held[1](None)
    survivor.get(timeout=30)


def an_enqueue_that_is_killed_is_still_sent() -> None:
    """The message is the broker's when enqueue begins to wait."""
    broker = MemoryBroker()
    broker.hold = True
    q = psq.Queue(psq.Client(broker=broker))
    jobs = [gevent.spawn(q.enqueue, adder, 1) for _ in range(3)]
    gevent.sleep(0)
    jobs[0].kill()
    for done in broker.held:
        native_thread(lambda done=done: done(None, None))  # type: ignore[misc]
    gevent.joinall(jobs[1:], timeout=30, raise_error=True)
    assert [isinstance(job.value, psq.TaskResult) for job in jobs] == [False, True, True]


def a_killed_waiter_for_a_result_hurts_nobody() -> None:
    """Nor does it hurt when the poller itself is killed."""
    storage = MemoryStorage()
    poller = Poller(storage)
    jobs = [gevent.spawn(poller.wait, str(number), 30) for number in range(20)]
    gevent.sleep(0.05)
    jobs[0].kill()
    for number in range(10):
        storage.records[str(number)] = TaskRecord(str(number), FINISHED)
    gevent.joinall(jobs[1:10], timeout=30, raise_error=True)
    assert len(poller._waits) == 10
    import gc

    (reader,) = [one for one in gc.get_objects() if isinstance(one, gevent.Greenlet) and one.name == "psq-results"]
    reader.kill()
    for number in range(10, 20):
        storage.records[str(number)] = TaskRecord(str(number), FINISHED)
    gevent.joinall(jobs[10:], timeout=30, raise_error=True)
    assert [job.value.id for job in jobs[1:]] == [str(number) for number in range(1, 20)]
    assert not poller._waits


def waiters_of_several_hubs_share_a_poller() -> None:
    """A thread of the hub's pool has a hub of its own."""
    storage = MemoryStorage()
    poller = Poller(storage)
    first = gevent.spawn(poller.wait, "a", 30)
    gevent.sleep(0.01)
    other = get_hub().threadpool.spawn(poller.wait, "b", 30)
    gevent.sleep(0.1)
    storage.records.update({"a": TaskRecord("a", FINISHED), "b": TaskRecord("b", FINISHED)})
    assert first.get(timeout=30).id == "a"
    assert other.get(timeout=30).id == "b"


def a_poller_whose_hub_runs_no_more_is_replaced() -> None:
    """It was begun by a thread of the pool, whose hub runs only while that thread waits."""
    storage = MemoryStorage()
    poller = Poller(storage)
    storage.records["a"] = TaskRecord("a", FINISHED)
    assert get_hub().threadpool.spawn(poller.wait, "a", 30).get(timeout=30).id == "a"
    assert poller._running
    storage.records["b"] = TaskRecord("b", FINISHED)
    assert poller.wait("b", 30).id == "b"  # type: ignore[union-attr]


def a_batch_is_of_its_greenlet() -> None:
    """Greenlets that are spawned inside the block do not join it."""
    broker = MemoryBroker()
    q = psq.Queue(psq.Client(broker=broker))
    with q.batch() as results:
        q.enqueue(adder, 1)
        gevent.spawn(q.enqueue, adder, 2).get(timeout=30)
        assert len(broker.published) == 1
    assert len(broker.published) == 2
    assert len(results) == 1


def a_task_in_the_hubs_callback_may_add() -> None:
    """`add` never blocks, so the hub itself may call it."""
    done: Any = gevent.event.Event()

    def start(items: Sequence[int], finish: Finish) -> None:
        finish(None)

    group: GroupCommit[int] = GroupCommit(start, max_items=10, max_bytes=100)
    get_hub().loop.run_callback(group.add, 1, 1, lambda result, error: done.set())
    assert done.wait(30)


if __name__ == "__main__":
    import gevent.event

    globals()[sys.argv[1]]()
    print("well")
