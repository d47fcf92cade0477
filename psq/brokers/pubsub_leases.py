"""What the keeper does on Pub/Sub: extend, give back, strike. grpc and google-auth alone.

Google's client library costs 62 MB and 0.2 s, so the three requests are
written by hand: docs of protobuf's wire format, fields of google/pubsub/v1/pubsub.proto.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from psq.brokers.base import LeaseClient
from psq.brokers.pubsub_names import HOST
from psq.errors import BrokerUnavailable, MessageInvalid, PsqError
from psq.google.channel import Channel, Method, Target
from psq.google.errors import CallError, broker_error
from psq.google.protobuf import field, number
from psq.message import add_strike, attributes, decode
from psq.together import Together

__all__ = ["PubSubLeaseClient", "from_spec"]

_ACK = Method("/google.pubsub.v1.Subscriber/Acknowledge")
_MODIFY = Method("/google.pubsub.v1.Subscriber/ModifyAckDeadline")
_PUBLISH = Method("/google.pubsub.v1.Publisher/Publish")
_GET = Method("/google.pubsub.v1.Subscriber/GetSubscription")

#: Most requests in flight.
MAX_IN_FLIGHT = 64
#: Limits of one request, as in `psq.brokers.pubsub_acks` and `psq.brokers.pubsub_publisher`.
MAX_KEY_BYTES, MAX_PUBLISH_BYTES = 500 * 1024, 9_000_000
#: Seconds for a strike's publish and for its ack.
STRIKE_TIMEOUT = 10.0
#: Seconds for the call that makes the connection.
CONNECT_TIMEOUT = 10.0
#: As in `psq.brokers.pubsub_publisher`, which loads Google's library.
MEMBER_ATTRIBUTE = "psq-member"

_Done = Callable[..., None]
_Ended = Callable[["CallError | None"], None]


def modify_request(subscription: str, keys: Iterable[str], seconds: int) -> bytes:
    """A ModifyAckDeadlineRequest."""
    head = field(1, subscription.encode()) + number(3, seconds)
    return head + b"".join([field(4, key.encode()) for key in keys])


def ack_request(subscription: str, keys: Iterable[str]) -> bytes:
    """An AcknowledgeRequest."""
    return field(1, subscription.encode()) + b"".join([field(2, key.encode()) for key in keys])


def publish_request(topic: str, messages: Iterable[tuple[bytes, Mapping[str, str]]]) -> bytes:
    """A PublishRequest of (data, attributes)."""
    parts = [field(1, topic.encode())]
    for data, names in messages:
        body = field(1, data)
        for name, value in names.items():
            body += field(2, field(1, name.encode()) + field(2, value.encode()))
        parts.append(field(2, body))
    return b"".join(parts)


class PubSubLeaseClient(LeaseClient):
    """See `LeaseClient`; `source` is what `PubSubBroker.source` gives.

    Args:
        target: Where Pub/Sub is reached.
        project: The project's id.
    """

    def __init__(self, target: Target, project: str) -> None:
        self._channel = Channel(target, connections=2, agent="psqd-keeper")
        self._project = project
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Method, bytes, float, tuple[tuple[str, str], ...], _Ended]] = deque()
        self._in_flight = 0
        self._closed = False

    def connect(self) -> None:
        """See `LeaseClient.connect`: a call whose answer, whatever it is, means that there is a connection."""
        name = f"projects/{self._project}/subscriptions/psq-keeper-connects"
        try:
            self._request(_GET, field(1, name.encode()), CONNECT_TIMEOUT, name, lambda error: None)
        except PsqError:  # no credentials: the first extension says so to somebody who listens
            return

    def extend(self, source: str, keys: Sequence[str], seconds: float, timeout: float, done: _Done) -> None:
        """See `LeaseClient.extend`. Pub/Sub says yes to leases that are over, too: no lost keys are known."""
        subscription = source.partition(" ")[0]
        parts = list(_batches(keys))
        together: Together[CallError] = Together(
            len(parts), lambda error: done([], _ours(error, f"extending leases of {subscription}"))
        )
        for part in parts:
            request = modify_request(subscription, part, max(0, int(seconds)))
            self._request(_MODIFY, request, timeout, subscription, together.ended)

    def give_back(self, source: str, keys: Sequence[str], timeout: float, done: _Done) -> None:
        """See `LeaseClient.give_back`."""
        self.extend(source, keys, 0, timeout, done)

    def strike(self, source: str, items: Sequence[tuple[str, bytes]], record: Mapping[str, Any], done: _Done) -> None:
        """See `LeaseClient.strike`. A document that is none of ours is not done."""
        subscription, topic, member = _parts(source)
        batches, spoiled = _strikes(items, record, member)
        left: list[str] = list(spoiled)
        errors: list[CallError] = []
        together: Together[CallError] = Together(
            len(batches), lambda _: done(left, _ours(errors[0], "striking") if errors else None)
        )

        def send(keys: list[str], messages: list[tuple[bytes, dict[str, str]]]) -> None:
            def published(error: CallError | None) -> None:
                if error is not None:
                    left.extend(keys)
                    errors.append(error)
                    together.ended(None)
                    return
                request = ack_request(subscription, keys)
                self._request(_ACK, request, STRIKE_TIMEOUT, subscription, acked)

            def acked(error: CallError | None) -> None:
                # Not acked: its lease ends, and it comes again beside its new copy. Not "not done": that would
                # publish another copy.
                together.ended(None)

            self._request(_PUBLISH, publish_request(topic, messages), STRIKE_TIMEOUT, topic, published, "topic")

        for keys, messages in batches:
            send(keys, messages)

    def close(self) -> None:
        """See `LeaseClient.close`."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
        for *_, ended in waiting:
            ended(CallError("CANCELLED", "closed", transient=False, sent=False))
        self._channel.close()

    # requests, at most 64 at a time

    def _request(
        self, method: Method, data: bytes, timeout: float, name: str, ended: _Ended, routed_by: str = "subscription"
    ) -> None:
        metadata = (("x-goog-request-params", f"{routed_by}={name.replace('/', '%2F')}"),)
        with self._lock:
            closed = self._closed
            if not closed:
                self._waiting.append((method, data, timeout, metadata, ended))
        if closed:
            ended(CallError("CANCELLED", "closed", transient=False, sent=False))
            return
        self._pump()

    def _pump(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or self._in_flight >= MAX_IN_FLIGHT:
                    return
                method, data, timeout, metadata, ended = self._waiting.popleft()
                self._in_flight += 1
            self._start(method, data, timeout, metadata, ended)

    def _start(
        self, method: Method, data: bytes, timeout: float, metadata: tuple[tuple[str, str], ...], ended: _Ended
    ) -> None:
        def done(response: Any, error: CallError | None) -> None:
            with self._lock:
                self._in_flight -= 1
            ended(error)
            self._pump()

        try:
            self._channel.start(method, data, timeout, done, metadata=metadata)
        except PsqError as error:  # no credentials
            done(None, CallError("UNAUTHENTICATED", str(error), sent=False))


def _parts(source: str) -> tuple[str, str, str]:
    """Subscription, topic and member of a source."""
    subscription, _, rest = source.partition(" ")
    if rest:
        topic, _, member = rest.partition(" ")
        return subscription, topic, member
    return subscription, subscription.replace("/subscriptions/", "/topics/", 1).removesuffix("-shared"), ""


def _strikes(
    items: Sequence[tuple[str, bytes]], record: Mapping[str, Any], member: str
) -> tuple[list[tuple[list[str], list[tuple[bytes, dict[str, str]]]]], list[str]]:
    """The new messages in batches, and the keys of documents that are none of ours."""
    batches: list[tuple[list[str], list[tuple[bytes, dict[str, str]]]]] = []
    spoiled: list[str] = []
    size = 0
    for key, document in items:
        try:
            struck = add_strike(document, **record)
            names = attributes(decode(struck))
        except MessageInvalid:
            spoiled.append(key)
            continue
        if member:
            names[MEMBER_ATTRIBUTE] = member
        if not batches or len(batches[-1][0]) >= 1000 or size + len(struck) > MAX_PUBLISH_BYTES:
            batches.append(([], []))
            size = 0
        batches[-1][0].append(key)
        batches[-1][1].append((struck, names))
        size += len(struck) + 300
    return batches, spoiled


def _batches(keys: Sequence[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    size = 0
    for key in keys:
        if batch and (len(batch) >= 1000 or size + len(key) + 4 > MAX_KEY_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(key)
        size += len(key) + 4
    if batch:
        yield batch


def _ours(error: CallError | None, what: str) -> PsqError | None:
    if error is None:
        return None
    if error.code == "CANCELLED" and not error.transient:
        return BrokerUnavailable(f"{what}: {error}")
    return broker_error(error, what)


def from_spec(spec: Mapping[str, Any]) -> PubSubLeaseClient:
    """Make a client from `PubSubBroker.lease_spec`."""
    target = Target(str(spec["address"]), bool(spec["secure"]), None, ("https://www.googleapis.com/auth/pubsub",), HOST)
    return PubSubLeaseClient(target, str(spec["project"]))
