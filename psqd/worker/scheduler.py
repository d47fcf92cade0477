"""Publishes what is due from the schedule in storage, and sweeps what has expired there."""

from __future__ import annotations

import logging
import time
from functools import partial

from psq.brokers.base import Broker, Outgoing, QueueSpec
from psq.concurrency import Waiter
from psq.storages.base import Scheduled, Storage
from psqd.worker.service import Service

__all__ = ["Scheduler", "Sweeper"]

#: Seconds for which a daemon owns a shard of the schedule; prolonged at each third.
CLAIM = 10.0
#: Due tasks published in one go.
BATCH = 500
#: Seconds of one publish, end to end.
PUBLISH_TIMEOUT = 30.0

log = logging.getLogger("psqd")


class Scheduler(Service):
    """Moves due tasks from the storage to their queues: published first, deleted second.

    Each shard is polled by the one daemon that has claimed it; a dead daemon's
    shards are taken over when its claim runs out.

    Args:
        broker: Where to publish.
        storage: Where the schedule is.
        owner: This worker, ``host:pid``.
    """

    interval = 0.5

    def __init__(self, broker: Broker, storage: Storage, owner: str) -> None:
        super().__init__("scheduler")
        self._broker, self._storage, self._owner = broker, storage, owner
        self._mine: dict[int, float] = {}  # shard -> monotonic instant when the claim is to be prolonged
        self._try_at = 0.0
        self.published = 0

    def step(self) -> None:
        """Publish what is due in this daemon's shards."""
        self._claim()
        for shard in list(self._mine):
            while due := self._storage.due(shard, time.time(), BATCH):
                self._publish(due)
                if len(due) < BATCH:
                    break

    def stop(self, timeout: float = 1.0) -> None:
        """As `Service.stop`; lets go of its shards, so that others take them at once."""
        was_alive = self.alive
        super().stop(timeout)
        if was_alive:
            for shard in list(self._mine):
                try:
                    self._storage.release(f"schedule:{shard}", self._owner)
                except Exception as error:  # the claim runs out by itself
                    log.warning("could not release shard %d of the schedule: %s", shard, error)
                    break
        self._mine.clear()

    def _claim(self) -> None:
        now = time.monotonic()
        look = now >= self._try_at
        if look:
            self._try_at = now + CLAIM / 3
        for shard in range(self._storage.shards):
            if shard in self._mine and now < self._mine[shard]:
                continue
            if shard not in self._mine and not look:
                continue
            if self._storage.claim(f"schedule:{shard}", self._owner, CLAIM):
                self._mine[shard] = now + CLAIM / 3
            else:
                self._mine.pop(shard, None)

    def _publish(self, due: list[Scheduled]) -> None:
        waiters: list[tuple[Scheduled, Waiter]] = []
        for item in due:
            waiter = Waiter()
            out = Outgoing(QueueSpec(item.queue), item.data, item.attributes, item.due_at, item.id)
            self._broker.publish(out, partial(_published, waiter), timeout=PUBLISH_TIMEOUT)
            waiters.append((item, waiter))
        done: list[str] = []
        problem: Exception | None = None
        for item, waiter in waiters:
            waiter.wait()
            if waiter.value is None:
                done.append(item.key)
            else:
                problem = waiter.value
        if done:
            self._storage.unschedule(done)
            self.published += len(done)
        if problem is not None:
            raise problem


def _published(waiter: Waiter, _: object, error: Exception | None) -> None:
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
