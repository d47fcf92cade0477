"""How fast the SQLite broker is: claim + ack drained, wake-up of an idle consumer, idle CPU of many queues.

Run it as ``python benchmarks/sqlite_broker.py drain|wake|idle``; a process patched by gevent, as psqd's worker is.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse
import os
import statistics
import sys
import tempfile
import time

import gevent
from gevent.event import Event

from psq.brokers.base import Delivery, Outgoing, QueueSpec
from psq.brokers.sqlite import SQLiteBroker
from psq.concurrency import Waiter
from psq.message import Message, encode


def document(number: int) -> bytes:
    return encode(Message(f"{number:032x}", "myapp.tasks:adder", [5, number], {}, "work", 1.8e9))


def daemon(path: str, synchronous: str) -> SQLiteBroker:
    broker = SQLiteBroker(path, synchronous=synchronous)
    broker.dispatch = gevent.get_hub().loop.run_callback_threadsafe
    return broker


def fill(broker: SQLiteBroker, queue: QueueSpec, count: int) -> float:
    left, done = count, Event()

    def answered(result: object, error: Exception | None) -> None:
        nonlocal left
        assert error is None
        left -= 1
        if not left:
            done.set()

    began = time.perf_counter()
    for number in range(count):
        broker.publish(Outgoing(queue, document(number)), answered, timeout=60)
        if number % 1000 == 999:
            gevent.sleep(0)
    done.wait()
    return count / (time.perf_counter() - began)


def drain(path: str, synchronous: str, count: int, batch: int, work: float) -> None:
    broker, queue = daemon(path, synchronous), QueueSpec("work", ack_deadline=60.0)
    broker.declare(queue)
    print(f"published {fill(broker, queue, count):,.0f}/s")
    left, done, running = count, Event(), 0
    seen: set[bytes] = set()

    def acked(result: object, error: Exception | None) -> None:
        nonlocal left
        assert error is None, error
        left -= 1
        if not left:
            done.set()

    def deliver(deliveries: list[Delivery]) -> None:
        nonlocal running
        running += len(deliveries)
        for delivery in deliveries:
            seen.add(delivery.data)
            if work:
                end = time.perf_counter() + work
                while time.perf_counter() < end:
                    pass
            broker.ack(delivery, acked)
            running -= 1
            receiver.ask(batch - running)

    receiver = broker.receiver(queue, deliver)
    receiver.start()
    began, cpu = time.perf_counter(), time.process_time()
    receiver.ask(batch)
    done.wait()
    took = time.perf_counter() - began
    assert len(seen) == count
    print(
        f"{synchronous} batch {batch}: claim + ack {count / took:,.0f}/s, "
        f"{(time.process_time() - cpu) / count * 1e6:.1f} us CPU each; {broker.stats()} {receiver.stats}"
    )
    broker.close()


def wake(path: str, synchronous: str, count: int) -> None:
    queue = QueueSpec("work", ack_deadline=60.0)
    child = os.fork()
    if child == 0:
        publisher = SQLiteBroker(path, synchronous=synchronous)
        time.sleep(1)
        for _ in range(count):
            time.sleep(0.01)
            waiter = Waiter()
            publisher.publish(Outgoing(queue, repr(time.monotonic()).encode()), lambda r, e, w=waiter: w.set())
            waiter.wait()
        publisher.close()
        os._exit(0)
    broker = daemon(path, synchronous)
    broker.declare(queue)
    times: list[float] = []
    done = Event()

    def deliver(deliveries: list[Delivery]) -> None:
        now = time.monotonic()
        for delivery in deliveries:
            times.append((now - float(delivery.data)) * 1000)
            broker.ack(delivery, lambda r, e: None)
        receiver.ask(100)
        if len(times) >= count:
            done.set()

    receiver = broker.receiver(queue, deliver)
    receiver.start()
    receiver.ask(100)
    done.wait()
    times.sort()
    print(
        f"{synchronous} wake-up of another process, {count}: p50 {statistics.median(times):.2f} ms, "
        f"p99 {times[int(len(times) * 0.99)]:.2f} ms, max {times[-1]:.2f} ms"
    )
    broker.close()
    os.waitpid(child, 0)


def idle(path: str, queues: int, seconds: float) -> None:
    broker = daemon(path, "FULL")
    began = time.perf_counter()
    for number in range(queues):
        queue = QueueSpec(f"queue-{number}")
        broker.declare(queue)
        receiver = broker.receiver(queue, lambda deliveries: None)
        receiver.start()
        receiver.ask(100)
    print(f"{queues} queues started in {time.perf_counter() - began:.2f} s")
    gevent.sleep(2)
    cpu = time.process_time()
    gevent.sleep(seconds)
    print(f"{queues} idle queues: {(time.process_time() - cpu) / seconds * 100:.2f} % CPU")
    other = os.fork()
    if other == 0:  # somebody else writes all the time
        busy = SQLiteBroker(path)
        end = time.monotonic() + seconds + 1
        while time.monotonic() < end:
            busy.publish(Outgoing(QueueSpec("elsewhere"), b"x"), lambda r, e: None)
            time.sleep(0.01)
        os._exit(0)
    gevent.sleep(0.5)
    cpu = time.process_time()
    gevent.sleep(seconds)
    print(f"{queues} idle queues beside a writer of 100/s: {(time.process_time() - cpu) / seconds * 100:.2f} % CPU")
    os.waitpid(other, 0)
    broker.close()


def keep_alive() -> None:
    """A hub that waits for native threads alone would end."""
    while True:
        gevent.sleep(60)


def main() -> None:
    gevent.spawn(keep_alive)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["drain", "wake", "idle"])
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--work", type=float, default=0.0, help="seconds of CPU a task")
    parser.add_argument("--switch", type=float, default=0.0, help="sys.setswitchinterval")
    parser.add_argument("--synchronous", default="FULL")
    args = parser.parse_args()
    if args.switch:
        sys.setswitchinterval(args.switch)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "psq.db")
        if args.what == "drain":
            drain(path, args.synchronous, args.count or 50_000, args.batch, args.work)
        elif args.what == "wake":
            wake(path, args.synchronous, args.count or 500)
        else:
            idle(path, args.count or 1000, 10.0)


if __name__ == "__main__":
    main()
