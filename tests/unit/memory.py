"""A broker and a storage in memory, for the client's own tests: what they saw, and errors on demand."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from psq.brokers.base import Broker, DeadLetter, DeadLetters, Delivery, Outgoing, QueueSpec, Receiver
from psq.group_commit import Done
from psq.storages.base import Scheduled, Storage, TaskRecord


class MemoryBroker(Broker):
    """Keeps what is published.

    Attributes:
        published: Messages, in order.
        errors: What the next publishes end with, in order; None: accepted.
        hold: While True, publishes are kept in `held` and not answered.
    """

    scheme = "memory"
    max_message_bytes = 10_000

    def __init__(self) -> None:
        self.published: list[Outgoing] = []
        self.timeouts: list[float] = []
        self.errors: deque[Exception | None] = deque()
        self.hold = False
        self.held: list[Done] = []
        self.arrived = threading.Event()
        self.names: list[str] = []
        self.resets = self.closes = self.ticks = 0

    @property
    def url(self) -> str:
        return "memory://"

    def check_queue_name(self, name: str) -> None:
        self.names.append(name)

    def publish(self, message: Outgoing, done: Done, *, timeout: float = 10.0) -> None:
        self.timeouts.append(timeout)
        if self.hold:
            self.held.append(done)
            self.arrived.set()
            return
        error = self.errors.popleft() if self.errors else None
        if error is None:
            self.published.append(message)
        done(None, error)

    def declare(self, queue: QueueSpec) -> list[str]:
        return []

    def source(self, queue: QueueSpec) -> str:
        return queue.name

    def receiver(self, queue: QueueSpec, deliver: Callable[[list[Delivery]], None]) -> Receiver:
        raise NotImplementedError

    def ack(self, delivery: Delivery, done: Done) -> None:
        raise NotImplementedError

    def nack(self, deliveries: Sequence[Delivery], done: Done) -> None:
        raise NotImplementedError

    def park(self, deliveries: Sequence[Delivery], seconds: float, done: Done) -> None:
        raise NotImplementedError

    def dead_letters(self) -> DeadLetters:
        raise NotImplementedError

    def lease_spec(self) -> dict[str, Any]:
        return {"kind": "memory"}

    def tick(self) -> None:
        self.ticks += 1

    def reset_after_fork(self) -> None:
        self.resets += 1

    def close(self) -> None:
        self.closes += 1


class MemoryStorage(Storage):
    """Keeps records; `reads` counts the calls of `get`, `error` is raised by them."""

    scheme = "memory"

    def __init__(self) -> None:
        self.records: dict[str, TaskRecord] = {}
        self.reads = 0
        self.asked: list[list[str]] = []
        self.error: Exception | None = None
        self.resets = 0

    @property
    def url(self) -> str:
        return "memory://"

    @property
    def identity(self) -> str:
        return "memory://here"

    def put(self, record: TaskRecord, done: Done) -> None:
        self.records[record.id] = record
        done(None, None)

    def get(self, ids: Sequence[str]) -> dict[str, TaskRecord]:
        self.reads += 1
        self.asked.append(list(ids))
        if self.error is not None:
            raise self.error
        return {id: self.records[id] for id in ids if id in self.records}

    def find(
        self,
        *,
        state: str | None = None,
        queue: str | None = None,
        function: str | None = None,
        limit: int | None = None,
    ) -> Iterator[TaskRecord]:
        return iter(list(self.records.values()))

    def delete(self, ids: Sequence[str]) -> None:
        for id in ids:
            self.records.pop(id, None)

    def schedule(self, item: Scheduled, done: Done) -> None:
        raise NotImplementedError

    def due(self, shard: int, now: float, limit: int) -> list[Scheduled]:
        return []

    def unschedule(self, keys: Sequence[str]) -> None:
        raise NotImplementedError

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        return True

    def release(self, key: str, owner: str) -> None:
        raise NotImplementedError

    def put_dead(self, letter: DeadLetter, done: Done) -> None:
        raise NotImplementedError

    def list_dead(self, queue: str | None = None, limit: int | None = None) -> Iterator[DeadLetter]:
        return iter(())

    def get_dead(self, id: str) -> list[DeadLetter]:
        return []

    def delete_dead(self, keys: Sequence[str]) -> None:
        raise NotImplementedError

    def reset_after_fork(self) -> None:
        self.resets += 1

    def close(self) -> None:
        pass
