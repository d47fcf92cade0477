"""Writing: whole entities in shared commits, where one bad or contested record never fails another.

The subset that means the same on every server is used and nothing else:
`upsert` and `delete` of whole entities, `insert`, and `update` with
`base_version` under the strategy FAIL. A commit whose guarded writes (insert,
update) meet something is refused whole, so its keys are looked at, in one
request; what must not be replaced stays, and the rest is committed again with
the versions that were seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from psq.concurrency import Waiter, original
from psq.errors import PsqError
from psq.google.errors import CallError, is_transient
from psq.group_commit import Finish, GroupCommit
from psq.storages.datastore_api import Api, closed_error, pb, translated
from psq.storages.datastore_wire import field

__all__ = ["KEPT", "Committer", "Delete", "Ended", "Seen", "Write"]

#: Most entities in one commit, and most bytes: the limit is 10 MiB, the emulators break at 4.15 MB.
COMMIT_ENTITIES, COMMIT_BYTES = 400, 3_500_000
#: Commits at a time.
COMMITS = 4
#: Bytes of a deletion without its key name.
DELETE_BYTES = 100
#: Looks at the keys of a commit that is refused again and again, before it is tried later.
LOOKS = 8

#: Result of a write that did not replace what was there; otherwise it is the version that was written.
KEPT = None

#: Called once: (version | KEPT, None) or (None, error).
Ended = Callable[[Any, "Exception | None"], None]

#: What a guarded write may end a commit with: the key exists, its version is another, it is gone, contention.
_CONFLICTS = frozenset(("ALREADY_EXISTS", "FAILED_PRECONDITION", "NOT_FOUND", "ABORTED"))
#: Errors of the whole request, which would be the same for each of its entities.
_OF_ALL = frozenset(("FAILED_PRECONDITION", "NOT_FOUND", "PERMISSION_DENIED", "UNIMPLEMENTED"))


@dataclass(slots=True)
class Seen:
    """What was found at a key.

    Attributes:
        version: For `base_version`.
        entity: The raw entity.
    """

    version: int
    entity: Any


class Write:
    """One entity to write. Subclasses say of which kind, with which properties, and over what.

    Attributes:
        kind: Its kind.
        guarded: It must not replace everything: `replaces` is asked.
        deletes: It is deleted.
        name: Its key name.
        size: Its bytes on the wire, rather too many than too few.
        look: (guarded) Look before the first commit, since something is probably there.
        seen: (guarded) What the last look found.
        kept: (guarded) What was found stays.
        done: ``done(version | KEPT, error)``.
    """

    kind: str
    guarded: ClassVar[bool] = False
    deletes: ClassVar[bool] = False

    __slots__ = ("done", "kept", "look", "name", "seen", "size")

    def __init__(self, name: str, size: int, *, look: bool = False, seen: Seen | None = None) -> None:
        self.name, self.size, self.look, self.seen = name, size, look, seen
        self.kept = False
        self.done: Ended | None = None

    def fill(self, entity: Any) -> None:
        """Write the properties into an empty entity; its key is set. May be called more than once."""
        raise NotImplementedError

    def encode(self, key: bytes) -> bytes | None:
        """The whole entity as bytes, where that is quicker than `fill`; None where it is not.

        Args:
            key: The Key's bytes, but for the name.
        """
        return None

    def replaces(self, seen: Seen) -> bool:
        """(guarded) True where it may replace what was seen."""
        return True


class Delete(Write):
    """An entity to delete; none is no error."""

    deletes = True

    __slots__ = ("kind",)

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(name, DELETE_BYTES + len(name))
        self.kind = kind


class _Round:
    """One request of group commit: look where needed, commit, and again where a key turned out otherwise."""

    def __init__(self, api: Api, writes: Sequence[Write], finish: Finish) -> None:
        self._api, self._writes, self._finish = api, writes, finish
        self._looks = 0
        self._live: list[Write] = []
        self._updates = False

    def begin(self) -> None:
        unseen = [write for write in self._writes if write.look and write.seen is None]
        if unseen:
            self._look(unseen, None)
        else:
            self._commit()

    def _commit(self) -> None:
        self._live = live = [write for write in self._writes if not write.kept]
        self._updates = any(write.seen is not None for write in live)
        if not live:
            self._end(())
            return
        names, api = pb(), self._api
        request = api.request(names.CommitRequest)
        request.mode = names.NON_TRANSACTIONAL
        pieces: list[bytes] = [request.SerializeToString()]
        for write in live:
            if write.guarded and write.seen is None:
                entity = write.encode(api.key_prefix(write.kind))
                if entity is not None:
                    pieces.append(field(names.MUTATIONS, field(names.INSERT, entity)))
                    continue
            pieces.append(field(names.MUTATIONS, self._mutation(write).SerializeToString()))
        api.start(names.commit, b"".join(pieces), self._committed)

    def _mutation(self, write: Write) -> Any:
        mutation = pb().Mutation()
        if write.deletes:
            self._api.set_key(mutation.delete, write.kind, write.name)
            return mutation
        if not write.guarded:
            entity = mutation.upsert
        elif write.seen is None:
            entity = mutation.insert
        else:
            entity = mutation.update
            mutation.base_version = write.seen.version
            mutation.conflict_resolution_strategy = pb().FAIL
        self._api.set_key(entity.key, write.kind, write.name)
        write.fill(entity)
        return mutation

    def _committed(self, response: Any, error: Exception | None) -> None:
        if error is None:
            results = response.mutation_results
            if self._updates:
                lost = [
                    w for w, r in zip(self._live, results, strict=True) if w.seen is not None and r.conflict_detected
                ]
                if lost:  # a server that does not keep FAIL skipped them and wrote the others
                    self._look(lost, None)
                    return
            self._end([result.version for result in results])
            return
        if isinstance(error, CallError) and error.code in _CONFLICTS:
            contested = [write for write in self._live if write.guarded]
            if contested:
                self._look(contested, error)
                return
        self._failed(error)

    def _look(self, writes: Sequence[Write], refused: CallError | None) -> None:
        self._looks += 1

        def looked(found: dict[Any, Any], error: Exception | None) -> None:
            try:
                self._looked(writes, found, error, refused)
            except Exception as problem:  # a record that can't be written: group commit finds it
                self._finish(problem)

        self._api.start_lookup([_key(write) for write in writes], looked)

    def _looked(
        self, writes: Sequence[Write], found: dict[Any, Any], error: Exception | None, refused: CallError | None
    ) -> None:
        if error is not None:
            self._failed(error)
            return
        changed = False
        for write in writes:
            write.look = False
            result = found.get(_key(write))
            before = None if write.seen is None else write.seen.version
            if result is None:
                changed = changed or before is not None
                write.seen = None
                continue
            changed = changed or before != result.version
            write.seen = Seen(result.version, result.entity)
            write.kept = not write.replaces(write.seen)
        if refused is not None and not changed:
            self._finish(refused)  # no key explains it: transient (contention), or a culprit to be found
        elif self._looks >= LOOKS:
            self._finish(CallError("ABORTED", "the same keys are written by others all the time"))
        else:
            self._commit()

    def _failed(self, error: Exception) -> None:
        if isinstance(error, PsqError) or (isinstance(error, CallError) and error.code in _OF_ALL):
            self._finish([translated(error, "writing")] * len(self._writes))
        else:
            self._finish(error)

    def _end(self, versions: Sequence[int]) -> None:
        if len(versions) == len(self._writes):
            self._finish(versions)
        else:
            numbers = iter(versions)
            self._finish([KEPT if write.kept else next(numbers) for write in self._writes])


class Committer:
    """Writes entities in shared commits. Safe from any thread and greenlet.

    Args:
        api: The database.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lock = original("_thread", "allocate_lock")()
        self._bytes = 0
        self._open: set[Write] = set()
        self._closed = False
        self._emptied: list[Waiter] = []
        self._group: GroupCommit[Write] = GroupCommit(
            self._start,
            max_items=COMMIT_ENTITIES,
            max_bytes=COMMIT_BYTES,
            in_flight=COMMITS,
            transient=is_transient,
            key=_key,
        )

    def add(self, write: Write, done: Ended) -> None:
        """Write an entity with the next commit; ``done(version | KEPT, error)``, in the thread of the answer.

        What is transient is repeated for as long as it takes. Never blocks.
        """
        write.done = done
        with self._lock:
            self._bytes += write.size
            self._open.add(write)
        self._group.add(write, write.size, partial(self._ended, write))

    def _ended(self, write: Write, result: Any, error: Exception | None) -> None:
        with self._lock:
            if write not in self._open:
                return  # given up by `close`
            self._open.remove(write)
            self._bytes -= write.size
            emptied = None if self._open else self._emptied
        if isinstance(result, Exception):
            result, error = None, result
        if error is not None:
            error = translated(error, f"writing {write.kind} {write.name!r}")
        if write.done is not None:
            write.done(result, error)
        while emptied:
            emptied.pop().set()

    def write(self, writes: Sequence[Write], timeout: float) -> list[Any]:
        """Write entities and wait; each one's version or KEPT.

        Args:
            writes: The entities.
            timeout: Seconds after which what is transient is final.

        Raises:
            StorageUnavailable: They were not all written within the timeout.
            StorageRefused: One was refused.
        """
        if not writes:
            return []
        waiter = Waiter()
        lock = original("_thread", "allocate_lock")()
        results: list[Any] = [None] * len(writes)
        left = len(writes)
        deadline = time.monotonic() + timeout

        def ended(index: int, result: Any, error: Exception | None) -> None:
            nonlocal left
            results[index] = result if error is None else error
            with lock:
                left -= 1
                last = not left
            if last:
                waiter.set()

        for index, write in enumerate(writes):
            self._group.add(write, write.size, partial(ended, index), deadline=deadline)
        while not waiter.wait(1.0):
            self._group.kick()
            if time.monotonic() > deadline + self._api.timeout:
                raise translated(CallError("DEADLINE_EXCEEDED", "no answer"), "writing")
        for result in results:
            if isinstance(result, Exception):
                raise translated(result, "writing") from result
        return results

    def pending_bytes(self) -> int:
        """Bytes handed to `add` and not yet answered."""
        return self._bytes

    def kick(self) -> None:
        """Start commits that a stuck one holds back."""
        self._group.kick()

    def close(self, timeout: float) -> None:
        """Wait until all is written, at most so many seconds; what is left ends with StorageUnavailable."""
        deadline = time.monotonic() + timeout
        while self._open and time.monotonic() < deadline:
            waiter = Waiter()
            with self._lock:
                self._emptied.append(waiter)
            self._group.kick()
            if self._open:
                waiter.wait(min(0.5, max(0.0, deadline - time.monotonic())))
        self._closed = True
        for write in list(self._open):
            self._ended(write, None, closed_error())

    def _start(self, writes: Sequence[Write], finish: Finish) -> None:
        if self._closed:
            finish([closed_error()] * len(writes))
        else:
            _Round(self._api, writes, finish).begin()


def _key(write: Write) -> tuple[str, str]:
    return (write.kind, write.name)
