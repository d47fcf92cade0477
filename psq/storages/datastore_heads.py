"""A head and its parts: written parts first, head last; deleted head first, parts last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from psq.concurrency import original
from psq.storages.datastore_api import Api
from psq.storages.datastore_commit import KEPT, Committer, Delete, Ended, Seen, Write
from psq.storages.datastore_packing import INLINE_BYTES, Packed, check_size, off_hub, pack
from psq.storages.datastore_values import put_blob, put_time, read

__all__ = ["PART", "Head", "Heads", "part_names"]

PART = "psq-part"
#: Bytes of a head without content and names: key, times, and names of properties.
HEAD_BYTES = 500
#: Bytes of a part without content and name.
PART_HEAD_BYTES = 200


def part_names(letter: str, name: str, token: str, parts: int) -> list[str]:
    """Key names of the parts of a head, in order.

    Args:
        letter: ``t``, ``d`` or ``e``: the head's kind.
        name: The head's key name.
        token: `Packed.token`.
        parts: How many.
    """
    return [f"{letter}:{name}:{token}:{number}" for number in range(parts)]


class Head(Write):
    """A record to write, with content that may be large.

    Attributes:
        letter: Names its kind in the keys of parts.
        content: The fields that may be large.
        packed: The same, packed, where it is too large for plain properties.
        expires_at: Unix time after which its parts may be swept, or None.
        length: Bytes of the content.
    """

    letter: ClassVar[str]

    __slots__ = ("content", "expires_at", "length", "packed")

    def __init__(
        self,
        name: str,
        content: Sequence[bytes | None],
        *,
        names: int,
        look: bool = False,
        seen: Seen | None = None,
    ) -> None:
        length = 0
        for field in content:
            if field is not None:
                length += len(field)
        super().__init__(name, HEAD_BYTES + names + length, look=look, seen=seen)
        self.content, self.length = content, length
        self.packed: Packed | None = None
        self.expires_at: float | None = None

    @property
    def token(self) -> str:
        """`Packed.token` where it has parts, else ""."""
        return self.packed.token if self.packed is not None and self.packed.parts else ""


class Part(Write):
    """One part of a head's content."""

    kind = PART

    __slots__ = ("_data", "_expires_at")

    def __init__(self, name: str, data: bytes, expires_at: float | None) -> None:
        super().__init__(name, PART_HEAD_BYTES + len(name) + len(data))
        self._data, self._expires_at = data, expires_at

    def fill(self, entity: Any) -> None:
        """See `Write.fill`."""
        put_blob(entity.properties, "data", self._data)
        if self._expires_at is not None:
            put_time(entity.properties, "expires", self._expires_at)


class Heads:
    """Writes and deletes heads. Safe from any thread and greenlet.

    Args:
        api: The database.
        commits: Where the writes go.
        limit: Most bytes of a head's content.
    """

    def __init__(self, api: Api, commits: Committer, limit: int) -> None:
        self._api, self._commits, self._limit = api, commits, limit

    def put(self, head: Head, done: Ended) -> None:
        """Write a head and its parts; ``done(version | KEPT, error)``. Never blocks for long.

        Raises:
            StorageRefused: The content is over the limit.
        """
        if head.length > self._limit:
            check_size(head.length, self._limit, f"{head.kind} {head.name!r}")
        if head.length <= INLINE_BYTES:
            self._commits.add(head, done)
            return

        def packed(result: Packed | None, error: Exception | None) -> None:
            if result is None:
                done(None, error)
                return
            head.packed = result
            head.size -= head.length
            if result.parts:
                self._put_parts(head, result, done)
            else:
                head.size += len(result.data)
                self._commits.add(head, done)

        off_hub(partial(pack, head.content), packed)

    def _put_parts(self, head: Head, packed: Packed, done: Ended) -> None:
        names = part_names(head.letter, head.name, packed.token, packed.parts)
        lock = original("_thread", "allocate_lock")()
        left = len(names)
        problem: Exception | None = None

        def written(_: Any, error: Exception | None) -> None:
            nonlocal left, problem
            with lock:
                left -= 1
                problem = problem or error
                last = not left
            if not last:
                return
            if problem is not None:
                done(None, problem)
            else:
                self._commits.add(head, done)

        for number, name in enumerate(names):
            self._commits.add(Part(name, packed.part(number), head.expires_at), written)

    def tidy(self, head: Head, result: Any) -> None:
        """Delete parts that nothing names after a guarded head was written, or was not (KEPT).

        Returns at once; where it fails they stay until they expire.
        """
        if head.seen is None or head.seen.entity is None:
            return
        there = head.seen.entity.properties
        token = read(there, "token", "")
        if token == head.token:
            return
        if result is KEPT:
            names = part_names(head.letter, head.name, head.token, head.packed.parts) if head.packed else []
        else:
            names = part_names(head.letter, head.name, token, read(there, "parts", 0))
        for name in names:
            self._commits.add(Delete(PART, name), lambda result, error: None)

    def delete(self, kind: str, letter: str, names: Sequence[str], parted: Sequence[str] | None, what: str) -> None:
        """Delete heads and their parts, and wait; unknown ones are no error.

        Args:
            kind: Their kind.
            letter: As in `Head`.
            names: Key names of the heads.
            parted: Those that have parts, where that is known; None: it is looked up.
            what: What is being done, for errors.

        Raises:
            StorageUnavailable: Not all are deleted: try again.
            StorageRefused: No permission.
        """
        if parted is None:
            found = self._api.lookup(kind, names, what)
            parted = [name for name, result in found.items() if "parts" in result.entity.properties]
            names = list(found)
        self._delete(kind, names)
        for name in parted:  # a range, since it finds what an earlier record left as well
            prefix = f"{letter}:{name}:"
            self._delete(PART, self._api.names_between(PART, prefix, prefix[:-1] + ";", what))

    def _delete(self, kind: str, names: Sequence[str]) -> None:
        self._commits.write([Delete(kind, name) for name in names], self._api.timeout)
