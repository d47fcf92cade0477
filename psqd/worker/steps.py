"""The steps that an outcome is made of: store, bury, ack. Each begins the next when it is answered; none waits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from psq.brokers.base import DeadLetter, Delivery
from psq.context import TaskContext
from psq.errors import StorageRefused
from psq.message import Message
from psq.storages.base import FAILED, FINISHED, TaskRecord
from psqd.config import QueueConfig
from psqd.worker.counters import QueueCounters
from psqd.worker.outcome import Dead
from psqd.worker.records import record_of
from psqd.worker.runtime import Runtime

__all__ = ["Attempt", "Steps"]

log = logging.getLogger("psqd")


class Attempt:
    """One delivery on its way to its end.

    Attributes:
        delivery: The delivery.
        message: What it said.
        task: What ran, or None where nothing did.
        waited: Seconds from due (or enqueued) to start.
        ran: Seconds from start to end.
    """

    __slots__ = ("delivery", "message", "ran", "task", "waited")

    def __init__(self, delivery: Delivery, message: Message) -> None:
        self.delivery, self.message = delivery, message
        self.task: TaskContext | None = None
        self.waited = self.ran = 0.0


class Steps:
    """The steps for one queue's deliveries.

    Attributes:
        config: The queue's settings; replaced by a reload.
    """

    def __init__(self, name: str, config: QueueConfig, runtime: Runtime, counters: QueueCounters) -> None:
        self.name, self.config, self.runtime, self.counters = name, config, runtime, counters

    def ack(self, delivery: Delivery) -> None:
        """Done with it; the lease is released by the answer. Nothing where it was acked early."""
        if delivery.slot >= 0:
            self.runtime.broker.ack(delivery, partial(self._acked, delivery))

    def then_ack(self, delivery: Delivery, step: str, _: object, error: Exception | None) -> None:
        """The end of a step: ack if it went well, else let the task run again."""
        if error is None:
            self.ack(delivery)
        else:
            log.error("could not %s (%s): a task of queue %s is given back and runs again", step, error, self.name)
            self.runtime.held.give_back([delivery])

    def store(self, attempt: Attempt, record: TaskRecord) -> None:
        """Store a terminal state, then ack."""
        storage = self.runtime.storage
        if storage is None or record.state not in self.config.store_on_status:
            self.ack(attempt.delivery)
        else:
            storage.put(record, partial(self._stored, attempt.delivery, record))

    def store_failure(self, attempt: Attempt, error: Mapping[str, Any]) -> None:
        """Store that it failed, then ack."""
        record = self.record(attempt, FAILED)
        record.error = error
        self.store(attempt, record)

    def bury(self, attempt: Attempt, dead: Dead, error: Mapping[str, Any]) -> None:
        """Keep it as a dead letter, then store that it failed, then ack."""
        message, delivery = attempt.message, attempt.delivery
        self.counters.dead[dead.reason] += 1
        letter = DeadLetter(
            message.id,
            attempt.task.attempt if attempt.task is not None else message.attempt,
            self.name,
            message.function,
            dead.reason,
            delivery.data,
            error=dead.error,
            traceback=dead.traceback,
            enqueued_at=message.enqueued_at,
            deaths=list(dead.deaths),
        )

        def kept(_: object, problem: Exception | None) -> None:
            if problem is None:
                self.store_failure(attempt, error)
            else:
                self.then_ack(delivery, "keep its dead letter", None, problem)

        self.runtime.dead.put_dead(letter, kept)

    def note(self, attempt: Attempt, state: str, error: Mapping[str, Any] | None = None) -> None:
        """Store a state that does not stay, where such are stored; that it fails costs nothing but the note."""
        storage = self.runtime.storage
        if storage is None or state not in self.config.store_on_status:
            return
        record = self.record(attempt, state)
        record.error = error

        def noted(_: object, problem: Exception | None) -> None:
            if problem is not None:
                log.warning("the state %s of task %s was not stored: %s", state, record.id, problem)

        storage.put(record, noted)

    def record(self, attempt: Attempt, state: str) -> TaskRecord:
        """Its record in a state, as of now."""
        return record_of(
            attempt.message,
            attempt.delivery.queue,
            attempt.task,
            state,
            self.runtime.worker,
            self.config.result_ttl,
        )

    def _acked(self, delivery: Delivery, _: object, error: Exception | None) -> None:
        if error is None:
            self.counters.acked += 1
        else:  # it may run twice
            self.counters.ack_errors += 1
            log.warning("an ack on queue %s was not taken, the task may run again: %s", self.name, error)
        self.runtime.held.release(delivery)

    def _stored(self, delivery: Delivery, record: TaskRecord, _: object, error: Exception | None) -> None:
        storage = self.runtime.storage
        if error is None:
            self.ack(delivery)
        elif isinstance(error, StorageRefused) and record.state == FINISHED and storage is not None:
            # One result that storage refuses fails its own task, never others.
            self.counters.outcomes["unstorable"] += 1
            log.error("the result of task %s can't be stored: %s", record.id, error)
            record.state, record.result = FAILED, None
            record.error = {"type": "psq.errors:StorageRefused", "message": str(error), "traceback": ""}
            storage.put(record, partial(self._stored, delivery, record))
        else:
            self.then_ack(delivery, f"store the state of task {record.id}", None, error)
