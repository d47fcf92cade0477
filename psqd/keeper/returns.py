"""What a dead worker held: given back or struck at once, and again until the leases end by themselves."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import inf
from queue import SimpleQueue
from typing import Any

from psq.brokers.base import LeaseClient
from psq.errors import BrokerRefused
from psqd.keeper.leases import HeldLease
from psqd.keeper.link import STARTED

__all__ = ["MAX_STRIKE_BYTES", "Returns"]

#: Documents larger than this are given back without a strike.
MAX_STRIKE_BYTES = 256 * 1024
#: Documents of one strike request: under the 10 MB that Pub/Sub takes.
MAX_BATCH_BYTES = 4 * 1024 * 1024
#: Lease ids of one request: under the 512 KiB that Pub/Sub takes.
MAX_KEY_BYTES = 480 * 1024
#: Most requests in flight.
MAX_IN_FLIGHT = 64
#: Seconds for one request to give back.
TIMEOUT = 5.0
#: A giving back, and a strike, that were not answered in this time never will be, seconds: clients wait less.
NO_ANSWER, NO_ANSWER_STRIKE = TIMEOUT + 2, 35.0
#: Seconds before a failed request is sent again: the first pause, doubled up to the last.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0

#: (lease key, document or None).
Item = tuple[str, "bytes | None"]


@dataclass(slots=True)
class _Batch:
    source: str
    items: list[Item]
    until: float  # the latest end of their leases
    record: Mapping[str, Any] | None = None  # of a strike
    failures: int = 0
    at: float = 0.0  # sent, or to be sent

    @property
    def gives_up(self) -> float:
        return self.at + (NO_ANSWER if self.record is None else NO_ANSWER_STRIKE)


@dataclass(slots=True)
class Returns:
    """Gives back and strikes. Everything is called from the keeper's loop but the client's answers.

    Args:
        client: Gives back and strikes.
        wake: Called from the client's threads when `run` has an answer to look at.
        clock: Monotonic seconds.
        jitter: A number from 0 to 1.

    Attributes:
        given_back: Leases whose giving back was answered.
        struck: Strikes that were answered.
        left: Leases that were left to end by themselves.
        last_error: Of the last request that failed, "" for none.
    """

    client: LeaseClient
    wake: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    given_back: int = 0
    struck: int = 0
    left: int = 0
    last_error: str = ""
    _waiting: list[_Batch] = field(default_factory=list)
    _in_flight: dict[int, _Batch] = field(default_factory=dict)
    _answers: SimpleQueue[tuple[int, Sequence[str], Exception | None]] = field(default_factory=SimpleQueue)
    _number: Iterator[int] = field(default_factory=count)

    @property
    def pending(self) -> int:
        """Leases for which nothing was answered yet."""
        return sum(len(batch.items) for batch in (*self._waiting, *self._in_flight.values()))

    def add(
        self,
        held: Mapping[str, Sequence[HeldLease]],
        state: Callable[[int], int],
        record: Mapping[str, Any] | None,
        last: int = -1,
    ) -> tuple[int, int, int]:
        """Send all back that a worker held.

        Args:
            held: `Leases.held()` of the worker that is dead.
            state: Of a slot, as the worker left it.
            record: What a strike says of the death; None: nothing is struck.
            last: The slot that started last, of which its strike tells so; -1 for none.

        Returns:
            How many are given back, how many are struck, and how many of those given back had started
            and could not be struck: their document is too large.
        """
        now, known = self.clock(), self.client.knows_documents
        backs = strikes = unstruck = 0
        for source, leases in held.items():
            back: list[HeldLease] = []
            strike: list[HeldLease] = []
            for lease in leases:
                slot, _, until, data = lease
                if record is None or state(slot) != STARTED or until <= now:
                    back.append(lease)
                elif known or (data is not None and len(data) <= MAX_STRIKE_BYTES):
                    strike.append(lease)
                else:
                    unstruck += 1
                    back.append(lease)
            backs += len(back)
            strikes += len(strike)
            for some, says in _apart(strike, record, last):
                self._waiting += self._batches(source, some, says)
            self._waiting += self._batches(source, back, None)
        self.run()
        return backs, strikes, unstruck

    def _batches(self, source: str, leases: Sequence[HeldLease], record: Mapping[str, Any] | None) -> Iterator[_Batch]:
        batch: list[Item] = []
        until, keys, documents = -inf, 0, 0
        for _, key, end, data in leases:
            document = b"" if record is not None and data is None else data
            size = len(document) if record is not None and document else 0
            if batch and (
                len(batch) >= self.client.max_keys
                or keys + len(key) > MAX_KEY_BYTES
                or documents + size > MAX_BATCH_BYTES
            ):
                yield _Batch(source, batch, until, record)
                batch, until, keys, documents = [], -inf, 0, 0
            batch.append((key, document if record is not None else None))
            until, keys, documents = max(until, end), keys + len(key), documents + size
        if batch:
            yield _Batch(source, batch, until, record)

    def run(self) -> float:
        """Look at answers, send what is to be sent. Never waits.

        Returns:
            Monotonic instant at which it wants to be called again, `inf` for never.
        """
        while not self._answers.empty():
            number, not_done, error = self._answers.get_nowait()
            batch = self._in_flight.pop(number, None)
            if batch is not None:
                self._answered(batch, not_done, error)
        now = self.clock()
        for number in [n for n, batch in self._in_flight.items() if batch.gives_up <= now]:
            self._unanswered(self._in_flight.pop(number))
        waiting, self._waiting = self._waiting, []
        for batch in waiting:
            if batch.at <= now and len(self._in_flight) < MAX_IN_FLIGHT:
                self._send(batch, now)
            else:
                self._waiting.append(batch)
        free = len(self._in_flight) < MAX_IN_FLIGHT
        ends = [batch.gives_up for batch in self._in_flight.values()]
        return min([inf, *ends, *(batch.at for batch in self._waiting if free)])

    def _send(self, batch: _Batch, now: float) -> None:
        number = next(self._number)
        batch.at = now
        self._in_flight[number] = batch
        done = partial(self._done, number)
        try:
            if batch.record is None:
                self.client.give_back(batch.source, [key for key, _ in batch.items], TIMEOUT, done)
            else:
                items = [(key, data or b"") for key, data in batch.items]
                self.client.strike(batch.source, items, batch.record, done)
        except Exception as error:
            done([key for key, _ in batch.items], error)

    def _done(self, number: int, keys: Sequence[str] = (), error: Exception | None = None) -> None:
        self._answers.put((number, keys or (), error))
        self.wake()

    def _answered(self, batch: _Batch, keys: Sequence[str], error: Exception | None) -> None:
        """`keys`: of a strike those not done; of a giving back those that were lost, which is as good."""
        total = len(batch.items)
        if batch.record is None and error is None:
            self.given_back += total
            return
        if batch.record is not None and (keys or error is None):
            failed = set(keys)
            batch.items = [item for item in batch.items if item[0] in failed]
            self.struck += total - len(batch.items)
            if not batch.items:
                return
        self._again(batch, error or BrokerRefused("its document can't be published again"))

    def _unanswered(self, batch: _Batch) -> None:
        error = TimeoutError("no answer")
        if batch.record is None:
            self._again(batch, error)
        else:  # it may have been published: a second copy helps nobody
            self.last_error = str(error)
            self.left += len(batch.items)

    def _again(self, batch: _Batch, error: Exception) -> None:
        self.last_error = f"{type(error).__name__}: {error}"
        now = self.clock()
        if isinstance(error, BrokerRefused) and batch.record is not None:
            batch.record = None  # it can't be published again; the task comes again at once, without the strike
            batch.at = now
        else:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**batch.failures) * (0.5 + self.jitter())
            batch.failures = min(batch.failures + 1, 16)
            batch.at = now + pause
        if batch.at < batch.until:
            self._waiting.append(batch)
        else:  # by now they come again by themselves
            self.left += len(batch.items)


def _apart(
    leases: Sequence[HeldLease], record: Mapping[str, Any] | None, last: int
) -> Iterator[tuple[list[HeldLease], Mapping[str, Any] | None]]:
    """What is struck, with what each strike says: of the task that started last, that it did."""
    yield [lease for lease in leases if lease[0] != last], record
    if record is not None:
        yield [lease for lease in leases if lease[0] == last], {**record, "last": True}
