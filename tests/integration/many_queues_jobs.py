"""Tasks for a daemon of very many queues; where this is imported, topics are made faster than the quota allows."""

from __future__ import annotations

import time

from gevent.pool import Pool

import psq
from psq.brokers import pubsub_maker
from psq.brokers.base import Delivery, QueueSpec
from psq.concurrency import Waiter
from tests.integration.jobs import journal, noted

pubsub_maker.MAX_RATE = 500.0


def fans_out(prefix: str, count: int) -> None:
    """Enqueues a task on each of the queues; from in here, since the daemon knows already that they exist."""
    client = psq.current_queue.client

    def enqueue(number: int) -> None:
        name = f"{prefix}{number}"
        psq.Queue(client, name, storage=None).enqueue(noted, name)

    began = time.monotonic()
    Pool(50).map(enqueue, range(count))
    journal("sent", time.monotonic() - began)


def times_acks(count: int) -> None:
    """Sends acks, one after the other, as the end of a task does; leaves their times in the journal."""
    broker, queue = psq.current_queue.client.broker, QueueSpec(psq.current_queue.name)
    times = []
    for number in range(count):
        began = time.monotonic()
        waiter = Waiter()
        key = f"{broker.source(queue)}:{10**6 + number}"  # of nobody: Pub/Sub says yes to those, too
        broker.ack(Delivery(queue, key, b"", {}, began, began, None), lambda result, error, w=waiter: w.set(error))
        assert waiter.wait(30)
        assert waiter.value is None, waiter.value
        times.append(time.monotonic() - began)
        time.sleep(0.02)
    journal("acks", *(f"{seconds:.4f}" for seconds in times))
