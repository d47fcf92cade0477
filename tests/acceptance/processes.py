"""Real processes for acceptance tests: found by a mark in their environment, so that none is overlooked."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
MARK = "PSQ_TEST_FAMILY"


class Family:
    """All processes that carry one mark, children of children and orphans included."""

    def __init__(self) -> None:
        self.mark = str(uuid.uuid4())
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process of this family; `env` is the family's own, unless given."""
        options = {"env": self.environment(), "stdin": subprocess.DEVNULL} | options
        process = subprocess.Popen([str(word) for word in command], **options)
        self.started.append(process)
        return process

    def environment(self, **more: str) -> dict[str, str]:
        """An environment with the mark, and without the caller's psq settings."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PSQ_", "PSQD_"))}
        # setproctitle would write over the environment that /proc shows, mark and all
        return clean | {MARK: self.mark, "PYTHONUNBUFFERED": "1", "SPT_NOENV": "1"} | more

    def alive(self) -> list[psutil.Process]:
        """Those that run now; zombies do not count."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    process.pid != os.getpid()
                    and process.environ().get(MARK) == self.mark
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
        return found

    def describe(self) -> str:
        """The processes that run, a line each, for an error."""
        lines = []
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                lines.append(f"{process.pid} {process.name()} {' '.join(process.cmdline())}")
        return "\n".join(lines)

    def end(self) -> None:
        """Kill whatever is left."""
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for child in self.started:
            child.wait(timeout=10)


@contextlib.contextmanager
def family() -> Iterator[Family]:
    """A family that is ended whatever happens."""
    it = Family()
    try:
        yield it
    finally:
        it.end()


def wait_until(condition: Callable[[], object], seconds: float, problem: str | Callable[[], str]) -> None:
    """Wait for something that another process does.

    Args:
        condition: Asked again and again until it is true.
        seconds: When to give up: an AssertionError.
        problem: What to say then.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(problem if isinstance(problem, str) else problem())
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """True while the process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_gone(pids: Sequence[int], at: float) -> None:
    """Wait until these processes have ended, a monotonic instant at most."""
    left = max(0.0, at - time.monotonic())
    wait_until(lambda: not any(map(alive, pids)), left, lambda: f"left over: {[pid for pid in pids if alive(pid)]}")


def free_ports(count: int) -> int:
    """The first of `count` loopback ports in a row that are free now."""
    while True:
        with contextlib.ExitStack() as stack:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
