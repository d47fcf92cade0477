"""One delivery -> an outcome -> exactly one of ack, nack, park, and only after what must come first.

    outcome       first                                         then
    finished      the result is stored                          ack
    failed        (a dead letter, if it had been retried)
                  the error is stored                           ack
    retried       the next attempt is published                 ack
    dead          a dead letter is kept, the error is stored    ack
    later         due beyond a park: moved to the schedule      ack
                  due sooner                                    park; held, when it is a matter of a second
    hold          -                                             park
    interrupted   -                                             nack

A crash between the two steps makes a duplicate, never a loss. A step that fails
is taken again after a pause, the lease kept. Nothing here waits: each step is
begun by the completion of the one before (`steps.py`), and the worker greenlet
goes on to its next delivery.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import gevent

from psq.brokers.base import Delivery, Outgoing
from psq.errors import StorageRefused, TaskInterrupted
from psq.functions import Resolved
from psq.message import Message, attributes, decode, encode
from psq.result import error_document
from psq.serializers import dump_bytes, has_tags
from psq.storages.base import FINISHED, RETRYING, STARTED, Scheduled
from psqd.config import QueueConfig
from psqd.worker.admission import Admission
from psqd.worker.counters import QueueCounters
from psqd.worker.early import acked_early
from psqd.worker.invocation import Invocation
from psqd.worker.outcome import Dead, Failed, Finished, Hold, Interrupted, Later, Outcome, Retried
from psqd.worker.records import error_text, task_context
from psqd.worker.runtime import Runtime
from psqd.worker.steps import BUG_PAUSE, Attempt, Steps
from psqd.worker.suspects import Suspect

__all__ = ["Executor"]

#: What is due within this many seconds is held, not parked: leases have whole seconds on Pub/Sub.
HOLD_IN_MEMORY = 1.0
#: Pause of a task that is to run alone while too many such wait, seconds.
STRUCK_PAUSE = 1.0
#: Seconds for one publish of a retry, end to end; it is repeated after a pause.
PUBLISH_TIMEOUT = 30.0

log = logging.getLogger("psqd")


class Executor:
    """Runs the deliveries of one queue to their ends. `run` is called in a worker greenlet.

    Args:
        name: The queue's name.
        config: Its settings.
        runtime: What the worker's parts share.
        invocation: Calls its functions.
        counters: Counts.
        again: Takes a delivery back into the pool.
        ended: Called when a task has ended that ran apart from the pool.

    Attributes:
        apart: Tasks that run apart from the pool.
    """

    def __init__(
        self,
        name: str,
        config: QueueConfig,
        runtime: Runtime,
        invocation: Invocation,
        counters: QueueCounters,
        again: Callable[[Delivery], None],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.config, self.runtime, self.invocation = name, config, runtime, invocation
        self.counters, self.again, self._ended = counters, again, ended
        self.apart = 0
        self._steps = Steps(name, config, runtime, counters)
        self._admission = Admission(name, runtime)
        self._told_reply = False

    @property
    def stuck(self) -> int:
        """Tasks with a step that failed and is to be taken again."""
        return self._steps.stuck

    def configure(self, config: QueueConfig, invocation: Invocation) -> None:
        """Take new settings, from the next delivery on."""
        self.config = self._steps.config = config
        self.invocation = invocation

    @property
    def keeps_results(self) -> bool:
        """Whether the result of a finished task is stored."""
        return self.runtime.storage is not None and FINISHED in self.config.store_on_status

    def run(self, delivery: Delivery) -> None:
        """One delivery, to its outcome. Never raises."""
        self._to_its_end(delivery, self._run)

    def run_apart(self, attempt: Attempt, resolved: Resolved, call: Callable[[Attempt], Outcome]) -> None:
        """One task, to its outcome, with `call` in place of the call of its function. Never raises."""
        self.apart += 1
        try:
            self._to_its_end(attempt.delivery, lambda _: (attempt, self._start(attempt, resolved, call)))
        finally:
            self.apart -= 1
            self._ended()

    def _to_its_end(self, delivery: Delivery, run: Callable[[Delivery], tuple[Attempt, Outcome | None]]) -> None:
        try:
            attempt, outcome = run(delivery)
            if outcome is not None:
                self._settle(attempt, outcome)
        except TaskInterrupted:  # while it waited for its early ack
            self.runtime.held.give_back([delivery])
        except BaseException:  # a bug of ours must not cost the task, nor the greenlet
            if delivery.slot >= 0:
                self.runtime.held.park([delivery], BUG_PAUSE)
            log.exception("a delivery of queue %s is given back after an error in psqd itself", self.name)

    def _run(self, delivery: Delivery) -> tuple[Attempt, Outcome | None]:
        read = self._admission.read(delivery)
        if isinstance(read, tuple):
            return Attempt(delivery, read[0]), read[1]
        message = read
        attempt = Attempt(delivery, message)
        if message.due_at is not None or message.strikes:
            early = self._admission.wait(message)
            if early is not None:
                return attempt, early
        resolved = self._admission.function(message)
        if not isinstance(resolved, Resolved):
            return attempt, resolved
        trials, limit = self.runtime.trials, self.runtime.max_strikes
        if message.strikes and trials.is_suspect(message, limit):
            if trials.add(Suspect(self, attempt, resolved, limit)):
                return attempt, None
            return attempt, Hold(STRUCK_PAUSE, "too many wait that are to run alone")
        return attempt, self._start(attempt, resolved, partial(self._call, resolved))

    def _call(self, resolved: Resolved, attempt: Attempt) -> Outcome:
        """Call the function, in this greenlet."""
        held, delivery, task = self.runtime.held, attempt.delivery, attempt.task
        assert task is not None
        held.started(delivery)
        outcome = self.invocation.run(attempt.message, task, resolved, has_tags(delivery.data))
        held.ended(delivery)
        if seconds := self.runtime.stall.kept():
            log.warning(
                "task %s of queue %s (%s) kept the hub for %.1f s: no other task, no message and no timer could go on",
                attempt.message.id,
                self.name,
                attempt.message.function,
                seconds,
            )
        return outcome

    def _start(self, attempt: Attempt, resolved: Resolved, call: Callable[[Attempt], Outcome]) -> Outcome | None:
        """Have the function called; None where it was left to others."""
        delivery, message, runtime = attempt.delivery, attempt.message, self.runtime
        if self.config.ack == "early":
            if not acked_early(delivery, runtime, self.counters):
                return None
            attempt.early = True
        if message.reply and not self._told_reply:
            self._check_reply(message)
        began = time.time()
        attempt.waited = began - (message.due_at or message.enqueued_at)
        self.counters.wait.observe(attempt.waited)
        retries = self.invocation.policy(message, resolved).retries
        attempt.task = task_context(message, self.name, retries, delivery.redelivered, runtime.worker)
        if message.strikes:
            self._tell_strikes(message)
        if runtime.task_log.all:
            runtime.task_log.started(message, self.name, attempt.waited)
        self._steps.note(attempt, STARTED)
        outcome = call(attempt)
        ended = time.time()
        attempt.ran = ended - began
        self.counters.run.observe(attempt.ran)
        self.counters.total.observe(ended - message.enqueued_at)
        return outcome

    # the table

    def _settle(self, attempt: Attempt, outcome: Outcome) -> None:
        match outcome:
            case Finished():
                self._finished(attempt, outcome)
            case Failed():
                self._failed(attempt, outcome)
            case Retried():
                self._retried(attempt, outcome)
            case Dead():
                self._dead(attempt, outcome)
            case Later():
                self._later(attempt, outcome.seconds)
            case Hold() if attempt.early:  # the broker has nothing that could come again
                self._interrupted(attempt, outcome.why)
            case Hold():
                self.counters.unknown += outcome.unknown
                self.runtime.held.park([attempt.delivery], outcome.seconds)
            case Interrupted():
                self._interrupted(attempt)

    def _finished(self, attempt: Attempt, outcome: Finished) -> None:
        runtime = self.runtime
        if not self.keeps_results:
            self._steps.ack(attempt.delivery)
        else:
            record = self._steps.record(attempt, FINISHED)
            try:
                what = f"the result of {attempt.message.function}"
                record.result = dump_bytes(outcome.value, what) if outcome.dumped is None else outcome.dumped
            except Exception as error:  # also what a value's own methods raise
                self._failed(attempt, Failed(error_document(error)))
                return
            self._steps.store(attempt, record)
        self.counters.outcomes["finished"] += 1
        if runtime.task_log.all:
            runtime.task_log.ended(attempt.message, self.name, "finished", attempt.waited, attempt.ran)

    def _failed(self, attempt: Attempt, outcome: Failed) -> None:
        text, trace = error_text(outcome.error), str(outcome.error.get("traceback", ""))
        kept = "out of retries, kept as a dead letter: " if outcome.out_of_retries else ""
        self._tell(attempt, "failed", kept + text, trace, logging.ERROR)
        if outcome.out_of_retries:
            self._steps.bury(attempt, Dead("out of retries", text, trace), outcome.error)
        else:
            self._steps.store_failure(attempt, outcome.error)

    def _retried(self, attempt: Attempt, outcome: Retried) -> None:
        delivery, message, task = attempt.delivery, attempt.message, attempt.task
        assert task is not None
        text = f"{error_text(outcome.error)}; again in {outcome.delay:.3g} s"
        self._tell(attempt, "retried", text, str(outcome.error.get("traceback", "")), logging.WARNING)
        self._steps.note(attempt, RETRYING, outcome.error)
        received = decode(delivery.data)  # the function may have changed its arguments
        message.args, message.kwargs = received.args, received.kwargs
        message.attempt = task.attempt + 1
        message.due_at = time.time() + outcome.delay if outcome.delay > 0 else None
        # Of a broadcast queue: for this worker's own copy alone, since the spec names its member.
        out = Outgoing(delivery.queue, encode(message), attributes(message), message.due_at, message.id)
        publish = partial(self.runtime.broker.publish, out, timeout=PUBLISH_TIMEOUT)
        self._steps.publish_next(attempt, publish, outcome.error)

    def _dead(self, attempt: Attempt, outcome: Dead) -> None:
        text = f"{outcome.reason}: {outcome.error}"
        self._tell(attempt, "dead", text, outcome.traceback, logging.ERROR)
        error = {"type": "psq.errors:TaskFailed", "message": text, "traceback": outcome.traceback}
        self._steps.bury(attempt, outcome, error)

    def _later(self, attempt: Attempt, seconds: float) -> None:
        delivery, message, runtime = attempt.delivery, attempt.message, self.runtime
        broker, storage, due = runtime.broker, runtime.storage, message.due_at
        if seconds <= HOLD_IN_MEMORY:
            gevent.spawn_later(max(0.0, seconds), self.again, delivery)
        elif (
            seconds > broker.max_park
            and due is not None
            and storage is not None
            and storage.can_schedule
            and not broker.schedules
            and not delivery.queue.broadcast
        ):
            self.counters.scheduled += 1
            key = f"{message.id}:{message.attempt}"
            item = Scheduled(key, due, self.name, delivery.data, dict(delivery.attributes))
            never = partial(self._unschedulable, attempt)
            self._steps.step(attempt, "move it to the schedule", partial(storage.schedule, item), never=never)
        else:
            self.counters.parked += 1
            runtime.held.park([delivery], min(seconds, broker.max_park))

    def _unschedulable(self, attempt: Attempt, error: Exception) -> bool:
        """What the storage refuses is parked again and again instead."""
        if isinstance(error, StorageRefused):
            self.counters.parked += 1
            self.runtime.held.park([attempt.delivery], self.runtime.broker.max_park)
            log.warning("a delayed task of queue %s stays with the broker: %s", self.name, error)
        return isinstance(error, StorageRefused)

    def _interrupted(self, attempt: Attempt, why: str = "the worker stops") -> None:
        if not attempt.early:
            if attempt.delivery.slot >= 0:  # else it was given back before it has ended
                self.runtime.held.give_back([attempt.delivery])
            detail = f"{why}: it runs again elsewhere, no attempt is used up"
        else:
            error = {"type": "psq.errors:TaskInterrupted", "message": "interrupted", "traceback": ""}
            self._steps.store_failure(attempt, error)
            detail = f"{why}: it was acked early and does not run again"
        self._tell(attempt, "interrupted", detail, "", logging.WARNING)

    def _tell(self, attempt: Attempt, outcome: str, detail: str, trace: str, level: int) -> None:
        self.counters.outcomes[outcome] += 1
        message = attempt.message
        self.runtime.task_log.ended(message, self.name, outcome, attempt.waited, attempt.ran, detail, trace, level)

    def _tell_strikes(self, message: Message) -> None:
        """So that a killer of workers can be found: its own lines may have died with them."""
        limit, count = self.runtime.max_strikes, len(message.strikes)
        log.warning(
            "task %s of queue %s (%s) starts again%s: its worker died %d time%s while it ran, last of %s%s",
            message.id,
            self.name,
            message.function,
            " in a process of its own" if self.apart else "",
            count,
            "s"[: count != 1],
            message.strikes[-1].get("signal"),
            f"; after {limit} it is a dead letter" if limit else "",
        )

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
