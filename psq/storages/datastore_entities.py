"""The schema of the kinds; dead letters, scheduled messages and claims as entities and back.

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

import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

from psq.brokers.base import DeadLetter
from psq.storages.base import Scheduled
from psq.storages.datastore_commit import Seen, Write
from psq.storages.datastore_heads import Head
from psq.storages.datastore_values import (
    is_expired,
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
)

__all__ = [
    "CLAIM",
    "DEAD",
    "ETA",
    "Claim",
    "DeadHead",
    "EtaHead",
    "dead_name",
    "dead_of",
    "died_at",
    "eta_of",
]

DEAD, ETA, CLAIM = "psq-dead", "psq-eta", "psq-claim"
#: Seconds after its end that a claim is kept, so that its fence goes on growing.
CLAIM_KEPT = 86400.0
#: Bytes of a claim.
CLAIM_BYTES = 1000

_dumps = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


# keys


def dead_name(key: str) -> str:
    """The key name of a dead letter, from its own key, ``id:attempt`` or ``id:attempt.run``."""
    id, _, attempt = key.rpartition(":")
    return f"{key_name(id)}:{attempt}"


def eta_name(item: Scheduled, shards: int) -> str:
    """The key name of a scheduled message: its shard, then its time, so that a range of keys is what is due."""
    shard = zlib.crc32(item.id.encode("utf-8", "replace")) % shards
    return f"{shard}:{milliseconds(item.due_at):013d}:{key_name(item.id)}"


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


def died_at(entity: Any) -> float:
    """When a dead letter died, without reading the rest of it."""
    return float(read(entity.properties, "died_at", 0.0))


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
