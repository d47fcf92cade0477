"""From a queue's settings to the objects that serve it: spec, current_queue, invocation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psq
from psq.brokers.base import Broker, QueueSpec
from psq.functions import Allowed
from psq.storages.base import Storage
from psqd.config import QueueConfig
from psqd.worker.contexts import context_of
from psqd.worker.invocation import Invocation
from psqd.worker.members import Members

__all__ = ["QueueFactory"]


class QueueFactory:
    """Makes what a consumer needs for its queue.

    Args:
        broker: The one broker.
        storage: Where results go, or None.
        members: Names of this worker in broadcast queues.
        queue: (psqworker) the one psq.Queue that is served, or None.
    """

    def __init__(self, broker: Broker, storage: Storage | None, members: Members, queue: Any = None) -> None:
        self._broker, self._storage, self._members, self._queue = broker, storage, members, queue
        self._client: Any = None

    def spec(self, name: str, settings: QueueConfig) -> QueueSpec:
        """What the broker must know of a queue."""
        member = self._members.member(name, settings.scope) if settings.type == "broadcast" else ""
        return settings.spec(name, member)

    def invocation(self, name: str, settings: QueueConfig, allowed: Allowed) -> Invocation:
        """What calls the functions of a queue.

        Raises:
            ConfigError: `extra_context` is not there or not callable.
        """
        context: Callable[[], Any] | None = None
        if self._queue is not None:
            context = self._queue.extra_context
        if settings.extra_context:
            context = context_of(settings.extra_context)
        return Invocation(
            self.queue(name, settings),
            context,
            settings.policy,
            settings.time_limit,
            settings.soft_time_limit,
            allowed.allows,
        )

    def queue(self, name: str, settings: QueueConfig) -> Any:
        """What tasks see as `current_queue`: it enqueues through the daemon's own broker."""
        if self._queue is not None:
            return self._queue
        if self._client is None:
            self._client = psq.Client(broker=self._broker)
        kind = psq.BroadcastQueue if settings.type == "broadcast" else psq.Queue
        return kind(self._client, name, storage=self._storage)
