"""What the contract suites wait with: nothing here sleeps where an event can be awaited."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from psq.brokers.base import Broker, Delivery, Outgoing, QueueSpec, Receiver
from psq.concurrency import Waiter, original
from psq.errors import PsqError
from psq.message import Message, encode

#: Seconds that a test waits for an answer before it fails.
PATIENCE = 30.0


class Answer:
    """A `done` callback that can be waited for."""

    def __init__(self) -> None:
        self._waiter = Waiter()
        self.count = 0

    def __call__(self, result: Any, error: Exception | None = None) -> None:
        self.count += 1
        self._waiter.set((result, error))

    def get(self, timeout: float = PATIENCE) -> Any:
        """The result; raises the error, or AssertionError when none came in time."""
        assert self._waiter.wait(timeout), f"no answer within {timeout} s"
        result, error = self._waiter.value
        if error is not None:
            raise error
        return result

    def error(self, timeout: float = PATIENCE) -> Exception | None:
        """The error, or None."""
        try:
            self.get(timeout)
        except PsqError as error:
            return error
        return None


class Inbox:
    """A `deliver` callback that keeps what comes and can be waited for."""

    def __init__(self) -> None:
        self.all: list[Delivery] = []
        self._taken = 0
        self._waiter: Waiter | None = None
        self._lock = original("_thread", "allocate_lock")()

    def __call__(self, deliveries: list[Delivery]) -> None:
        with self._lock:
            self.all.extend(deliveries)
            waiter = self._waiter
        if waiter is not None:
            waiter.set()

    def take(self, count: int = 1, timeout: float = PATIENCE) -> list[Delivery]:
        """The next `count` deliveries; fewer when the time runs out."""
        deadline = time.monotonic() + timeout
        while True:
            waiter = Waiter()
            with self._lock:
                self._waiter = waiter
                there = len(self.all) - self._taken
            left = deadline - time.monotonic()
            if there >= count or left <= 0:
                break
            waiter.wait(left)
        with self._lock:
            taken = self.all[self._taken : self._taken + count]
            self._taken += len(taken)
        return taken

    def one(self, timeout: float = PATIENCE) -> Delivery:
        """The next delivery."""
        taken = self.take(1, timeout)
        assert taken, f"no delivery within {timeout} s"
        return taken[0]

    def nothing(self, seconds: float) -> bool:
        """True when nothing new came for so long."""
        return not self.take(1, seconds)


def outgoing(queue: QueueSpec, task_id: str = "t1", *args: Any, due_at: float | None = None) -> Outgoing:
    """A message of ours, ready to publish."""
    message = Message(task_id, "tests.tasks:adder", list(args), {}, queue.name, due_at=due_at)
    return Outgoing(queue, encode(message), {"psq-v": "1", "psq-id": task_id}, due_at, task_id)


def publish(broker: Broker, *messages: Outgoing) -> None:
    """Publish and wait until the broker has them all."""
    answers = [Answer() for _ in messages]
    for message, answer in zip(messages, answers, strict=True):
        broker.publish(message, answer)
    for answer in answers:
        answer.get()


def ack(broker: Broker, *deliveries: Delivery) -> None:
    """Ack and wait for the answers."""
    answers = [Answer() for _ in deliveries]
    for delivery, answer in zip(deliveries, answers, strict=True):
        broker.ack(delivery, answer)
    for answer in answers:
        answer.get()


def nack(broker: Broker, *deliveries: Delivery) -> None:
    """Nack and wait for the answer."""
    answer = Answer()
    broker.nack(deliveries, answer)
    answer.get()


def stop(receiver: Receiver, grace: float = 0.5) -> None:
    """Stop a receiver and wait until it has."""
    stopped = Waiter()
    receiver.stop(grace, stopped.set)
    assert stopped.wait(PATIENCE), "the receiver did not stop"


@contextlib.contextmanager
def receiving(broker: Broker, queue: QueueSpec, ask: int = 100) -> Iterator[tuple[Inbox, Receiver]]:
    """Declare the queue, receive from it, stop at the end."""
    broker.declare(queue)
    inbox = Inbox()
    receiver = broker.receiver(queue, inbox)
    receiver.start()
    receiver.ask(ask)
    try:
        yield inbox, receiver
    finally:
        stop(receiver)
