"""What is written about messages: publish, claim, ack, give back, extend, strike."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from psq.brokers.base import Delivery, QueueSpec
from psq.errors import LeaseLost, MessageInvalid
from psq.group_commit import Done
from psq.message import add_strike
from psq.sqlite.opening import BROKER
from psq.sqlite.statements import insert, json_texts
from psq.sqlite.work import Careful, Outbox, Transaction, Work

__all__ = ["Ack", "Claim", "Claimed", "Extend", "GiveBack", "Publish", "Strike", "member_source"]

#: Most messages and bytes in one claim.
MAX_CLAIM, MAX_CLAIM_BYTES = 1000, 16 * 1024 * 1024
#: Larger messages are read one by one, so that no statement gives too much at once; bytes.
LARGE = 64 * 1024

_KEY = "seq || ':' || lease"
#: Rows of lease keys that we still hold: found by the number that a key begins with, told by the whole key. All
#: of it in SQLite, which needs no turn of the interpreter; twice the same parameter.
_HELD = f"""seq IN (SELECT CAST(value AS INTEGER) FROM json_each(:keys))
    AND {_KEY} IN (SELECT value FROM json_each(:keys))"""
_IS_HELD = f"{_KEY} = :key AND seq = CAST(:key AS INTEGER)"


def member_source(queue: str, member: str) -> str:
    """The source of a member's own copies."""
    return f"{queue}/{member}"


class Publish(Work):
    """A message; of a broadcast queue a copy for each member, or for the one that the spec names."""

    __slots__ = ("body", "broadcast", "due_at", "queue")
    order: ClassVar[int] = 20

    def __init__(
        self, queue: QueueSpec, body: bytes, due_at: float | None, done: Done, outbox: Outbox, timeout: float
    ) -> None:
        super().__init__(done, BROKER, outbox, timeout)
        own = queue.broadcast and queue.member
        self.queue = member_source(queue.name, queue.member) if own else queue.name
        self.broadcast, self.body, self.due_at = queue.broadcast and not own, body, due_at

    def weight(self) -> int:
        """Its document and what goes with it."""
        return len(self.body) + 100

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        """Insert all."""
        rows: list[tuple[str, float, bytes]] = []
        members: dict[str, list[str]] = {}
        for work in works:
            visible_at = tx.now if work.due_at is None or work.due_at < tx.now else work.due_at
            if not work.broadcast:
                sources = [work.queue]
            elif (known := members.get(work.queue)) is not None:
                sources = known
            else:
                found = tx.connection.execute("SELECT member FROM member WHERE queue = ?", (work.queue,)).fetchall()
                sources = members[work.queue] = [member_source(work.queue, row[0]) for row in found]
            for source in sources:
                rows.append((source, visible_at, work.body))
                tx.touch(source, visible_at)
        insert(tx.connection, "INSERT INTO message (queue, visible_at, body)", rows)


class Ack(Work):
    """The end of a delivery; LeaseLost where another worker has it, or had it."""

    __slots__ = ("key",)
    order: ClassVar[int] = 0

    def __init__(self, key: str, done: Done, outbox: Outbox) -> None:
        super().__init__(done, BROKER, outbox)
        self.key = key

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> Sequence[Any] | None:
        """Delete all that we still hold."""
        keys = [work.key for work in works]
        if tx.careful:
            delete = f"DELETE FROM message WHERE {_IS_HELD}"
            return [
                None
                if tx.connection.execute(delete, {"key": key}).rowcount
                else LeaseLost(f"the lease {key} was over: another worker may have the task")
                for key in keys
            ]
        if tx.connection.execute(f"DELETE FROM message WHERE {_HELD}", {"keys": json_texts(keys)}).rowcount != len(
            keys
        ):
            raise Careful
        return None


class _Held(Work):
    """Something done to leases of one source.

    Its result: the keys that were not ours any more.
    """

    __slots__ = ("keys", "source")

    def __init__(
        self, source: str, keys: Sequence[str], done: Done, outbox: Outbox | None, timeout: float | None
    ) -> None:
        super().__init__(done, BROKER, outbox, timeout)
        self.source, self.keys = source, keys

    def weight(self) -> int:
        """By the number of keys."""
        return 100 * len(self.keys)

    def update(self, tx: Transaction, visible_at: float) -> list[str]:
        """Move what we still hold; the keys that we don't."""
        held = {"keys": json_texts(self.keys), "visible_at": visible_at}
        update = f"UPDATE message SET visible_at = :visible_at WHERE {_HELD}"
        if tx.connection.execute(update, held).rowcount == len(self.keys):
            return []
        ours = {row[0] for row in tx.connection.execute(f"SELECT {_KEY} FROM message WHERE {_HELD}", held)}
        return [key for key in self.keys if key not in ours]


