"""The wire format: a JSON document with a version, and attributes for routing and people.

docs/wire-format.md says it in prose. The document is the truth; attributes
repeat what routing and people need. Old versions stay readable.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psq.errors import MessageInvalid, MessageTooNew

__all__ = ["WIRE_VERSION", "Message", "add_strike", "attributes", "decode", "encode"]

#: The version that this psq writes, and the newest that it reads.
WIRE_VERSION = 1


@dataclass(slots=True)
class Message:
    """A task on the wire.

    `args` and `kwargs` are *tagged JSON* (see `psq.serializers`): the values as
    they stand in the document, not yet the function's arguments. So a message
    can be read, retried and kept without importing what its arguments name.

    Attributes:
        id: Task id, the same over all attempts; 1 to 200 printable ASCII characters without ``:`` or ``/``.
        function: ``module:qualname``.
        args: Positional arguments, tagged.
        kwargs: Keyword arguments, tagged.
        queue: Name of the queue it was sent to.
        enqueued_at: Unix time of the first enqueue, seconds.
        due_at: Unix time before which it must not start, or None.
        attempt: 1 for the first; grows when a retry is published.
        run: 1; grows when a dead letter is requeued.
        retries: Retries allowed after an exception; None: the queue's own setting.
        retry: Keys of a RetryPolicy that differ from the queue's, or None.
        time_limit: Seconds, or None: the queue's own.
        soft_time_limit: Seconds, or None: the queue's own.
        reply: Identity of the storage where the sender reads results (`Storage.identity`), "" for none.
        strikes: One record for each start that never ended because its worker died:
            ``{"signal": "SIGKILL", "host": …, "at": unix time}``.
    """

    id: str
    function: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    queue: str = "default"
    enqueued_at: float = field(default_factory=time.time)
    due_at: float | None = None
    attempt: int = 1
    run: int = 1
    retries: int | None = None
    retry: Mapping[str, Any] | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    reply: str = ""
    strikes: Sequence[Mapping[str, Any]] = ()


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False, check_circular=False).encode
_decode = json.JSONDecoder().decode

# Written only where they differ from the default, so that the common message stays small.
_OPTIONAL: tuple[tuple[str, Any, tuple[type, ...]], ...] = (
    ("due_at", None, (int, float)),
    ("attempt", 1, (int,)),
    ("run", 1, (int,)),
    ("retries", None, (int,)),
    ("retry", None, (dict,)),
    ("time_limit", None, (int, float)),
    ("soft_time_limit", None, (int, float)),
    ("reply", "", (str,)),
    ("strikes", (), (list,)),
)


def encode(message: Message) -> bytes:
    """Write a message as its document, UTF-8.

    Raises:
        ValueError: An argument holds NaN or infinity untagged (psq.serializers tags them).
    """
    document: dict[str, Any] = {
        "v": WIRE_VERSION,
        "id": message.id,
        "function": message.function,
        "args": list(message.args),
        "kwargs": message.kwargs,
        "queue": message.queue,
        "enqueued_at": message.enqueued_at,
    }
    for name, default, _ in _OPTIONAL:
        value = getattr(message, name)
        if value != default and value is not None:
            document[name] = list(value) if name == "strikes" else value
    return _encode(document).encode("utf-8", "surrogatepass")


def attributes(message: Message) -> dict[str, str]:
    """The attributes that go beside the document: for routing, tracing and people."""
    return {"psq-v": str(WIRE_VERSION), "psq-id": message.id, "psq-function": message.function}


def decode(data: bytes) -> Message:
    """Read a document.

    Raises:
        MessageTooNew: Written by a newer psq; its other keys were not looked at.
        MessageInvalid: Not a message of ours; the text says what is wrong. No other error leaves here.
    """
    try:
        document = _decode(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError, AttributeError) as error:
        raise MessageInvalid(f"the payload is not a JSON document: {error}") from None
    if type(document) is not dict:
        raise MessageInvalid(f"the payload is a JSON {type(document).__name__}, not an object")
    version = document.get("v")
    if version != WIRE_VERSION or type(version) is not int:
        if type(version) is int and version > WIRE_VERSION:
            raise MessageTooNew(f"wire version {version} is newer than {WIRE_VERSION}, which this psq reads")
        raise MessageInvalid(f"no wire version that we know: {str(version)[:40]!r}")
    try:
        message = Message(
            document["id"],
            document["function"],
            document["args"],
            document["kwargs"],
            document["queue"],
            document["enqueued_at"],
        )
    except KeyError as error:
        raise MessageInvalid(f"the key {error.args[0]!r} is missing") from None
    if (
        type(message.id) is not str
        or not message.id
        or type(message.function) is not str
        or type(message.args) is not list
        or type(message.kwargs) is not dict
        or type(message.queue) is not str
        or type(message.enqueued_at) not in (int, float)
    ):
        raise MessageInvalid("one of id, function, args, kwargs, queue, enqueued_at has the wrong type")
    if len(document) > 7:
        for name, _, types in _OPTIONAL:
            value = document.get(name)
            if value is not None:
                if type(value) not in types:
                    raise MessageInvalid(f"the key {name!r} is a {type(value).__name__}, not {types[-1].__name__}")
                setattr(message, name, value)
    return message


def add_strike(data: bytes, *, signal: str, host: str, at: float) -> bytes:
    """The same message with one more strike; used by the keeper.

    Args:
        data: The document.
        signal: What killed the worker, ``SIGKILL`` or ``exit 1``.
        host: The machine's name.
        at: Unix time of the death, seconds.

    Raises:
        MessageInvalid: Not a message of ours.
    """
    message = decode(data)
    message.strikes = [*message.strikes, {"signal": signal, "host": host, "at": at}]
    return encode(message)
