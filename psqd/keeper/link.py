"""What keeper and worker share: a lease pipe, a control socket, and a memory with a byte for each lease.

The worker writes each lease that it takes and releases into the pipe, in
batches and in order; the keeper reads them in bulk. What has *started* is a
byte in shared memory: no system call for a task, and nothing lost when the
worker dies of a segfault. The control socket carries JSON lines both ways.

The worker's side works under gevent and never waits: what does not fit is
kept, and a native thread writes it as soon as it fits, whatever the hub does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import marshal
import mmap
import os
import select
import socket
import struct
import time
import weakref
from collections.abc import Callable, MutableMapping
from typing import Any

from psq.concurrency import native_thread, original
from psqd.keeper.outbox import Outbox
from psqd.keeper.words import Words

__all__ = [
    "ENDED",
    "FREE",
    "LINK_VARIABLE",
    "NO_MEMORY",
    "SLOTS",
    "STARTED",
    "KeeperEnd",
    "Lease",
    "LinkBroken",
    "WorkerEnd",
]

#: The environment variable that names the worker's descriptors: ``memory,leases,control``.
LINK_VARIABLE = "PSQD_LINK"
#: What the byte of a slot says: not running; its function was called; its function is over.
FREE, STARTED, ENDED = 0, 1, 2
#: Exit code of a worker that was out of memory in its own code (100 + ENOMEM).
NO_MEMORY = 112
#: Most leases that a worker can hold at once.
SLOTS = 1 << 20

#: (slot, lease key, lease until, document or None).
Lease = tuple[int, str, float, "bytes | None"]

_HEADER = 64  # the heartbeat, the last slot that started, and room to grow
_LENGTH = struct.Struct("<I")
_PIPE_BYTES = 1 << 20  # Linux gives an unprivileged process no more (fs.pipe-max-size)
_READ_BYTES = 1 << 20


class LinkBroken(Exception):
    """The other side wrote what is no frame of ours."""


class _Lines:
    """Cuts what is read from the control socket into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = [json.loads(line) for line in lines if line]
        return [message for message in messages if isinstance(message, dict)]


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class KeeperEnd:
    """The keeper's side of a link to one worker. Nothing here waits.

    Attributes:
        leases_fd: Readable when `read_leases` has something.
        control_fd: Readable when `read_control` has something.
    """

    def __init__(self) -> None:
        memory_fd = os.memfd_create("psqd", os.MFD_CLOEXEC)
        os.ftruncate(memory_fd, _HEADER + SLOTS)
        self._memory = mmap.mmap(memory_fd, _HEADER + SLOTS)
        self.leases_fd, leases = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # over the user's quota of pipe pages: a smaller one will do
            fcntl.fcntl(leases, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.control_fd, control = ours.detach(), theirs.detach()
        #: The worker's descriptors, to be passed on to it; `close_worker_side` closes ours.
        self.worker_fds = (memory_fd, leases, control)
        self._outbox = Outbox(self.control_fd)
        self._lines = _Lines()
        self._buffer = bytearray(_READ_BYTES)
        self._filled = 0  # of the buffer: the beginning of a frame that is not whole yet
        self._closed = False
        self._words = Words(self._memory)
        self._words.last[0] = -1
        self._words.beat[0] = time.monotonic()  # the worker's start is its first sign of life

    @property
    def environment(self) -> dict[str, str]:
        """What the worker needs in its environment."""
        return {LINK_VARIABLE: ",".join(map(str, self.worker_fds))}

    def close_worker_side(self) -> None:
        """The worker was started and has its own; without this we would never see it end. Idempotent."""
        fds, self.worker_fds = self.worker_fds, (-1, -1, -1)
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def heartbeat(self) -> float:
        """Monotonic instant of the worker's last heartbeat (before the first: of the link's making)."""
        return self._words.beat[0]

    def state(self, slot: int) -> int:
        """FREE, STARTED or ENDED. True to the last instruction of a worker that is dead."""
        return self._memory[_HEADER + slot]

    def last_started(self) -> int:
        """The slot that started last, -1 for none; it may have ended. Who dies at once is the last to start."""
        return self._words.last[0]

    def read_leases(self) -> tuple[list[tuple[Any, ...]], int, bool]:
        """Read what there is, up to a megabyte.

        Returns:
            The frames, ``("T", source, leases)`` and ``("R", slots)``; the bytes that were read; False at the end.

        Raises:
            LinkBroken: What came is no frame of ours.
        """
        buffer, start = self._buffer, self._filled
        if len(buffer) - start < _READ_BYTES // 2:  # a frame larger than the buffer
            buffer.extend(bytes(_READ_BYTES))
        with memoryview(buffer) as view:
            try:
                with view[start:] as room:
                    size = os.readv(self.leases_fd, [room])
            except BlockingIOError:
                return [], 0, True
            if not size:
                return [], 0, False
            frames, at = self._cut(view, start + size)
            rest = start + size - at
            if at and rest:
                view[:rest] = bytes(view[at : at + rest])
        self._filled = rest
        if not rest and len(buffer) > 4 * _READ_BYTES:
            self._buffer = bytearray(_READ_BYTES)
        return frames, size, True

    @staticmethod
    def _cut(view: memoryview, end: int) -> tuple[list[tuple[Any, ...]], int]:
        frames: list[tuple[Any, ...]] = []
        at = 0
        try:
            while end - at >= 4:
                length = _LENGTH.unpack_from(view, at)[0]
                if end - at - 4 < length:
                    break
                frames.append(marshal.loads(view[at + 4 : at + 4 + length]))
                at += 4 + length
        except (ValueError, EOFError, TypeError) as error:
            raise LinkBroken(f"the worker wrote a frame that can't be read: {error}") from error
        return frames, at

    def read_control(self) -> tuple[list[dict[str, Any]], bool]:
        """Read what there is.

        Returns:
            The messages; False when the worker closed its side.

        Raises:
            LinkBroken: What came is not JSON.
        """
        messages: list[dict[str, Any]] = []
        try:
            while True:
                data = os.read(self.control_fd, 1 << 16)
                if not data:
                    return messages, False
                messages += self._lines.feed(data)
        except BlockingIOError:
            return messages, True
        except ConnectionError:
            return messages, False
        except ValueError as error:
            raise LinkBroken(f"the worker sent a control message that can't be read: {error}") from error

    def send(self, message: dict[str, Any]) -> None:
        """Send a control message. Never waits; a worker that is gone is no error."""
        self._outbox.write(_line(message))

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._outbox.close()
        self.close_worker_side()
        os.close(self.leases_fd)
        os.close(self.control_fd)
        self._words.release()
        self._memory.close()


class WorkerEnd:
    """The worker's side of the link. Made by `from_environment`.

    All methods but `listen`'s callbacks are for the hub's thread and return at once.

    Attributes:
        memory: The shared memory.
        offset: Where in it the byte of slot 0 is.
    """

    def __init__(self, memory_fd: int, leases_fd: int, control_fd: int) -> None:
        self.memory = mmap.mmap(memory_fd, _HEADER + SLOTS)
        self._words = Words(self.memory)
        os.close(memory_fd)  # the mapping stays
        self.offset = _HEADER
        self._leases_fd, self._control_fd = leases_fd, control_fd
        self._leases, self._control = Outbox(leases_fd), Outbox(control_fd)
        self._free = self._leases.freed  # slots whose release was written
        self._next = 0
        self._closed = False
        self._listening = False
        end = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(end))

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> WorkerEnd | None:
        """The link that the keeper passed to this process, or None where there is no keeper.

        The variable is taken out of `environ` and the descriptors are not
        inherited by the tasks' own subprocesses.

        Raises:
            ValueError: The variable does not name three descriptors of ours.
        """
        value = environ.pop(LINK_VARIABLE, None)
        if value is None:
            return None
        try:
            memory_fd, leases_fd, control_fd = (int(part) for part in value.split(","))
            for fd in (memory_fd, leases_fd, control_fd):
                os.set_inheritable(fd, False)
        except (ValueError, OSError) as error:
            raise ValueError(f"{LINK_VARIABLE}={value!r} does not name three open descriptors: {error}") from None
        return cls(memory_fd, leases_fd, control_fd)

    def allocate(self) -> int:
        """A slot of its own for a lease; used again only after its release was written to the keeper.

        Raises:
            RuntimeError: More than SLOTS leases are held.
        """
        try:
            return self._free.pop()
        except IndexError:
            slot = self._next
            if slot >= SLOTS:
                raise RuntimeError(f"more than {SLOTS} leases are held") from None
            self._next = slot + 1
            return slot

    def take(self, source: str, leases: list[Lease]) -> None:
        """Tell the keeper of leases, in one frame.

        Args:
            source: `Broker.source` of the queue.
            leases: (slot, lease key, monotonic instant of its end, document for a strike or None) of each.
        """
        payload = marshal.dumps(("T", source, leases))
        self._leases.write(_LENGTH.pack(len(payload)) + payload)

    def release(self, slots: list[int]) -> None:
        """Tell the keeper, in one frame, that these are not held any more. Each slot once."""
        memory, offset = self.memory, self.offset
        for slot in slots:
            memory[offset + slot] = FREE
        payload = marshal.dumps(("R", slots))
        self._leases.write(_LENGTH.pack(len(payload)) + payload, slots)

    def mark_started(self, slot: int) -> None:
        """The function is about to be called: if this process dies now, that is a strike."""
        self.memory[self.offset + slot] = STARTED
        self._words.last[0] = slot

    def mark_ended(self, slot: int) -> None:
        """The function is over: if this process dies now, the lease is just given back."""
        self.memory[self.offset + slot] = ENDED

    def beat(self) -> None:
        """The hub turns."""
        self._words.beat[0] = time.monotonic()

    def send(self, message: dict[str, Any]) -> None:
        """Send a control message, in order. A keeper that is gone is no error here: see `listen`."""
        self._control.write(_line(message))

    def listen(self, on_message: Callable[[dict[str, Any]], None], on_end: Callable[[], None]) -> None:
        """Read control messages in a native thread.

        Both are called *in that thread*, also while the hub stands still: they
        must not log, nor touch what belongs to the hub, but hand over.

        Args:
            on_message: Called for each message.
            on_end: Called once, when the keeper is gone.

        Raises:
            RuntimeError: Called twice.
        """
        if self._listening:
            raise RuntimeError("the link has one listener already")
        self._listening = True
        fd, lines = self._control_fd, _Lines()
        poll = original("select", "poll")()
        poll.register(fd, select.POLLIN)

        def run() -> None:
            while True:
                poll.poll()
                if self._closed:  # the descriptor may be somebody else's by now
                    break
                try:
                    data = os.read(fd, 1 << 16)
                    messages = lines.feed(data)
                except BlockingIOError:
                    continue
                except (OSError, ValueError):
                    break
                if not data:
                    break
                for message in messages:
                    on_message(message)
            on_end()

        native_thread(run)

    def flush(self) -> None:
        """Write what did not fit, as far as it fits now. Not needed: a native thread does it too."""
        self._leases.flush()
        self._control.flush()

    def backlog(self) -> int:
        """Bytes that are not yet written to the lease pipe."""
        return self._leases.size

    def fileno_leases(self) -> int:
        """The lease pipe; writable when `flush` gets on."""
        return self._leases_fd

    def close(self) -> None:
        """Let go of everything; what is unwritten is lost. Idempotent."""
        if self._closed:
            return
        self._leases.close()
        self._control.close()
        self._let_go()

    def _let_go(self) -> None:
        self._closed = True
        os.close(self._leases_fd)
        os.close(self._control_fd)


def _forget(reference: weakref.ref[WorkerEnd]) -> None:
    """In a forked child: it must not speak for the worker, nor hold the pipe open when the worker dies."""
    end = reference()
    if end is not None and not end._closed:
        end._leases.abandon()
        end._control.abandon()
        end._let_go()
