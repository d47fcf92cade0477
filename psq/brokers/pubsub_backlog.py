"""All that a subscription holds, taken or looked at: for dead letters, and for a topic that was deleted. Blocks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from psq.brokers import pubsub_wire as wire
from psq.google.channel import Channel
from psq.google.errors import CallError

__all__ = ["Backlog"]

#: Empty answers in a row after which a subscription is taken for empty: single ones mean nothing.
EMPTY_ANSWERS = 3
#: Messages of one pull, and bytes of ack ids of one request.
PULL, MAX_KEYS, MAX_KEY_BYTES = 1000, 1000, 500 * 1024
#: Seconds for one call, and for trying again what is transient.
CALL_TIMEOUT, PATIENCE = 10.0, 30.0


class Backlog:
    """Pulls everything from one subscription. What was pulled is leased: nobody else sees it until it is given back.

    Args:
        channel: The service's channel.
        subscription: Full name.
    """

    def __init__(self, channel: Channel, subscription: str) -> None:
        self._channel, self._name = channel, subscription

    def messages(self, lease: int = 60, *, answers: int = EMPTY_ANSWERS) -> Iterator[Any]:
        """Received messages (raw protobuf), until it is empty. Only once each, however often they come.

        Args:
            lease: Seconds for which each is kept from others.
            answers: Empty ones in a row after which it is taken for empty.

        Raises:
            CallError: It is not there, or can't be reached.
        """
        seen: set[str] = set()
        empty = 0
        while empty < answers:
            request = wire.PullRequest(subscription=self._name, max_messages=PULL, return_immediately=True)
            received = self._call(wire.PULL, request).received_messages
            if received:
                self._keep([message.ack_id for message in received], lease)
            new = [message for message in received if message.message.message_id not in seen]
            seen.update(message.message.message_id for message in new)
            empty = 0 if new else empty + 1
            yield from new

    def _keep(self, ack_ids: Sequence[str], lease: int) -> None:
        try:
            self._modify(ack_ids, lease)
        except CallError as error:
            if error.code != "NOT_FOUND":  # deleted meanwhile: the next pull says so, after these were handed on
                raise

    def give_back(self, ack_ids: Sequence[str]) -> None:
        """Others may have them at once."""
        self._modify(ack_ids, 0)

    def ack(self, ack_ids: Sequence[str]) -> None:
        """Done with them."""
        for keys in _batches(ack_ids):
            self._call(wire.ACKNOWLEDGE, wire.AcknowledgeRequest(subscription=self._name, ack_ids=keys))

    def _modify(self, ack_ids: Sequence[str], seconds: int) -> None:
        for keys in _batches(ack_ids):
            request = wire.ModifyAckDeadlineRequest(subscription=self._name, ack_ids=keys, ack_deadline_seconds=seconds)
            self._call(wire.MODIFY_ACK_DEADLINE, request)

    def _call(self, method: Any, request: Any) -> Any:
        deadline, pause = time.monotonic() + PATIENCE, 0.05
        while True:
            try:
                return self._channel.call(
                    method, request, CALL_TIMEOUT, metadata=wire.routing("subscription", self._name)
                )
            except CallError as error:
                if not error.transient or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2.0, pause * 2)


def _batches(ack_ids: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for ack_id in ack_ids:
        if batch and (len(batch) >= MAX_KEYS or size + len(ack_id) + 4 > MAX_KEY_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(ack_id)
        size += len(ack_id) + 4
    if batch:
        yield batch
