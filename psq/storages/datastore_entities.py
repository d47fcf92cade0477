"""Records as Datastore entities and back: the schema of the kinds.

Written and read as raw protobuf (`google.datastore.v1`), which costs a tenth of
what Google's Entity does. Every property is excluded from indexes but `ix`, a
list of strings ``view:…:shard:time`` that serves all listings without a
composite index, and whose shard in front of the time keeps writes apart.

    psq-task   the task id           state, queue, function, attempt, run, times, result, error, worker; ix
    psq-dead   task id:attempt       queue, function, reason, payload, error, traceback, times, deaths; ix
    psq-eta    shard:due ms:id       queue, data, attributes, due_at
    psq-claim  the claim's key       owner, until, token
    psq-part   letter:key:hash:n     data

`expires` (a timestamp) is the property for a TTL policy of each kind; reads
look at `expires_at` and never trust that it was applied.
"""

from __future__ import annotations

import functools
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

from psq.brokers.base import DeadLetter
from psq.storages.base import TERMINAL, Scheduled, TaskRecord
from psq.storages.datastore_api import pb
from psq.storages.datastore_commit import Seen, Write
from psq.storages.datastore_heads import Head
from psq.storages.datastore_values import (
    ix_name,
    ix_shard,
    key_name,
    milliseconds,
    packed_fields,
    put_blob,
    put_float,
    put_int,
    put_ix,
    put_packed,
    put_string,
    put_text,
    put_time,
    read,
    read_text,
    whole_seconds,
)

__all__ = [
    "CLAIM",
    "DEAD",
    "ETA",
    "TASK",
    "Claim",
    "DeadHead",
    "EtaHead",
    "TaskHead",
    "dead_name",
    "dead_of",
    "eta_of",
    "is_expired",
    "task_of",
]

TASK, DEAD, ETA, CLAIM = "psq-task", "psq-dead", "psq-eta", "psq-claim"
#: Seconds after its end that a claim is kept, so that its fence goes on growing.
CLAIM_KEPT = 86400.0
#: Bytes of a claim.
CLAIM_BYTES = 1000

_dumps = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


# keys


def dead_name(key: str) -> str:
    """The key name of a dead letter, from its own key, ``id:attempt``."""
    id, _, attempt = key.rpartition(":")
    return f"{key_name(id)}:{attempt}"


def eta_name(item: Scheduled, shards: int) -> str:
    """The key name of a scheduled message: its shard, then its time, so that a range of keys is what is due."""
    shard = zlib.crc32(item.id.encode("utf-8", "replace")) % shards
    return f"{shard}:{milliseconds(item.due_at):013d}:{key_name(item.id)}"


# psq-task


class TaskHead(Head):
    """A record to write. The error is JSON by then.

    Raises:
        TypeError: The error is no JSON.
        ValueError: As above.
    """

    kind = TASK
    letter = "t"
    guarded = True

    __slots__ = ("record",)

    def __init__(self, record: TaskRecord, seen: Seen | None = None) -> None:
        self.record = record
        name = key_name(record.id)
        super().__init__(
            name,
            (record.result, None if record.error is None else _dumps(record.error).encode()),
            names=3 * (len(record.queue) + len(record.function) + len(record.worker) + len(name)),
            look=record.run > 1,  # requeued: its failure is there
            seen=seen,
        )
        self.expires_at = record.expires_at

    def replaces(self, seen: Seen) -> bool:
        """Terminal states stay, unless they have expired or this is of a later attempt or run."""
        if seen.entity is None:  # written by ourselves a moment ago
            return True
        properties = seen.entity.properties
        if read(properties, "state") not in TERMINAL or is_expired(read(properties, "expires_at")):
            return True
        there: tuple[int, int] = (read(properties, "run", 1), read(properties, "attempt", 1))
        return (self.record.run, self.record.attempt) > there

    def fill(self, entity: Any) -> None:
        """See `Write.fill`."""
        record = self.record
        started, finished, expires = record.started_at, record.finished_at, record.expires_at
        constant, views = _task_template(
            record.state,
            record.queue,
            record.function,
            record.worker,
            record.attempt,
            record.run,
            started is not None,
            finished is not None,
            expires is not None,
        )
        entity.MergeFromString(constant)
        properties = entity.properties
        at = record.enqueued_at
        properties["enqueued_at"].double_value = at
        if started is not None:
            properties["started_at"].double_value = at = started
        if finished is not None:
            properties["finished_at"].double_value = at = finished
        if expires is not None:
            properties["expires_at"].double_value = expires
            properties["expires"].timestamp_value.seconds = whole_seconds(expires)
        if self.packed is not None:
            put_packed(properties, self.packed)
        else:
            result, error = self.content
            if result is not None:
                put_blob(properties, "result", result)
            if error is not None:
                put_string(properties, "error", error.decode())
        if self.name != record.id:
            put_text(properties, "id", record.id)
        tail = f"{ix_shard(record.id)}:{milliseconds(at):013d}"
        add = properties["ix"].array_value.values.add
        for view in views:
            add().string_value = view + tail


