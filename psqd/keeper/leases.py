"""The leases of one worker: extended when they are due, lost by our own clock.

Leases that were taken together form a group, and a group is looked at when it
is due, at a third of what is left of it: never all that is held. A task that
ends before that costs a dict entry set and one deleted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf
from queue import SimpleQueue
from typing import Any

from psq.brokers.base import LeaseClient
from psqd.keeper.link import Lease

__all__ = ["HeldLease", "Leases", "Requests", "Terms"]

#: Most extensions in flight.
MAX_IN_FLIGHT = 64
#: A group is extended when this part of what is left is over: two tries are left for a lost request.
DUE = 1 / 3
#: Leases taken within this time of each other are one group, seconds.
JOIN = 0.25
#: Groups that are due so soon go along with a request of their source, seconds.
ALONG = 1.0
#: Seconds for an extension: half of what is left, within these.
SHORTEST_TIMEOUT, LONGEST_TIMEOUT = 1.0, 10.0
#: Seconds for the last try before the end.
LAST_TIMEOUT = 0.25
#: Seconds before a failed extension is sent again: the first pause, doubled up to the last.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
#: A client that has not answered so long after its own timeout never will, seconds.
NO_ANSWER = 2.0
#: Lease ids of one request are kept under the 512 KiB that Pub/Sub takes.
MAX_KEY_BYTES = 480 * 1024


@dataclass(frozen=True, slots=True)
class Terms:
    """How long the leases of a source are, seconds.

    Attributes:
        lease: Each extension.
        ack_deadline: The first lease.
        max_lease: All of it, counted from the taking.
    """

    lease: float = 30.0
    ack_deadline: float = 10.0
    max_lease: float = 12 * 3600.0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Terms:
        """From what the worker says; what it does not say is the default."""
        return cls(**{name: float(settings[name]) for name in cls.__slots__ if settings.get(name) is not None})


class _Source:
    __slots__ = ("at", "groups", "name", "open", "terms")

    def __init__(self, name: str, terms: Terms) -> None:
        self.name, self.terms = name, terms
        self.groups: list[tuple[float, int, _Group]] = []  # a heap by due
        self.at = inf  # due of its valid entry in the heap of sources
        self.open: _Group | None = None  # what was taken last, and may grow


class _Group:
    """Leases of one source that were taken, and end, together.

    Attributes:
        slots: Those that were in it when it was last looked at.
        taken: Monotonic instant of the taking.
        until: Monotonic instant at which they are lost, unless extended.
        failures: Extensions that failed since the last good one.
    """

    __slots__ = ("failures", "slots", "source", "taken", "until")

    def __init__(self, source: _Source, taken: float, until: float) -> None:
        self.source, self.taken, self.until = source, taken, until
        self.slots: list[int] = []
        self.failures = 0


@dataclass(slots=True)
class _Request:
    groups: list[_Group]
    slots: list[int]
    keys: list[str]
    sent: float
    seconds: float
    gives_up: float = inf


@dataclass(slots=True)
class Requests:
    """Counts since the start, for the log.

    Attributes:
        sent: Extensions sent.
        failed: Those that failed.
        lost: Leases lost.
    """

    sent: int = 0
    failed: int = 0
    lost: int = 0


#: (slot, lease key, end, document) of what is held.
HeldLease = tuple[int, str, float, "bytes | None"]


@dataclass(slots=True)
class Leases:
    """All leases of one worker.

    Everything is called from the keeper's loop; the client's answers come from
    its own threads and are handed over.

    Args:
        client: Extends.
        wake: Called from the client's threads when `run` has an answer to look at.
        on_lost: ``on_lost(slots, keys)``: these are not ours any more.
        clock: Monotonic seconds.
        jitter: A number from 0 to 1.
    """

    client: LeaseClient
    wake: Callable[[], None]
    on_lost: Callable[[list[int], list[str]], None]
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    requests: Requests = field(default_factory=Requests)
    last_error: str = ""
    _held: dict[int, tuple[_Group, str, bytes | None]] = field(default_factory=dict)
    _sources: dict[str, _Source] = field(default_factory=dict)
    _due: list[tuple[float, int, _Source]] = field(default_factory=list)  # a heap of sources
    _in_flight: dict[int, _Request] = field(default_factory=dict)
    _answers: SimpleQueue[tuple[int, Sequence[str], Exception | None]] = field(default_factory=SimpleQueue)
    _number: Iterator[int] = field(default_factory=count)

    def __len__(self) -> int:
        return len(self._held)

    def set_terms(self, sources: Mapping[str, Mapping[str, Any]]) -> None:
        """The lengths of these sources, from their next extension on; those not named keep theirs."""
        for name, settings in sources.items():
            self._source(name).terms = Terms.of(settings)

    def apply(self, frames: Sequence[tuple[Any, ...]]) -> None:
        """What the worker wrote: taken and released, in order."""
        held, now = self._held, self.clock()
        for frame in frames:
            if frame[0] == "R":
                for slot in frame[1]:
                    held.pop(slot, None)
            elif frame[0] == "T":
                self._take(frame[1], frame[2], now)

    def _take(self, name: str, leases: Sequence[Lease], now: float) -> None:
        source, held, most = self._source(name), self._held, self.client.max_keys
        while leases:
            until = min([lease[2] for lease in leases])
            group = source.open
            if (
                group is None
                or now - group.taken > JOIN
                or not -JOIN <= until - group.until <= JOIN
                or len(group.slots) >= most
            ):
                group = source.open = self._new_group(source, now, until)
            slots = group.slots
            room = most - len(slots)
            for slot, key, _, data in leases[:room]:
                held[slot] = (group, key, data)
                slots.append(slot)
            if until < group.until and until > now:
                group.until = until
            leases = leases[room:]

    def _new_group(self, source: _Source, now: float, until: float) -> _Group:
        first = source.terms.ack_deadline
        # The end is counted from the sending of the pull, and a long poll may have been out for a minute: then
        # it says nothing. The worker gives back what waited for it longer than half of the first lease.
        group = _Group(source, now, max(until, now + first / 2))
        self._push(group, now + max(until - now, first / 10) * DUE)
        return group

    def run(self) -> float:
        """Look at answers, send what is due. Never waits.

        Returns:
            Monotonic instant at which it wants to be called again, `inf` for never.
        """
        while not self._answers.empty():
            number, lost, error = self._answers.get_nowait()
            request = self._in_flight.pop(number, None)
            if request is not None:  # else it was given up
                self._answered(request, lost, error)
        now = self.clock()
        silent = [number for number, request in self._in_flight.items() if request.gives_up <= now]
        for number in silent:
            self._answered(self._in_flight.pop(number), (), TimeoutError("no answer"))
        while self._due and self._due[0][0] <= now:
            due, _, source = self._due[0]
            if due != source.at:  # it was put in again since
                heappop(self._due)
            elif len(self._in_flight) >= MAX_IN_FLIGHT and source.groups[0][2].until > now:
                return min([source.groups[0][2].until, *(request.gives_up for request in self._in_flight.values())])
            else:
                heappop(self._due)
                source.at = inf
                self._look_at(source)
        at = self._due[0][0] if self._due else inf
        return min([at, *(request.gives_up for request in self._in_flight.values())])

    def held(self) -> dict[str, list[HeldLease]]:
        """All that is held now, by source; for the end, not for every day."""
        held: dict[str, list[HeldLease]] = {}
        for slot, (group, key, data) in self._held.items():
            held.setdefault(group.source.name, []).append((slot, key, group.until, data))
        return held

    def counts(self) -> dict[str, int]:
        """How many are held, by source."""
        counts: dict[str, int] = {}
        for group, _, _ in self._held.values():
            counts[group.source.name] = counts.get(group.source.name, 0) + 1
        return counts

    @property
    def in_flight(self) -> int:
        """Extensions in flight."""
        return len(self._in_flight)

    def _source(self, name: str) -> _Source:
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = _Source(name, Terms())
        return source

    def _push(self, group: _Group, due: float) -> None:
        source = group.source
        heappush(source.groups, (due, next(self._number), group))
        self._schedule(source)

    def _schedule(self, source: _Source) -> None:
        due = source.groups[0][0]
        if due < source.at:
            source.at = due
            heappush(self._due, (due, next(self._number), source))

    def _look_at(self, source: _Source) -> None:
        """Extend the groups of a source that are due, or nearly; one request, the rest comes right after."""
        now, terms, held = self.clock(), source.terms, self._held
        groups: list[_Group] = []
        slots: list[int] = []
        keys: list[str] = []
        ending: list[_Group] = []
        seconds, size = terms.lease, 0
        while source.groups and source.groups[0][0] <= now + ALONG:
            group = source.groups[0][2]
            alive: list[int] = []
            names: list[str] = []
            for slot in dict.fromkeys(group.slots):  # one that was released and taken again may be there twice
                entry = held.get(slot)
                if entry is not None and entry[0] is group:
                    alive.append(slot)
                    names.append(entry[1])
            room = self.client.max_keys - len(slots)
            more = sum(map(len, names))
            if slots and (len(alive) > room or size + more > MAX_KEY_BYTES):
                break
            heappop(source.groups)
            group.slots = alive
            if group is source.open:
                source.open = None
            left = group.taken + terms.max_lease - now
            if not alive:
                continue
            if group.until <= now:
                self._lose(group, alive, names)
            elif left < 1.0:  # max_lease is over: it ends by itself
                ending.append(group)
            elif left < seconds and slots:
                heappush(source.groups, (now, next(self._number), group))  # a shorter one: the next request
                break
            else:
                seconds = min(seconds, left)
                groups.append(group)
                slots += alive
                keys += names
                size += more
                if left < terms.lease:
                    break
        for group in ending:
            heappush(source.groups, (group.until, next(self._number), group))
        if source.groups:
            self._schedule(source)
        if groups:
            self._send(_Request(groups, slots, keys, now, max(1.0, seconds // 1)))

    def _send(self, request: _Request) -> None:
        number = next(self._number)
        left = min([group.until for group in request.groups]) - request.sent
        timeout = max(SHORTEST_TIMEOUT, min(LONGEST_TIMEOUT, left / 2))
        timeout = max(LAST_TIMEOUT, min(timeout, left))  # an answer after the end is of no use
        request.gives_up = request.sent + timeout + NO_ANSWER
        self._in_flight[number] = request
        self.requests.sent += 1

        def done(lost: Sequence[str] = (), error: Exception | None = None) -> None:
            self._answers.put((number, lost or (), error))
            self.wake()

        source = request.groups[0].source.name
        try:
            self.client.extend(source, request.keys, request.seconds, timeout, done)
        except Exception as error:
            done((), error)

    def _answered(self, request: _Request, lost: Sequence[str], error: Exception | None) -> None:
        now = self.clock()
        if lost:
            gone = set(lost)
            pairs = [(slot, key) for slot, key in zip(request.slots, request.keys, strict=True) if key in gone]
            for group in request.groups:
                mine = [(slot, key) for slot, key in pairs if self._is_held(slot, group)]
                if mine:
                    self._lose(group, [slot for slot, _ in mine], [key for _, key in mine])
        if error is not None:
            self.requests.failed += 1
            self.last_error = f"{type(error).__name__}: {error}"
        for group in request.groups:
            if error is None:
                group.failures = 0
                group.until = request.sent + request.seconds
                self._push(group, now + max(0.0, group.until - now) * DUE)
            else:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**group.failures) * (0.5 + self.jitter())
                group.failures = min(group.failures + 1, 16)
                self._push(group, min(now + pause, max(now, group.until)))

    def _is_held(self, slot: int, group: _Group) -> bool:
        entry = self._held.get(slot)
        return entry is not None and entry[0] is group

    def _lose(self, group: _Group, slots: list[int], keys: list[str]) -> None:
        """Not ours any more: no extension and no strike; the worker is told."""
        gone = _Group(group.source, group.taken, -inf)
        for slot, key in zip(slots, keys, strict=True):
            self._held[slot] = (gone, key, None)
        self.requests.lost += len(slots)
        self.on_lost(slots, keys)
