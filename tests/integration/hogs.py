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
#: Of a measured piece of work, for the hogs that can't look at a clock: a little longer than asked rather than shorter.
MARGIN = 1.15


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
            end = time.monotonic() + (1e9 if seconds is None else seconds)
            while time.monotonic() < end:
                pass
        case "regex":
            _backtrack(100_000 if seconds is None else _amount(_backtrack, 4, seconds))
        case "sum":
            _add(10**10 if seconds is None else _amount(_add, 10**6, seconds))
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


def _amount(work: Callable[[int], None], count: int, seconds: float) -> int:
    """How much of a work takes so many seconds."""
    fastest = min(_measured(work, count) for _ in range(3))
    return int(count * MARGIN * seconds / fastest)


def _measured(work: Callable[[int], None], count: int) -> float:
    began = time.thread_time()
    work(count)
    return time.thread_time() - began
