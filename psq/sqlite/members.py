"""Who gets copies of broadcast messages: a row each, which ends a day after its worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from psq.group_commit import Done
from psq.sqlite.messages import member_source
from psq.sqlite.opening import BROKER
from psq.sqlite.work import Transaction, Work

__all__ = ["DaemonSeen", "Forget", "Register", "Sweep"]

#: Seconds after which the copies of a member without its worker end.
MEMBER_TTL = 86400.0


class Register(Work):
    """Members that are there: they get copies from now on."""

    __slots__ = ("members",)
    order = 18  # before what is published in the same transaction

    def __init__(self, members: Sequence[tuple[str, str]], done: Done) -> None:
        super().__init__(done, BROKER)
        self.members = members

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        """Write when they were seen."""
        for work in works:
            for queue, member in work.members:
                tx.connection.execute(
                    "INSERT OR REPLACE INTO member (queue, member, seen_at) VALUES (?, ?, ?)", (queue, member, tx.now)
                )


class Forget(Work):
    """A member that left for good, with the copies that nobody has."""

    __slots__ = ("member", "queue")
    order = 40

    def __init__(self, queue: str, member: str, done: Done) -> None:
        super().__init__(done, BROKER)
        self.queue, self.member = queue, member

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        """Delete them."""
        for work in works:
            _forget(tx, work.queue, work.member)


class Sweep(Work):
    """Members whose worker has not been seen for a day."""

    __slots__ = ()
    order = 41

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        """Delete them."""
        old = tx.connection.execute("SELECT queue, member FROM member WHERE seen_at < ?", (tx.now - MEMBER_TTL,))
        for queue, member in old.fetchall():
            _forget(tx, queue, member)


class DaemonSeen(Work):
    """A daemon has opened this file: whoever enqueues need not be warned any more."""

    __slots__ = ()
    order = 42

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        """Write when."""
        tx.connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('daemon_seen', ?)", (tx.now,))


def _forget(tx: Transaction, queue: str, member: str) -> None:
    tx.connection.execute("DELETE FROM member WHERE queue = ? AND member = ?", (queue, member))
    tx.connection.execute(
        "DELETE FROM message WHERE queue = ? AND (lease = 0 OR visible_at <= ?)", (member_source(queue, member), tx.now)
    )
