"""A psq file as this process has it open: one writer, some readers, one watcher, for all who use it."""

from __future__ import annotations

import atexit
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, Self
from weakref import WeakSet

from psq.concurrency import Waiter, original
from psq.fork import around_fork
from psq.group_commit import Done
from psq.sqlite.opening import Kinds
from psq.sqlite.reading import Reader
from psq.sqlite.wakeup import Ringer, Touched
from psq.sqlite.watch import Watch
from psq.sqlite.work import Outbox, Transaction, Work
from psq.sqlite.writer import Writer

__all__ = ["Database", "Handle", "Open"]

#: Seconds that `close` waits for what is not written yet, and the end of the process does.
CLOSE_TIMEOUT, EXIT_TIMEOUT = 10.0, 2.0
#: Seconds that a call waits for the lock, where its caller names no other time.
CALL_TIMEOUT = 15.0


class Open(Work):
    """Writes nothing: it is done once the file is open, and everything before it is written."""

    __slots__ = ()
    order = 100

    def unlocked(self, connection: sqlite3.Connection) -> bool:
        """The file is open by now."""
        return True

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        """Nothing."""


class Database:
    """Shared by all brokers and storages of this process on one file; see `Handle`.

    Args:
        path: Absolute, without links.
        synchronous: ``FULL`` or ``NORMAL``.
    """

    def __init__(self, path: str, synchronous: str) -> None:
        self.path = path
        self.users = 0
        self.writer = Writer(path, synchronous, self._committed)
        self._ringer = Ringer(path)
        self._watch: Watch | None = None
        self._lock: Any = original("_thread", "allocate_lock")()
        self.reader = Reader(path, self._ready)
        self._closed = False
        self._paused: list[Writer | Reader | Watch] = []

    def watch(self) -> Watch:
        """The watcher; its thread starts when it is first asked for."""
        with self._lock:
            if self._watch is None:
                self._watch = Watch(self.path)
                self._ringer.own = self._watch.bell.name
            return self._watch

    def _committed(self, touched: Touched) -> None:
        watch = self._watch
        if watch is not None:
            watch.touched(touched)
        self._ringer.ring(touched)

    def _ready(self, kinds: Kinds) -> None:
        self.writer.call(lambda done: Open(done, kinds, timeout=CALL_TIMEOUT))

    def close(self, timeout: float) -> None:
        """Write what waits and end both threads. Idempotent."""
        if self._closed:
            return
        self._closed = True
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        self.writer.close(timeout)
        with self.reader.gate:
            self.reader.close_file()
        self._ringer.close()

    @property
    def wakeups(self) -> int:
        """Datagrams sent to other processes."""
        return self._ringer.sent

    def _users(self) -> list[Writer | Reader | Watch]:
        return [self.writer, self.reader, *([self._watch] if self._watch is not None else [])]

    def pause(self) -> None:
        """Before a fork: nobody is inside SQLite, and no connection is open."""
        self._paused = self._users()
        for user in self._paused:
            user.gate.acquire()
            user.close_file()

    def resume(self) -> None:
        """After a fork, in the parent: each opens the file again when it needs it."""
        paused, self._paused = self._paused, []
        for user in paused:
            user.gate.release()

    def abandon(self) -> list[sqlite3.Connection]:
        """In a forked child: let go of the sockets; the connections that were open in spite of all."""
        self._ringer.close()
        if self._watch is not None:
            self._watch.bell.close()
        return [user.connection for user in self._users() if user.connection is not None]


_databases: dict[str, Database] = {}
#: Those that are being closed as well.
_open: list[Database] = []
_lock: Any = original("_thread", "allocate_lock")()
_handles: WeakSet[Handle] = WeakSet()
#: Files that were open when this process was forked without asking.
_poisoned: set[str] = set()
_generation = 0


