"""Waking other processes: a datagram to each of their sockets after a commit.

Each process that waits for messages has a socket in ``<file>-wake/``. Whoever
commits sends the names of the queues that have something, and when. A datagram
may be lost (a sender that is killed, a queue that is full): the watcher's look
at ``PRAGMA data_version`` is the net.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any

from psq.concurrency import original

__all__ = ["Bell", "Ringer", "wake_folder"]

#: Longest path of a unix socket on Linux and macOS, bytes.
_LONGEST = 100
#: Seconds for which the list of sockets is not looked at again.
FRESH = 0.2
#: Most bytes in a datagram; beyond, it says "look at everything".
MOST_BYTES = 16 * 1024

_POLLIN = 1

#: Source -> unix time from which something of it may be had.
Touched = dict[str, float]


def wake_folder(path: str) -> str:
    """The folder of the sockets of a file."""
    return f"{path}-wake"


def _socket() -> Any:
    import _socket  # gevent never patches this one

    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)


class _Folder:
    """A folder of sockets, with addresses that fit whatever its path is."""

    def __init__(self, path: str) -> None:
        self.path, self._fd = path, -1

    def address(self, name: str) -> str | None:
        """What a socket is bound to or sent to; None where there is no way."""
        direct = os.path.join(self.path, name)
        if len(os.fsencode(direct)) <= _LONGEST:
            return direct
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        through = f"/proc/self/fd/{self._fd}"
        return f"{through}/{name}" if os.path.exists(through) else None

    def close(self) -> None:
        """Let go of the folder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Bell:
    """This process's own socket, on which it is woken. Used by one native thread; `ring` by any.

    Where no socket can be bound it still works within the process.

    Args:
        path: Of the file.

    Attributes:
        name: Of the socket in the folder.
    """

    def __init__(self, path: str) -> None:
        import _socket

        self.name = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._path = path
        self._folder = _Folder(wake_folder(path))
        self._mine, self._other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        self._mine.setblocking(False)
        self._other.setblocking(False)
        self._bound: Any = None
        self._poll = original("select", "poll")()
        self._poll.register(self._mine.fileno(), _POLLIN)

    def bind(self) -> None:
        """Let other processes ring, once the file is there. Idempotent; where it can't be, they don't."""
        if self._bound is None:
            with contextlib.suppress(OSError):
                self._bind()

    def _bind(self) -> None:
        rights = os.stat(self._path).st_mode & 0o666
        if not os.path.isdir(self._folder.path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._folder.path)
                # whoever may write the file may wake, and be woken
                os.chmod(self._folder.path, 0o700 | rights | (rights & 0o222) >> 1)
        address = self._folder.address(self.name)
        if address is None:
            return
        bound = _socket()
        try:
            bound.bind(address)
            os.chmod(os.path.join(self._folder.path, self.name), 0o600 | rights)
        except OSError:
            bound.close()
            raise
        bound.setblocking(False)
        self._poll.register(bound.fileno(), _POLLIN)
        self._bound = bound

    def ring(self) -> None:
        """End the `wait` of this process. Never blocks."""
        with contextlib.suppress(OSError):  # full: it is awake already
            self._other.send(b"")

    def wait(self, seconds: float) -> Touched | None:
        """Wait to be woken.

        Args:
            seconds: At most.

        Returns:
            What others have committed: source -> unix time from which something is there; {} for nothing,
            None for "look at everything".
        """
        self._poll.poll(max(0.0, seconds) * 1000)
        touched: Touched = {}
        everything = False
        for one in (self._mine, self._bound):
            while one is not None:
                try:
                    data = one.recv(65536)
                except OSError:
                    break
                if data:
                    try:
                        news = json.loads(data)
                        for source, at in news.items():
                            touched[source] = min(float(at), touched.get(source, float("inf")))
                    except (ValueError, TypeError, AttributeError):
                        everything = True
        return None if everything else touched

    def close(self) -> None:
        """Close the sockets, and remove the one in the folder, unless it is a parent's (after a fork)."""
        for one in (self._mine, self._other, self._bound):
            if one is not None:
                one.close()
        if self._bound is not None and self.name.startswith(f"{os.getpid()}-"):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._folder.path, self.name))
        self._folder.close()


class Ringer:
    """Wakes the processes that wait. Used by one native thread.

    Args:
        path: Of the file.
    """

    def __init__(self, path: str) -> None:
        self._folder = _Folder(wake_folder(path))
        self._socket: Any = None
        self._looked_at = self._changed_at = 0.0
        self._names: list[str] = []
        self.own = ""
        self.sent = 0

    def ring(self, touched: Touched) -> None:
        """Tell the others what was committed. Never blocks, never raises."""
        try:
            self._ring(touched)
        except OSError:
            self._looked_at = 0.0

    def _ring(self, touched: Touched) -> None:
        names = self._listeners()
        if not names:
            return
        if self._socket is None:
            self._socket = _socket()
            self._socket.setblocking(False)
        data = json.dumps(touched).encode()
        if len(data) > MOST_BYTES:
            data = b"*"
        for name in names:
            if name == self.own:
                continue
            address = self._folder.address(name)
            if address is None:
                continue
            try:
                self._socket.sendto(data, address)
                self.sent += 1
            except (ConnectionRefusedError, FileNotFoundError):  # killed, or gone
                self._looked_at = 0.0
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self._folder.path, name))
            except OSError:  # full: it is awake, and looks at everything within a quarter of a second
                continue

    def _listeners(self) -> list[str]:
        now = time.monotonic()
        if now - self._looked_at > FRESH:
            self._looked_at = now
            try:
                changed_at = os.stat(self._folder.path).st_mtime
            except FileNotFoundError:
                changed_at, self._names = 0.0, []
            if changed_at != self._changed_at or not changed_at:
                self._names = os.listdir(self._folder.path) if changed_at else []
                # a clock of coarse grain: what changed just now may change again within the same tick
                self._changed_at = changed_at if time.time() - changed_at > 0.1 else -1.0
        return self._names

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._folder.close()
