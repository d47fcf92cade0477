"""Due tasks go from the storage to their queues: published first, deleted second, and one never holds up another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psq.errors import BrokerRefused, BrokerUnavailable, StorageUnavailable
from psq.storages.base import FINISHED, Scheduled, TaskRecord
from psq.storages.sqlite import SQLiteStorage
from psqd.worker import scheduler as module
from psqd.worker.scheduler import CLAIM, PUBLISH_TIMEOUT, Scheduler, Sweeper
from tests.unit.memory import MemoryBroker


def schedule(storage: SQLiteStorage, *ids: str, ago: float = 1.0, queue: str = "q") -> None:
    ended: list[Exception | None] = []
    for number, id in enumerate(ids):
        at = time.time() - ago + number / 1000
        storage.schedule(Scheduled(id, at, queue, id.encode(), {"psq-id": id}), lambda _, error: ended.append(error))
    storage.due(0, 0.0, 1)
    storage.unschedule([])  # in order: by now the others are written
    assert ended == [None] * len(ids)


def waiting(storage: SQLiteStorage) -> list[str]:
    return [item.id for item in storage.due(0, time.time() + 1e6, 1000)]


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[SQLiteStorage]:
    made = SQLiteStorage(str(tmp_path / "psq.db"))
    yield made
    made.close()


def test_what_is_due_is_published_as_it_was_and_deleted(storage: SQLiteStorage) -> None:
    broker = MemoryBroker()
    schedule(storage, "a:1", "b:1")
    schedule(storage, "later:1", ago=-1000.0)
    Scheduler(broker, storage, "host:1").step()
    assert [(out.queue.name, out.data, out.attributes) for out in broker.published] == [
        ("q", b"a:1", {"psq-id": "a:1"}),
        ("q", b"b:1", {"psq-id": "b:1"}),
    ]
    assert waiting(storage) == ["later:1"]


def test_more_than_a_batch_goes_in_one_step(storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    broker = MemoryBroker()
    schedule(storage, *(f"t{n}:1" for n in range(5)))
    scheduler = Scheduler(broker, storage, "host:1")
    scheduler.step()
    assert scheduler.published == len(broker.published) == 5
    assert waiting(storage) == []


def test_what_could_not_be_published_for_now_stays_and_the_rest_is_deleted(storage: SQLiteStorage) -> None:
    broker = MemoryBroker()
    broker.errors.extend((None, BrokerUnavailable("away"), None))
    schedule(storage, "a:1", "b:1", "c:1")
    scheduler = Scheduler(broker, storage, "host:1")
    with pytest.raises(BrokerUnavailable):
        scheduler.step()
    assert waiting(storage) == ["b:1"]
    scheduler.step()
    assert [out.data for out in broker.published] == [b"a:1", b"c:1", b"b:1"]


def test_what_the_broker_refuses_is_put_off_and_does_not_hold_up_the_others(
    storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    broker = MemoryBroker()
    broker.errors.append(BrokerRefused("no such topic"))
    schedule(storage, "refused:1", "good:1")
    Scheduler(broker, storage, "host:1").step()
    assert [out.data for out in broker.published] == [b"good:1"]
    (left,) = storage.due(0, time.time() + 1e6, 10)
    assert (left.id, left.data, left.queue) == ("refused:1", b"refused:1", "q")
    assert time.time() + module.PUT_OFF - 10 < left.due_at <= time.time() + module.PUT_OFF


def test_a_publish_that_raises_at_once_makes_no_second_copy_of_the_others(storage: SQLiteStorage) -> None:
    broker = MemoryBroker()
    real = broker.publish

    def publish(message: Any, done: Any, *, timeout: float = 10.0) -> None:
        if message.data == b"b:1":
            raise RuntimeError("a bug of the broker")
        real(message, done, timeout=timeout)

    broker.publish = publish  # type: ignore[method-assign]
    schedule(storage, "a:1", "b:1", "c:1")
    scheduler = Scheduler(broker, storage, "host:1")
    scheduler.step()
    scheduler.step()
    assert [out.data for out in broker.published] == [b"a:1", b"c:1"]
    assert waiting(storage) == ["b:1"]


def test_a_shard_that_can_not_be_read_does_not_stop_the_others(
    storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.due

    def due(shard: int, now: float, limit: int) -> list[Scheduled]:
        if shard == 0:
            raise StorageUnavailable("away")
        return real(0, now, limit) if shard == 3 else []

    monkeypatch.setattr(storage, "shards", 4)
    broker = MemoryBroker()
    schedule(storage, "a:1")
    monkeypatch.setattr(storage, "due", due)
    with pytest.raises(StorageUnavailable):
        Scheduler(broker, storage, "host:1").step()
    assert [out.data for out in broker.published] == [b"a:1"]


def test_of_two_daemons_one_publishes_and_the_other_takes_over_when_it_stops(storage: SQLiteStorage) -> None:
    first, second = MemoryBroker(), MemoryBroker()
    one, two = Scheduler(first, storage, "host:1"), Scheduler(second, storage, "host:2")
    one.start()
    one.step()
    schedule(storage, "a:1")
    two.step()
    assert second.published == []
    one.step()
    assert [out.data for out in first.published] == [b"a:1"]
    one.stop()
    schedule(storage, "b:1")
    two._try_at = 0.0  # as if a third of a claim had passed
    two.step()
    assert [out.data for out in second.published] == [b"b:1"]


def test_a_claim_outlasts_a_publish(storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prolonged before each batch when a third is over: what is left is longer than a publish may take."""
    assert CLAIM * 2 / 3 > PUBLISH_TIMEOUT
    monkeypatch.setattr(module, "BATCH", 1)
    claims: list[str] = []
    real = storage.claim

    def claim(key: str, owner: str, seconds: float) -> bool:
        claims.append(key)
        return real(key, owner, seconds)

    monkeypatch.setattr(storage, "claim", claim)
    broker = MemoryBroker()
    scheduler = Scheduler(broker, storage, "host:1")
    schedule(storage, "a:1", "b:1", "c:1")

    def publish(message: Any, done: Any, *, timeout: float = 10.0) -> None:
        scheduler._mine[0] = 0.0  # a slow broker: a third of the claim has passed
        if message.data == b"b:1":  # and somebody else has it by now
            storage.release("schedule:0", "host:1")
            assert real("schedule:0", "host:2", 10.0)
        MemoryBroker.publish(broker, message, done, timeout=timeout)

    broker.publish = publish  # type: ignore[method-assign]
    scheduler.step()
    assert claims.count("schedule:0") == 3
    assert [out.data for out in broker.published] == [b"a:1", b"b:1"]
    assert waiting(storage) == ["c:1"]


def test_stopping_twice_and_without_a_start_is_no_error(storage: SQLiteStorage) -> None:
    scheduler = Scheduler(MemoryBroker(), storage, "host:1")
    scheduler.stop()
    scheduler.start()
    scheduler.stop()
    scheduler.stop()
    assert not scheduler.alive


def test_a_claim_that_can_not_be_released_does_not_hold_up_the_end(
    storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(key: str, owner: str) -> None:
        raise StorageUnavailable("away")

    scheduler = Scheduler(MemoryBroker(), storage, "host:1")
    scheduler.start()
    scheduler.step()
    monkeypatch.setattr(storage, "release", away)
    scheduler.stop()
    assert "could not release" in caplog.text


def test_the_sweeper_deletes_what_has_expired(storage: SQLiteStorage) -> None:
    for id, expires_at in (("old", time.time() - 1), ("new", time.time() + 100)):
        storage.put(TaskRecord(id, FINISHED, expires_at=expires_at), lambda _, error: None)
    Sweeper(storage).step()
    assert storage._handle.read("SELECT id FROM task") == [("new",)]
