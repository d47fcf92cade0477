"""One look at the storage for all who wait: `Poller`, and when it looks: `Cadence`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from psq.concurrency import Waiter, original, start_thread
from psq.errors import StorageUnavailable
from psq.fork import reset_after_fork
from psq.storages.base import TERMINAL, Storage, TaskRecord

__all__ = ["Cadence", "Poller", "poller_of"]

#: Seconds after the first waiter came at which the storage is read: 8 times in the first second. No more than
#: 50 ms apart where tasks of up to 0.2 s end, the 70 ms to the worker and back included.
FIRST_LOOKS = (0.0, 0.025, 0.07, 0.12, 0.17, 0.22, 0.27, 0.6)
#: Seconds between looks after the first second: 4 a second, and one more for newcomers makes 5.
LATER = 0.25
#: Most ids in one read: a Datastore lookup takes 1,000 keys.
MAX_IDS = 1000
#: Seconds that an idle poller's thread stays, so that one wait after the other needs no new one.
LINGER = 1.0
#: Seconds after which a waiter looks whether the poller still lives; without a turn for so long it does not
#: (it may have been killed, or be a greenlet of a thread whose hub runs no more), nor with a read that takes so long.
WATCH, NO_TURN, NO_ANSWER = 2.0, 4.0, 60.0

log = logging.getLogger("psq")


class Cadence:
    """Says when to read: at most 8 times in the first second and 5 times a second after.

    The first second begins with the first look for somebody after nobody waited. A newcomer's first look may
    come before the next regular one: once a second, and whenever the last read found something,
    so that collecting many results that are there already is not held up by somebody who waits.
    """

    def __init__(self) -> None:
        self.begin(0.0)

    def begin(self, now: float) -> None:
        """Somebody waits, after nobody did."""
        self._start = now
        self._count = 0  # of regular looks, those that were left out included
        self._last = -math.inf  # regular look
        self._extra = now  # when a newcomer last brought one more
        self._found = False

    def next(self, now: float, newcomers: bool) -> float:
        """The instant of the next read, at or before `now` for at once.

        Args:
            now: Monotonic instant.
            newcomers: Somebody waits whose task was not looked at yet.
        """
        if newcomers and (self._found or now - self._extra >= 1.0):
            return now
        return self._regular()

    def looked(self, now: float, found: bool) -> None:
        """A read began at `now`.

        Args:
            now: Monotonic instant.
            found: It brought something that was waited for.
        """
        if now < self._regular():
            if not self._found:
                self._extra = now
        else:
            if self._count == 0:  # the first second begins with the first look
                self._start = self._extra = now
            self._last = now
            self._count += 1
            while self._count < len(FIRST_LOOKS) and self._start + FIRST_LOOKS[self._count] <= now:
                self._count += 1  # looks that a slow read left out are not made up for
        self._found = found

    def _regular(self) -> float:
        if self._count < len(FIRST_LOOKS):
            return self._start + FIRST_LOOKS[self._count]
        return max(self._start + 1.0, self._last + LATER)  # counted from when it was: one may be late


class _Wait:
    __slots__ = ("id", "waiter")

    def __init__(self, task_id: str) -> None:
        self.id, self.waiter = task_id, Waiter()


class Poller:
    """Reads a storage for all who wait in this process. Safe from any thread and greenlet.

    No waiter leads: the reading is done in a thread (a greenlet, under gevent) of its own,
    so a waiter that is killed hurts nobody.

    Args:
        storage: Read with `Storage.get`.
        clock: Monotonic seconds.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage, self._clock = storage, clock
        self._generation = 0  # a fork copies a patched process's greenlets: the copy must end
        self._forget()

    def _forget(self) -> None:
        # Native: held for a few lines that never switch, and taken by native threads as well
        self._lock = original("_thread", "allocate_lock")()
        self._waits: set[_Wait] = set()
        self._generation += 1
        self._newcomers = False  # somebody came since the last look
        self._running = False
        self._cadence = Cadence()
        self._sleep: Waiter | None = None
        self._problem: Exception | None = None
        self._turned_at = self._clock()
        self._looking = False

    def reset_after_fork(self) -> None:
        """In a forked child: nobody waits here."""
        self._forget()

    def wait(self, task_id: str, timeout: float | None) -> TaskRecord | Exception | None:
        """Wait for a task's terminal record. Blocks this thread or greenlet.

        Args:
            task_id: Whose.
            timeout: Seconds; None waits for ever.

        Returns:
            The record; the last error where the storage could not be read; None where time ran out.

        Raises:
            StorageRefused: The storage can't be read.
        """
        deadline = None if timeout is None else self._clock() + timeout
        wait = _Wait(task_id)
        try:
            self._join(wait)
            while True:
                left = WATCH if deadline is None else min(WATCH, deadline - self._clock())
                if wait.waiter.wait(max(0.0, left)):
                    break
                if deadline is not None and self._clock() >= deadline:
                    return self._problem
                self._join(wait)  # somebody may have killed the poller's greenlet
        finally:
            with self._lock:
                self._waits.discard(wait)
        record: TaskRecord | Exception = wait.waiter.value
        if isinstance(record, Exception):
            raise record
        return record

    def _join(self, wait: _Wait) -> None:
        with self._lock:
            wake = False
            if wait not in self._waits:
                if not self._waits:
                    self._cadence.begin(self._clock())
                wake = not self._newcomers  # else it knows already
                self._newcomers = True
                self._waits.add(wait)
            silence = self._clock() - self._turned_at
            if self._running and silence > (NO_ANSWER if self._looking else NO_TURN):
                self._generation += 1  # should it wake up, it ends
                self._running = False
            begin, self._running = not self._running, True
            if begin:
                self._turned_at, self._looking = self._clock(), False
            sleep, generation = self._sleep, self._generation
        if begin:
            try:
                start_thread(lambda: self._run(generation), "psq-results")
            except BaseException:
                self._running = False
                raise
        elif wake and sleep is not None:
            sleep.set()

    def _run(self, generation: int) -> None:
        try:
            while self._turn(generation):
                pass
        except Exception as error:  # a bug: those who wait must not wait for ever
            if generation == self._generation:
                with self._lock:
                    self._running = False
                    waits = list(self._waits)
                    self._waits.clear()
                for wait in waits:
                    wait.waiter.set(error)
        except BaseException:  # killed; a waiter begins anew
            if generation == self._generation:
                self._running = False
            raise

    def _turn(self, generation: int) -> bool:
        """Sleep until it is time, then look; False to end: nobody has waited for a while."""
        sleep = Waiter()
        with self._lock:
            if generation != self._generation:
                return False
            now = self._turned_at = self._clock()
            idle = not self._waits
            pause = LINGER if idle else self._cadence.next(now, self._newcomers) - now
            self._sleep = sleep
        if pause <= 0:
            self._looking = True
            try:
                self.look()
            finally:
                if generation == self._generation:
                    self._looking = False
            return True
        woken = sleep.wait(pause)
        with self._lock:
            if generation != self._generation:
                return False
            if idle and not woken and not self._waits:
                self._sleep, self._running = None, False
                return False
        return True

    def look(self) -> None:
        """One read for all who wait."""
        with self._lock:
            waits = list(self._waits)
            self._newcomers = False
            now = self._clock()
        ids = list({wait.id for wait in waits})
        records: dict[str, TaskRecord] = {}
        failure: Exception | None = None
        try:
            for begin in range(0, len(ids), MAX_IDS):
                records.update(self._storage.get(ids[begin : begin + MAX_IDS]))
            self._problem = None
        except StorageUnavailable as error:  # it may be back before their time is over
            if self._problem is None:
                log.warning("results can't be read for now: %s", error)
            self._problem = error
        except Exception as error:
            failure = error
        found: list[tuple[_Wait, TaskRecord | Exception]] = []
        for wait in waits:
            record = records.get(wait.id)
            if failure is not None:
                found.append((wait, failure))
            elif record is not None and record.state in TERMINAL:
                found.append((wait, record))
        with self._lock:
            self._cadence.looked(now, bool(found))
            for wait, _ in found:
                self._waits.discard(wait)
        for wait, outcome in found:
            wait.waiter.set(outcome)


def poller_of(storage: Storage) -> Poller:
    """The one poller of a storage object."""
    poller: Poller | None = storage.__dict__.get("_psq_poller")
    if poller is None:  # no lock, that a fork could find held: one too many is made and dropped
        poller = storage.__dict__.setdefault("_psq_poller", reset_after_fork(Poller(storage)))
    return poller