@functools.lru_cache(maxsize=1024)
def _task_template(
    state: str,
    queue: str,
    function: str,
    worker: str,
    attempt: int,
    run: int,
    started: bool,
    finished: bool,
    expires: bool,
) -> tuple[bytes, tuple[str, str, str]]:
    """What the records of one function have in common: reading it in costs less than setting it."""
    entity = pb().Entity()
    properties = entity.properties
    put_string(properties, "state", state)
    put_text(properties, "queue", queue)
    put_text(properties, "function", function)
    if worker:
        put_text(properties, "worker", worker)
    put_int(properties, "attempt", attempt)
    if run != 1:
        put_int(properties, "run", run)
    for name, there in (("enqueued_at", True), ("started_at", started), ("finished_at", finished)):
        if there:
            put_float(properties, name, 0.0)
    if expires:
        put_float(properties, "expires_at", 0.0)
        put_time(properties, "expires", 0.0)
    views = (f"s:{state}:", f"q:{ix_name(queue)}:{state}:", f"f:{ix_name(function)}:{state}:")
    return entity.SerializeToString(), views


def is_expired(expires_at: float | None) -> bool:
    """True for what is over, whether or not a TTL policy has deleted it."""
    return expires_at is not None and expires_at <= time.time()


def task_of(entity: Any, parts: Sequence[bytes] | None = None) -> TaskRecord | None:
    """Read a record.

    Args:
        entity: The head.
        parts: Its parts in order, where it has some.

    Returns:
        The record, or None: not written by us (psq 0.8 used the same kind).

    Raises:
        StorageError: Content is missing or broken.
    """
    properties = entity.properties
    if "state" not in properties:
        return None
    content = packed_fields(properties, parts)
    if content is None:
        error = read(properties, "error")
        content = [read(properties, "result"), None if error is None else error.encode()]
    result, error = content
    return TaskRecord(
        id=read_text(properties, "id") or entity.key.path[0].name,
        state=read(properties, "state", ""),
        queue=read_text(properties, "queue"),
        function=read_text(properties, "function"),
        attempt=read(properties, "attempt", 1),
        run=read(properties, "run", 1),
        enqueued_at=read(properties, "enqueued_at", 0.0),
        started_at=read(properties, "started_at"),
        finished_at=read(properties, "finished_at"),
        result=result,
        error=None if error is None else json.loads(error),
        worker=read_text(properties, "worker"),
        expires_at=read(properties, "expires_at"),
    )


# psq-dead


class DeadHead(Head):
    """A dead letter to write."""

    kind = DEAD
    letter = "d"

    __slots__ = ("dead",)

    def __init__(self, dead: DeadLetter) -> None:
        self.dead = dead
        texts = (text.encode("utf-8", "surrogatepass") for text in (dead.error, dead.traceback))
        size = len(dead.id) + len(dead.queue) + len(dead.function) + len(dead.reason) + 200 * len(dead.deaths)
        super().__init__(dead_name(dead.key), (dead.payload, *texts), names=3 * size)

    def fill(self, entity: Any) -> None:
        """See `Write.fill`."""
        dead, properties = self.dead, entity.properties
        put_text(properties, "id", dead.id)
        put_int(properties, "attempt", dead.attempt)
        put_text(properties, "queue", dead.queue)
        put_text(properties, "function", dead.function)
        put_text(properties, "reason", dead.reason)
        put_float(properties, "enqueued_at", dead.enqueued_at)
        put_float(properties, "died_at", dead.died_at)
        if dead.deaths:
            put_string(properties, "deaths", _dumps([dict(death) for death in dead.deaths]))
        if self.packed is not None:
            put_packed(properties, self.packed)
        else:
            put_blob(properties, "payload", dead.payload)
            put_text(properties, "error", dead.error)
            put_text(properties, "traceback", dead.traceback)
        tail = f"{ix_shard(dead.id)}:{milliseconds(dead.died_at):013d}"
        put_ix(properties, f"a:{tail}", f"q:{ix_name(dead.queue)}:{tail}")


