"""A head and its parts: written parts first, head last; deleted head first, parts last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from psq.storages.datastore_api import Api
from psq.storages.datastore_commit import KEPT, Committer, Seen, Write, delete, guarded, upsert
from psq.storages.datastore_entities import PART, fill_part, part_names, read
from psq.storages.datastore_packing import INLINE_BYTES, Packed, check_size, off_hub, pack

__all__ = ["Head", "Heads"]

#: Bytes of a head without content and names: key, times, and names of properties.
HEAD_BYTES = 500
#: Bytes of a part or of a deletion without content.
SMALL_BYTES = 200

Added = Callable[[Any, "Exception | None"], None]


@dataclass(slots=True)
class Head:
    """One record to write.

    Attributes:
        kind: Its kind.
        letter: Names the kind in the keys of parts.
        name: Its key name.
        content: The fields that may be large.
        fill: ``fill(packed, entity)`` writes it; `packed` is None where the content fits as it is.
        names: Characters of what else is in it.
        expires_at: Unix time, for its parts.
        replaces: As `Write.replaces`; None: it replaces whatever is there.
        seen: As `Write.seen`.
        look: As `Write.look`.
    """

    kind: str
    letter: str
    name: str
    content: Sequence[bytes | None]
    fill: Callable[[Packed | None, Any], None]
    names: int = 0
    expires_at: float | None = None
    replaces: Callable[[Seen], bool] | None = None
    seen: Seen | None = None
    look: bool = False


class Heads:
    """Writes and deletes heads. Safe from any thread and greenlet.

    Args:
        api: The database.
        commits: Where the writes go.
        limit: Most bytes of a head's content.
    """

    def __init__(self, api: Api, commits: Committer, limit: int) -> None:
        self._api, self._commits, self._limit = api, commits, limit

    def put(self, head: Head, done: Added) -> None:
        """Write a head; ``done(version | KEPT, error)``. Never blocks for long.

        Raises:
            StorageRefused: The content is over the limit.
        """
        size = 0
        for field in head.content:
            if field is not None:
                size += len(field)
        if size <= INLINE_BYTES:
            self._put_head(head, None, size, done)
            return
        check_size(size, self._limit, f"{head.kind} {head.name!r}")

        def packed(result: Packed | None, error: Exception | None) -> None:
            if result is None:
                done(None, error)
            elif result.parts:
                self._put_parts(head, result, done)
            else:
                self._put_head(head, result, len(result.data), done)

        off_hub(partial(pack, head.content), packed)

    def _put_head(self, head: Head, packed: Packed | None, size: int, done: Added) -> None:
        fill = partial(head.fill, packed)
        if head.replaces is None:
            write = upsert(head.kind, head.name, fill)
        else:
            write = guarded(head.kind, head.name, fill, head.replaces, look=head.look)
            write.seen = head.seen
            token = packed.token if packed is not None and packed.parts else ""
            if token:
                done = partial(self._put_large, head, write, token, packed.parts, done)  # type: ignore[union-attr]
            else:
                done = partial(self._put_small, head, write, done)
        self._commits.add(write, HEAD_BYTES + head.names + size, done)

    def _put_parts(self, head: Head, packed: Packed, done: Added) -> None:
        names = part_names(head.letter, head.name, packed.token, packed.parts)
        lock = threading.Lock()
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
                self._put_head(head, packed, 0, done)

        for number, name in enumerate(names):
            data = packed.part(number)
            write = upsert(PART, name, partial(fill_part, data, head.expires_at))
            self._commits.add(write, SMALL_BYTES + len(name) + len(data), written)

    def _put_small(self, head: Head, write: Write, done: Added, result: Any, error: Exception | None) -> None:
        if write.seen is not None and error is None and result is not KEPT:
            self._drop(head, write.seen, "")
        done(result, error)

    def _put_large(
        self, head: Head, write: Write, token: str, parts: int, done: Added, result: Any, error: Exception | None
    ) -> None:
        if error is None and write.seen is not None:
            if result is not KEPT:
                self._drop(head, write.seen, token)
            elif write.seen.entity is not None and read(write.seen.entity.properties, "token", "") != token:
                self._delete_later(part_names(head.letter, head.name, token, parts))
        done(result, error)

    def _drop(self, head: Head, replaced: Seen, token: str) -> None:
        """Delete the parts of what was replaced."""
        if replaced.entity is None:
            return
        properties = replaced.entity.properties
        old = read(properties, "token", "")
        if old and old != token:
            self._delete_later(part_names(head.letter, head.name, old, read(properties, "parts", 0)))

    def _delete_later(self, names: Sequence[str]) -> None:
        for name in names:  # at worst they stay until they expire
            self._commits.add(delete(PART, name), SMALL_BYTES + len(name), lambda result, error: None)

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
        writes = [(delete(kind, name), SMALL_BYTES + len(name)) for name in names]
        self._commits.write(writes, self._api.timeout)
