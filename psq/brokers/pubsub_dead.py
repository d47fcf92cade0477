"""Dead letters on Pub/Sub, where there is no storage: a topic with a subscription for each queue.

A message is one line of JSON (what people want to read), a newline, and the
payload as it was received. Listing pulls all of a subscription and gives it
back, so two people who list the same queue at the same time see parts of it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from psq.brokers import pubsub_wire as wire
from psq.brokers.base import DeadLetter, DeadLetters
from psq.brokers.pubsub_backlog import Backlog
from psq.brokers.pubsub_names import Names
from psq.brokers.pubsub_publisher import MAX_MESSAGE_BYTES, Publisher
from psq.errors import MessageTooLarge
from psq.google.channel import Channel
from psq.google.errors import CallError, broker_error
from psq.group_commit import Done

__all__ = ["PubSubDeadLetters"]

#: Seconds for publishing one.
TIMEOUT = 30.0
#: Characters of a traceback that are kept: its end says what happened.
MAX_TRACEBACK = 64_000
#: Seconds for which listed letters are kept from others.
LEASE = 60

_FIELDS = ("id", "attempt", "queue", "function", "reason", "error", "traceback", "enqueued_at", "died_at")


class PubSubDeadLetters(DeadLetters):
    """See `DeadLetters`.

    Args:
        channel: The service's channel.
        names: What things are called.
        publisher: Publishes letters.
        post: ``post(function, *args)`` runs a callback.
    """

    def __init__(self, channel: Channel, names: Names, publisher: Publisher, post: Callable[..., None]) -> None:
        self._channel, self._names, self._publisher, self._post = channel, names, publisher, post

    def put_dead(self, letter: DeadLetter, done: Done) -> None:
        """See `DeadLetters.put_dead`."""
        try:
            self._names.check(letter.queue)
            data = dump(letter)
        except Exception as error:
            self._post(done, None, error)
            return
        attributes = {"psq-dead": letter.key[:250], "psq-reason": letter.reason[:250]}
        self._publisher.publish_dead(letter.queue, data, attributes, done, TIMEOUT)

    def list_dead(self, queue: str | None = None, limit: int | None = None) -> Iterator[DeadLetter]:
        """See `DeadLetters.list_dead`."""
        letters = [letter for name in self._queues(queue) for letter, _ in self._all(name).values()]
        letters.sort(key=lambda letter: letter.died_at, reverse=True)
        return iter(letters if limit is None else letters[:limit])

    def get_dead(self, id: str) -> list[DeadLetter]:
        """See `DeadLetters.get_dead`."""
        return [letter for letter in self.list_dead() if id in (letter.key, letter.id)]

    def delete_dead(self, keys: Sequence[str]) -> None:
        """See `DeadLetters.delete_dead`."""
        if keys:
            wanted = set(keys)
            for queue in self._queues(None):
                self._all(queue, lambda letter: letter.key in wanted)

    def discard(self, letters: Sequence[DeadLetter]) -> None:
        """See `DeadLetters.discard`."""
        wanted = {(letter.key, letter.died_at) for letter in letters}
        for queue in {letter.queue for letter in letters}:
            self._all(queue, lambda letter: (letter.key, letter.died_at) in wanted)

    def _queues(self, queue: str | None) -> Iterable[str]:
        return self._all_queues() if queue is None else [queue]

    def _all_queues(self) -> list[str]:
        """Queues that have a place for dead letters."""
        queues: list[str] = []
        project, page = f"projects/{self._names.project}", ""
        while True:
            request = wire.ListSubscriptionsRequest(project=project, page_size=1000, page_token=page)
            try:
                answer = self._channel.call(
                    wire.LIST_SUBSCRIPTIONS, request, 30.0, metadata=wire.routing("project", project)
                )
            except CallError as error:
                raise broker_error(error, f"listing the subscriptions of {project}") from error
            for found in answer.subscriptions:
                name = self._names.queue_of_dead(found.name)
                if name is not None:
                    queues.append(name)
            page = answer.next_page_token
            if not page:
                return sorted(queues)

    def _all(self, queue: str, delete: Callable[[DeadLetter], bool] | None = None) -> dict[str, tuple[DeadLetter, Any]]:
        """All letters of a queue, by key; of several with one key the latest. Those that `delete` wants are deleted."""
        backlog = Backlog(self._channel, self._names.dead_subscription(queue))
        letters: dict[str, tuple[DeadLetter, Any]] = {}
        keep: list[str] = []
        try:
            try:
                for received in backlog.messages(LEASE):
                    letter = load(received.message.data, queue)
                    if delete is not None and delete(letter):
                        backlog.ack([received.ack_id])
                        continue
                    keep.append(received.ack_id)
                    known = letters.get(letter.key)
                    if known is None or known[0].died_at <= letter.died_at:
                        letters[letter.key] = (letter, received)
            finally:
                backlog.give_back(keep)
        except CallError as error:
            if error.code != "NOT_FOUND":
                raise broker_error(error, f"reading the dead letters of {queue}") from error
        return letters


def dump(letter: DeadLetter) -> bytes:
    """A dead letter as a message: a line of JSON, and the payload.

    Raises:
        MessageTooLarge: Not even its payload alone fits, compressed.
    """
    header: dict[str, Any] = {name: getattr(letter, name) for name in _FIELDS}
    header["traceback"] = letter.traceback[-MAX_TRACEBACK:]
    header["deaths"] = [dict(death) for death in letter.deaths]
    header["v"] = 1
    payload = letter.payload
    room = MAX_MESSAGE_BYTES - 2_000
    if len(payload) + len(header["traceback"]) * 4 + len(letter.error) * 4 + 10_000 > room:
        header["zlib"] = True
        payload = zlib.compress(payload, 1)
        header["error"], header["traceback"] = letter.error[:1000], letter.traceback[-4000:]
    data = json.dumps(header, ensure_ascii=True, separators=(",", ":")).encode() + b"\n" + payload
    if len(data) > room:
        raise MessageTooLarge(f"a dead letter of {len(data):,} bytes does not fit", size=len(data), limit=room)
    return data


def load(data: bytes, queue: str) -> DeadLetter:
    """Read what `dump` wrote. A message that somebody else put there is a letter, too."""
    line, _, payload = data.partition(b"\n")
    try:
        header = json.loads(line)
        if header.get("zlib"):
            payload = zlib.decompress(payload)
        fields = {name: header[name] for name in _FIELDS}
        return DeadLetter(payload=payload, deaths=header["deaths"], **fields)
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return DeadLetter("foreign", 0, queue, "", "undecodable", data, died_at=0.0)
