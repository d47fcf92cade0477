"""The worker's side of a process for suspects: started at need, tasks given to it, and how it ended."""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import struct
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent import socket, subprocess
from gevent.event import AsyncResult

__all__ = ["ALIVE", "BEAT", "READY", "Frames", "TrialDied", "TrialFailed", "TrialInterrupted", "TrialProcess"]

#: Seconds that it may take to be ready: it imports what the worker has imported.
START_LIMIT = 60.0
#: Seconds between its signs of life.
BEAT = 1.0
#: The number of the frame that says that it is ready, and of those that say that it lives.
READY, ALIVE = 0, -1
#: What one that is to be killed has to write its stacks (SIGABRT, faulthandler), seconds.
ABORT_GRACE = 1.0
#: One that closed its link is killed; its end is waited for so long, seconds.
END_LIMIT = 5.0

_LENGTH = struct.Struct("<I")


class TrialFailed(Exception):
    """The process can't be started, or does not know the task's queue or function: nothing has begun."""


class TrialInterrupted(Exception):
    """We ended it: the task has neither ended nor killed anybody."""


class TrialDied(Exception):
    """The process in which a task ran has died.

    Attributes:
        code: Its exit code, or minus the signal.
        alone: It had run nothing but this task: no other task of its own can have killed it.
        memory: It was SIGKILL, and the kernel has ended processes for their memory meanwhile: it begins with
            this one, whoever has taken the memory.
    """

    def __init__(self, code: int, *, alone: bool, memory: bool = False) -> None:
        super().__init__(code)
        self.code, self.alone, self.memory = code, alone, memory


