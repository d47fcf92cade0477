"""Tasks for the integration tests. Each tells a journal what it does: one line a step, appended in one write."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from subprocess import call  # noqa: F401  (re-exported: not to be run)

import greenlet

import psq


def journal(*words: object) -> None:
    """Append a line: what, task id, pid, monotonic time, and more."""
    task = psq.current_task
    line = " ".join(map(str, (words[0], task.id if task else "-", os.getpid(), f"{time.monotonic():.4f}", *words[1:])))
    fd = os.open(os.environ["TEST_JOURNAL"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, line.encode() + b"\n")
    finally:
        os.close(fd)


def adder(a: int, b: int) -> int:
    return a + b


def noted(*args: object) -> int:
    """Runs at once, and leaves a line."""
    journal("run", *args)
    return len(args)


def nap(seconds: float) -> str:
    """Yields for a while."""
    journal("start", seconds)
    time.sleep(seconds)
    journal("end", seconds)
    return "slept"


def until(path: str) -> None:
    """Yields until a file is there."""
    journal("start")
    while not os.path.exists(path):
        time.sleep(0.1)
    journal("end")


def stubborn(seconds: float) -> str:
    """Swallows the interrupt of a daemon that stops."""
    journal("start", seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.1)
        except BaseException:
            journal("swallowed")
    return "done"


def fails(text: str) -> None:
    journal("run")
    raise ValueError(text)


def fails_until(attempt: int) -> int:
    """Fails until it is this attempt."""
    journal("run", psq.current_task.attempt)
    if psq.current_task.attempt < attempt:
        raise ConnectionError(f"attempt {psq.current_task.attempt}")
    return psq.current_task.attempt


def asks_again(attempt: int, delay: float) -> int:
    """Raises Retry until it is this attempt."""
    journal("run", psq.current_task.attempt)
    if psq.current_task.attempt < attempt:
        raise psq.Retry(delay=delay)
    return psq.current_task.attempt


def suicide(signal_number: int) -> None:
    """Kills its worker, as its first statement."""
    os.kill(os.getpid(), signal_number)


def kills(how: str) -> None:
    """Kills its worker, as its first statement, in one of the ways in which real tasks do."""
    match how:
        case "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        case "group":  # as `trap "kill 0" EXIT` does in shell scripts
            os.killpg(0, signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "memory":
            hoard = []
            while True:  # until the kernel ends whoever has most
                hoard.append(b"x" * (8 << 20))
        case "memory slowly":
            hoard = []
            while True:
                hoard.append(b"x" * (8 << 20))
                time.sleep(0.05)


def hoards(seconds: float, spare: int = 0) -> int:
    """Takes all the memory that there is, down to the last kilobytes, and keeps it for a while."""
    journal("start")
    hoard: list[bytes] = []
    for size in (8 << 20, 1 << 20, 64 << 10, 4 << 10, 512):
        with contextlib.suppress(MemoryError):
            while True:
                hoard.append(bytes(size))
    while spare > 0 and hoard:
        spare -= len(hoard.pop())
    time.sleep(seconds)
    count = len(hoard)
    hoard.clear()
    journal("end")
    return count


def child() -> int:
    """A subprocess, as thumbnailers make them."""
    return subprocess.run([sys.executable, "-c", "pass"], check=True, timeout=60).returncode


def parent(path: str) -> None:
    """Has a subprocess, the journal has its id, until a file is there."""
    journal("start")
    with subprocess.Popen(["sleep", "600"]) as process:
        journal("child", process.pid)
        while not os.path.exists(path):
            time.sleep(0.1)
        process.kill()
    journal("end")


def moves() -> str:
    """Changes the folder of its process."""
    os.chdir("/")
    return os.getcwd()


def keeps_the_interpreter() -> None:
    """C code that lets no other thread run, for minutes."""
    journal("start")
    sum(range(10**11))


def orphan() -> None:
    """Leaves a process behind whose parent has ended."""
    subprocess.run(["sh", "-c", "sleep 600 >/dev/null 2>&1 &"], check=True)
    journal("orphan")


def enqueues(queue: str, count: int) -> list[str]:
    """A task that enqueues."""
    q = psq.Queue(psq.current_queue.client, queue)
    return [q.enqueue(noted, n).id for n in range(count)]


#: As people write it in their modules, with nothing said.
own_queue = psq.Queue()


def enqueues_on_own_queue() -> list[object]:
    """By a queue of the module: its broker, the id, and the result."""
    shared = own_queue.client.broker is psq.current_queue.client.broker
    result = own_queue.enqueue(adder, 20, 22)
    return [shared, result.result(timeout=15)]


def enqueues_in_a_subprocess() -> str:
    """A program that a task starts, and that enqueues with nothing said."""
    program = "import psq; print(psq.Queue().enqueue('tests.integration.jobs:adder', 1, 2).result(timeout=15))"
    run = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
    return run.stdout.strip()


def exits() -> None:
    sys.exit(3)


def big(size: int) -> str:
    return "x" * size


def unlike() -> str:
    """Returns something else each time."""
    value = os.urandom(8).hex()
    journal("run", value)
    return value


def unstorable() -> object:
    return object()


def who() -> dict[str, object]:
    """What current_task says."""
    task = psq.current_task
    return {
        "id": task.id,
        "queue": task.queue,
        "attempt": task.attempt,
        "redelivered": task.redelivered,
        "strikes": len(task.strikes),
        "current_queue": psq.current_queue.name,
    }


def context_of_flask() -> str:
    """What Flask says about the app that runs around this task."""
    from flask import current_app

    return str(current_app.name)


class Traced:
    """A context that tells the journal when it is entered and left, and with what."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Traced:
        journal("enter", self.name)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        journal("leave", self.name, kind.__name__ if kind is not None else "-")


def outer_and_inner() -> contextlib.ExitStack:
    """Two nested contexts."""
    stack = contextlib.ExitStack()
    stack.enter_context(Traced("outer"))
    stack.enter_context(Traced("inner"))
    return stack


def census() -> dict[str, int]:
    """Live greenlets, descriptors and native threads of this worker."""
    gc.collect()
    return {
        "greenlets": sum(isinstance(it, greenlet.greenlet) and bool(it) for it in gc.get_objects()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }
