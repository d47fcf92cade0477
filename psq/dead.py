"""Dead letters: where they live, and how they are given another run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from psq.brokers.base import Broker, DeadLetter, DeadLetters, Outgoing, QueueSpec
from psq.concurrency import Waiter
from psq.errors import MessageInvalid
from psq.message import attributes, decode, encode
from psq.storages.base import Storage

__all__ = ["Requeued", "another_run", "dead_letters", "find", "requeue"]

#: Dead letters that are published at a time, and the bytes of their payloads: what a requeue holds in memory.
WINDOW, WINDOW_BYTES = 200, 16 * 1024 * 1024
#: Seconds for the publishing of one letter, end to end.
PUBLISH_TIMEOUT = 10.0


def dead_letters(broker: Broker, storage: Storage | None) -> DeadLetters:
    """Where the dead letters of a broker and storage live.

    The storage if it can list, else the broker's own place; the daemon and the
    command line both ask here, so that they look at the same place.
    """
    if storage is not None and storage.can_list:
        return storage
    return broker.dead_letters()


def find(place: DeadLetters, ids: Sequence[str], queue: str | None = None) -> dict[str, list[DeadLetter]]:
    """Dead letters by key or task id, in one pass where each look-up reads all of the place. Blocking.

    Args:
        place: Where they are kept.
        ids: Keys (``id:attempt``) or task ids.
        queue: Only those of this queue.

    Returns:
        What was found for each id, [] for nothing.
    """
    if isinstance(place, Storage):
        return {id: [letter for letter in place.get_dead(id) if queue in (None, letter.queue)] for id in ids}
    found: dict[str, list[DeadLetter]] = {id: [] for id in ids}
    for letter in place.list_dead(queue):
        for id in {letter.id, letter.key} & found.keys():
            found[id].append(letter)
    return found


@dataclass(frozen=True, slots=True)
class Requeued:
    """What became of one dead letter.

    Attributes:
        letter: The dead letter.
        error: Why it was not requeued, or not deleted; None: it was both.
        published: The broker has the task; with an `error`, the letter is still there as well.
    """

    letter: DeadLetter
    error: Exception | None = None
    published: bool = True


def another_run(letter: DeadLetter, *, broadcast: bool = False) -> Outgoing:
    """The message that gives a dead letter its next run.

    The task keeps its id and arguments; `run` grows, attempts and strikes begin
    anew, and its waiting time counts from now. A payload that can't be read is
    sent as it is.

    Args:
        letter: The dead letter.
        broadcast: Its queue is a broadcast queue: every worker gets the task.
    """
    queue = QueueSpec(letter.queue, broadcast=broadcast)
    try:
        message = decode(letter.payload)
    except MessageInvalid:  # also one that is too new: its reader may have been deployed by now
        return Outgoing(queue, letter.payload, {}, None, letter.id)
    message.run += 1
    message.attempt = 1
    message.strikes = ()
    message.due_at = None
    message.enqueued_at = time.time()
    return Outgoing(queue, encode(message), attributes(message), None, message.id)


def requeue(
    letters: Iterable[DeadLetter],
    broker: Broker,
    place: DeadLetters,
    *,
    broadcast: bool = False,
    timeout: float = PUBLISH_TIMEOUT,
) -> Iterator[Requeued]:
    """Give dead letters another run: published first, deleted second. Blocking.

    A crash between the two leaves the letter and the task: it may run twice, and
    is never lost. What could not be published, or may not have been, is kept; so
    is what dies again in the meantime.

    Args:
        letters: Of `place`; read lazily, a window at a time.
        broker: Where their queues are.
        place: Where they are kept.
        broadcast: Their queues are broadcast queues.
        timeout: Seconds for the publishing of each.

    Yields:
        What became of each, as soon as its window is done.
    """
    window: list[DeadLetter] = []
    size = 0
    for letter in letters:
        window.append(letter)
        size += len(letter.payload)
        if len(window) >= WINDOW or size >= WINDOW_BYTES:
            yield from _requeue_window(window, broker, place, broadcast, timeout)
            window, size = [], 0
    if window:
        yield from _requeue_window(window, broker, place, broadcast, timeout)


def _requeue_window(
    letters: Sequence[DeadLetter], broker: Broker, place: DeadLetters, broadcast: bool, timeout: float
) -> list[Requeued]:
    answers = [Waiter() for _ in letters]
    for letter, answer in zip(letters, answers, strict=True):
        out = another_run(letter, broadcast=broadcast)
        try:
            broker.publish(out, lambda _, error, answer=answer: answer.set(error), timeout=timeout)  # type: ignore[misc]
        except Exception as error:  # refused locally
            answer.set(error)
    errors: list[Exception | None] = []
    for answer in answers:
        answer.wait()  # the publish's own timeout ends it
        errors.append(answer.value)
    published = [letter for letter, error in zip(letters, errors, strict=True) if error is None]
    undeleted: Exception | None = None
    if published:
        try:
            place.discard(published)
        except Exception as error:
            undeleted = error
    return [
        Requeued(letter, error, False) if error is not None else Requeued(letter, undeleted)
        for letter, error in zip(letters, errors, strict=True)
    ]