def dead_of(entity: Any, parts: Sequence[bytes] | None = None) -> DeadLetter | None:
    """Read a dead letter; see `task_of`."""
    properties = entity.properties
    if "reason" not in properties:
        return None
    content = packed_fields(properties, parts)
    if content is None:
        payload, error, traceback = (
            read(properties, "payload", b""),
            read_text(properties, "error"),
            read_text(properties, "traceback"),
        )
    else:
        payload = content[0] or b""
        error, traceback = ((field or b"").decode("utf-8", "surrogatepass") for field in content[1:3])
    return DeadLetter(
        id=read_text(properties, "id"),
        attempt=read(properties, "attempt", 1),
        queue=read_text(properties, "queue"),
        function=read_text(properties, "function"),
        reason=read_text(properties, "reason"),
        payload=payload,
        error=error,
        traceback=traceback,
        enqueued_at=read(properties, "enqueued_at", 0.0),
        died_at=read(properties, "died_at", 0.0),
        deaths=json.loads(read(properties, "deaths", "[]")),
    )


# psq-eta and psq-claim


class EtaHead(Head):
    """A scheduled message to write."""

    kind = ETA
    letter = "e"

    __slots__ = ("item",)

    def __init__(self, item: Scheduled, shards: int) -> None:
        self.item = item
        size = sum(len(key) + len(value) for key, value in item.attributes.items()) + len(item.queue) + len(item.id)
        super().__init__(eta_name(item, shards), (item.data,), names=6 * size)

    def fill(self, entity: Any) -> None:
        """See `Write.fill`."""
        item, properties = self.item, entity.properties
        put_text(properties, "id", item.id)
        put_text(properties, "queue", item.queue)
        put_float(properties, "due_at", item.due_at)
        if item.attributes:
            put_string(properties, "attributes", _dumps(dict(item.attributes)))
        if self.packed is not None:
            put_packed(properties, self.packed)
        else:
            put_blob(properties, "data", item.data)


def eta_of(entity: Any, parts: Sequence[bytes] | None = None) -> Scheduled | None:
    """Read a scheduled message; see `task_of`."""
    properties = entity.properties
    if "due_at" not in properties:
        return None
    content = packed_fields(properties, parts)
    return Scheduled(
        id=read_text(properties, "id"),
        due_at=read(properties, "due_at"),
        queue=read_text(properties, "queue"),
        data=read(properties, "data", b"") if content is None else content[0] or b"",
        attributes=json.loads(read(properties, "attributes", "{}")),
        key=entity.key.path[0].name,
    )


class Claim(Write):
    """A claim to take, prolong or (with negative seconds) end.

    Args:
        key: What is claimed.
        owner: Who claims.
        seconds: How long from now.
    """

    kind = CLAIM
    guarded = True

    __slots__ = ("_owner", "_seconds", "_token")

    def __init__(self, key: str, owner: str, seconds: float) -> None:
        super().__init__(key_name(key), CLAIM_BYTES, look=True)
        self._owner, self._seconds, self._token = owner, seconds, 0

    def replaces(self, seen: Seen) -> bool:
        """True where it is ours, or over."""
        properties = seen.entity.properties
        self._token = read(properties, "token", 0)
        if read_text(properties, "owner") == self._owner:
            return True
        return self._seconds > 0 and is_expired(read(properties, "until", 0.0))

    def fill(self, entity: Any) -> None:
        """See `Write.fill`."""
        properties, until = entity.properties, time.time() + self._seconds
        put_text(properties, "owner", self._owner)
        put_float(properties, "until", until)
        put_int(properties, "token", self._token + 1)
        put_time(properties, "expires", until + CLAIM_KEPT)
