"""Suspects that wait for a process, those that run in it, and how many at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import gevent
from gevent.lock import BoundedSemaphore

from psq.brokers.base import Delivery
from psq.functions import Resolved
from psqd.worker.outcome import Outcome
from psqd.worker.trial_process import TrialFailed, TrialInterrupted

if TYPE_CHECKING:
    from psqd.worker.steps import Attempt

__all__ = ["Host", "Lane", "Process", "Suspect"]

#: The process ends when there was nobody to try for so long, seconds.
LINGER = 30.0


class Process(Protocol):
    """A process for suspects, as `psqd.worker.trial_process.TrialProcess`."""

    def start(self, *, fresh: bool = False) -> None:
        """Start it, unless it runs; blocks."""

    def run(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run a task in it; blocks."""

    def dump(self) -> None:
        """Have it write its stacks."""

    def interrupt(self, why: str) -> None:
        """End it now."""

    def renew(self) -> None:
        """Have the next `start` replace it, unless something runs in it."""

    def stop(self) -> None:
        """It is not needed any more."""


class Host(Protocol):
    """Whose suspect it is: the executor of its queue."""

    name: str

    @property
    def keeps_results(self) -> bool:
        """Whether the result of a finished task is stored."""

    def run_apart(self, attempt: Attempt, resolved: Resolved, call: Callable[[Attempt], Outcome]) -> None:
        """Take it to its end with `call` in place of the call of its function. Never raises."""

    def again(self, delivery: Delivery) -> None:
        """Take it back into the pool."""


class Suspect:
    """A task whose worker has died so often that it does not run among others."""

    __slots__ = ("attempt", "host", "limit", "resolved", "since")

    def __init__(self, host: Host, attempt: Attempt, resolved: Resolved, limit: int) -> None:
        self.host, self.attempt, self.resolved, self.limit = host, attempt, resolved, limit
        self.since = time.monotonic()

    @property
    def delivery(self) -> Delivery:
        """Its delivery."""
        return self.attempt.delivery

    def suspicion(self) -> tuple[int, int, float]:
        """More of it is tried first: whoever dies at once was the last to start, each time."""
        strikes = self.attempt.message.strikes
        return sum(bool(strike.get("last")) for strike in strikes), len(strikes), -self.since

    def request(self) -> dict[str, Any]:
        """What the process is sent."""
        delivery, host = self.delivery, self.host
        return {
            "queue": host.name,
            "data": delivery.data,
            "redelivered": delivery.redelivered,
            "keep": host.keeps_results,
        }


class Lane:
    """Those that are tried in one process.

    Args:
        process: Where they run.
        size: Most at a time.
        call: Runs one in the process; an outcome.
        no_process: Called when the process can't be had, with the reason.

    Attributes:
        waiting: Those whose turn it is not yet.
        running: How many run.
    """

    def __init__(
        self,
        process: Process,
        size: int,
        call: Callable[[Suspect], Outcome],
        no_process: Callable[[Lane, str], None],
    ) -> None:
        self.process, self._call, self._no_process = process, call, no_process
        self.waiting: list[Suspect] = []
        self._free = BoundedSemaphore(size)
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._jobs: set[gevent.Greenlet[[Suspect], None]] = set()
        self._used = 0.0  # monotonic, last
        self._lingers: gevent.Greenlet[[], None] | None = None

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._jobs)

    def add(self, suspect: Suspect) -> None:
        """It runs when it is its turn."""
        self.waiting.append(suspect)
        if self._greenlet is None or self._greenlet.dead:
            self._greenlet = gevent.spawn(self._run)
            self._greenlet.name = "psqd trials"

    def take(self, wanted: Callable[[Suspect], bool]) -> list[Suspect]:
        """Take out of those that wait."""
        taken = [suspect for suspect in self.waiting if wanted(suspect)]
        if taken:
            self.waiting = [suspect for suspect in self.waiting if not wanted(suspect)]
        return taken

    def _run(self) -> None:
        while self.waiting:
            self._free.acquire()
            if not self.waiting:  # taken out meanwhile: no process is needed for that
                self._free.release()
                break
            try:
                self.process.start()
            except (TrialFailed, TrialInterrupted) as error:
                self._free.release()
                self._no_process(self, str(error))
                return
            # Only now: while it started, others came that are more suspected.
            suspect = max(self.waiting, key=Suspect.suspicion, default=None)
            if suspect is not None:
                self.waiting.remove(suspect)
            if suspect is None or suspect.delivery.slot < 0:
                self._free.release()
                continue
            job = gevent.spawn(self._try, suspect)
            job.name = f"psqd trial of {suspect.host.name}"
            self._jobs.add(job)
            job.rawlink(self._tried)
        self._linger()

    def _try(self, suspect: Suspect) -> None:
        suspect.host.run_apart(suspect.attempt, suspect.resolved, lambda attempt: self._call(suspect))

    def _tried(self, job: Any) -> None:
        self._jobs.discard(job)
        self._free.release()
        self._linger()

    def _linger(self) -> None:
        self._used = time.monotonic()
        if self._lingers is None or self._lingers.dead:
            self._lingers = gevent.spawn(self._let_go)
            self._lingers.name = "psqd trials linger"

    def _let_go(self) -> None:
        while (left := self._used + LINGER - time.monotonic()) > 0:
            gevent.sleep(left)
        self.close()

    def join(self, timeout: float) -> None:
        """Wait for those that run, at most `timeout` seconds."""
        gevent.joinall(list(self._jobs), timeout=max(0.0, timeout))

    def close(self) -> None:
        """Let go of the process, unless it is in use."""
        if not self._jobs and not self.waiting:
            self.process.stop()
