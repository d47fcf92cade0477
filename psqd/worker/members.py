"""The stable names of a machine's workers in broadcast queues: the lowest free number, by a file lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import socket
import tempfile

from psq.errors import ConfigError

__all__ = ["Members", "first_member", "host_label"]

#: Workers of one machine on one broadcast queue, at most.
MOST = 10_000


def host_label(host: str) -> str:
    """A machine's part of its workers' names."""
    return re.sub(r"[^a-z0-9-]", "-", host.partition(".")[0].lower()).strip("-") or "host"


def first_member(host: str, scope: str) -> str:
    """The name of a machine's first worker on a broadcast queue, or of the machine where that is what counts."""
    return host_label(host) if scope == "host" else f"{host_label(host)}-0"


class Members:
    """Hands out ``<host>-<n>`` for each broadcast queue, and keeps it until the process ends.

    The lock goes with the process, so that a restarted worker finds the name of the one
    before it, and with it what was sent meanwhile.

    Args:
        broker_url: Workers of different brokers don't share numbers.
        host: This machine's name; default: what the system says.
    """

    def __init__(self, broker_url: str, host: str | None = None) -> None:
        self.host = host_label(host or socket.gethostname())
        where = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        self._folder = os.path.join(where, f"psqd-{os.getuid()}")
        self._prefix = hashlib.sha256(broker_url.encode()).hexdigest()[:12]
        self._held: dict[str, tuple[str, int]] = {}

    def member(self, queue: str, scope: str) -> str:
        """This worker's name on a queue; the same one each time.

        Args:
            queue: The queue's name.
            scope: ``process``: a copy for each worker; ``host``: one for the machine.

        Raises:
            ConfigError: The locks' folder can't be used.
        """
        if scope == "host":
            return self.host
        if queue not in self._held:
            try:
                self._held[queue] = self._lock(queue)
            except OSError as error:
                raise ConfigError(
                    f"queues.{queue}: this worker can't get a number for its name, which it does with locks in "
                    f"{self._folder} (XDG_RUNTIME_DIR, else TMPDIR, says where that is): {error}"
                ) from error
        return self._held[queue][0]

    def _lock(self, queue: str) -> tuple[str, int]:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        if os.stat(self._folder).st_uid != os.getuid():  # in /tmp anybody may have been first
            raise PermissionError("it belongs to somebody else")
        for number in range(MOST):
            path = os.path.join(self._folder, f"{self._prefix}-{queue}-{number}.lock")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            return f"{self.host}-{number}", fd
        raise OSError(f"{MOST} workers of queue {queue} on one machine")
