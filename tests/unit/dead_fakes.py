"""In-memory broker and storage, as far as dead letters and the `psq` command go, with faults to order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from psq.brokers.base import DeadLetter, DeadLetters, Outgoing
from psq.message import Message, decode, encode
from psq.storages.base import TaskRecord


class Place(DeadLetters):
    def __init__(self, events: list[str] | None = None) -> None:
        self.letters: dict[str, DeadLetter] = {}
        self.events = events if events is not None else []
        self.delete_error: Exception | None = None

    def put_dead(self, letter: DeadLetter, done: Callable[..., None]) -> None:
        self.letters[letter.key] = letter
        done(None, None)

    def list_dead(self, queue: str | None = None, limit: int | None = None) -> Iterator[DeadLetter]:
        found = sorted(self.letters.values(), key=lambda letter: -letter.died_at)
        return iter([letter for letter in found if queue in (None, letter.queue)][:limit])

    def get_dead(self, id: str) -> list[DeadLetter]:
        return [letter for letter in self.letters.values() if id in (letter.key, letter.id)]

    def delete_dead(self, keys: Sequence[str]) -> None:
        if self.delete_error is not None:
            raise self.delete_error
        for key in keys:
            self.events.append(f"deleted {key}")
            self.letters.pop(key, None)


class FakeStorage(Place):
    url = "fake://storage"
    can_list = True

    def __init__(self, events: list[str] | None = None) -> None:
        super().__init__(events)
        self.records: dict[str, TaskRecord] = {}

    def get(self, ids: Sequence[str]) -> dict[str, TaskRecord]:
        return {id: self.records[id] for id in ids if id in self.records}

    def find(
        self, *, state: str | None, queue: str | None, function: str | None, limit: int | None
    ) -> Iterator[TaskRecord]:
        found = sorted(self.records.values(), key=lambda record: -record.enqueued_at)
        wanted = {"state": state, "queue": queue, "function": function}
        kept = [r for r in found if all(v in (None, getattr(r, name)) for name, v in wanted.items())]
        return iter(kept[:limit])


class FakeBroker:
    url = "fake://broker"

    def __init__(self) -> None:
        self.events: list[str] = []
        self.published: list[Outgoing] = []
        self.place = Place(self.events)
        self.errors: dict[str, Exception] = {}  # by task id

    def publish(self, message: Outgoing, done: Callable[..., None], *, timeout: float = 10.0) -> None:
        error = self.errors.get(message.task_id)
        if error is None:
            self.events.append(f"published {message.task_id}")
            self.published.append(message)
        done(None, error)

    def dead_letters(self) -> Place:
        return self.place

    def sent(self) -> list[Message]:
        return [decode(message.data) for message in self.published]


class FakeClient:
    url = "fake://broker"

    def __init__(self, broker: Any, storage: Any) -> None:
        self.broker, self.storage, self.closed = broker, storage, 0

    def close(self) -> None:
        self.closed += 1


def letter(id: str = "4f1d2c", attempt: int = 3, queue: str = "default", **values: Any) -> DeadLetter:
    """A dead letter of a task that ran out of retries."""
    payload = values.pop("payload", None)
    if payload is None:
        message = Message(id, "myapp.tasks:adder", [5, "é"], {"b": {"$": 1}}, queue, 1_795_550_000.0, attempt=attempt)
        message.strikes = [{"signal": "SIGKILL", "host": "a", "at": 1.0}]
        message.due_at = 1_795_550_500.0
        message.retries = 2
        payload = encode(message)
    defaults: dict[str, Any] = {
        "function": "myapp.tasks:adder",
        "reason": "out of retries",
        "error": "ValueError: no",
        "traceback": "Traceback …\nValueError: no\n",
        "enqueued_at": 1_795_550_000.0,
        "died_at": 1_795_560_000.0,
    }
    return DeadLetter(id=id, attempt=attempt, queue=queue, payload=payload, **{**defaults, **values})
