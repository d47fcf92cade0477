"""The steps that an outcome is made of: store, bury, publish, ack. Each begins the next when answered; none waits.

What is refused is tried again after growing pauses while the lease is kept: a task that has run is not run
again because a storage or a broker says no for a while.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import gevent

from psq.brokers.base import DeadLetter, Delivery
from psq.context import TaskContext
from psq.errors import MessageTooLarge, StorageRefused
from psq.group_commit import Done
from psq.message import Message
from psq.storages.base import FAILED, FINISHED, TaskRecord
from psqd.config import QueueConfig
from psqd.worker.counters import QueueCounters
from psqd.worker.outcome import Dead
from psqd.worker.records import record_of
from psqd.worker.runtime import Runtime

__all__ = ["BUG_PAUSE", "Attempt", "Steps"]

#: Seconds before a step that failed is taken again: the first pause, doubled up to the last.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: Seconds for which a delivery is left to others after an error in psqd itself: at once would be a hot loop.
BUG_PAUSE = 30.0

log = logging.getLogger("psqd")


class Attempt:
    """One delivery on its way to its end.

    Attributes:
        delivery: The delivery.
        message: What it said.
        task: What ran, or None where nothing did.
        waited: Seconds from due (or enqueued) to start.
        ran: Seconds from start to end.
        early: It was acked before its start: there is no lease, and nobody else has it.
    """

    __slots__ = ("delivery", "early", "message", "ran", "task", "waited")

    def __init__(self, delivery: Delivery, message: Message) -> None:
        self.delivery, self.message = delivery, message
        self.task: TaskContext | None = None
        self.waited = self.ran = 0.0
        self.early = False


class Steps:
    """The steps for one queue's deliveries.

    Attributes:
        config: The queue's settings; replaced by a reload.
        stuck: Steps that failed and are to be taken again.
    """

    def __init__(self, name: str, config: QueueConfig, runtime: Runtime, counters: QueueCounters) -> None:
        self.name, self.config, self.runtime, self.counters = name, config, runtime, counters
        self.stuck = 0

    def ack(self, delivery: Delivery) -> None:
        """Done with it; the lease is released by the answer. Nothing where it was acked early."""
        if delivery.slot >= 0:
            try:
                self.runtime.broker.ack(delivery, partial(self._acked, delivery))
            except Exception as error:
                self._acked(delivery, None, error)

    def step(
        self,
        attempt: Attempt,
        what: str,
        begin: Callable[[Done], None],
        then: Callable[[], None] | None = None,
        never: Callable[[Exception], bool] = lambda error: False,
    ) -> None:
        """Take a step, until it is answered well or the delivery was given back meanwhile.

        Args:
            attempt: Whose step it is.
            what: For the log, as in "could not publish its next attempt".
            begin: Begins it and returns at once; calls what it is given with (result, error).
            then: What follows; default: the ack.
            never: Told of an error: True where it has found another end, so that the step is not taken again.
        """
        _Step(self, attempt, what, begin, then or partial(self.ack, attempt.delivery), never).go()

    def store(self, attempt: Attempt, record: TaskRecord) -> None:
        """Store a terminal state, then ack. Of a broadcast: this worker's own, then, unless it is there, the task's."""
        storage = self.runtime.storage
        if storage is None or record.state not in self.config.store_on_status:
            self.ack(attempt.delivery)
            return
        never = partial(self._unstorable, attempt, record)
        then = None
        if attempt.delivery.queue.broadcast and record.id != attempt.message.id:
            then = partial(self.store, attempt, replace(record, id=attempt.message.id))
        self.step(attempt, "store its state", partial(storage.put, record), then, never)

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

        begin = partial(self.runtime.dead.put_dead, letter)
        self.step(attempt, "keep its dead letter", begin, partial(self.store_failure, attempt, error))

    def publish_next(self, attempt: Attempt, begin: Callable[[Done], None], error: Mapping[str, Any]) -> None:
        """Publish its next attempt, then ack. One that the broker finds too large by now is a dead letter."""

        def too_large(problem: Exception) -> bool:
            if not isinstance(problem, MessageTooLarge):
                return False
            text = f"its next attempt can't be published: {problem}"
            self.bury(attempt, Dead("out of retries", text, str(error.get("traceback", ""))), error)
            return True

        self.step(attempt, "publish its next attempt", begin, never=too_large)

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

        try:
            storage.put(record, noted)
        except Exception as problem:
            noted(None, problem)

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
        self.runtime.held.release(delivery)
        if error is None:
            self.counters.acked += 1
        else:  # it may run twice
            self.counters.ack_errors += 1
            log.warning("an ack on queue %s was not taken, the task may run again: %s", self.name, error)

    def _unstorable(self, attempt: Attempt, record: TaskRecord, error: Exception) -> bool:
        """One result that storage refuses fails its own task, never others. One that it refuses as all else waits."""
        if record.state != FINISHED or not isinstance(error, StorageRefused) or error.everything:
            return False
        self.counters.outcomes["unstorable"] += 1
        failed = {"type": "psq.errors:StorageRefused", "message": str(error), "traceback": ""}
        self.store_failure(attempt, failed)
        log.error("the result of task %s can't be stored: %s", record.id, error)
        return True


class _Step:
    """One step of one attempt; see `Steps.step`. Runs on the hub, in its callbacks too: what is logged comes last."""

    __slots__ = ("_attempt", "_begin", "_failures", "_never", "_steps", "_then", "_what")

    def __init__(
        self,
        steps: Steps,
        attempt: Attempt,
        what: str,
        begin: Callable[[Done], None],
        then: Callable[[], None],
        never: Callable[[Exception], bool],
    ) -> None:
        self._steps, self._attempt, self._what = steps, attempt, what
        self._begin, self._then, self._never = begin, then, never
        self._failures = 0

    def go(self) -> None:
        """Begin it."""
        if self._attempt.delivery.slot < 0 and not self._attempt.early:
            return  # given back meanwhile: whoever has it now takes its steps
        try:
            self._begin(self._answered)
        except Exception as error:
            self._answered(None, error)

    def _again(self) -> None:
        self._steps.stuck -= 1
        self.go()

    def _answered(self, _: object, error: Exception | None) -> None:
        try:
            if error is None:
                self._then()
                return
            if self._never(error):
                return
        except Exception:
            self._steps.runtime.held.park([self._attempt.delivery], BUG_PAUSE)
            log.exception("a task of queue %s is given back after an error in psqd itself", self._steps.name)
            return
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self._steps.stuck += 1
        gevent.spawn_later(pause, self._again)
        log.error(
            "could not %s (task %s of queue %s), again in %g s: %s",
            self._what,
            self._attempt.message.id,
            self._steps.name,
            pause,
            error,
        )
