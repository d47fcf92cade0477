"""Tasks to try psq with; `make demo` runs them.

A task is a plain function of a module that the worker can import. These return
the process id and the attempt, so that one sees where and how often they ran.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import psq


def adder(a: int, b: int) -> int:
    """The task of psq's README."""
    return a + b


def fast(number: int) -> dict[str, Any]:
    """A task of no length at all."""
    return {"square": number * number, "pid": os.getpid(), "attempt": psq.current_task.attempt}


def slow(seconds: float, diary: str = "") -> dict[str, Any]:
    """Waits, as for another server. Under psqd this holds up nobody: time.sleep lets other tasks run.

    Args:
        seconds: How long.
        diary: A file to note each start in, so that one sees a task that was begun twice.
    """
    began = time.time()
    if diary:
        with open(diary, "a", encoding="utf-8") as file:
            file.write(f"{psq.current_task.id} {os.getpid()}\n")
    time.sleep(seconds)
    return {"slept": round(time.time() - began, 1), "pid": os.getpid(), "attempt": psq.current_task.attempt}


@psq.task(retries=3, retry=psq.RetryPolicy(first=0.5, factor=2.0))
def flaky(failures: int) -> dict[str, Any]:
    """Fails as often as it is told to, then succeeds: a server that is not there yet."""
    attempt = psq.current_task.attempt
    if attempt <= failures:
        raise ConnectionError(f"attempt {attempt}: the other side is not there")
    return {"pid": os.getpid(), "attempt": attempt}


def broken(reason: str) -> None:
    """Always fails, and has no retries: its error is its result."""
    raise ValueError(reason)


def reminder(text: str, due: float) -> dict[str, Any]:
    """Says how long after its time it ran; never before it."""
    late = round(time.time() - due, 3)
    return {"text": text, "late": late, "pid": os.getpid(), "attempt": psq.current_task.attempt}


def announce(folder: str, text: str) -> None:
    """For a broadcast queue: each worker process leaves a file of its own."""
    path = os.path.join(folder, f"{socket.gethostname()}-{os.getpid()}")
    with open(path, "a", encoding="utf-8") as file:
        file.write(text + "\n")
