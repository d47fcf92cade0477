"""The tasks of scripts/smoke_gcp.py. Each start is a line in a journal: what, task id, time."""

from __future__ import annotations

import os
import time

import psq


def _note(what: str) -> None:
    line = f"{what} {psq.current_task.id} {time.time():.3f}\n".encode()
    fd = os.open(os.environ["SMOKE_JOURNAL"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, line)  # one write: lines of several processes are not mixed
    finally:
        os.close(fd)


def quick(value: object) -> object:
    """Ends at once."""
    _note("start")
    return value


def size(text: str) -> int:
    """Takes a large message."""
    _note("start")
    return len(text)


def nap(seconds: float) -> str:
    """Waits, and lets others run."""
    _note("start")
    time.sleep(seconds)
    return "slept"


def hog(seconds: float) -> str:
    """Computes, and lets nobody run."""
    _note("start")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "computed"
