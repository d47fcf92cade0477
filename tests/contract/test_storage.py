"""The storage seam: what every storage promises. README.md maps the promises of the design to these tests."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from psq.brokers.base import DeadLetter
from psq.errors import StorageRefused
from psq.message import Message, encode
from psq.storages.base import (
    CANCELLED,
    FAILED,
    FINISHED,
    QUEUED,
    RETRYING,
    STARTED,
    Scheduled,
    Storage,
    TaskRecord,
)
from tests.contract.backends import StoragePlace
from tests.contract.helpers import Answer

NOW = 1_800_000_000.0


def record(id: str = "t1", state: str = FINISHED, **fields: Any) -> TaskRecord:
    """A record with every field set."""
    error = {"type": "builtins:ValueError", "message": "nö", "traceback": "Traceback…\n"}
    values: dict[str, Any] = {
        "queue": "work",
        "function": "myapp.tasks:adder",
        "attempt": 1,
        "run": 1,
        "enqueued_at": NOW,
        "started_at": NOW + 1,
        "finished_at": NOW + 2.125 if state in (FINISHED, FAILED, CANCELLED) else None,
        "result": b"11" if state == FINISHED else None,
        "error": error if state == FAILED else None,
        "worker": "host:123",
        "expires_at": time.time() + 86400,
    }
    return TaskRecord(id, state, **{**values, **fields})


def put(storage: Storage, *records: TaskRecord) -> None:
    """Write and wait for the answers."""
    answers = [Answer() for _ in records]
    for one, answer in zip(records, answers, strict=True):
        storage.put(one, answer)
    for answer in answers:
        answer.get()


def schedule(storage: Storage, *items: Scheduled) -> None:
    """Keep and wait for the answers."""
    answers = [Answer() for _ in items]
    for item, answer in zip(items, answers, strict=True):
        storage.schedule(item, answer)
    for answer in answers:
        answer.get()


def due(storage: Storage, now: float, limit: int = 100) -> list[Scheduled]:
    """What is due in all shards."""
    return [item for shard in range(storage.shards) for item in storage.due(shard, now, limit)]


# records


@pytest.mark.parametrize("state", [FINISHED, FAILED, CANCELLED, QUEUED, STARTED, RETRYING])
def test_a_record_is_read_back_as_it_was_written(storages: StoragePlace, state: str) -> None:
    written = record(state=state)
    put(storages.open(), written)
    read = storages.open().get(["t1"])["t1"]
    assert read.expires_at == pytest.approx(written.expires_at, abs=0.01)
    read.expires_at = written.expires_at
    read.finished_at = pytest.approx(written.finished_at, abs=0.001) if written.finished_at else read.finished_at
    assert read == written


def test_a_record_with_nothing_but_an_id_and_a_state_is_read_back(storages: StoragePlace) -> None:
    storage = storages.open()
    put(storage, TaskRecord("t1", FINISHED))
    assert storage.get(["t1"])["t1"] == TaskRecord("t1", FINISHED)


def test_unknown_ids_are_left_out(storages: StoragePlace) -> None:
    storage = storages.open()
    put(storage, record("t1"))
    assert set(storage.get(["t1", "t2"])) == {"t1"}
    assert storage.get([]) == {}
    assert storage.get_task("t2") is None


def test_many_records_are_written_together_and_each_is_answered(storages: StoragePlace) -> None:
    storage = storages.open()
    put(storage, *(record(f"t{i}", result=str(i).encode()) for i in range(700)))
    read = storage.get([f"t{i}" for i in range(700)])
    assert {id: one.result for id, one in read.items()} == {f"t{i}": str(i).encode() for i in range(700)}


def test_threads_write_at_once_and_nothing_is_mixed_up(storages: StoragePlace) -> None:
    storage = storages.open()

    def writer(number: int) -> None:
        put(storage, *(record(f"t{number}-{i}", result=f"{number}-{i}".encode()) for i in range(20)))

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [f"{n}-{i}" for n in range(6) for i in range(20)]
    read = storage.get([f"t{id}" for id in ids])
    assert [read[f"t{id}"].result for id in ids] == [id.encode() for id in ids]


def test_the_same_task_twice_in_one_request_is_no_error(storages: StoragePlace) -> None:
    storage = storages.open()
    put(storage, *(record("t1", STARTED, attempt=i) for i in range(1, 6)), record("t1", FINISHED, attempt=6))
    assert storage.get(["t1"])["t1"].attempt == 6


@pytest.mark.parametrize("size", [100_000, 1_500_000, 9_000_000])
def test_a_large_result_is_read_back(storages: StoragePlace, size: int) -> None:
    storage = storages.open()
    result = bytes(f'"{"".join(chr(33 + (i * 7919) % 90) for i in range(1000)) * (size // 1000)}"', "ascii")
    put(storage, record(result=result))
    assert storage.get(["t1"])["t1"].result == result


def test_a_result_over_the_limit_is_refused_and_others_are_not_affected(storages: StoragePlace) -> None:
    storage = storages.open()
    limit = storage.max_result_bytes  # type: ignore[attr-defined]
    good, bad, also_good = Answer(), Answer(), Answer()
    storage.put(record("good"), good)
    storage.put(record("bad", result=b"x" * (limit + 1)), bad)
    storage.put(record("also-good"), also_good)
    good.get()
    also_good.get()
    with pytest.raises(StorageRefused):
        bad.get()
    assert set(storage.get(["good", "bad", "also-good"])) == {"good", "also-good"}


# terminal states stay


@pytest.mark.parametrize("first", [FINISHED, FAILED, CANCELLED])
@pytest.mark.parametrize("second", [FINISHED, FAILED, STARTED, QUEUED])
def test_a_terminal_state_stays_against_the_same_attempt(storages: StoragePlace, first: str, second: str) -> None:
    storage = storages.open()
    put(storage, record(state=first, worker="first"))
    put(storage, record(state=second, worker="second"))
    kept = storage.get(["t1"])["t1"]
    assert (kept.state, kept.worker) == (first, "first")


def test_a_terminal_state_stays_against_an_earlier_attempt(storages: StoragePlace) -> None:
    storage = storages.open()
    put(storage, record(state=FINISHED, attempt=2))
    put(storage, record(state=FAILED, attempt=1))
    assert storage.get(["t1"])["t1"].state == FINISHED


@pytest.mark.parametrize(("attempt", "run"), [(2, 1), (1, 2), (7, 3)])
def test_a_later_attempt_or_run_replaces_a_terminal_state(storages: StoragePlace, attempt: int, run: int) -> None:
    storage = storages.open()
    put(storage, record(state=FAILED, attempt=1, run=1))
    put(storage, record(state=FINISHED, attempt=attempt, run=run))
    kept = storage.get(["t1"])["t1"]
    assert (kept.state, kept.attempt, kept.run, kept.error) == (FINISHED, attempt, run, None)


def test_an_earlier_attempt_of_a_later_run_replaces_a_terminal_state(storages: StoragePlace) -> None:
    storage = storages.open()
    put(storage, record(state=FAILED, attempt=3, run=1))
    put(storage, record(state=FINISHED, attempt=1, run=2))
    assert storage.get(["t1"])["t1"].state == FINISHED


@pytest.mark.parametrize("first", [QUEUED, STARTED, RETRYING])
def test_a_state_that_is_not_terminal_is_replaced(storages: StoragePlace, first: str) -> None:
    storage = storages.open()
    put(storage, record(state=first))
    put(storage, record(state=FINISHED))
    assert storage.get(["t1"])["t1"].state == FINISHED


def test_two_storages_that_write_the_same_task_keep_the_first(storages: StoragePlace) -> None:
    one, two = storages.open(), storages.open()
    put(one, record(result=b"1"))
    put(two, record(result=b"2"))
    assert two.get(["t1"])["t1"].result == b"1"


def test_what_has_expired_is_not_found_and_may_be_swept(storages: StoragePlace) -> None:
    storage = storages.open()
    put(storage, record("old", expires_at=time.time() - 10), record("new"))
    assert set(storage.get(["old", "new"])) == {"new"}
    assert [one.id for one in storage.find()] == ["new"]
    storage.sweep(time.time())
    assert set(storage.get(["old", "new"])) == {"new"}


# listings


def filled(storage: Storage) -> None:
    """Six records whose times all say the same order."""
    for i, (state, queue, function) in enumerate(
        [
            (FINISHED, "one", "m:f"),
            (FAILED, "one", "m:g"),
            (FINISHED, "two", "m:f"),
            (FAILED, "two", "m:f"),
            (FINISHED, "one", "m:g"),
            (FINISHED, "two", "m:g"),
        ]
    ):
        at = NOW + 100 * i
        one = record(f"t{i}", state, queue=queue, function=function, enqueued_at=at, started_at=at, finished_at=at)
        put(storage, one)


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, ["t5", "t4", "t3", "t2", "t1", "t0"]),
        ({"state": FAILED}, ["t3", "t1"]),
        ({"queue": "one"}, ["t4", "t1", "t0"]),
        ({"function": "m:f"}, ["t3", "t2", "t0"]),
        ({"state": FINISHED, "queue": "two"}, ["t5", "t2"]),
        ({"state": FINISHED, "function": "m:g"}, ["t5", "t4"]),
        ({"limit": 2}, ["t5", "t4"]),
        ({"queue": "one", "limit": 1}, ["t4"]),
        ({"queue": "none"}, []),
    ],
)
def test_listings_are_filtered_and_newest_first(
    storages: StoragePlace, filters: dict[str, Any], ids: list[str]
) -> None:
    storage = storages.open()
    if not storage.can_list:
        pytest.skip("this storage can't list")
    filled(storage)
    assert [one.id for one in storage.find(**filters)] == ids


def test_a_listing_of_many_pages_has_everything_once(storages: StoragePlace) -> None:
    storage = storages.open()
    if not storage.can_list:
        pytest.skip("this storage can't list")
    put(storage, *(record(f"t{i}", finished_at=NOW + i // 3) for i in range(450)))
    ids = [one.id for one in storage.list_tasks()]
    assert len(ids) == 450
    assert set(ids) == {f"t{i}" for i in range(450)}


def test_a_changed_record_is_listed_under_its_new_state_alone(storages: StoragePlace) -> None:
    storage = storages.open()
    if not storage.can_list:
        pytest.skip("this storage can't list")
    put(storage, record(state=STARTED))
    put(storage, record(state=FINISHED))
    assert [one.id for one in storage.find(state=FINISHED)] == ["t1"]
    assert list(storage.find(state=STARTED)) == []


def test_deleted_records_are_gone_and_unknown_ones_no_error(storages: StoragePlace) -> None:
    storage = storages.open()
    put(storage, record("t1"), record("t2", result=b"x" * 2_000_000), record("t3"))
    storage.delete(["t1", "t2", "unknown"])
    storage.delete([])
    assert set(storage.get(["t1", "t2", "t3"])) == {"t3"}
    storage.delete_task("t3")
    assert list(storage.find()) == []


# dead letters


def letter(number: int, queue: str = "work", **fields: Any) -> DeadLetter:
    """A dead letter with every field set."""
    values: dict[str, Any] = {
        "payload": b'{"v":1}',
        "error": "ValueError: no",
        "traceback": "Traceback…",
        "enqueued_at": NOW,
        "died_at": NOW + number,
        "deaths": [],
    }
    return DeadLetter(f"t{number}", 1, queue, "m:f", "out of retries", **{**values, **fields})


def put_dead(storage: Storage, *letters: DeadLetter) -> None:
    """Keep and wait for the answers."""
    answers = [Answer() for _ in letters]
    for one, answer in zip(letters, answers, strict=True):
        storage.put_dead(one, answer)
    for answer in answers:
        answer.get()


def test_dead_letters_are_read_back_as_they_were_written(storages: StoragePlace) -> None:
    storage = storages.open()
    deaths = [{"signal": "SIGKILL", "host": "here", "at": NOW}]
    written = letter(1, payload=b"\xff\x00", deaths=deaths)
    put_dead(storage, written)
    (read,) = storages.open().get_dead("t1:1")
    read.deaths = list(read.deaths)
    assert read == written


def test_dead_letters_are_listed_newest_first_and_by_queue(storages: StoragePlace) -> None:
    storage = storages.open()
    put_dead(storage, letter(1, "one"), letter(2, "two"), letter(3, "one"))
    assert [one.key for one in storage.list_dead()] == ["t3:1", "t2:1", "t1:1"]
    assert [one.key for one in storage.list_dead("one")] == ["t3:1", "t1:1"]
    assert [one.key for one in storage.list_dead(limit=2)] == ["t3:1", "t2:1"]


def test_all_attempts_of_a_task_are_found_by_its_id(storages: StoragePlace) -> None:
    storage = storages.open()
    first, second = letter(1), letter(1)
    second.attempt = 2
    put_dead(storage, first, second, letter(2))
    assert {one.key for one in storage.get_dead("t1")} == {"t1:1", "t1:2"}
    assert {one.key for one in storage.get_dead("t1:2")} == {"t1:2"}
    assert storage.get_dead("t9") == []


def test_a_dead_letter_written_twice_is_kept_once(storages: StoragePlace) -> None:
    storage = storages.open()
    put_dead(storage, letter(1, error="first"))
    put_dead(storage, letter(1, error="second"))
    assert [one.error for one in storage.get_dead("t1")] == ["second"]


def test_deleted_dead_letters_are_gone(storages: StoragePlace) -> None:
    storage = storages.open()
    put_dead(storage, letter(1), letter(2))
    storage.delete_dead(["t1:1", "unknown:1"])
    assert [one.key for one in storage.list_dead()] == ["t2:1"]


def test_a_letter_that_was_written_again_is_not_discarded(storages: StoragePlace) -> None:
    storage = storages.open()
    put_dead(storage, letter(1), letter(2), letter(3))
    (one,), (two,) = storage.get_dead("t1"), storage.get_dead("t2")
    put_dead(storage, letter(1, died_at=NOW + 100))
    storage.discard([one, two, letter(9)])
    assert [found.key for found in storage.list_dead()] == ["t1:1", "t3:1"]
    storage.discard([])


def test_letters_of_two_runs_are_two_letters(storages: StoragePlace) -> None:
    storage = storages.open()
    runs = [letter(1, payload=encode(Message("t1", "m:f", run=run)), died_at=NOW + run) for run in (1, 2)]
    put_dead(storage, *runs)
    assert {found.key for found in storage.get_dead("t1")} == {"t1:1", "t1:1.2"}
    assert [found.key for found in storage.get_dead("t1:1.2")] == ["t1:1.2"]
    storage.delete_dead(["t1:1"])
    assert [found.key for found in storage.list_dead()] == ["t1:1.2"]


def test_a_large_dead_letter_is_read_back(storages: StoragePlace) -> None:
    storage = storages.open()
    payload = bytes(range(256)) * 20_000
    put_dead(storage, letter(1, payload=payload))
    assert storage.get_dead("t1")[0].payload == payload


# the schedule


def test_what_is_scheduled_is_due_at_its_time_and_not_before(storages: StoragePlace) -> None:
    storage = storages.open()
    item = Scheduled("t1:1", NOW + 10, "work", b"\x00document", {"psq-v": "1"})
    schedule(storage, item)
    assert due(storage, NOW + 9.9) == []
    (found,) = due(storages.open(), NOW + 10.1)
    assert (found.id, found.queue, found.data, dict(found.attributes)) == (
        "t1:1",
        "work",
        b"\x00document",
        {"psq-v": "1"},
    )
    assert found.due_at == pytest.approx(NOW + 10, abs=0.001)
    assert found.key


def test_due_items_come_soonest_first_up_to_the_limit(storages: StoragePlace) -> None:
    storage = storages.open()
    schedule(storage, *(Scheduled(f"t{i}:1", NOW + (i * 7) % 20, "work", b"x") for i in range(20)))
    for shard in range(storage.shards):
        times = [item.due_at for item in storage.due(shard, NOW + 100, 3)]
        assert times == sorted(times)
        assert len(times) <= 3
    assert len(due(storage, NOW + 100)) == 20


def test_moving_a_message_twice_keeps_it_once(storages: StoragePlace) -> None:
    storage = storages.open()
    item = Scheduled("t1:1", NOW, "work", b"x")
    schedule(storage, item)
    schedule(storages.open(), item)
    assert len(due(storage, NOW + 1)) == 1


def test_what_was_unscheduled_is_not_due_any_more(storages: StoragePlace) -> None:
    storage = storages.open()
    schedule(storage, *(Scheduled(f"t{i}:1", NOW, "work", b"x") for i in range(5)))
    first, *others = due(storage, NOW + 1)
    storage.unschedule([first.key])
    storage.unschedule([first.key])
    assert {item.id for item in due(storage, NOW + 1)} == {item.id for item in others}


def test_a_large_scheduled_message_is_read_back(storages: StoragePlace) -> None:
    storage = storages.open()
    data = bytes(range(256)) * 10_000
    schedule(storage, Scheduled("t1:1", NOW, "work", data))
    assert due(storage, NOW + 1)[0].data == data


# claims


def test_a_claim_has_one_owner_who_may_prolong_it(storages: StoragePlace) -> None:
    one, two = storages.open(), storages.open()
    assert one.claim("schedule:0", "a", 30) is True
    assert two.claim("schedule:0", "b", 30) is False
    assert one.claim("schedule:0", "a", 30) is True
    assert two.claim("schedule:1", "b", 30) is True


def test_a_claim_that_ran_out_goes_to_who_asks(storages: StoragePlace) -> None:
    storage = storages.open()
    assert storage.claim("key", "a", 0.2)
    deadline = time.monotonic() + 10
    while not storage.claim("key", "b", 30):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert storage.claim("key", "a", 30) is False


def test_only_its_owner_releases_a_claim(storages: StoragePlace) -> None:
    storage = storages.open()
    storage.claim("key", "a", 30)
    storage.release("key", "b")
    assert storage.claim("key", "b", 30) is False
    storage.release("key", "a")
    storage.release("key", "a")
    assert storage.claim("key", "b", 30) is True


def test_of_many_who_claim_at_once_one_wins(storages: StoragePlace) -> None:
    storage = storages.open()
    won: list[str] = []

    def claimer(name: str) -> None:
        if storage.claim("key", name, 60):
            won.append(name)

    threads = [threading.Thread(target=claimer, args=(f"owner-{n}",)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


# life


def test_dispatch_carries_the_answers(storages: StoragePlace) -> None:
    storage = storages.open()
    calls: list[str] = []

    def dispatch(call: Any) -> None:
        calls.append("dispatched")
        call()

    storage.dispatch = dispatch
    put(storage, record())
    assert calls


def test_close_writes_what_waits_and_may_be_called_twice(storages: StoragePlace) -> None:
    storage = storages.make()
    answers = [Answer() for _ in range(50)]
    for i, answer in enumerate(answers):
        storage.put(record(f"t{i}"), answer)
    storage.close()
    storage.close()
    for answer in answers:
        answer.get()
    assert len(storages.open().get([f"t{i}" for i in range(50)])) == 50


def test_pending_bytes_fall_to_nothing(storages: StoragePlace) -> None:
    storage = storages.open()
    assert storage.pending_bytes() == 0
    put(storage, record(result=b"x" * 10_000))
    assert storage.pending_bytes() == 0
    storage.tick()


def test_identity_is_the_same_for_the_same_place(storages: StoragePlace) -> None:
    one, two = storages.open(), storages.open()
    assert one.identity == two.identity != ""
    assert one.url.startswith(f"{one.scheme}://")
