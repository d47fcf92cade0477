"""The worker's side of the process for suspects: started at need, one task at a time, and how it ended."""

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
from typing import Any

from gevent import socket, subprocess

__all__ = ["Frames", "TrialDied", "TrialFailed", "TrialInterrupted", "TrialProcess"]

#: Seconds that it may take to be ready: it imports what the worker has imported.
START_LIMIT = 60.0
#: Seconds between its signs of life.
BEAT = 1.0
#: One that closed its link is killed; its end is waited for so long, seconds.
END_LIMIT = 5.0

_LENGTH = struct.Struct("<I")


class TrialFailed(Exception):
    """The process can't be started, or does not know the task's queue or function: nothing has begun."""


class TrialInterrupted(Exception):
    """We ended it: the task has neither ended nor killed anybody."""


class TrialDied(Exception):
    """The task killed the process that it ran in alone.

    Attributes:
        code: The exit code of the process, or minus the signal.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


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


class TrialProcess:
    """Runs one task at a time in a process of its own. Its methods belong to one greenlet, but `interrupt`.

    Args:
        argv: The worker's own arguments: the process reads the same config, and imports the same modules.
        tell: Called with its process id when it starts and 0 when it has ended, so that the keeper can end it.
        stall_limit: Seconds without a sign of life after which it is ended.
    """

    def __init__(self, argv: Sequence[str], tell: Callable[[int], None], stall_limit: Callable[[], float]) -> None:
        self._argv, self._tell, self._stall_limit = argv, tell, stall_limit
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._frames = Frames()
        self._read: Iterator[Any] = iter(())
        self._why = ""  # we ended it
        me = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(me))

    def start(self) -> None:
        """Start it, unless it runs. Blocks until it is ready.

        Raises:
            TrialFailed: It can't be started; its own lines say why.
            TrialInterrupted: `interrupt` was called meanwhile.
        """
        if self._process is not None:
            if self._process.poll() is None:
                return
            self.stop()
        self._why = ""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "psqd.worker", *self._argv, "--trial", str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),))
        except OSError as error:
            ours.close()
            raise TrialFailed(str(error)) from error
        finally:
            theirs.close()
        self._link, self._frames, self._read = ours, Frames(), iter(())
        self._tell(self._process.pid)
        try:
            self._receive(START_LIMIT)
        except TrialDied as died:
            raise TrialFailed(f"it ended with {died.code} before it was ready") from None

    def run(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run a task in it; `start` came before. Blocks until the task has ended, in whichever way.

        Args:
            request: See `psqd.worker.trial`.

        Returns:
            Its outcome.

        Raises:
            TrialDied: The process died of it.
            TrialInterrupted: We ended it: `interrupt`, or it gave no sign of life.
            TrialFailed: It does not know what to run.
        """
        assert self._link is not None
        with contextlib.suppress(OSError):  # it has just died; reading says so, too
            self._link.sendall(Frames.frame(dict(request)))
        while True:
            reply: Mapping[str, Any] = self._receive(self._stall_limit())
            if "unknown" in reply:
                raise TrialFailed(reply["unknown"])
            if "kind" in reply:
                return reply

    def _receive(self, patience: float) -> Any:
        """The next frame; what is no frame is the end of the process."""
        link, deadline = self._link, time.monotonic() + patience
        assert link is not None
        link.settimeout(BEAT)
        while True:
            for value in self._read:
                return value
            try:
                data = link.recv(1 << 16)
            except TimeoutError:
                process = self._process
                if process is not None and process.poll() is None and time.monotonic() < deadline:
                    continue
                self._why = self._why or ("" if time.monotonic() < deadline else f"no sign of life for {patience:g} s")
                data = b""
            except OSError:
                data = b""
            if not data:
                self._ended()
            self._read = self._frames.feed(data)

    def _ended(self) -> None:
        process = self._process
        assert process is not None
        self._kill()  # what its task has started ends with it
        try:
            code = process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        why = self._why
        self.stop()
        if why:
            raise TrialInterrupted(why)
        raise TrialDied(code)

    def interrupt(self, why: str) -> None:
        """End it, and the task that runs in it, now. From any greenlet; idempotent."""
        if self._process is not None:
            self._why = self._why or why
            self._kill()

    def stop(self) -> None:
        """It is not needed any more. Idempotent."""
        process, self._process = self._process, None
        link, self._link = self._link, None
        if link is not None:
            link.close()
        if process is not None:
            self._tell(0)

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # before it has a group of its own


def _forget(reference: weakref.ref[TrialProcess]) -> None:
    """In a forked child: it must not hold the link open when the worker dies."""
    mine = reference()
    if mine is not None and mine._link is not None:
        with contextlib.suppress(OSError):
            os.close(mine._link.detach())
        mine._link = mine._process = None
