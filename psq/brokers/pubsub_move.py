"""A subscription whose topic was deleted: made anew on a new topic, with the tasks that it still held. Blocks."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from psq.brokers import pubsub_wire as wire
from psq.brokers.base import QueueSpec
from psq.brokers.pubsub_advice import DELETED_TOPIC
from psq.brokers.pubsub_backlog import Backlog
from psq.brokers.pubsub_maker import Maker
from psq.google.channel import Channel
from psq.google.errors import CallError

__all__ = ["move"]

#: Longest random pause before a subscription of a deleted topic is made anew, seconds.
REPAIR_JITTER = 1.0
#: Seconds for another process that was faster with the new topic: least and most. After that it is taken for dead.
OTHERS = (1.0, 4.0)
#: Empty answers in a row after which the old subscription is taken for empty, and deleted.
EMPTY_ANSWERS = 10
#: Messages and bytes of one publish.
MOST, MOST_BYTES = 1000, 5_000_000
#: Seconds for one call, and the pauses between two attempts.
TIMEOUT, FIRST_PAUSE, LONGEST_PAUSE = 10.0, 0.05, 5.0

log = logging.getLogger("psq")


def move(channel: Channel, maker: Maker, queue: QueueSpec, topic: str, name: str, deadline: float) -> None:
    """Make topic and subscription anew; what the old one held is published again.

    It is in this process's memory for a moment: published before the new subscription exists it would be
    swallowed, and the old one can't be joined to a new topic.

    Args:
        channel: The service's channel.
        maker: Makes and deletes.
        queue: The queue.
        topic: Full name of its topic.
        name: Full name of its subscription.
        deadline: Monotonic.

    Raises:
        CallError: A step failed, or is denied; nothing is lost.
    """
    time.sleep(random.uniform(0.0, REPAIR_JITTER))  # several daemons notice at the same time
    if not _is_lost(maker, queue, name, deadline):
        return  # another was faster
    log.warning("the topic of %s was deleted; both are made anew", name)
    if not maker.create_topic(topic, deadline):
        # Who has made it is at work. Two at it might delete what one of them has just made.
        time.sleep(random.uniform(*OTHERS))
        if not _is_lost(maker, queue, name, deadline):
            return
    backlog = Backlog(channel, name)
    received = _taken(backlog)
    messages = [wire.PubsubMessage(data=one.message.data, attributes=one.message.attributes) for one in received]
    try:
        if messages:  # may we? The new topic has no subscription yet, and swallows it
            _publish(channel, topic, messages[:1])
        _remove(maker, name, deadline)
    except CallError:
        if _given_back(backlog, received):
            raise
    _insist(name, lambda: maker.create(queue, time.monotonic() + TIMEOUT))
    if messages:
        log.warning("%d tasks of the deleted topic %s are published again", len(messages), topic)
    for batch in _batches(messages):
        _insist(topic, partial(_publish, channel, topic, batch))


def _is_lost(maker: Maker, queue: QueueSpec, name: str, deadline: float) -> bool:
    """True while its topic is gone. Where another process has just deleted it, it is made."""
    try:
        return bool(maker.get(name, deadline).topic == DELETED_TOPIC)
    except CallError as error:
        if error.code != "NOT_FOUND":
            raise
    maker.create(queue, deadline)
    return False


def _taken(backlog: Backlog) -> list[Any]:
    """All that it holds. Where another daemon deletes it meanwhile: what we have of it, and nobody else has."""
    received: list[Any] = []
    try:
        received.extend(backlog.messages(answers=EMPTY_ANSWERS))
    except CallError as error:
        if error.code != "NOT_FOUND":
            _given_back(backlog, received)
            raise
    return received


def _remove(maker: Maker, name: str, deadline: float) -> None:
    """Delete it, unless another daemon was faster."""
    try:
        if maker.get(name, deadline).topic == DELETED_TOPIC:
            maker.delete(name, deadline)
    except CallError as error:
        if error.code != "NOT_FOUND":
            raise


def _given_back(backlog: Backlog, received: Sequence[Any]) -> bool:
    """Give back what was taken; False where there is nothing any more to give it back to."""
    try:
        backlog.give_back([one.ack_id for one in received])
    except CallError as error:
        return error.code != "NOT_FOUND"
    return True


def _publish(channel: Channel, topic: str, messages: Sequence[Any]) -> None:
    request = wire.PublishRequest(topic=topic, messages=messages)
    channel.call(wire.PUBLISH, request, TIMEOUT, metadata=wire.routing("topic", topic))


def _batches(messages: list[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    size = 0
    for message in messages:
        if batch and (len(batch) >= MOST or size + message.ByteSize() > MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += message.ByteSize()
    if batch:
        yield batch


def _insist(what: str, call: Callable[[], object]) -> None:
    """Call until it works: what was moved exists nowhere else any more."""
    pause = FIRST_PAUSE
    while True:
        try:
            call()
        except CallError as error:
            if not error.transient and error.code != "NOT_FOUND":
                log.error("%s can't be made anew, and what it held is lost: %s", what, error)
                raise
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
        else:
            return
