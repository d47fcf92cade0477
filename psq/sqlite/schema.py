"""The tables of a psq file, and what is checked before one is used."""

from __future__ import annotations

import sqlite3

__all__ = ["APPLICATION_ID", "NotOurs", "VERSION", "is_ours", "prepare"]

#: ``PRAGMA application_id`` of a psq file: "psq1".
APPLICATION_ID = 0x70737131
#: ``PRAGMA user_version`` that this psq writes.
VERSION = 1

# AUTOINCREMENT: a number must never be used twice, or a late ack would delete another message.
# queue: the name; of a broadcast queue name/member, a row each.
# visible_at: unix time; when a message is due, or when its lease is over. 0: given back, at once and first.
# lease: grows with each claim: the fence. 0: was never handed out.
_TABLES = (
    """CREATE TABLE message (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        queue TEXT NOT NULL,
        visible_at REAL NOT NULL,
        lease INTEGER NOT NULL DEFAULT 0,
        body BLOB NOT NULL)""",
    "CREATE INDEX message_visible ON message (queue, visible_at)",
    """CREATE TABLE member (
        queue TEXT NOT NULL,
        member TEXT NOT NULL,
        seen_at REAL NOT NULL,
        PRIMARY KEY (queue, member)) WITHOUT ROWID""",
    # at: when it ended, else started, else was enqueued: what listings are sorted by.
    """CREATE TABLE task (
        id TEXT PRIMARY KEY,
        state TEXT NOT NULL,
        queue TEXT NOT NULL,
        function TEXT NOT NULL,
        at REAL NOT NULL,
        attempt INTEGER NOT NULL,
        run INTEGER NOT NULL,
        enqueued_at REAL NOT NULL,
        started_at REAL,
        finished_at REAL,
        result BLOB,
        error TEXT,
        worker TEXT NOT NULL,
        expires_at REAL)""",
    "CREATE INDEX task_at ON task (at)",
    "CREATE INDEX task_queue ON task (queue, at)",
    "CREATE INDEX task_function ON task (function, at)",
    # Nearly all are finished: an index of those would cost a write a task and find what task_at finds.
    "CREATE INDEX task_state ON task (state, at) WHERE state != 'finished'",
    "CREATE INDEX task_expires ON task (expires_at) WHERE expires_at IS NOT NULL",
    """CREATE TABLE dead (
        key TEXT PRIMARY KEY,
        id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        queue TEXT NOT NULL,
        function TEXT NOT NULL,
        reason TEXT NOT NULL,
        payload BLOB NOT NULL,
        error TEXT NOT NULL,
        traceback TEXT NOT NULL,
        enqueued_at REAL NOT NULL,
        died_at REAL NOT NULL,
        deaths TEXT NOT NULL)""",
    "CREATE INDEX dead_id ON dead (id)",
    "CREATE INDEX dead_at ON dead (died_at)",
    "CREATE INDEX dead_queue ON dead (queue, died_at)",
    """CREATE TABLE scheduled (
        key TEXT PRIMARY KEY,
        id TEXT NOT NULL,
        due_at REAL NOT NULL,
        queue TEXT NOT NULL,
        data BLOB NOT NULL,
        attributes TEXT NOT NULL)""",
    "CREATE INDEX scheduled_due ON scheduled (due_at)",
    """CREATE TABLE claim (
        key TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        until REAL NOT NULL) WITHOUT ROWID""",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
)


class NotOurs(Exception):
    """The file is a database, but not one that this psq may use; the text says which."""


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file; check those of another one.

    Raises:
        NotOurs: Somebody else's database, or one of a newer psq.
        sqlite3.Error: Locked, unreadable, no database.
    """
    if is_ours(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not is_ours(connection):  # another process may have been first
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def is_ours(connection: sqlite3.Connection) -> bool:
    """True for a psq file, False for an empty one.

    Raises:
        NotOurs: Neither.
        sqlite3.Error: Locked, unreadable, no database.
    """
    # The tables first: another process may make both at any moment, and at once.
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master LIMIT 5")]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if application == APPLICATION_ID:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            raise NotOurs(f"it has version {version} of psq's tables, and this psq reads {VERSION}: upgrade psq")
        return True
    if application or tables:
        raise NotOurs(f"it is another program's database (tables: {', '.join(tables) or 'none'}): name another file")
    return False
