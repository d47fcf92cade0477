"""What may run now: decoded, due, and a function that the operator named."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict

from psq.brokers.base import Delivery
from psq.errors import ConfigError, FunctionRefused, MessageInvalid, MessageTooNew
from psq.functions import FunctionMissing, Resolved
from psq.message import Message, check_id, decode
from psqd.worker.outcome import Dead, Hold, Later, Outcome
from psqd.worker.runtime import Runtime

__all__ = ["Admission", "unreadable"]

#: Shortest and longest pause of a task whose function is not known yet, seconds.
HOLD_SHORTEST, HOLD_LONGEST = 1.0, 30.0
#: Tasks whose first sight is remembered; the oldest are forgotten first.
REMEMBERED = 10_000
#: Seconds between two log lines about the same unknown function.
QUIET = 10.0

log = logging.getLogger("psqd")


def unreadable(delivery: Delivery, queue: str, known_id: str = "") -> Message:
    """A stand-in for a message that can't be decoded, so that its dead letter has an id."""
    try:
        task_id = known_id or check_id(delivery.attributes.get("psq-id", ""))
    except ConfigError:
        task_id = "bad-" + hashlib.sha256(delivery.data).hexdigest()[:32]
    return Message(task_id, delivery.attributes.get("psq-function", ""), queue=queue, enqueued_at=0.0)


class Admission:
    """Decides about one queue's deliveries before they start. Runs on the hub, never blocks."""

    def __init__(self, queue: str, runtime: Runtime) -> None:
        self._queue, self._runtime = queue, runtime
        self._first_seen: OrderedDict[str, float] = OrderedDict()
        self._told: dict[str, float] = {}

    def read(self, delivery: Delivery) -> Message | tuple[Message, Outcome]:
        """The message, or a stand-in with the outcome of one that can't be read."""
        try:
            return decode(delivery.data)
        except MessageTooNew as error:
            message = unreadable(delivery, self._queue, error.task_id)
            return message, self._unknown(message, "too new", str(error))
        except MessageInvalid as error:
            return unreadable(delivery, self._queue), Dead("undecodable", f"MessageInvalid: {error}")

    def wait(self, message: Message) -> Outcome | None:
        """The outcome of a message that is early; None: it may run."""
        if message.due_at is not None and (left := message.due_at - time.time()) > 0:
            return Later(left)
        return None

    def function(self, message: Message) -> Resolved | Outcome:
        """The function to call, or the outcome of one that can't be called."""
        try:
            return self._runtime.allowed.resolve(message.function)
        except FunctionRefused as error:
            return Dead("not allowed", f"FunctionRefused: {error}")
        except FunctionMissing as error:
            return self._unknown(message, "not found", str(error))

    def _unknown(self, message: Message, reason: str, text: str) -> Outcome:
        """Web apps are often deployed before their workers: wait for the deploy, loudly."""
        grace, now = self._runtime.unknown_function_grace, time.monotonic()
        first = self._first_seen.setdefault(message.id, now)
        if len(self._first_seen) > REMEMBERED:
            self._first_seen.popitem(last=False)
        if now - first >= grace:
            self._first_seen.pop(message.id, None)
            return Dead(reason, text)
        if now - self._told.get(text, -QUIET) >= QUIET:
            self._told[text] = now
            if len(self._told) > REMEMBERED:
                del self._told[next(iter(self._told))]
            log.warning(
                "task %s of queue %s waits: %s; it is tried again until it has waited %.0f s, then it is a dead letter",
                message.id,
                self._queue,
                text,
                grace,
            )
        return Hold(min(HOLD_LONGEST, max(HOLD_SHORTEST, grace / 20)), text, unknown=True)