class GiveBack(_Held):
    """Leases that we don't want: they come again, at once and first, or after a pause."""

    __slots__ = ("pause",)
    order: ClassVar[int] = 10

    def __init__(
        self,
        source: str,
        keys: Sequence[str],
        pause: float,
        done: Done,
        outbox: Outbox | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(source, keys, done, outbox, timeout)
        self.pause = pause

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> Sequence[Any]:
        """Let others have them."""
        results = []
        for work in works:
            visible_at = tx.now + work.pause if work.pause > 0 else 0.0
            results.append(work.update(tx, visible_at))
            tx.touch(work.source, visible_at)
        return results


class Extend(_Held):
    """Leases that last longer."""

    __slots__ = ("seconds",)
    order: ClassVar[int] = 5
    durable: ClassVar[bool] = False

    def __init__(self, source: str, keys: Sequence[str], seconds: float, done: Done, timeout: float) -> None:
        super().__init__(source, keys, done, None, timeout)
        self.seconds = seconds

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> Sequence[Any]:
        """Keep them."""
        return [work.update(tx, tx.now + work.seconds) for work in works]


class Strike(_Held):
    """Started messages whose worker died: one more strike in the document, and back.

    In one transaction with the end of the old lease: the number of the lease
    grows, so that an ack of the old one does nothing.
    """

    __slots__ = ("record",)
    order: ClassVar[int] = 15

    def __init__(
        self, source: str, keys: Sequence[str], record: Mapping[str, Any], done: Done, timeout: float | None = None
    ) -> None:
        super().__init__(source, keys, done, None, timeout)
        self.record = record

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> Sequence[Any]:
        """Write the documents anew; the keys that could not be."""
        return [work._write(tx) for work in works]

    def _write(self, tx: Transaction) -> list[str]:
        left = []
        for key in self.keys:
            row = tx.connection.execute(f"SELECT seq, body FROM message WHERE {_IS_HELD}", {"key": key}).fetchone()
            if row is None:
                left.append(key)
                continue
            try:
                document = add_strike(row[1], **self.record)
            except MessageInvalid:  # it was never called, so it can't have killed anybody
                left.append(key)
                continue
            tx.connection.execute(
                "UPDATE message SET body = ?, visible_at = 0, lease = lease + 1 WHERE seq = ?", (document, row[0])
            )
        tx.touch(self.source, 0.0)
        return left


class Claimed:
    """What a claim brought.

    Attributes:
        deliveries: Leased to us.
        next_at: Unix time from which the queue may have more: 0.0 for now, infinity for "nothing is known".
    """

    __slots__ = ("deliveries", "next_at")

    def __init__(self, deliveries: list[Delivery], next_at: float) -> None:
        self.deliveries, self.next_at = deliveries, next_at


_SELECT = f"""
    SELECT group_concat(seq), group_concat(lease), group_concat(size),
           CAST(group_concat(CASE WHEN size <= {LARGE} THEN CAST(body AS TEXT) ELSE '' END, '') AS BLOB)
    FROM (SELECT seq, lease, length(body) AS size, body FROM message
          WHERE queue = ? AND visible_at <= ? ORDER BY visible_at, seq LIMIT ?)"""
_LEASE = "UPDATE message SET visible_at = ?, lease = lease + 1 WHERE seq IN (SELECT value FROM json_each(?))"
_NEXT = "SELECT min(visible_at) FROM message WHERE queue = ?"


class Claim(Work):
    """Leases of up to `count` messages of a source; `done` gets a `Claimed`.

    Attributes:
        cancelled: Its receiver has gone; what it brings after all must be given back.
    """

    __slots__ = ("cancelled", "count", "look", "queue", "source")
    order: ClassVar[int] = 90
    durable: ClassVar[bool] = False

    def __init__(self, queue: QueueSpec, source: str, count: int, look: bool, done: Done) -> None:
        super().__init__(done, BROKER)
        self.queue, self.source, self.count = queue, source, min(count, MAX_CLAIM)
        self.look = look  # it is not sure that there is anything: look before taking the lock
        self.cancelled = False

    def unlocked(self, connection: sqlite3.Connection) -> bool:
        """Nothing there: no lock is needed to know that."""
        if not self.look:
            return False
        next_at = _next_at(connection, self.source)
        self.result = Claimed([], next_at)
        return next_at > time.time()

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> Sequence[Any]:
        """Lease them."""
        return [work._write(tx) for work in works]

    def _write(self, tx: Transaction) -> Claimed:
        row = tx.connection.execute(_SELECT, (self.source, tx.now, self.count)).fetchone()
        if row[0] is None:
            return Claimed([], _next_at(tx.connection, self.source))
        seqs, leases, sizes, blob = row[0].split(","), row[1].split(","), list(map(int, row[2].split(","))), row[3]
        queue, asked_at, until = self.queue, tx.began, tx.began + self.queue.ack_deadline
        deliveries: list[Delivery] = []
        at = budget = 0
        for seq, lease, size in zip(seqs, leases, sizes, strict=True):
            budget += size
            if budget > MAX_CLAIM_BYTES and deliveries:
                break
            if size <= LARGE:
                body = blob[at : at + size]
                at += size
            else:
                body = tx.connection.execute("SELECT body FROM message WHERE seq = ?", (int(seq),)).fetchone()[0]
            key = f"{seq}:{int(lease) + 1}"
            deliveries.append(Delivery(queue, key, body, {}, asked_at, until, lease != "0"))
        count = len(deliveries)
        taken = row[0] if count == len(seqs) else ",".join(seqs[:count])
        tx.connection.execute(_LEASE, (tx.now + queue.ack_deadline, f"[{taken}]"))
        more = count < len(seqs) or count == self.count
        return Claimed(deliveries, 0.0 if more else _next_at(tx.connection, self.source))


def _next_at(connection: sqlite3.Connection, source: str) -> float:
    found = connection.execute(_NEXT, (source,)).fetchone()[0]
    return float("inf") if found is None else float(found)
