"""Publishes what is due from the schedule in storage, and sweeps what has expired there."""

from __future__ import annotations

import logging
import time
from functools import partial

import gevent

from psq.brokers.base import Broker, Outgoing, QueueSpec
from psq.concurrency import Waiter
from psq.errors import BrokerUnavailable, PublishUnknown
from psq.storages.base import Scheduled, Storage
from psqd.worker.service import Service

__all__ = ["Scheduler", "Sweeper"]

#: Seconds for which a daemon owns a shard of the schedule; prolonged at each third.
CLAIM = 10.0
#: Due tasks published in one go.
BATCH = 500
#: Seconds of one publish, end to end: less than is left of a claim, or two daemons would publish the same.
PUBLISH_TIMEOUT = 5.0
#: Seconds for which a task is put off that the broker refuses: it must not hold up the others.
PUT_OFF = 60.0

log = logging.getLogger("psqd")


class Scheduler(Service):
    """Moves due tasks from the storage to their queues: published first, deleted second.

    Each shard is polled by the one daemon that has claimed it; a dead daemon's
    shards are taken over when its claim runs out.

    Args:
        broker: Where to publish.
        storage: Where the schedule is.
        owner: This worker, ``host:pid``.

    Attributes:
        published: Tasks published so far.
    """

    interval = 0.5

    def __init__(self, broker: Broker, storage: Storage, owner: str) -> None:
        super().__init__("scheduler")
        self._broker, self._storage, self._owner = broker, storage, owner
        self._mine: dict[int, float] = {}  # shard -> monotonic instant when the claim is to be prolonged
        self._try_at = 0.0
        self.published = 0

    def step(self) -> None:
        """Publish what is due in this daemon's shards; a problem with one does not stop the others."""
        self._claim()
        problem: Exception | None = None
        for shard in list(self._mine):
            try:
                self._serve(shard)
            except Exception as error:
                problem = error
        if problem is not None:
            raise problem

    def stop(self, timeout: float = 1.0) -> None:
        """As `Service.stop`; lets go of its shards, so that others take them at once."""
        was_alive, deadline = self.alive, time.monotonic() + timeout
        super().stop(timeout)
        shards = list(self._mine)
        self._mine.clear()
        if not was_alive or not shards:
            return
        try:
            with gevent.Timeout(max(0.1, deadline - time.monotonic())):
                for shard in shards:
                    self._storage.release(f"schedule:{shard}", self._owner)
        except (Exception, gevent.Timeout) as error:  # the claims run out by themselves
            log.warning("could not release all shards of the schedule: %s", error)

    def _claim(self) -> None:
        now = time.monotonic()
        look = now >= self._try_at
        if look:
            self._try_at = now + CLAIM / 3
        for shard in range(self._storage.shards):
            if shard in self._mine or look:
                self._holds(shard)

    def _holds(self, shard: int) -> bool:
        """Take a shard, or make sure of it: True while it is ours for two thirds of a claim at least."""
        now = time.monotonic()
        if now < self._mine.get(shard, 0.0):
            return True
        if self._storage.claim(f"schedule:{shard}", self._owner, CLAIM):
            self._mine[shard] = now + CLAIM / 3
            return True
        self._mine.pop(shard, None)
        return False

    def _serve(self, shard: int) -> None:
        while self._holds(shard):
            due = self._storage.due(shard, time.time(), BATCH)
            if due:
                self._publish(due)
            if len(due) < BATCH:
                return

    def _publish(self, due: list[Scheduled]) -> None:
        waiters: list[tuple[Scheduled, Waiter]] = []
        for item in due:
            waiter = Waiter()
            out = Outgoing(QueueSpec(item.queue), item.data, item.attributes, item.due_at, item.id)
            try:
                self._broker.publish(out, partial(_ended, waiter), timeout=PUBLISH_TIMEOUT)
            except Exception as error:
                waiter.set(error)
            waiters.append((item, waiter))
        done: list[str] = []
        refused: list[Scheduled] = []
        problem: Exception | None = None
        for item, waiter in waiters:
            waiter.wait()
            answer = waiter.value
            if answer is None:
                done.append(item.key)
            elif isinstance(answer, (BrokerUnavailable, PublishUnknown)):
                problem = answer
            else:
                refused.append(item)
                log.error("the delayed task %s of queue %s is put off: %s", item.id, item.queue, answer)
        if done:
            self._storage.unschedule(done)
            self.published += len(done)
        if refused:
            self._put_off(refused)
        if problem is not None:
            raise problem

    def _put_off(self, items: list[Scheduled]) -> None:
        """Kept for a later time first, deleted second."""
        at, waiters = time.time() + PUT_OFF, []
        for item in items:
            waiter = Waiter()
            later = Scheduled(item.id, at, item.queue, item.data, item.attributes)
            self._storage.schedule(later, partial(_ended, waiter))
            waiters.append(waiter)
        for waiter in waiters:
            waiter.wait()
        self._storage.unschedule([i.key for i, waiter in zip(items, waiters, strict=True) if waiter.value is None])


def _ended(waiter: Waiter, _: object, error: Exception | None) -> None:
    waiter.set(error)


class Sweeper(Service):
    """Deletes expired results from a storage that has no TTL of its own."""

    interval = 30.0

    def __init__(self, storage: Storage) -> None:
        super().__init__("sweeper")
        self._storage = storage

    def step(self) -> None:
        """One sweep."""
        self._storage.sweep(time.time())
