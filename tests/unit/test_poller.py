"""Waiting for results: how often the storage is read, and that no waiter depends on another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psq import poller as poller_module
from psq.errors import StorageRefused, StorageUnavailable
from psq.poller import FIRST_LOOKS, Cadence, Poller, poller_of
from psq.storages.base import FINISHED, STARTED, TaskRecord
from tests.unit.memory import MemoryStorage

# when


def looks(seconds: float, newcomers: Callable[[float], bool] = lambda now: False, found: bool = False) -> list[float]:
    """The instants of all reads in some seconds, newcomers being there as told."""
    cadence, now, result = Cadence(), 100.0, []
    cadence.begin(now)
    while now < 100.0 + seconds:
        if cadence.next(now, newcomers(now - 100.0)) <= now:
            result.append(round(now - 100.0, 3))
            cadence.looked(now, found)
        now += 0.001
    return result


def per_second(instants: list[float]) -> list[int]:
    return [sum(1 for instant in instants if second <= instant < second + 1) for second in range(int(instants[-1]) + 1)]


def test_eight_reads_in_the_first_second_and_four_after() -> None:
    instants = looks(4)
    assert instants[:8] == pytest.approx(FIRST_LOOKS, abs=0.002)
    assert per_second(instants)[:4] == [8, 4, 4, 4]


def test_newcomers_bring_no_more_than_one_read_more_a_second() -> None:
    assert per_second(looks(6, newcomers=lambda now: True))[:6] == [8, 5, 5, 5, 5, 5]


def test_a_newcomer_in_a_quiet_moment_is_looked_at_at_once() -> None:
    instants = looks(4, newcomers=lambda now: 2.1 <= now < 2.102)
    assert 2.1 in instants


@given(st.lists(st.floats(0, 5), max_size=30), st.lists(st.floats(0, 0.3), max_size=50))
def test_whoever_comes_and_however_late_reads_are_no_second_sees_more(arrivals: list[float], late: list[float]) -> None:
    pending, delays = sorted(arrivals), iter(late)
    cadence, now, instants = Cadence(), 0.0, []
    cadence.begin(now)
    while now < 6:
        waiting = bool(pending) and pending[0] <= now
        if cadence.next(now, waiting) <= now:
            now += next(delays, 0.0)
            instants.append(now)
            cadence.looked(now, found=False)
            pending = [at for at in pending if at > now]
        now += 0.005
    first = instants[0]
    assert sum(1 for instant in instants if instant < first + 1) <= 8
    after = [instant for instant in instants if instant >= first + 1]
    for begin in after:
        assert sum(1 for instant in after if begin <= instant < begin + 1) <= 5


def test_while_reads_find_something_newcomers_are_not_held_up() -> None:
    instants = looks(0.1, newcomers=lambda now: True, found=True)
    assert len(instants) == 100


def test_looks_that_a_slow_read_left_out_are_not_made_up_for() -> None:
    cadence = Cadence()
    cadence.begin(0.0)
    cadence.looked(0.0, found=False)
    cadence.looked(0.3, found=False)
    assert cadence.next(0.3, newcomers=False) == pytest.approx(FIRST_LOOKS[-1])
    cadence.looked(5.05, found=False)
    assert cadence.next(5.05, newcomers=False) == pytest.approx(5.3)


@pytest.mark.parametrize("way", [0.0, 0.005, 0.02, 0.04, 0.065])
def test_a_task_of_up_to_a_fifth_of_a_second_is_seen_within_fifty_milliseconds(way: float) -> None:
    """However long it takes to the worker and back, besides."""
    for milliseconds in range(201):
        end = milliseconds / 1000 + way
        assert next(look for look in FIRST_LOOKS if look >= end) - end <= 0.05 + 1e-9, end


# who


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


def finished(id: str) -> TaskRecord:
    return TaskRecord(id, FINISHED, result=b"1")


class Waiting:
    """A thread that waits."""

    def __init__(self, poller: Poller, id: str, timeout: float | None = 30) -> None:
        self.outcome: Any = None
        self.thread = threading.Thread(target=self._wait, args=(poller, id, timeout))
        self.thread.start()

    def _wait(self, poller: Poller, id: str, timeout: float | None) -> None:
        try:
            self.outcome = poller.wait(id, timeout)
        except Exception as error:
            self.outcome = error

    def join(self) -> Any:
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.outcome


class Gate:
    """Holds a storage's reads, so that the test sees who is asked for together."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._get, self._free = storage.get, threading.Event()
        self.reading = threading.Event()
        storage.get = self  # type: ignore[method-assign,assignment]

    def __call__(self, ids: Any) -> Any:
        self.reading.set()
        assert self._free.wait(30)
        return self._get(ids)

    def open(self) -> None:
        self._free.set()


def test_a_result_that_is_there_is_had_at_once(storage: MemoryStorage) -> None:
    storage.records["a"] = finished("a")
    assert Poller(storage).wait("a", 30) is storage.records["a"]
    assert storage.reads == 1


