"""Acks, nacks and parking: group commit per subscription and length."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from psq.brokers import pubsub_wire as wire
from psq.brokers.base import Delivery
from psq.google.channel import Channel
from psq.google.errors import broker_error, is_transient
from psq.group_commit import Done, Finish, GroupCommit
from psq.together import Together

__all__ = ["Acks"]

#: Limits of one ack or modack (Pub/Sub's documentation): ids, and bytes of the request.
MAX_KEYS, MAX_BYTES = 1000, 512 * 1024 - 4096
#: Seconds for one request.
CALL_TIMEOUT = 20.0
#: `seconds` of an ack, which is no modack.
ACK = -1

_Key = tuple[str, int]


class Acks:
    """Ends leases. Safe from any thread and greenlet; nothing blocks, and what is transient is repeated.

    Args:
        channel: The service's channel.
        post: ``post(function, *args)`` runs a callback.

    Attributes:
        requests: Requests so far.
    """

    def __init__(self, channel: Channel, post: Callable[..., None]) -> None:
        self._channel, self._post = channel, post
        self._lock = threading.Lock()
        self._groups: dict[_Key, GroupCommit[str]] = {}
        self._in_use: set[_Key] = set()  # of a thousand queues few have acks on their way
        self.requests = 0

    def ack(self, subscription: str, delivery: Delivery, done: Done) -> None:
        """Done with it. See `Broker.ack`."""
        key = delivery.lease_key
        post = self._post

        def ended(result: Any, error: Exception | None) -> None:
            post(done, None, _translated(result, error, "acking on", subscription))

        group_key = (subscription, ACK)
        self._group(group_key).add(key, len(key) + 4, ended)
        self._in_use.add(group_key)  # after the line above, see `kick`

    def modify(self, subscription: str, deliveries: Sequence[Delivery], seconds: float, done: Done) -> None:
        """Give deliveries back after a pause, 0 for at once. See `Broker.park`."""
        whole = min(600, max(0, math.ceil(seconds)))  # never before its time
        group = self._group((subscription, whole))
        together: Together[Exception] = Together(len(deliveries), lambda error: self._post(done, None, error))

        def ended(result: Any, error: Exception | None) -> None:
            together.ended(_translated(result, error, "giving back on", subscription))

        for delivery in deliveries:
            group.add(delivery.lease_key, len(delivery.lease_key) + 4, ended)
        self._in_use.add((subscription, whole))

    def _group(self, key: _Key) -> GroupCommit[str]:
        group = self._groups.get(key)
        if group is None:
            with self._lock:
                group = self._groups.get(key)
                if group is None:
                    group = self._groups[key] = GroupCommit(
                        self._starter(*key), max_items=MAX_KEYS, max_bytes=MAX_BYTES, transient=is_transient
                    )
        return group

    def _starter(self, subscription: str, seconds: int) -> Callable[[Sequence[str], Finish], None]:
        metadata = wire.routing("subscription", subscription)

        def start(keys: Sequence[str], finish: Finish) -> None:
            if seconds == ACK:
                method, request = wire.ACKNOWLEDGE, wire.AcknowledgeRequest(subscription=subscription, ack_ids=keys)
            else:
                method = wire.MODIFY_ACK_DEADLINE
                request = wire.ModifyAckDeadlineRequest(
                    subscription=subscription, ack_ids=keys, ack_deadline_seconds=seconds
                )
            self.requests += 1

            def done(response: Any, error: Exception | None) -> None:
                if error is not None and getattr(error, "code", "") in ("NOT_FOUND", "PERMISSION_DENIED"):
                    finish([error] * len(keys))  # the same for all: nothing to bisect
                else:
                    finish(error)

            self._channel.start(method, request, CALL_TIMEOUT, done, metadata=metadata)

        return start

    def kick(self) -> None:
        """Start requests that a stuck one holds back; forget lengths that are not used any more."""
        for key in list(self._in_use):
            self._in_use.discard(key)
            group = self._groups.get(key)
            if group is None:
                continue
            if not group.idle():  # looked at after it was discarded: who adds to it meanwhile notes it again
                self._in_use.add(key)
                group.kick()
            elif key[1] > 0:  # each length of a pause has a group of its own
                with self._lock:
                    if group.idle():
                        self._groups.pop(key, None)

    def idle(self) -> bool:
        """True when nothing waits and nothing is in flight."""
        return all(group.idle() for group in list(self._groups.values()))


def _translated(result: Any, error: Exception | None, what: str, subscription: str) -> Exception | None:
    error = error or result  # an error that all items of a request share comes as their results
    return broker_error(error, f"{what} {subscription}") if error is not None else None
