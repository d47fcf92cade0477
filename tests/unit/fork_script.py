"""Run by test_fork.py: enqueues and waits, forks in the middle of it, and does both again in the child."""

from __future__ import annotations

import sys

if sys.argv[2] == "patched":
    from gevent import monkey

    monkey.patch_all()

import contextlib
import os
import threading
import traceback
import warnings

import psq
from psq.storages.base import FINISHED, TaskRecord
from tests.unit.sample_tasks import adder

warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks is the point here


def wait_for(result: psq.TaskResult) -> None:
    """Wait in vain."""
    with contextlib.suppress(psq.ResultTimeout):
        result.result(timeout=2)


def main(path: str) -> int:
    """The exit code; what went wrong goes to stderr."""
    q = psq.Queue(psq.connect(f"sqlite://{path}"))
    waiting = q.enqueue(adder, 0)
    threading.Thread(target=wait_for, args=(waiting,), daemon=True).start()  # so that the poller runs
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            q.enqueue(adder, 1)

    threads = [threading.Thread(target=busy) for _ in range(4)]
    for thread in threads:
        thread.start()
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = in_child(q, number)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    stop.set()
    for thread in threads:
        thread.join(30)
    q.enqueue(adder, 2)
    print(codes)
    return 0 if codes == [0, 0, 0] else 1


def in_child(q: psq.Queue, number: int) -> int:
    """Enqueue, and wait for a result that this child writes itself."""
    result = q.options(task_id=f"child-{number}").enqueue(adder, 1)
    q.enqueue_many([(adder, (1,))] * 20)
    storage = q.storage
    assert storage is not None
    done = threading.Event()
    record = TaskRecord(result.id, FINISHED, result=b"1")
    timer = threading.Timer(0.1, lambda: storage.put(record, lambda _, error: done.set()))
    timer.daemon = True
    timer.start()
    return 0 if result.result(timeout=20) == 1 else 1


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(code)
