"""A web app that enqueues, for WSGI and for ASGI servers; run by test_web_apps.py.

``POST /NAME/COUNT`` enqueues so many tasks, one call each, with the ids NAME-0, NAME-1 …; the answer is the pid.
Where TEST_BEFORE_FORK names a file, threads of the process that imported this module enqueue all the time, and
write the ids that were accepted to it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import psq
from psq.concurrency import start_thread

TASK = "tests.integration.jobs:noted"
#: Threads that enqueue before, and while, workers are forked.
THREADS = 3

# as in README: one queue of the module, for every worker that is forked
queue = psq.Queue(psq.connect(os.environ["TEST_BROKER"], storage="none"), os.environ["TEST_QUEUE"])


def enqueue(path: str) -> bytes:
    """Do what a path says."""
    _, name, count = path.split("/")
    for number in range(int(count)):
        queue.options(task_id=f"{name}-{number}").enqueue(TASK)
    return str(os.getpid()).encode()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """For gunicorn."""
    try:
        status, body = "200 OK", enqueue(environ["PATH_INFO"])
    except Exception:
        status, body = "500 Error", traceback.format_exc().encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
    """For uvicorn: endpoints that block run in threads, as in Starlette and FastAPI."""
    if scope["type"] != "http":
        return
    try:
        status, body = 200, await asyncio.to_thread(enqueue, scope["path"])
    except Exception:
        status, body = 500, traceback.format_exc().encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


def before_fork(path: str) -> None:
    """Enqueue for ever in threads; return when the first task was accepted."""
    first, pid = threading.Event(), os.getpid()

    def work(thread: int) -> None:
        number = 0
        while os.getpid() == pid:  # gevent: a fork copies greenlets
            task_id = f"master{pid}-{thread}-{number}"
            try:
                queue.options(task_id=task_id).enqueue(TASK)
            except Exception:
                task_id = f"error {traceback.format_exc()!r}"
            if os.getpid() != pid:
                return
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(fd, f"{task_id}\n".encode())
            os.close(fd)
            first.set()
            number += 1
            time.sleep(0.01)  # the workers are what is tested

    for thread in range(THREADS):
        start_thread(partial(work, thread), f"before fork {thread}")
    assert first.wait(30)


if os.environ.get("TEST_BEFORE_FORK"):
    before_fork(os.environ["TEST_BEFORE_FORK"])
