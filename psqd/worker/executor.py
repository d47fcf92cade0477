"""One delivery -> an outcome -> exactly one of ack, nack, park, and only after what must come first.

    outcome       first                                         then
    finished      the result is stored                          ack
    failed        the error is stored (+ dead letter, if it     ack
                  had been retried)
    retried       the next attempt is published                 ack
    dead          the dead letter, then the error, are stored   ack
    later         due beyond a park: moved to the schedule      ack
                  due sooner                                    park, or held when it is a matter of a second
    hold          -                                             park
    interrupted   -                                             nack

A crash between the two steps makes a duplicate, never a loss. Nothing here
waits: each step is begun by the completion of the one before, and the
worker greenlet goes on to its next delivery.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import gevent

from psq.brokers.base import DeadLetter, Delivery, Outgoing
from psq.context import TaskContext
from psq.errors import StorageRefused, TaskInterrupted
from psq.functions import Resolved
from psq.message import Message, attributes, encode
from psq.result import error_document
from psq.serializers import dump_bytes, has_tags
from psq.storages.base import FAILED, FINISHED, RETRYING, STARTED, Scheduled, TaskRecord
from psqd.config import QueueConfig
from psqd.worker.admission import Admission
from psqd.worker.counters import QueueCounters
from psqd.worker.early import acked_early
from psqd.worker.invocation import Invocation
from psqd.worker.outcome import Dead, Failed, Finished, Hold, Interrupted, Later, Outcome, Retried
from psqd.worker.records import error_text, record_of
from psqd.worker.runtime import Runtime

__all__ = ["Executor"]

#: What is due within this many seconds is held, not parked: leases have whole seconds on Pub/Sub.
HOLD_IN_MEMORY = 1.0
#: Pause of a second struck task while one runs, seconds.
STRUCK_PAUSE = 1.0
#: Seconds for the publish of a retry, end to end; after that the old delivery is given back.
PUBLISH_TIMEOUT = 30.0

log = logging.getLogger("psqd")


class Executor:
    """Runs the deliveries of one queue to their ends. `run` is called in a worker greenlet.

    Args:
        name: The queue's name.
        config: Its settings; replaced by a reload.
        runtime: What the worker's parts share.
        invocation: Calls functions.
        counters: Counts.
        again: Takes a delivery back into the pool when it is due.
    """

    def __init__(
        self,
        name: str,
        config: QueueConfig,
        runtime: Runtime,
        invocation: Invocation,
        counters: QueueCounters,
        again: Callable[[Delivery], None],
    ) -> None:
        self.name, self.config, self.runtime, self.invocation = name, config, runtime, invocation
        self.counters, self._again = counters, again
        self._admission = Admission(name, runtime)
        self._attempts: dict[str, int] = {}  # of broadcast tasks: a retry is for this worker alone
        self._told_reply = False

    def run(self, delivery: Delivery) -> None:
        """One delivery, to its outcome. Never raises."""
        try:
            self._run(delivery)
        except TaskInterrupted:  # while it waited for its early ack
            self.runtime.held.give_back([delivery])
        except BaseException:  # a bug of ours must not cost the task, nor the greenlet
            log.exception("a delivery of queue %s is given back after an error in psqd itself", self.name)
            self.runtime.held.give_back([delivery])

    def _run(self, delivery: Delivery) -> None:
        read = self._admission.read(delivery)
        if type(read) is not Message:
            message, outcome = read
            return self._settle(delivery, message, None, outcome, 0.0, 0.0)
        message = read
        if message.due_at is not None or message.strikes:
            early = self._admission.wait(message)
            if early is not None:
                return self._settle(delivery, message, None, early, 0.0, 0.0)
        resolved = self._admission.function(message)
        if type(resolved) is not Resolved:
            return self._settle(delivery, message, None, resolved, 0.0, 0.0)
        if len(message.strikes) < 2:
            return self._start(delivery, message, resolved)
        if not self.runtime.struck.acquire(blocking=False):
            hold = Hold(STRUCK_PAUSE, "another task that killed its worker runs")
            return self._settle(delivery, message, None, hold, 0.0, 0.0)
        try:
            self._start(delivery, message, resolved)
        finally:
            self.runtime.struck.release()

    def _start(self, delivery: Delivery, message: Message, resolved: Resolved) -> None:
        runtime, held = self.runtime, self.runtime.held
        if self.config.ack == "early" and not acked_early(delivery, runtime, self.counters):
            return
        if message.reply and not self._told_reply:
            self._check_reply(message)
        began = time.time()
        attempt = message.attempt
        if self._attempts:
            attempt = self._attempts.get(message.id, attempt)
        waited = began - (message.due_at or message.enqueued_at)
        self.counters.wait.observe(waited)
        task = TaskContext(
            id=message.id,
            function=message.function,
            queue=self.name,
            attempt=attempt,
            run=message.run,
            retries=message.retries,
            enqueued_at=message.enqueued_at,
            due_at=message.due_at,
            started_at=began,
            redelivered=delivery.redelivered,
            strikes=message.strikes,
            worker=runtime.worker,
        )
        if runtime.task_log.all:
            runtime.task_log.started(message, self.name, waited)
        if runtime.storage is not None and STARTED in self.config.store_on_status:
            self._note(self._record(message, delivery, task, STARTED))
        held.started(delivery)
        outcome = self.invocation.run(message, task, resolved, has_tags(delivery.data))
        held.ended(delivery)
        ended = time.time()
        self.counters.run.observe(ended - began)
        self.counters.total.observe(ended - message.enqueued_at)
        self._settle(delivery, message, task, outcome, waited, ended - began)

    # the table

    def _settle(
        self, delivery: Delivery, message: Message, task: TaskContext | None, outcome: Outcome, waited: float, ran: float
    ) -> None:
        match outcome:
            case Finished():
                self._finished(delivery, message, task, outcome, waited, ran)
            case Failed():
                self._failed(delivery, message, task, outcome, waited, ran)
            case Retried():
                self._retried(delivery, message, task, outcome, waited, ran)
            case Dead():
                self._dead(delivery, message, outcome)
            case Later():
                self._later(delivery, message, outcome.seconds)
            case Hold():
                self.counters.unknown += 1
                self.runtime.held.park([delivery], outcome.seconds)
            case Interrupted():
                self._interrupted(delivery, message, task, waited, ran)

    def _finished(
        self, delivery: Delivery, message: Message, task: TaskContext | None, outcome: Finished, waited: float, ran: float
    ) -> None:
        runtime = self.runtime
        if self._attempts:
            self._attempts.pop(message.id, None)
        if runtime.storage is None or FINISHED not in self.config.store_on_status:
            self._ack(delivery)
        else:
            record = self._record(message, delivery, task, FINISHED)
            try:
                record.result = dump_bytes(outcome.value, f"the result of {message.function}")
            except Exception as error:  # also what a value's own methods raise
                return self._failed(delivery, message, task, Failed(error_document(error)), waited, ran)
            runtime.storage.put(record, partial(self._stored, delivery, record))
        self.counters.outcomes["finished"] += 1
        if runtime.task_log.all:
            runtime.task_log.ended(message, self.name, "finished", waited, ran)

    def _failed(
        self, delivery: Delivery, message: Message, task: TaskContext | None, outcome: Failed, waited: float, ran: float
    ) -> None:
        self.counters.outcomes["failed"] += 1
        text = error_text(outcome.error)
        trace = str(outcome.error.get("traceback", ""))
        self.runtime.task_log.ended(message, self.name, "failed", waited, ran, text, trace, logging.ERROR)
        self._attempts.pop(message.id, None)
        then = partial(self._store_failure, delivery, message, task, outcome.error)
        if outcome.out_of_retries:
            self._bury(delivery, message, Dead("out of retries", text, trace), then)
        else:
            then()

    def _retried(
        self, delivery: Delivery, message: Message, task: TaskContext | None, outcome: Retried, waited: float, ran: float
    ) -> None:
        self.counters.outcomes["retried"] += 1
        text = f"{error_text(outcome.error)}; again in {outcome.delay:.3g} s"
        trace = str(outcome.error.get("traceback", ""))
        self.runtime.task_log.ended(message, self.name, "retrying", waited, ran, text, trace, logging.WARNING)
        attempt = (task.attempt if task is not None else message.attempt) + 1
        if delivery.queue.broadcast:
            self._attempts[message.id] = attempt
            return self._later(delivery, message, outcome.delay)
        if self.runtime.storage is not None and RETRYING in self.config.store_on_status:
            record = self._record(message, delivery, task, RETRYING)
            record.error = outcome.error
            self._note(record)
        message.attempt = attempt
        message.due_at = time.time() + outcome.delay if outcome.delay > 0 else None
        data = encode(message)
        out = Outgoing(delivery.queue, data, attributes(message), message.due_at, message.id)
        self.runtime.broker.publish(
            out, partial(self._then_ack, delivery, "publish its next attempt"), timeout=PUBLISH_TIMEOUT
        )

    def _dead(self, delivery: Delivery, message: Message, outcome: Dead) -> None:
        self.counters.outcomes["dead"] += 1
        self.runtime.task_log.ended(
            message, self.name, "dead", 0.0, 0.0, f"{outcome.reason}: {outcome.error}", outcome.traceback, logging.ERROR
        )
        error = {"type": "psq.errors:TaskFailed", "message": f"{outcome.reason}: {outcome.error}", "traceback": ""}
        self._bury(delivery, message, outcome, partial(self._store_failure, delivery, message, None, error))

    def _later(self, delivery: Delivery, message: Message, seconds: float) -> None:
        runtime, due = self.runtime, message.due_at
        broker, storage = runtime.broker, runtime.storage
        if delivery.slot < 0:
            return  # acked early: it is gone
        if seconds <= HOLD_IN_MEMORY:
            gevent.spawn_later(max(0.0, seconds), self._again, delivery)
        elif (
            seconds > broker.max_park
            and due is not None
            and storage is not None
            and storage.can_schedule
            and not broker.schedules
            and not delivery.queue.broadcast
        ):
            self.counters.scheduled += 1
            item = Scheduled(
                f"{message.id}:{message.attempt}", due, self.name, delivery.data, dict(delivery.attributes)
            )
            storage.schedule(item, partial(self._then_ack, delivery, "move it to the schedule"))
        else:
            self.counters.parked += 1
            runtime.held.park([delivery], min(seconds, broker.max_park))

    def _interrupted(
        self, delivery: Delivery, message: Message, task: TaskContext | None, waited: float, ran: float
    ) -> None:
        self.counters.outcomes["interrupted"] += 1
        if delivery.slot >= 0:
            detail = "the worker stops; it runs again elsewhere, no attempt is used up"
            self.runtime.held.give_back([delivery])
        else:
            detail = "the worker stops; it was acked early and does not run again"
            error = {"type": "psq.errors:TaskInterrupted", "message": "interrupted", "traceback": ""}
            self._store_failure(delivery, message, task, error)
        self.runtime.task_log.ended(message, self.name, "interrupted", waited, ran, detail, "", logging.WARNING)

    # its steps

    def _ack(self, delivery: Delivery) -> None:
        if delivery.slot < 0:
            return  # early: acked before its start
        self.runtime.broker.ack(delivery, partial(self._acked, delivery))

    def _acked(self, delivery: Delivery, _: object, error: Exception | None) -> None:
        if error is None:
            self.counters.acked += 1
        else:  # it may run twice
            self.counters.ack_errors += 1
            log.warning("an ack on queue %s was not taken, the task may run again: %s", self.name, error)
        self.runtime.held.release(delivery)

    def _then_ack(self, delivery: Delivery, step: str, _: object, error: Exception | None) -> None:
        if error is None:
            self._ack(delivery)
        else:
            log.error("could not %s (%s): a task of queue %s is given back and runs again", step, error, self.name)
            self.runtime.held.give_back([delivery])

    def _bury(self, delivery: Delivery, message: Message, dead: Dead, then: Callable[[], None]) -> None:
        self.counters.dead[dead.reason] += 1
        letter = DeadLetter(
            message.id,
            message.attempt,
            self.name,
            message.function,
            dead.reason,
            delivery.data,
            error=dead.error,
            traceback=dead.traceback,
            enqueued_at=message.enqueued_at,
            deaths=list(dead.deaths),
        )

        def kept(_: object, error: Exception | None) -> None:
            if error is None:
                then()
            else:
                self._then_ack(delivery, "keep its dead letter", None, error)

        self.runtime.dead.put_dead(letter, kept)

    def _store_failure(
        self, delivery: Delivery, message: Message, task: TaskContext | None, error: dict[str, object]
    ) -> None:
        storage = self.runtime.storage
        if storage is None or FAILED not in self.config.store_on_status:
            return self._ack(delivery)
        record = self._record(message, delivery, task, FAILED)
        record.error = error
        storage.put(record, partial(self._stored, delivery, record))

    def _stored(self, delivery: Delivery, record: TaskRecord, _: object, error: Exception | None) -> None:
        if error is None:
            return self._ack(delivery)
        storage = self.runtime.storage
        if isinstance(error, StorageRefused) and record.state == FINISHED and storage is not None:
            self.counters.outcomes["unstorable"] += 1
            log.error("the result of task %s can't be stored: %s", record.id, error)
            record.state, record.result = FAILED, None
            record.error = {"type": "psq.errors:StorageRefused", "message": str(error), "traceback": ""}
            return storage.put(record, partial(self._stored, delivery, record))
        self._then_ack(delivery, f"store the state of task {record.id}", None, error)

    def _note(self, record: TaskRecord) -> None:
        """Write a state that does not stay; that it fails costs nothing but the note."""
        storage = self.runtime.storage
        assert storage is not None
        storage.put(record, lambda _, error: error and log.warning("state of task %s: %s", record.id, error))

    def _record(self, message: Message, delivery: Delivery, task: TaskContext | None, state: str) -> TaskRecord:
        return record_of(message, delivery.queue, task, state, self.runtime.worker, self.config.result_ttl)

    def _check_reply(self, message: Message) -> None:
        storage = self.runtime.storage
        if storage is None or storage.identity != message.reply:
            self._told_reply = True
            log.error(
                "tasks of queue %s come from a sender that reads results in %s, but this daemon writes them to %s: "
                "its result() waits in vain; give both the same storage",
                self.name,
                message.reply,
                "none" if storage is None else storage.identity,
            )
