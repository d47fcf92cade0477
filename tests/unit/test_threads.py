"""The hub's native threads: how many there may be, and the warning when all are taken."""

from __future__ import annotations

import _thread
import logging
from collections.abc import Iterator

import pytest
from gevent.threadpool import ThreadPool

from psqd.worker.threads import LOOKS, MOST, SPARE, TELL_PAUSE, Threads


class Calls:
    """Calls that block a thread each until they are let go."""

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._gate = _thread.allocate_lock()
        self._gate.acquire()

    def begin(self, count: int) -> None:
        for _ in range(count):
            self._pool.spawn(self._wait)

    def _wait(self) -> None:
        self._gate.acquire()
        self._gate.release()

    def end(self) -> None:
        self._gate.release()
        self._pool.join()


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    pool = ThreadPool(2)
    yield pool
    pool.kill()


@pytest.mark.parametrize(("tasks", "threads"), [(1, SPARE + 1), (100, SPARE + 100), (100_000, MOST)])
def test_there_is_a_thread_for_each_task_up_to_a_limit(pool: ThreadPool, tasks: int, threads: int) -> None:
    it = Threads(pool)
    it.size(tasks)
    assert (it.most, it.taken) == (threads, 0)


def test_a_pool_that_stays_full_is_told_and_not_again_at_once(
    pool: ThreadPool, caplog: pytest.LogCaptureFixture
) -> None:
    it, calls = Threads(pool), Calls(pool)
    calls.begin(2)
    with caplog.at_level(logging.WARNING):
        for second in range(LOOKS - 1):
            it.look(second)
        assert not caplog.records
        for second in range(LOOKS, int(TELL_PAUSE)):
            it.look(second)
        assert "all 2 native threads are taken" in caplog.text
        assert len(caplog.records) == 1
        it.look(LOOKS + TELL_PAUSE)
        assert len(caplog.records) == 2
    assert it.taken == 2
    calls.end()


def test_a_pool_that_was_full_for_a_moment_is_not_told(pool: ThreadPool, caplog: pytest.LogCaptureFixture) -> None:
    it = Threads(pool)
    for second in range(2 * LOOKS):
        calls = Calls(pool)
        calls.begin(2)
        it.look(second)
        calls.end()
        it.look(second + 0.5)
    assert not caplog.records


def test_a_pool_with_a_thread_left_is_not_told(pool: ThreadPool, caplog: pytest.LogCaptureFixture) -> None:
    it, calls = Threads(pool), Calls(pool)
    calls.begin(1)
    for second in range(2 * LOOKS):
        it.look(second)
    assert not caplog.records
    calls.end()
