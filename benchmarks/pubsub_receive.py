"""Receiving and acking as fast as it goes, one process under gevent: the ceiling of one daemon.

PUBSUB_EMULATOR_HOST=127.0.0.1:8085 python benchmarks/pubsub_receive.py [messages] [room]
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import os
import sys
import time
import uuid

from gevent.event import Event

from psq.brokers.base import Delivery, Outgoing, QueueSpec
from psq.brokers.pubsub import PubSubBroker
from psq.message import Message, attributes, encode

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
ROOM = int(sys.argv[2]) if len(sys.argv) > 2 else 1000


def main() -> None:
    broker = PubSubBroker(f"b-{uuid.uuid4().hex[:8]}")
    queue = QueueSpec("bench", ack_deadline=60.0)
    broker.declare(queue)
    published, done = [0], Event()

    def accepted(_: object, error: Exception | None) -> None:
        assert error is None, error
        published[0] += 1
        if published[0] == COUNT:
            done.set()

    for _ in range(COUNT):
        task = Message(uuid.uuid4().hex, "t:noop", [1], {})
        broker.publish(Outgoing(queue, encode(task), attributes(task), None, task.id), accepted, timeout=60.0)
    done.wait()

    done.clear()
    counts = {"held": 0, "acked": 0}

    def acked(_: object, error: Exception | None) -> None:
        assert error is None, error
        counts["held"] -= 1
        counts["acked"] += 1
        if counts["acked"] == COUNT:
            done.set()
        elif counts["held"] < ROOM // 2:
            receiver.ask(ROOM - counts["held"])

    def deliver(deliveries: list[Delivery]) -> None:
        counts["held"] += len(deliveries)
        for delivery in deliveries:
            broker.ack(delivery, acked)

    receiver = broker.receiver(queue, deliver)
    began, cpu = time.perf_counter(), time.process_time()
    receiver.start()
    receiver.ask(ROOM)
    done.wait()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    stats = receiver.stats
    print(
        f"pull and ack: {COUNT / took:,.0f}/s, CPU {cpu / COUNT * 1e6:.1f} us a message, "
        f"{stats['receives']} pulls ({stats['empty']} empty), {broker.stats()['acks']:.0f} acks",
        flush=True,
    )
    os._exit(0)


main()