class Frames:
    """Cuts what is read from the link into what was written; both sides are ours, so it is marshal."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @staticmethod
    def frame(value: Any) -> bytes:
        """What to write."""
        payload = marshal.dumps(value)
        return _LENGTH.pack(len(payload)) + payload

    def feed(self, data: bytes) -> Iterator[Any]:
        """What is whole by now."""
        rest = self._rest
        rest += data
        while len(rest) >= 4:
            end = 4 + _LENGTH.unpack_from(rest)[0]
            if len(rest) < end:
                return
            value = marshal.loads(rest[4:end])
            del rest[:end]
            yield value


@dataclass(slots=True, eq=False)
class _Session:
    """One process, from its start to its end."""

    process: subprocess.Popen[bytes]
    link: socket.socket
    pending: dict[int, AsyncResult[Mapping[str, Any]]] = field(default_factory=dict)
    given: int = 0  # tasks
    stale: bool = False  # it has read another config
    ended_for_memory: int = 0  # processes of this machine, before the last task was given
    why: str = ""  # we ended it

    def expect(self, number: int) -> AsyncResult[Mapping[str, Any]]:
        """What is set when the frame of this number comes, or the process dies."""
        answer = self.pending[number] = AsyncResult()
        return answer


class TrialProcess:
    """Runs tasks in a process of its own. Everything runs on the hub.

    Args:
        argv: The worker's own arguments: the process reads the same config, and imports the same modules.
        tell: Called with its process id, and True when it starts and False when it has ended: the keeper ends it, too.
        stall_limit: Seconds without a sign of life after which it is ended.
    """

    def __init__(
        self, argv: Sequence[str], tell: Callable[[int, bool], None], stall_limit: Callable[[], float]
    ) -> None:
        self._argv, self._tell, self._stall_limit = argv, tell, stall_limit
        self._session: _Session | None = None
        self._folder = _folder()  # a task may change ours, and the arguments may name files from here
        me = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(me))

    def start(self, *, fresh: bool = False) -> None:
        """Start it, unless it runs. Blocks until it is ready. For one greenlet at a time.

        Args:
            fresh: Also when it runs, but has run a task already.

        Raises:
            TrialFailed: It can't be started; its own lines say why.
            TrialInterrupted: `interrupt` was called meanwhile.
        """
        session = self._session
        if session is not None and session.process.poll() is None:
            outdated = session.stale and not session.pending
            if not outdated and not (fresh and session.given):
                return
        self.stop()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "psqd.worker", *self._argv, "--trial", str(theirs.fileno())]
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), cwd=self._folder)
        except OSError as error:
            ours.close()
            raise TrialFailed(str(error)) from error
        finally:
            theirs.close()
        session = self._session = _Session(process, ours)
        self._tell(process.pid, True)
        ready = session.expect(READY)
        gevent.spawn(self._listen, session).name = "psqd trial link"
        try:
            ready.get()
        except TrialDied as died:
            raise TrialFailed(f"it ended with {died.code} before it was ready") from None

    def run(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run a task in it; `start` came before. Blocks until the task has ended, in whichever way.

        Args:
            request: See `psqd.worker.trial`.

        Returns:
            Its outcome.

        Raises:
            TrialDied: The process died while it ran.
            TrialInterrupted: We ended it: `interrupt`, or it gave no sign of life.
            TrialFailed: It does not know what to run.
        """
        session = self._session
        if session is None:
            raise TrialInterrupted("its process has just ended")
        session.given += 1
        session.ended_for_memory = ended_for_memory()
        number = session.given
        answer = session.expect(number)
        with contextlib.suppress(OSError):  # it has just died; `_listen` says so, too
            session.link.sendall(Frames.frame({**request, "number": number}))
        reply = answer.get()
        assert reply is not None
        if "unknown" in reply:
            raise TrialFailed(reply["unknown"])
        return reply

    def _listen(self, session: _Session) -> None:
        frames, deadline = Frames(), time.monotonic() + START_LIMIT
        session.link.settimeout(BEAT)
        while True:
            try:
                data = session.link.recv(1 << 16)
            except TimeoutError:
                if session.process.poll() is None and time.monotonic() < deadline:
                    continue
                if session.process.poll() is None:
                    session.why = session.why or "it gave no sign of life for too long (hub_stall_limit)"
                    _abort(session.process)
                break
            except OSError:
                break
            if not data:
                break
            deadline = time.monotonic() + self._stall_limit()
            for reply in frames.feed(data):
                answer = session.pending.pop(reply["number"], None)  # None: a sign of life
                if answer is not None:
                    answer.set(reply)
        self._ended(session)

    def _ended(self, session: _Session) -> None:
        process, pending = session.process, session.pending
        alone = len(pending) == 1 and session.given == 1
        _kill(process)  # what its tasks have started ends with it
        try:
            code = process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        memory = code == -signal.SIGKILL and ended_for_memory() != session.ended_for_memory
        if self._session is session:
            self.stop()
        for answer in list(pending.values()):
            died = TrialDied(code, alone=alone, memory=memory)
            answer.set_exception(TrialInterrupted(session.why) if session.why else died)
        pending.clear()

    def dump(self) -> None:
        """Have it write the stacks of its threads to stderr; it goes on."""
        session = self._session
        if session is not None and READY not in session.pending:  # else its handler may not be there yet
            session.process.send_signal(signal.SIGUSR2)

    def interrupt(self, why: str) -> None:
        """End it, and the tasks that run in it, now. Idempotent."""
        if self._session is not None:
            self._session.why = self._session.why or why
            _kill(self._session.process)

    def renew(self) -> None:
        """The config is another one: the next `start` replaces it, unless something runs in it."""
        if self._session is not None:
            self._session.stale = True

    def stop(self) -> None:
        """It is not needed any more. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            session.link.close()
            self._tell(session.process.pid, False)


def ended_for_memory() -> int:
    """How many processes the kernel has ended for their memory since it runs; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/vmstat", encoding="ascii") as file:
            for line in file:
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def _abort(process: subprocess.Popen[bytes]) -> None:
    """Have it write its stacks before it is killed."""
    process.send_signal(signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(ABORT_GRACE)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # before it has a group of its own
    elif _has_left_some(process.pid):  # it was reaped before we saw the end of its link
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _has_left_some(group: int) -> bool:
    """Whether this process group has members in our session: else its id may be somebody else's by now."""
    ours = [str(group), str(os.getsid(0))]
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    _, _, rest = file.read().decode("latin-1").rpartition(")")
                if rest.split()[2:4] == ours:  # state, parent, group, session
                    return True
    return False


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _forget(reference: weakref.ref[TrialProcess]) -> None:
    """In a forked child: it must not hold the link open when the worker dies."""
    mine = reference()
    if mine is not None and mine._session is not None:
        with contextlib.suppress(OSError):
            os.close(mine._session.link.detach())
        mine._session = None
