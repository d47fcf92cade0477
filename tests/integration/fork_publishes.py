"""Run by test_forks.py: greenlets publish while their patched process forks; then all that was published is pulled.

Argument: the broker's URL.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()
# ruff: noqa: E402

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter

import psq
from psq.brokers import pubsub_wire as wire
from psq.brokers.base import QueueSpec
from psq.brokers.pubsub import PubSubBroker

TASK = "tests.integration.jobs:noted"
CHILDREN, THREADS, EACH = 6, 4, 5

queue = psq.Queue(psq.connect(sys.argv[1]))
broker = queue.client.broker
assert isinstance(broker, PubSubBroker)
queue.options(task_id="first").enqueue(TASK)
accepted, stop, pid = ["first"], threading.Event(), os.getpid()


def publish(thread: int) -> None:
    number = 0
    while not stop.is_set():
        task_id = f"parent-{thread}-{number}"
        queue.options(task_id=task_id).enqueue(TASK)
        accepted.append(task_id)
        number += 1


threads = [threading.Thread(target=publish, args=(number,)) for number in range(THREADS)]
for thread in threads:
    thread.start()
children = []
for child in range(CHILDREN):
    time.sleep(0.01)  # the others run
    forked = os.fork()
    if forked == 0:
        code = 1
        try:
            faulthandler.dump_traceback_later(40, exit=True)
            for number in range(EACH):
                queue.options(task_id=f"child-{child}-{number}").enqueue(TASK)
            time.sleep(0.3)  # copies of the parent's greenlets have their chance
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    children.append(forked)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set()
for thread in threads:
    thread.join()
accepted += [f"child-{child}-{number}" for child in range(CHILDREN) for number in range(EACH)]

pulled: Counter[str] = Counter()
subscription = broker.source(QueueSpec("default")).partition(" ")[0]
empty = 0
while empty < 3:
    request = wire.PullRequest(subscription=subscription, max_messages=1000, return_immediately=True)
    answer = broker.channel.call(wire.PULL, request, 20.0)
    pulled.update(json.loads(message.message.data)["id"] for message in answer.received_messages)
    empty = 0 if answer.received_messages else empty + 1
    if answer.received_messages:
        ids = [message.ack_id for message in answer.received_messages]
        broker.channel.call(wire.ACKNOWLEDGE, wire.AcknowledgeRequest(subscription=subscription, ack_ids=ids), 20.0)
found = {"codes": codes, "lost": [task for task in accepted if not pulled[task]], "accepted": len(accepted)}
print(json.dumps(found | {"more than once": {task: n for task, n in pulled.items() if n > 1}}), flush=True)
os._exit(0)
