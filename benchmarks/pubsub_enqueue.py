"""Publishing from many callers at once, each waiting for the broker's answer: group commit against a request each.

PUBSUB_EMULATOR_HOST=127.0.0.1:8085 python benchmarks/pubsub_enqueue.py threads|gevent [callers] [messages]
"""

from __future__ import annotations

import sys

KIND = sys.argv[1] if len(sys.argv) > 1 else "threads"
if KIND == "gevent":
    from gevent import monkey

    monkey.patch_all()

import os
import threading
import time
import uuid

from psq.brokers import pubsub_wire as wire
from psq.brokers.base import Outgoing, QueueSpec
from psq.brokers.pubsub import PubSubBroker
from psq.concurrency import Waiter
from psq.message import Message, attributes, encode

CALLERS = int(sys.argv[2]) if len(sys.argv) > 2 else 50
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 50_000


def run(name: str, one: object, count: int) -> None:
    times: list[float] = []

    def caller() -> None:
        for _ in range(count // CALLERS):
            began = time.perf_counter()
            one()  # type: ignore[operator]
            times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=caller) for _ in range(CALLERS)]
    began, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    times.sort()
    p50, p99 = times[len(times) // 2] * 1e3, times[int(len(times) * 0.99)] * 1e3
    print(
        f"{KIND:8} {name:16} {CALLERS} callers: {len(times) / took:9,.0f}/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms, "
        f"CPU {cpu / len(times) * 1e6:.0f} us a message",
        flush=True,
    )


def main() -> None:
    broker = PubSubBroker(f"b-{uuid.uuid4().hex[:8]}")
    queue = QueueSpec("bench")

    def message() -> Message:
        return Message(uuid.uuid4().hex, "t:noop", [1], {})

    def grouped() -> None:
        waiter = Waiter()
        task = message()
        out = Outgoing(queue, encode(task), attributes(task), None, task.id)
        broker.publish(out, lambda _, error: waiter.set(error))
        waiter.wait(30)
        assert waiter.value is None, waiter.value

    topic = f"projects/{broker.project}/topics/psq-bench"
    metadata = wire.routing("topic", topic)

    def single() -> None:
        task = message()
        request = wire.PublishRequest(
            topic=topic, messages=[wire.PubsubMessage(data=encode(task), attributes=attributes(task))]
        )
        broker.channel.call(wire.PUBLISH, request, 30.0, metadata=metadata)

    grouped()
    for _ in range(2):
        run("group commit", grouped, COUNT)
        requests = broker.stats()["publishes"]
        print(f"{'':8} {COUNT * (_ + 1) / requests:.1f} messages a request")
        run("a request each", single, COUNT // 10)
    sys.stdout.flush()
    os._exit(0)


main()