class Handle:
    """One owner's way to a file: made anew after a fork, counted, with an outbox of its own.

    Args:
        path: Absolute, without links.
        synchronous: Of whoever is first.
        owner: Has `dispatch`, and `reset_after_fork`, which is called in a forked child.
        kinds: Which errors it gets.
    """

    def __init__(self, path: str, synchronous: str, owner: Any, kinds: Kinds) -> None:
        self.path, self.kinds = path, kinds
        self._synchronous = synchronous
        self._database: Database | None = None
        self._generation = -1
        self.outbox = Outbox(lambda: owner.dispatch)
        self._owner = owner
        _handles.add(self)

    @property
    def database(self) -> Database:
        """The file, as this process has it open."""
        if self._database is None or self._generation != _generation:
            return self._attach()
        return self._database

    def _attach(self) -> Database:
        with _lock:
            if self._database is not None and self._generation == _generation:
                return self._database
            if self.path in _poisoned:
                raise self.kinds.refused(
                    f"{self.path} was open when this process was forked, behind Python's back: use it after the fork "
                    "alone (uWSGI: lazy-apps = true)"
                )
            database = _databases.get(self.path)
            if database is None:
                database = _databases[self.path] = Database(self.path, self._synchronous)
                _open.append(database)
            database.users += 1
            database.writer.outboxes = (*database.writer.outboxes, self.outbox)
            self._database, self._generation = database, _generation
            return database

    def reset_after_fork(self) -> None:
        """In a forked child: its owner forgets what was the parent's."""
        self._owner.reset_after_fork()

    @property
    def is_open(self) -> bool:
        """True while it holds the file."""
        return self._database is not None and self._generation == _generation

    def add(self, work: Work) -> None:
        """Write it with the next commit. Never blocks."""
        self.database.writer.add(work)

    def call(self, work: Callable[[Done], Work]) -> Any:
        """Write something and wait; see `Writer.call`. Not for ever: the file may be locked."""

        def limited(done: Done) -> Work:
            made = work(done)
            if made.deadline is None:
                made.deadline = time.monotonic() + CALL_TIMEOUT
            return made

        return self.database.writer.call(limited)

    def open(self) -> None:
        """Wait until the file is open.

        Raises:
            PsqError: It can't be.
        """
        self.call(lambda done: Open(done, self.kinds))

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query. Blocking."""
        return self.database.reader.read(sql, parameters, self.kinds)

    def fail(self, done: Done, error: Exception) -> None:
        """Call `done` with an error that was found before anything was sent."""
        self.outbox.send([(done, None, error)])

    def forget(self) -> None:
        """In a forked child: the next use attaches anew, and the parent's callbacks are the parent's."""
        self._database = None
        self.outbox.clear()

    def close(self) -> None:
        """Write what waits, then let go; the last one closes the file. Idempotent."""
        database = self._database
        if database is None or self._generation != _generation:
            return
        with _lock:
            self._database = None
            database.users -= 1
            last = database.users == 0
            if last:
                _databases.pop(self.path, None)
        if last:
            database.close(CLOSE_TIMEOUT)
            with _lock:
                _open.remove(database)
        else:
            waiter = Waiter()  # through the outbox: what was called before is called before
            database.writer.add(Open(lambda result, error: waiter.set(), self.kinds, self.outbox, CLOSE_TIMEOUT))
            waiter.wait(CLOSE_TIMEOUT + 1.0)
            with _lock:
                outboxes = database.writer.outboxes
                database.writer.outboxes = tuple(one for one in outboxes if one is not self.outbox)


# SQLite keeps, for the whole process, which locks it has on a file. A child would inherit that, but not the
# locks: its own new connections would then trust locks that nobody holds, or wait for ever. So no
# connection is open while a process forks.


def _before_fork() -> None:
    _lock.acquire()
    for database in _open:
        database.pause()


def _after_fork_in_parent() -> None:
    for database in _open:
        database.resume()
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock, _generation
    _lock = original("_thread", "allocate_lock")()
    _generation += 1
    for database in _open:
        inherited = database.abandon()
        if inherited:  # forked by a C library, without asking
            import ctypes

            _poisoned.add(database.path)
            for connection in inherited:  # closing one may undo a transaction, in memory that the parent uses
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    _databases.clear()
    _open.clear()
    for handle in list(_handles):
        handle.reset_after_fork()


def _at_exit() -> None:
    with _lock:
        databases = list(_databases.values())
        _databases.clear()
    for database in databases:
        database.close(EXIT_TIMEOUT)


around_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
