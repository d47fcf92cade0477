"""What this worker holds, and telling the keeper: taken, started, ended, released."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from gevent import get_hub

from psq.brokers.base import Broker, Delivery
from psq.group_commit import Done

__all__ = ["MAX_STRIKE_BYTES", "Held", "Link"]

#: A message larger than this is given back without a strike when its worker dies (the keeper does not keep its bytes).
MAX_STRIKE_BYTES = 256 * 1024

log = logging.getLogger("psqd")


class Link(Protocol):
    """The worker's end of the link to the keeper, as far as leases go."""

    def allocate(self) -> int:
        """A free slot."""

    def take(self, source: str, leases: list[tuple[int, str, float, bytes | None]]) -> None:
        """Tell of leases: (slot, lease key, monotonic end, document for a strike)."""

    def release(self, slots: list[int]) -> None:
        """Tell that these are not held any more."""

    def mark_started(self, slot: int) -> None:
        """Its function is about to be called."""

    def mark_ended(self, slot: int) -> None:
        """Its function is over."""


class Held:
    """All leases of this worker, by slot. Everything runs on the hub and never blocks.

    Args:
        link: Where to tell it.
        broker: Names the source of a queue's leases, and takes back what is given back.
        carry: Whether the keeper needs the documents to publish a struck task again.
    """

    def __init__(self, link: Link, broker: Broker, *, carry: bool) -> None:
        self._link, self._broker, self._carry = link, broker, carry
        self._slots: dict[int, Delivery] = {}
        self._freed: list[int] = []
        self._flushing = False
        self._loop = get_hub().loop

    def __len__(self) -> int:
        return len(self._slots)

    def take(self, deliveries: Sequence[Delivery]) -> None:
        """The broker leased these to us; they are all of one queue."""
        link, slots = self._link, self._slots
        queue, carry = deliveries[0].queue, self._carry
        leases = []
        for delivery in deliveries:
            slot = delivery.slot = link.allocate()
            slots[slot] = delivery
            data = delivery.data if carry and len(delivery.data) <= MAX_STRIKE_BYTES else None
            leases.append((slot, delivery.lease_key, delivery.lease_until, data))
        link.take(self._broker.source(queue), leases)

    def started(self, delivery: Delivery) -> None:
        """Its function is about to be called: if the worker dies now, that is a strike."""
        if delivery.slot >= 0:
            self._link.mark_started(delivery.slot)

    def ended(self, delivery: Delivery) -> None:
        """Its function returned or raised: if the worker dies now, it is just given back."""
        if delivery.slot >= 0:
            self._link.mark_ended(delivery.slot)

    def release(self, delivery: Delivery) -> None:
        """We don't hold it any more: acked, parked or given back, and answered. Idempotent."""
        slot = delivery.slot
        if slot < 0:
            return
        delivery.slot = -1
        del self._slots[slot]
        self._freed.append(slot)
        if not self._flushing:  # one frame for all that is released in this turn of the loop
            self._flushing = True
            self._loop.run_callback(self._flush)

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Let others have them, at once. They may be of several queues."""
        for some in _by_queue(deliveries):
            self._let_go(some, partial(self._broker.nack, some))

    def park(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        """Let them come again after a pause, to anybody. They may be of several queues."""
        for some in _by_queue(deliveries):
            self._let_go(some, partial(self._broker.park, some, seconds))

    def _let_go(self, some: list[Delivery], begin: Callable[[Done], None]) -> None:
        done = partial(self._given_back, some)
        try:
            begin(done)
        except Exception as error:  # a slot that is never released would be extended for half a day
            done(None, error)

    def mark_lost(self, slots: Sequence[int], keys: Sequence[str]) -> list[Delivery]:
        """The keeper says that these leases are lost; those that we still hold.

        Args:
            slots: Their slots.
            keys: Their lease keys, in the same order: a slot may hold another lease by now.
        """
        held = [(self._slots.get(slot), key) for slot, key in zip(slots, keys, strict=True)]
        return [delivery for delivery, key in held if delivery is not None and delivery.lease_key == key]

    def everything(self) -> list[Delivery]:
        """All that is held right now."""
        return list(self._slots.values())

    def _given_back(self, deliveries: Sequence[Delivery], _: object, error: Exception | None) -> None:
        for delivery in deliveries:
            self.release(delivery)
        if error is not None:  # they come again by themselves, when the lease is over
            log.warning("could not give back %d deliveries: %s", len(deliveries), error)

    def _flush(self) -> None:
        self._flushing = False
        freed, self._freed = self._freed, []
        self._link.release(freed)


def _by_queue(deliveries: Sequence[Delivery]) -> list[list[Delivery]]:
    """The deliveries of each queue: one request of a broker names one subscription."""
    found: dict[str, list[Delivery]] = {}
    for delivery in deliveries:
        found.setdefault(delivery.queue.name, []).append(delivery)
    return list(found.values())
