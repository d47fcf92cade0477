"""A broker in one SQLite file: embedded, durable, for several processes of one machine."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from psq.brokers.base import Broker, DeadLetters, Delivery, Outgoing, QueueSpec, Receiver
from psq.brokers.sqlite_receiver import SQLiteReceiver
from psq.concurrency import Waiter
from psq.errors import ConfigError, MessageTooLarge
from psq.group_commit import Done
from psq.sqlite.database import Handle
from psq.sqlite.dead import FileDeadLetters
from psq.sqlite.location import check_path, check_synchronous, parse_url, url_of
from psq.sqlite.members import DaemonSeen, Register, Sweep
from psq.sqlite.messages import Ack, GiveBack, Publish, member_source
from psq.sqlite.opening import BROKER

__all__ = ["SQLiteBroker", "from_url"]

# What a Pub/Sub topic can be called, so that a program can move there.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~+%-]{0,199}")
#: Seconds between the signs of life of broadcast members.
MEMBER_BEAT = 600.0


def from_url(url: str) -> SQLiteBroker:
    """Make a broker from ``sqlite:///PATH[?synchronous=normal]``; without a path it is the default one.

    Raises:
        ConfigError: The URL is wrong.
    """
    path, synchronous = parse_url(url)
    return SQLiteBroker(path, synchronous=synchronous)


class SQLiteBroker(Broker):
    """Queues in one file. All processes that open it must run on one machine.

    Args:
        path: Absolute path; made with its folders where it is not there.
        synchronous: ``FULL``: what was accepted survives a power loss. ``NORMAL``: the last commits may
            be lost then, and only then.

    Raises:
        ConfigError: The path is relative, a folder, or on a network file system.
    """

    scheme: ClassVar[str] = "sqlite"
    schedules: ClassVar[bool] = True
    reports_lost_leases: ClassVar[bool] = True
    #: As Pub/Sub's, so that a program can move there.
    max_message_bytes: ClassVar[int] = 10_000_000
    #: A year: nothing here limits a pause.
    max_park = 366 * 86400.0

    def __init__(self, path: str, *, synchronous: str = "FULL") -> None:
        self.path, self._synchronous = check_path(path), check_synchronous(synchronous)
        self._handle = Handle(self.path, self._synchronous, self, BROKER)
        self._receivers: set[SQLiteReceiver] = set()
        self._members: set[tuple[str, str]] = set()
        self._members_at = 0.0
        self._seen = False

    @property
    def url(self) -> str:
        """As the seam says."""
        return url_of(self.path, self._synchronous)

    def check_queue_name(self, name: str) -> None:
        """As the seam says; the rules are those of Pub/Sub, so that a program can move there."""
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} can't be the name of a queue: 1 to 200 of A-Z, a-z, 0-9 and . _ ~ + % -, "
                "the first a letter or digit"
            )
        if name.endswith(("-dead", "-shared")):
            raise ConfigError(f"{name!r} can't be the name of a queue: what ends in -dead or -shared is psq's own")

    def publish(self, message: Outgoing, done: Done, *, timeout: float = 10.0) -> None:
        """As the seam says."""
        size = len(message.data) + sum(len(key) + len(value) for key, value in message.attributes.items())
        if size > self.max_message_bytes:
            text = f"the message has {size:,} bytes; at most {self.max_message_bytes:,} are possible"
            self._handle.fail(done, MessageTooLarge(text, size=size, limit=self.max_message_bytes))
            return
        handle = self._handle
        handle.add(Publish(message.queue, message.data, message.due_at, done, handle.outbox, timeout))

    def daemon_seen(self) -> float | None:
        """Unix time when a daemon last declared a queue of this file; None: never. Blocking.

        Raises:
            BrokerUnavailable, BrokerRefused: The file can't be read.
        """
        rows = self._handle.read("SELECT value FROM meta WHERE key = 'daemon_seen'")
        return float(rows[0][0]) if rows else None

    def declare(self, queue: QueueSpec) -> list[str]:
        """As the seam says: opens the file, and registers the member of a broadcast queue."""
        if queue.broadcast and queue.member:
            member = (queue.name, queue.member)
            self._handle.call(lambda done: Register([member], done))
            self._members.add(member)
        if not self._seen:
            self._handle.call(lambda done: DaemonSeen(done, BROKER))
            self._seen = True
        else:
            self._handle.open()
        return []

    def source(self, queue: QueueSpec) -> str:
        """As the seam says."""
        return member_source(queue.name, queue.member) if queue.broadcast else queue.name

    def receiver(self, queue: QueueSpec, deliver: Callable[[list[Delivery]], None]) -> Receiver:
        """As the seam says."""
        receiver = SQLiteReceiver(self._handle, queue, self.source(queue), deliver, self._receivers.discard)
        self._receivers.add(receiver)
        return receiver

    def ack(self, delivery: Delivery, done: Done) -> None:
        """As the seam says."""
        handle = self._handle
        handle.add(Ack(delivery.lease_key, done, handle.outbox))

    def nack(self, deliveries: Sequence[Delivery], done: Done) -> None:
        """As the seam says; those that are not ours any more are no error."""
        self.park(deliveries, 0.0, done)

    def park(self, deliveries: Sequence[Delivery], seconds: float, done: Done) -> None:
        """As the seam says; those that are not ours any more are no error."""
        handle = self._handle
        sources: dict[str, list[str]] = {}
        for delivery in deliveries:
            sources.setdefault(self.source(delivery.queue), []).append(delivery.lease_key)
        if not sources:
            handle.outbox.send([(done, None, None)])
            return
        ended = _Together(len(sources), done)
        for source, keys in sources.items():
            handle.add(GiveBack(source, keys, seconds, ended, handle.outbox))

    def dead_letters(self) -> DeadLetters:
        """As the seam says: in the same file."""
        return FileDeadLetters(self._handle)

    def lease_spec(self) -> dict[str, Any]:
        """As the seam says."""
        return {"kind": "sqlite", "path": self.path, "synchronous": self._synchronous}

    def tick(self) -> None:
        """As the seam says; also keeps broadcast members alive and sweeps those that are not."""
        if not self._handle.is_open:
            return
        self._handle.database.writer.kick()
        now = time.monotonic()
        if now - self._members_at > MEMBER_BEAT:
            self._members_at = now
            if self._members:
                self._handle.add(Register(sorted(self._members), _ignore))
            self._handle.add(Sweep(_ignore, BROKER))

    def stats(self) -> dict[str, float]:
        """Counters of this process's writer: commits, items, waits for the lock."""
        if not self._handle.is_open:
            return {}
        database = self._handle.database
        return {**database.writer.counters, "wakeups": float(database.wakeups)}

    def reset_after_fork(self) -> None:
        """As the seam says; called by itself after a fork."""
        self._handle.forget()
        self._receivers.clear()
        self._seen = False

    def close(self) -> None:
        """As the seam says."""
        receivers = list(self._receivers)
        waiters = [Waiter() for _ in receivers]
        for receiver, waiter in zip(receivers, waiters, strict=True):
            receiver.stop(0.0, waiter.set)
        for waiter in waiters:
            waiter.wait(1.0)
        self._handle.close()


class _Together:
    """Calls `done` once, after so many answers."""

    __slots__ = ("_done", "_error", "_left")

    def __init__(self, count: int, done: Done) -> None:
        self._left, self._done = count, done
        self._error: Exception | None = None

    def __call__(self, result: Any, error: Exception | None) -> None:
        self._left -= 1
        self._error = self._error or error
        if self._left == 0:
            self._done(None, self._error)


def _ignore(result: Any, error: Exception | None) -> None:
    """What failed here is tried again at the next beat."""
