# ruff: noqa: E402  (gevent patches before anything else is imported)
"""Run by test_grpc_under_gevent.py in a process of its own, patched as the worker is: prints JSON."""

from gevent import monkey

monkey.patch_all()

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import gevent
from gevent.event import Event

from psq.brokers.base import Delivery, Outgoing, QueueSpec
from psq.brokers.pubsub import PubSubBroker
from psq.concurrency import Waiter
from psq.message import Message, attributes, encode


def threads() -> int:
    """Native threads of this process."""
    return len(os.listdir("/proc/self/task"))


def publish(broker: PubSubBroker, queue: QueueSpec, count: int = 1) -> None:
    waiters = []
    for number in range(count):
        task = Message(f"{queue.name}-{number}", "m:f", [], {})
        waiter = Waiter()
        broker.publish(
            Outgoing(queue, encode(task), attributes(task), None, task.id),
            lambda _, error, waiter=waiter: waiter.set(error),
            timeout=60.0,
        )
        waiters.append(waiter)
    for waiter in waiters:
        assert waiter.wait(60), "a publish was not answered"
        assert waiter.value is None, waiter.value


def acking(broker: PubSubBroker, count: int) -> tuple[Callable[[list[Delivery]], None], Event, list[Exception]]:
    done, errors, left = Event(), [], [count]

    def acked(_: object, error: Exception | None) -> None:
        if error is not None:
            errors.append(error)
        left[0] -= 1
        if left[0] == 0:
            done.set()

    def deliver(deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            broker.ack(delivery, acked)

    return deliver, done, errors


def many_polls(endpoint: str, project: str, count: int) -> dict[str, object]:
    """A long poll a queue; then a publish and an ack on each, beside a DNS look-up that needs the hub's threads."""
    broker = PubSubBroker(project, endpoint=endpoint, queues_hint=count)
    queues = [QueueSpec(f"q{number}") for number in range(count)]
    jobs = [gevent.spawn(broker.declare, queue) for queue in queues]
    gevent.joinall(jobs, raise_error=True)
    deliver, done, errors = acking(broker, count)
    receivers = [broker.receiver(queue, deliver) for queue in queues]
    for receiver in receivers:
        receiver.start()
        receiver.ask(10)
    gevent.sleep(1.0)
    polls = sum(receiver.requests for receiver in receivers)
    native = threads()
    began = time.monotonic()
    lookup = gevent.spawn(socket.getaddrinfo, "localhost", 80)
    jobs = [gevent.spawn(publish, broker, queue) for queue in queues]
    gevent.joinall(jobs, timeout=60, raise_error=True)
    served = done.wait(60)
    took = time.monotonic() - began
    lookup.get(timeout=10)
    stopped = [Event() for _ in receivers]
    for receiver, event in zip(receivers, stopped, strict=True):
        receiver.stop(0.5, event.set)
    ended = all(event.wait(10) for event in stopped)
    broker.close()
    return {
        "polls": polls,
        "threads": native,
        "served": served,
        "errors": [str(error) for error in errors],
        "seconds": took,
        "stopped": ended,
        "answered": all(receiver.answered_at for receiver in receivers),
    }


def subprocesses(endpoint: str, project: str, count: int) -> dict[str, object]:
    """Subprocesses beside busy gRPC calls: publishes, pulls and acks all the time."""
    broker = PubSubBroker(project, endpoint=endpoint)
    queue = QueueSpec("busy", ack_deadline=60.0)
    broker.declare(queue)
    deliver, _, errors = acking(broker, -1)
    receiver = broker.receiver(queue, deliver)
    receiver.start()
    busy = [True]

    def keep_busy() -> None:
        while busy[0]:
            publish(broker, queue, 20)
            receiver.ask(1000)

    load = [gevent.spawn(keep_busy) for _ in range(5)]
    codes: list[object] = []

    def child() -> None:
        for _ in range(count // 5):
            try:
                done = subprocess.run(
                    [sys.executable, "-c", "print('hi')"], capture_output=True, timeout=30, check=False
                )
                codes.append(done.returncode if done.stdout == b"hi\n" else done.stderr.decode())
            except subprocess.TimeoutExpired:
                codes.append("hung")

    children = [threading.Thread(target=child) for _ in range(5)]
    for one in children:
        one.start()
    for one in children:
        one.join()
    busy[0] = False
    gevent.joinall(load, raise_error=True)
    received = receiver.stats["messages"]
    receiver.stop(0, lambda: None)
    broker.close()
    return {"codes": codes, "received": received, "errors": [str(error) for error in errors]}


if __name__ == "__main__":
    job, endpoint, project, count = sys.argv[1:]
    result = {"many_polls": many_polls, "subprocesses": subprocesses}[job](endpoint, project, int(count))
    print(json.dumps(result), flush=True)
