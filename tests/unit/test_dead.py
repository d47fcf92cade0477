"""Where dead letters live, and how they get another run."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from psq import dead
from psq.brokers.base import DeadLetter, Outgoing
from psq.dead import another_run, dead_letters, requeue
from psq.errors import BrokerUnavailable, ConfigError, PublishUnknown, StorageUnavailable
from psq.group_commit import Done
from psq.message import decode
from tests.unit.dead_fakes import FakeBroker, FakeStorage, letter


def test_dead_letters_live_in_a_storage_that_can_list_else_with_the_broker() -> None:
    broker, storage = FakeBroker(), FakeStorage()
    assert dead_letters(broker, storage) is storage  # type: ignore[arg-type,comparison-overlap]
    storage.can_list = False
    assert dead_letters(broker, storage) is broker.place  # type: ignore[arg-type]
    assert dead_letters(broker, None) is broker.place  # type: ignore[arg-type]


def test_another_run_has_the_same_id_and_arguments_and_begins_anew() -> None:
    before = time.time()
    out = another_run(letter())
    message = decode(out.data)
    assert (message.id, message.function, message.args, message.kwargs) == (
        "4f1d2c",
        "myapp.tasks:adder",
        [5, "é"],
        {"b": {"$": 1}},
    )
    assert (message.run, message.attempt, list(message.strikes), message.due_at) == (2, 1, [], None)
    assert message.retries == 2
    assert message.enqueued_at >= before
    assert out.attributes["psq-id"] == "4f1d2c"
    assert out.queue.name == "default"
    assert not out.queue.broadcast


def test_a_second_requeue_counts_on() -> None:
    again = letter(payload=another_run(letter()).data)
    assert decode(another_run(again).data).run == 3


@pytest.mark.parametrize("payload", [b"\xff\x00 no json", b'{"v": 99, "from": "the future"}'])
def test_a_payload_that_cannot_be_read_is_sent_as_it_is(payload: bytes) -> None:
    out = another_run(letter("bad-1", payload=payload))
    assert out.data == payload
    assert out.attributes == {}


def test_a_letter_of_a_broadcast_queue_goes_to_a_broadcast_queue() -> None:
    assert another_run(letter(), broadcast=True).queue.broadcast


def test_it_is_published_first_and_deleted_second() -> None:
    broker = FakeBroker()
    for id in ("a", "b"):
        broker.place.letters[f"{id}:3"] = letter(id)
    results = list(requeue(broker.place.list_dead(), broker, broker.place))  # type: ignore[arg-type]
    assert [(r.letter.id, r.error, r.published) for r in results] == [("a", None, True), ("b", None, True)]
    assert broker.events == ["published a", "published b", "deleted a:3", "deleted b:3"]


@pytest.mark.parametrize(
    "error", [BrokerUnavailable("away"), PublishUnknown("no answer", task_id="a"), ConfigError("no such queue name")]
)
def test_what_was_not_surely_published_is_kept_and_the_others_go(error: Exception) -> None:
    broker = FakeBroker()
    broker.errors["a"] = error
    for id in ("a", "b"):
        broker.place.letters[f"{id}:3"] = letter(id)
    first, second = requeue(broker.place.list_dead(), broker, broker.place)  # type: ignore[arg-type]
    assert (first.error, first.published) == (error, False)
    assert (second.error, second.published) == (None, True)
    assert list(broker.place.letters) == ["a:3"]


def test_a_publish_that_raises_at_once_is_like_one_that_fails() -> None:
    broker = FakeBroker()

    def publish(*_: object, **__: object) -> None:
        raise ConfigError("not a name")

    broker.publish = publish  # type: ignore[method-assign]
    broker.place.letters["4f1d2c:3"] = letter()
    (result,) = requeue(broker.place.list_dead(), broker, broker.place)  # type: ignore[arg-type]
    assert isinstance(result.error, ConfigError)
    assert broker.place.letters


def test_a_letter_that_could_not_be_deleted_is_told_as_published() -> None:
    broker = FakeBroker()
    broker.place.delete_error = StorageUnavailable("away")
    broker.place.letters["4f1d2c:3"] = letter()
    (result,) = requeue(broker.place.list_dead(), broker, broker.place)  # type: ignore[arg-type]
    assert result.published
    assert isinstance(result.error, StorageUnavailable)


def test_what_dies_again_before_it_is_deleted_is_kept() -> None:
    broker = FakeBroker()
    place = broker.place
    good, bad = letter("a"), letter("bad-1", 1, payload=b"\xff", died_at=1.0)
    place.letters = {one.key: one for one in (good, bad)}
    publish = broker.publish

    def dies_at_once(message: Outgoing, done: Done, *, timeout: float = 10.0) -> None:
        again = letter(message.task_id, 1 if message.task_id == "bad-1" else 3, payload=message.data, died_at=2.0)
        place.letters[again.key] = again
        publish(message, done, timeout=timeout)

    broker.publish = dies_at_once  # type: ignore[method-assign]
    results = list(requeue([good, bad], broker, place))  # type: ignore[arg-type]
    assert [r.error for r in results] == [None, None]
    assert {key: one.died_at for key, one in place.letters.items()} == {"a:3.2": 2.0, "bad-1:1": 2.0}


def test_letters_are_read_and_sent_a_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead, "WINDOW", 2)
    broker = FakeBroker()

    def letters() -> Iterator[DeadLetter]:
        for n in range(5):
            broker.events.append(f"read {n}")
            one = broker.place.letters[f"{n}:3"] = letter(str(n))
            yield one

    assert len(list(requeue(letters(), broker, broker.place))) == 5  # type: ignore[arg-type]
    assert broker.events[:6] == ["read 0", "read 1", "published 0", "published 1", "deleted 0:3", "deleted 1:3"]
    assert broker.events[-2:] == ["published 4", "deleted 4:3"]


def test_large_payloads_close_a_window_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead, "WINDOW_BYTES", 1_000)
    broker = FakeBroker()
    letters = [letter(str(n), payload=b"x" * 600) for n in range(3)]
    broker.place.letters = {one.key: one for one in letters}
    assert len(list(requeue(letters, broker, broker.place))) == 3  # type: ignore[arg-type]
    assert broker.events[:4] == ["published 0", "published 1", "deleted 0:3", "deleted 1:3"]
