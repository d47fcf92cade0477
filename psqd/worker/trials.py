"""Who is suspected to kill workers is tried alone: one task at a time, in a process of its own.

A worker that dies is a strike for every task that had started, most of which
did nothing but run beside the killer. So strikes alone convict nobody. A task
that one more would make a dead letter starts apart from all others; if that
process dies, there was nobody else. An innocent task just runs there.

A conviction explains the deaths that the convicted was struck for: they count
against nobody else any more.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import gevent

from psq.brokers.base import Delivery
from psq.functions import Resolved
from psq.message import Message
from psqd.keeper.signals import name_of
from psqd.worker.held import Held
from psqd.worker.outcome import Dead, Hold, Interrupted, Outcome
from psqd.worker.trial import outcome_of
from psqd.worker.trial_process import TrialDied, TrialFailed, TrialInterrupted

if TYPE_CHECKING:
    from psqd.worker.steps import Attempt

__all__ = ["Process", "Host", "Suspect", "Trials"]

#: Most suspects that wait in this worker, and most bytes of their documents; others come again after a pause.
MAX_WAITING, MAX_BYTES = 1000, 16 << 20
#: Pause of those for whom the process can't be had, seconds.
NO_PROCESS_PAUSE = 30.0
#: The process ends when there was nobody to try for so long, seconds.
LINGER = 30.0
#: Deaths that are remembered as explained; the oldest are forgotten first.
REMEMBERED = 10_000

log = logging.getLogger("psqd")


class Process(Protocol):
    """The process for suspects, as `psqd.worker.trial_process.TrialProcess`."""

    def start(self) -> None:
        """Start it, unless it runs; blocks."""

    def run(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run a task in it; blocks."""

    def interrupt(self, why: str) -> None:
        """End it now."""

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
    """A task that waits for its trial."""

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


