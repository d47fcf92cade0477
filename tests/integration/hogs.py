"""Tasks that keep the hub from turning, and their neighbours. Each blocks on its first run alone."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

from gevent.monkey import get_original

import psq
from tests.integration.jobs import journal

__all__ = ["HOWS", "hog", "nap"]

#: Python's bytecode; C code that does not let go of the interpreter's lock, twice; a deadlock, which does.
HOWS = ("python", "regex", "sum", "deadlock")
#: Seconds of CPU of each call of the hogs that can't look at a clock: longer than the shortest lease.
CALL = 12.0


def hog(how: str, seconds: float | None = None) -> str:
    """Never yields. On its second run it returns at once.

    Args:
        how: See `HOWS`.
        seconds: For at least so long; None: for ever, as far as a test is concerned.
    """
    if not _first_run():
        return "again"
    journal("start", how)
    match how:
        case "python":
            _until(seconds, lambda: None)
        case "regex":
            count = 100_000 if seconds is None else _amount(_backtrack, 4)
            _until(seconds, lambda: _backtrack(count))
        case "sum":
            number = 10**10 if seconds is None else _amount(_add, 10**6)
            _until(seconds, lambda: _add(number))
        case "deadlock":
            lock = get_original("_thread", "allocate_lock")()
            lock.acquire()
            lock.acquire()
    journal("end", how)
    return how


def nap(seconds: float) -> int:
    """Yields for a while. On its second run it returns at once; both tell the strikes it has."""
    if not _first_run():
        return len(psq.current_task.strikes)
    journal("start")
    time.sleep(seconds)
    journal("end")
    return len(psq.current_task.strikes)


def _first_run() -> bool:
    """False, and a line in the journal, where this task has begun before."""
    try:
        os.close(os.open(f"{os.environ['TEST_JOURNAL']}.{psq.current_task.id}", os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        journal("again", len(psq.current_task.strikes))
        return False
    return True


def _backtrack(count: int) -> None:
    """One call that tries each way to part each of so many words."""
    re.search(r"(a+)+$", ("a" * 18 + "b") * count)


def _add(count: int) -> None:
    sum(range(count))


def _until(seconds: float | None, work: Callable[[], None]) -> None:
    end = time.monotonic() + (1e9 if seconds is None else seconds)
    while time.monotonic() < end:
        work()


def _amount(work: Callable[[int], None], count: int) -> int:
    """How much of a work makes a call of `CALL` seconds."""
    return int(count * CALL / min(_measured(work, count) for _ in range(3)))


def _measured(work: Callable[[int], None], count: int) -> float:
    began = time.thread_time()
    work(count)
    return time.thread_time() - began
