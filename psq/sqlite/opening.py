"""Opening a psq file, and what SQLite's errors mean for our callers."""

from __future__ import annotations

import os
import sqlite3
from typing import NamedTuple
from urllib.parse import quote

from psq.errors import (
    BrokerRefused,
    BrokerUnavailable,
    PsqError,
    StorageRefused,
    StorageUnavailable,
)
from psq.sqlite.schema import NotOurs, prepare

__all__ = ["BROKER", "STORAGE", "Kinds", "connect", "inode", "is_locked", "is_transient", "reader", "translate"]

#: The first with RETURNING and JSON functions that we use.
OLDEST = (3, 38, 0)
#: Bytes to which the write-ahead log is cut after a checkpoint that emptied it.
WAL_LIMIT = 64 * 1024 * 1024

_TRANSIENT = frozenset((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR))
_HELP = {
    sqlite3.SQLITE_BUSY: "another process holds the lock",
    sqlite3.SQLITE_LOCKED: "another process holds the lock",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk reports an error",
    sqlite3.SQLITE_READONLY: "it, or its folder, is not writable for this user",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened: does the folder exist, and may this user write there?",
    sqlite3.SQLITE_CORRUPT: "it is damaged: move it away, and see `sqlite3 FILE .recover` for what is left in it",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database: name another file",
}


class Kinds(NamedTuple):
    """Which errors a caller of this seam gets."""

    unavailable: type[PsqError]
    refused: type[PsqError]


BROKER = Kinds(BrokerUnavailable, BrokerRefused)
STORAGE = Kinds(StorageUnavailable, StorageRefused)


def _code(error: BaseException) -> int:
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF  # without the extended part


def is_locked(error: BaseException) -> bool:
    """True when another connection holds the lock."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_transient(error: BaseException) -> bool:
    """True when the same may work a moment later."""
    return _code(error) in _TRANSIENT


def translate(error: BaseException, kinds: Kinds, path: str) -> PsqError:
    """The error that a caller of the seam can do something about."""
    if isinstance(error, PsqError):
        return error
    kind = kinds.unavailable if is_transient(error) else kinds.refused
    text = _HELP.get(_code(error), "")
    ours = kind(f"{path}: {text} ({error})" if text else f"{path}: {error}")
    if isinstance(ours, StorageRefused):
        ours.everything = bool(text)
    ours.__cause__ = error
    return ours


def connect(path: str, synchronous: str) -> sqlite3.Connection:
    """Open the file for writing, with our tables in it; makes file and folders where there are none.

    Raises:
        NotOurs: See `prepare`; or the folder can't be made.
        sqlite3.Error: See `translate`; where `is_locked`, try again.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        raise NotOurs(f"SQLite {sqlite3.sqlite_version} is too old; psq needs {'.'.join(map(str, OLDEST))}")
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    except OSError as error:
        raise NotOurs(f"its folder can't be made: {error}") from error
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        # FULL: a commit that was answered survives a power loss.
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise NotOurs(f"its file system allows no write-ahead log (journal mode {mode}): use a local disk")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
        connection.execute("PRAGMA cache_size = -16000")
        prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def reader(path: str) -> sqlite3.Connection:
    """Open a file that is ready, for reading alone.

    Raises:
        sqlite3.Error: It is not there, or not readable.
    """
    uri = f"file:{quote(path)}?mode=rw"  # rw: an empty file must not be made; a reader of a WAL writes its index
    connection = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def inode(path: str) -> tuple[int, int]:
    """Which file has this path now; (0, 0) for none."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)