class Trials:
    """The suspects of one worker, and their trials. All on the hub; only `join` blocks.

    Args:
        held: Takes back what can't be tried here.
        process: Where they run, or None: then nobody is suspected.

    Attributes:
        running: Who is being tried.
        convicted: How many have killed their process.
        acquitted: How many have not.
    """

    def __init__(self, held: Held, process: Process | None = None) -> None:
        self._held, self._process = held, process
        self._waiting: list[Suspect] = []
        self._bytes = 0
        self.running: Suspect | None = None
        self.convicted = self.acquitted = 0
        self._explained: OrderedDict[tuple[object, object], None] = OrderedDict()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def is_suspect(self, message: Message, max_strikes: int) -> bool:
        """True for a task that one more strike would make a dead letter."""
        if not max_strikes or self._process is None:
            return False
        strikes = sum((strike.get("host"), strike.get("at")) not in self._explained for strike in message.strikes)
        return strikes >= max(1, max_strikes - 1)

    def add(self, suspect: Suspect) -> bool:
        """Have one tried, when it is its turn. False: too many wait here."""
        size = len(suspect.delivery.data)
        if len(self._waiting) >= MAX_WAITING or self._bytes + size > max(size, MAX_BYTES):
            return False
        self._waiting.append(suspect)
        self._bytes += size
        if self._greenlet is None or self._greenlet.dead:
            self._greenlet = gevent.spawn(self._run)
            self._greenlet.name = "psqd trials"
        return True

    # taking out

    def take_back(self, host: Host, before: float | None = None) -> list[Delivery]:
        """Take out a queue's suspects that wait.

        Args:
            host: The queue's executor.
            before: Only those that wait since before this monotonic instant, and of them not the most
                suspected, which would only be tried later for it; None: all.
        """

        def out(suspect: Suspect) -> bool:
            if suspect.host is not host:
                return False
            return before is None or (suspect.since < before and not suspect.suspicion()[0])

        return [suspect.delivery for suspect in self._take(out)]

    def discard(self, delivery: Delivery) -> bool:
        """Take one out that waits; False where it does not."""
        return bool(self._take(lambda suspect: suspect.delivery is delivery))

    def waiting(self, host: Host) -> int:
        """How many of a queue wait."""
        return sum(suspect.host is host for suspect in self._waiting)

    def _take(self, wanted: Callable[[Suspect], bool]) -> list[Suspect]:
        taken = [suspect for suspect in self._waiting if wanted(suspect)]
        if taken:
            self._waiting = [suspect for suspect in self._waiting if not wanted(suspect)]
            self._bytes -= sum(len(suspect.delivery.data) for suspect in taken)
        return taken

    # trials

    def _run(self) -> None:
        process = self._process
        assert process is not None
        while self._waiting:
            try:
                process.start()
            except (TrialFailed, TrialInterrupted) as error:
                self._adjourn(str(error))
                return
            # Only now: while it started, others came that are more suspected.
            suspect = max(self._waiting, key=Suspect.suspicion, default=None)
            if suspect is None:
                break
            self.discard(suspect.delivery)
            if suspect.delivery.slot >= 0:
                self._try(suspect)
        gevent.spawn_later(LINGER, self._close)

    def _try(self, suspect: Suspect) -> None:
        self.running = suspect
        try:
            suspect.host.run_apart(suspect.attempt, suspect.resolved, lambda attempt: self._call(suspect))
        finally:
            self.running = None

    def _call(self, suspect: Suspect) -> Outcome:
        process, delivery, message = self._process, suspect.delivery, suspect.attempt.message
        assert process is not None
        try:
            reply = process.run(
                {
                    "queue": suspect.host.name,
                    "data": delivery.data,
                    "redelivered": delivery.redelivered,
                    "keep": suspect.host.keeps_results,
                }
            )
        except TrialInterrupted as error:
            log.warning("task %s of queue %s did not end in its own process: %s", message.id, suspect.host.name, error)
            return Interrupted()
        except TrialFailed as error:
            return Hold(NO_PROCESS_PAUSE, str(error))
        except TrialDied as death:
            return self._convict(message, death)
        self.acquitted += 1
        return outcome_of(dict(reply))

    def _convict(self, message: Message, death: TrialDied) -> Dead:
        self.convicted += 1
        signal = name_of(-death.code) if death.code < 0 else f"exit {death.code}"
        record = {"signal": signal, "host": socket.gethostname(), "at": time.time()}
        deaths = [*message.strikes, record]
        for strike in message.strikes:
            self._explained[strike.get("host"), strike.get("at")] = None
        while len(self._explained) > REMEMBERED:
            self._explained.popitem(last=False)
        for cleared in self._take(lambda one: not self.is_suspect(one.attempt.message, one.limit)):
            cleared.host.again(cleared.delivery)
        text = f"its worker died {len(deaths)} times while it ran, the last time alone, of {signal}"
        return Dead("worker died", text, deaths=deaths)

    def _adjourn(self, why: str) -> None:
        """There is no process for them: later, or elsewhere."""
        taken = [one.delivery for one in self._take(lambda one: True)]
        self._held.park(taken, NO_PROCESS_PAUSE)
        log.error(
            "%d tasks whose workers died wait: the process in which they are to run alone can't be had: %s",
            len(taken),
            why,
        )

    # the end

    def interrupt(self, why: str) -> None:
        """End the trial that runs; its task has not failed. Idempotent."""
        if self._process is not None:
            self._process.interrupt(why)

    def join(self, timeout: float) -> bool:
        """Wait until no trial runs; False if the time (seconds) ran out."""
        if self._greenlet is not None:
            self._greenlet.join(max(0.0, timeout))
        return self.running is None

    def close(self) -> None:
        """Let go of the process, unless it is in use."""
        self._close()

    def _close(self) -> None:
        if self._process is not None and (self._greenlet is None or self._greenlet.dead):
            self._process.stop()
