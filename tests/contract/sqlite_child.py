"""A process of its own for the tests of several processes on one file; see `test_sqlite_processes`.

``python -m tests.contract.sqlite_child ROLE PATH …`` writes a line on stdout for each thing that happened.
"""

from __future__ import annotations

import sqlite3
import sys
import time

from psq.brokers.base import Delivery, Outgoing, QueueSpec
from psq.brokers.sqlite import SQLiteBroker
from psq.concurrency import Waiter
from psq.message import decode

QUEUE = QueueSpec("work", ack_deadline=60.0)


def say(*words: object) -> None:
    """A line, at once."""
    sys.stdout.write(" ".join(str(word) for word in words) + "\n")
    sys.stdout.flush()


def publisher(path: str, name: str) -> None:
    """Publishes as fast as it goes and says each number once it was accepted, until it is killed."""
    broker = SQLiteBroker(path)
    say("ready")
    sent = 0
    while True:
        publish_some(broker, [f"{name}-{number:06d}" for number in range(sent, sent + 40)])
        sent += 40


def publish_some(broker: SQLiteBroker, names: list[str]) -> None:
    """Publish a message for each name, and say which were accepted."""
    answered = Waiter()
    left = len(names)

    def done(name: str, error: Exception | None) -> None:
        nonlocal left
        if error is None:
            say("accepted", name)
        left -= 1
        if not left:
            answered.set()

    for name in names:
        broker.publish(Outgoing(QUEUE, name.encode()), lambda result, error, name=name: done(name, error))
    answered.wait()


def worker(path: str, seconds: str) -> None:
    """Claims and acks in turn with others for a time; says how many it had."""
    broker = SQLiteBroker(path)
    broker.declare(QUEUE)
    ended = 0

    def acked(result: object, error: Exception | None) -> None:
        nonlocal ended
        ended += 1
        if error is not None:
            say("error", error)

    def deliver(deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            broker.ack(delivery, acked)
        receiver.ask(5)

    receiver = broker.receiver(QUEUE, deliver)
    say("ready")
    sys.stdin.readline()
    receiver.start()
    receiver.ask(5)
    time.sleep(float(seconds))
    stopped = Waiter()
    receiver.stop(5.0, stopped.set)
    stopped.wait()
    broker.close()
    say("acked", ended)


def holder(path: str) -> None:
    """Claims everything, says so, and holds it until it is killed."""
    broker = SQLiteBroker(path)
    broker.declare(QUEUE)
    receiver = broker.receiver(QUEUE, lambda found: say("holds", *(decode(d.data).id for d in found)))
    receiver.start()
    receiver.ask(1000)
    time.sleep(600)


def locker(path: str, seconds: str) -> None:
    """Holds the lock for some seconds."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("BEGIN IMMEDIATE")
    say("ready")
    time.sleep(float(seconds))
    connection.execute("COMMIT")
    connection.close()
    say("released")


if __name__ == "__main__":
    {"publisher": publisher, "worker": worker, "holder": holder, "locker": locker}[sys.argv[1]](*sys.argv[2:])
