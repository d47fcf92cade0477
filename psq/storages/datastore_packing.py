"""Content that is too large for one entity: compressed, and split into parts.

The head entity holds the content as plain properties where it fits; else
compressed in one property; else it names its parts. A part's key holds a hash
of the whole content, so that a head and parts of two writers can't be mixed,
and writing the same content twice is one set of parts.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from psq.concurrency import Waiter, is_patched, native_thread
from psq.errors import StorageError, StorageRefused

__all__ = ["INLINE_BYTES", "PART_BYTES", "Packed", "check_size", "off_hub", "on_native_thread", "pack", "unpack"]

#: Most bytes of content in one entity. Datastore takes 1,048,487 in a property and 1,048,572 in an entity.
INLINE_BYTES = 900_000
#: Bytes of one part; see `INLINE_BYTES`.
PART_BYTES = 900_000
#: Bytes from which packing is worth a native thread in a patched process: zlib does some 60 MB/s.
THREAD_BYTES = 256_000

_LENGTH = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class Packed:
    """Content of one head, compressed.

    Attributes:
        data: The compressed content, whole.
        size: Its bytes before.
        token: Names this content in the keys of its parts.
    """

    data: bytes
    size: int
    token: str

    @property
    def parts(self) -> int:
        """Part entities that it needs; 0 where it fits into the head."""
        return 0 if len(self.data) <= INLINE_BYTES else -(-len(self.data) // PART_BYTES)

    def part(self, number: int) -> bytes:
        """The bytes of a part, counted from 0."""
        return self.data[number * PART_BYTES : (number + 1) * PART_BYTES]


def check_size(size: int, limit: int, what: str) -> None:
    """Refuse what is over the limit.

    Args:
        size: Bytes before compression.
        limit: Most bytes.
        what: Names it in the error.

    Raises:
        StorageRefused: It is over the limit; the text has both figures.
    """
    if size > limit:
        raise StorageRefused(f"{what} has {size:,} bytes, the storage keeps at most {limit:,}")


def pack(fields: Sequence[bytes | None]) -> Packed:
    """Join fields and compress them (zlib 1)."""
    pieces: list[bytes] = []
    for field in fields:
        pieces.append(_LENGTH.pack(-1 if field is None else len(field)))
        if field:
            pieces.append(field)
    content = b"".join(pieces)
    data = zlib.compress(content, 1)
    return Packed(data, len(content), hashlib.blake2b(data, digest_size=8).hexdigest())


def unpack(data: bytes, size: int) -> list[bytes | None]:
    """The fields of a packed content.

    Args:
        data: The compressed content, parts joined.
        size: Its bytes before compression, as the head says.

    Raises:
        StorageError: It does not have that size, or is no packed content.
    """
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(data, size + 1)
    except zlib.error as error:
        raise StorageError(f"stored content can't be decompressed: {error}") from error
    if len(content) != size:
        raise StorageError(f"stored content has not the {size:,} bytes that its head says")
    fields: list[bytes | None] = []
    at = 0
    while at < size:
        (length,) = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size
        fields.append(None if length < 0 else content[at : at + length])
        at += max(0, length)
    return fields


def off_hub(work: Callable[[], Any], then: Callable[[Any, Exception | None], None]) -> None:
    """Do work that holds the processor: in the caller's thread, but beside the hub in a patched process.

    Returns at once in a patched process; never switches greenlets.

    Args:
        work: Pure computation: it may run in a native thread.
        then: Called once with (result, error), in the caller's thread (in a greenlet, where patched).
    """
    if not is_patched():
        then(*_outcome(work))
        return
    from gevent import get_hub, spawn

    loop = get_hub().loop

    def run() -> None:
        result, error = _outcome(work)
        # in a greenlet: a call that gRPC begins on an idle channel starts a thread and waits for it
        loop.run_callback_threadsafe(spawn, then, result, error)

    native_thread(run)


def on_native_thread(work: Callable[[], Any]) -> Any:
    """Do work that holds the processor and wait for it, without stopping the hub of a patched process."""
    if not is_patched():
        return work()
    waiter = Waiter()
    native_thread(lambda: waiter.set(_outcome(work)))
    waiter.wait()
    result, error = waiter.value
    if error is not None:
        raise error
    return result


def _outcome(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error
