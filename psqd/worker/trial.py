"""The process for suspects: runs the tasks that the worker which started it gives to it, one or more at a time.

The worker sends ``{"number", "queue", "data", "redelivered", "keep"}``: the
number of the request, the queue's name, the document as received, what is
known of earlier deliveries, and whether the result is kept. The answer has the
number, and an outcome: ``{"kind": "finished",
"result"}``, ``{"kind": "failed", "error", "out_of_retries"}``, ``{"kind":
"retried", "delay", "error"}``; or ``{"unknown": why}``. All else that there is
of a task, its lease, its result and its ack, stays with the worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
from typing import TYPE_CHECKING, Any

import gevent
from gevent.lock import BoundedSemaphore

from psq.concurrency import native_thread, original
from psq.errors import FunctionRefused
from psq.functions import FunctionMissing
from psq.message import decode
from psq.result import error_document
from psq.serializers import dump_bytes, has_tags
from psqd.worker.invocation import Invocation
from psqd.worker.members import Members
from psqd.worker.outcome import Failed, Finished, Outcome, Retried
from psqd.worker.queues import QueueFactory
from psqd.worker.records import task_context
from psqd.worker.trial_process import ALIVE, BEAT, READY, Frames

if TYPE_CHECKING:
    from psqd.worker.daemon import Parts

__all__ = ["Trial", "alone", "outcome_of"]

#: Seconds for the orderly end of a process that is not needed any more.
LAST_GASP = 2.0
#: Of prctl(2): the signal that comes when the thread that started us, the worker's main thread, has ended.
PR_SET_PDEATHSIG = 1


def alone() -> None:
    """Be the first to be killed for memory, and in a group of our own: what a task kills with it is not the worker.

    Ends with the worker, also while C code keeps the interpreter and with it `Trial._watch`.
    """
    os.setpgid(0, 0)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")


class Trial:
    """Serves the worker at the other end of the link until that is closed.

    Args:
        parts: As the worker's own.
        link: Connected to the worker.
        worker: What tasks see as their worker, ``host:pid``.
    """

    def __init__(self, parts: Parts, link: socket.socket, worker: str) -> None:
        self._parts, self._link, self._worker = parts, link, worker
        self._queues = QueueFactory(parts.broker, parts.storage, Members(parts.broker.url), parts.queue)
        self._lock = BoundedSemaphore()  # a frame is sent whole
        self._invocations: dict[str, Invocation] = {}
        self._busy = 0
        # With a copy of it open somewhere, the worker would not see us die.
        link.set_inheritable(False)
        os.register_at_fork(after_in_child=link.close)

    def serve(self) -> None:
        """Returns when the worker does not need it any more."""
        native_thread(self._watch)
        gevent.spawn(self._beat).name = "psqd trial beat"
        frames = Frames()
        while data := self._receive():
            for request in frames.feed(data):
                self._busy += 1
                gevent.spawn(self._answer, request).name = f"psqd trial of {request['queue']}"

    def _receive(self) -> bytes:
        try:
            return self._link.recv(1 << 16)
        except OSError:
            return b""

    def _send(self, number: int, reply: dict[str, Any]) -> None:
        frame = Frames.frame({"number": number, **reply})
        with contextlib.suppress(OSError), self._lock:  # the worker is gone: `_watch` ends us
            self._link.sendall(frame)

    def _beat(self) -> None:
        self._send(READY, {})
        while True:
            gevent.sleep(BEAT)
            self._send(ALIVE, {})

    def _watch(self) -> None:
        """In a native thread: a worker that died has given the task to others."""
        poll = original("select", "poll")()
        poll.register(self._link.fileno(), select.POLLRDHUP)
        poll.poll()
        if not self._busy:
            original("time", "sleep")(LAST_GASP)
        os.killpg(0, signal.SIGKILL)

    def _answer(self, request: dict[str, Any]) -> None:
        try:
            reply = self._run(request)
        except BaseException as error:  # a bug of ours
            reply = {"unknown": f"{type(error).__name__}: {error}"}
        self._busy -= 1
        self._send(request["number"], reply)

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        name, data = request["queue"], request["data"]
        message = decode(data)
        settings = self._parts.config.queues.get(name)
        if settings is None:
            return {"unknown": f"the config has no queue {name}"}
        try:
            resolved = self._parts.allowed.resolve(message.function)
        except (FunctionRefused, FunctionMissing) as error:
            return {"unknown": str(error)}
        invocation = self._invocations.get(name)
        if invocation is None:
            invocation = self._invocations[name] = self._queues.invocation(name, settings, self._parts.allowed)
        retries = invocation.policy(message, resolved).retries
        task = task_context(message, name, retries, request["redelivered"], self._worker)
        outcome = invocation.run(message, task, resolved, has_tags(data))
        return reply_of(outcome, f"the result of {message.function}" if request["keep"] else "")


def reply_of(outcome: Outcome, what: str) -> dict[str, Any]:
    """An outcome as it is sent.

    Args:
        outcome: Finished, Failed or Retried.
        what: Names the result in an error; "": it is not kept.
    """
    match outcome:
        case Finished():
            try:
                return {"kind": "finished", "result": dump_bytes(outcome.value, what) if what else None}
            except Exception as error:  # also what a value's own methods raise
                return {"kind": "failed", "error": dict(error_document(error)), "out_of_retries": False}
        case Failed():
            return {"kind": "failed", "error": dict(outcome.error), "out_of_retries": outcome.out_of_retries}
        case Retried():
            return {"kind": "retried", "delay": outcome.delay, "error": dict(outcome.error)}
    return {"unknown": f"it ended as {type(outcome).__name__}"}


def outcome_of(reply: dict[str, Any]) -> Outcome:
    """What `reply_of` said."""
    match reply["kind"]:
        case "finished":
            return Finished(None, dumped=reply["result"])
        case "retried":
            return Retried(reply["delay"], reply["error"])
    return Failed(reply["error"], reply["out_of_retries"])