def test_all_who_wait_share_one_read(storage: MemoryStorage) -> None:
    poller, gate = Poller(storage), Gate(storage)
    first = Waiting(poller, "0")
    assert gate.reading.wait(30)
    others = [Waiting(poller, str(number)) for number in range(1, 50)]
    while len(poller._waits) < 50:
        threading.Event().wait(0.001)
    for number in range(50):
        storage.records[str(number)] = finished(str(number))
    gate.open()
    assert [waiting.join().id for waiting in [first, *others]] == [str(number) for number in range(50)]
    assert storage.reads == 2
    assert sorted(map(len, storage.asked)) == [1, 49]


def test_two_who_wait_for_one_task_ask_for_it_once(storage: MemoryStorage) -> None:
    poller, gate = Poller(storage), Gate(storage)
    waiting = [Waiting(poller, "a"), Waiting(poller, "a")]
    storage.records["a"] = finished("a")
    while len(poller._waits) < 2:
        threading.Event().wait(0.001)
    gate.open()
    assert all(one.join().id == "a" for one in waiting)
    assert all(asked == ["a"] for asked in storage.asked)


def test_many_ids_are_asked_for_in_parts(storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller_module, "MAX_IDS", 2)
    poller, gate = Poller(storage), Gate(storage)
    waiting = [Waiting(poller, str(number)) for number in range(5)]
    for number in range(5):
        storage.records[str(number)] = finished(str(number))
    while len(poller._waits) < 5:
        threading.Event().wait(0.001)
    gate.open()
    assert {one.join().id for one in waiting} == set("01234")
    assert max(map(len, storage.asked)) <= 2


def test_a_state_that_may_change_is_waited_through(storage: MemoryStorage) -> None:
    storage.records["a"] = TaskRecord("a", STARTED)
    assert Poller(storage).wait("a", 0.05) is None


def test_time_runs_out(storage: MemoryStorage) -> None:
    assert Poller(storage).wait("a", 0.01) is None


def test_who_gave_up_is_not_asked_for_again(storage: MemoryStorage) -> None:
    poller = Poller(storage)
    poller.wait("a", 0.01)
    storage.asked.clear()
    storage.records["b"] = finished("b")
    poller.wait("b", 30)
    assert storage.asked == [["b"]]


def test_a_storage_that_is_away_is_asked_again(storage: MemoryStorage, caplog: pytest.LogCaptureFixture) -> None:
    poller = Poller(storage)
    storage.error = StorageUnavailable("away")
    waiting = Waiting(poller, "a")
    while storage.reads < 2:
        threading.Event().wait(0.001)
    storage.records["a"] = finished("a")
    storage.error = None
    assert waiting.join().id == "a"
    assert caplog.text.count("results can't be read for now: away") == 1


def test_a_storage_that_stays_away_is_the_reason_where_time_runs_out(storage: MemoryStorage) -> None:
    storage.error = StorageUnavailable("away")
    assert Poller(storage).wait("a", 0.05) is storage.error


@pytest.mark.parametrize("error", [StorageRefused("no permission"), ZeroDivisionError("a bug")])
def test_any_other_error_ends_every_wait_at_once(storage: MemoryStorage, error: Exception) -> None:
    storage.error = error
    poller = Poller(storage)
    with pytest.raises(type(error)):
        poller.wait("a", 30)
    storage.error = None
    storage.records["a"] = finished("a")
    assert poller.wait("a", 30) is storage.records["a"]


def test_a_bug_of_the_poller_leaves_nobody_waiting(storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Poller) -> None:
        raise ZeroDivisionError

    poller = Poller(storage)
    with monkeypatch.context() as patch:
        patch.setattr(Poller, "look", broken)
        with pytest.raises(ZeroDivisionError):
            poller.wait("a", 30)
    storage.records["a"] = finished("a")
    assert poller.wait("a", 30) is storage.records["a"]


def test_an_idle_poller_lets_its_thread_go_and_begins_anew(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller_module, "LINGER", 0.005)
    poller = Poller(storage)
    for number in range(3):
        id = str(number)
        storage.records[id] = finished(id)
        assert poller.wait(id, 30) is not None
        while poller._running:
            threading.Event().wait(0.001)


def test_a_storage_has_one_poller(storage: MemoryStorage) -> None:
    assert poller_of(storage) is poller_of(storage)
    assert poller_of(storage) is not poller_of(MemoryStorage())


def test_after_a_fork_nobody_waits_here(storage: MemoryStorage) -> None:
    poller = Poller(storage)
    gate = Gate(storage)
    waiting = Waiting(poller, "a")
    assert gate.reading.wait(30)
    child = Poller(storage)
    child.__dict__.update(poller.__dict__)  # what a fork copies; its thread is not there
    child.reset_after_fork()
    assert not child._waits
    assert not child._running
    storage.records["a"] = finished("a")
    gate.open()
    assert waiting.join().id == "a"
    assert child.wait("a", 30).id == "a"  # type: ignore[union-attr]
