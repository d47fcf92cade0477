from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from psq.errors import BrokerRefused, BrokerUnavailable
from psq.sqlite.opening import BROKER, connect
from psq.sqlite.work import Careful, Outbox, Transaction, Work
from psq.sqlite.writer import Writer
from tests.contract.helpers import Answer


class Note(Work):
    """Writes a row of its own; "bad" can't be written, "careful" must be written alone."""

    __slots__ = ("text",)
    commits: ClassVar[list[list[str]]] = []

    def __init__(self, text: str, done: Any, outbox: Outbox | None = None, timeout: float | None = None) -> None:
        super().__init__(done, BROKER, outbox, timeout)
        self.text = text

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> Sequence[Any] | None:
        texts = [work.text for work in works]
        if "careful" in texts and not tx.careful:
            tx.connection.execute("INSERT INTO meta VALUES ('must be rolled back', 1)")
            raise Careful
        for text in texts:
            if text == "bad":
                raise sqlite3.IntegrityError("this one can't be written")
            tx.connection.execute("INSERT INTO meta VALUES (?, 1)", (text,))
            tx.touch(f"queue-{text[0]}", tx.now)
        cls.commits.append(texts)
        return [ValueError(text) if text == "fails alone" else text.upper() for text in texts]


class Place:
    def __init__(self, path: str) -> None:
        self.path = path
        self.touched: list[dict[str, float]] = []
        self.writer = Writer(path, "FULL", self.touched.append)
        Note.commits = []

    def add(self, text: str, **options: Any) -> Answer:
        answer = Answer()
        self.writer.add(Note(text, answer, **options))
        return answer

    def rows(self) -> set[str]:
        with closing(sqlite3.connect(self.path)) as connection:
            return {row[0] for row in connection.execute("SELECT key FROM meta")}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(str(tmp_path / "psq.db"))
    yield place
    place.writer.close(5)


@pytest.fixture
def locked(place: Place) -> Iterator[sqlite3.Connection]:
    """Another connection that holds the lock."""
    place.add("first").get()
    with closing(connect(place.path, "FULL")) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def test_work_is_written_and_answered_with_its_result(place: Place) -> None:
    assert place.add("one").get() == "ONE"
    assert place.rows() == {"one"}


def test_what_comes_during_a_commit_goes_together_in_the_next(place: Place, locked: sqlite3.Connection) -> None:
    answers = [place.add(f"t{n}") for n in range(50)]
    locked.execute("ROLLBACK")
    assert [answer.get() for answer in answers] == [f"T{n}" for n in range(50)]
    assert len(Note.commits) <= 4  # the first, then what had come by then, and the rest


def test_one_that_can_not_be_written_fails_alone(place: Place, locked: sqlite3.Connection) -> None:
    answers = [place.add(text) for text in ("a", "b", "bad", "c", "d")]
    locked.execute("ROLLBACK")
    assert isinstance(answers.pop(2).error(), BrokerRefused)
    assert [answer.get() for answer in answers] == ["A", "B", "C", "D"]
    assert place.rows() == {"first", "a", "b", "c", "d"}


def test_a_result_may_be_the_error_of_one(place: Place) -> None:
    with pytest.raises(ValueError, match="fails alone"):
        place.add("fails alone").get()


def test_careful_work_is_begun_again_from_nothing(place: Place) -> None:
    assert place.add("careful").get() == "CAREFUL"
    assert place.rows() == {"careful"}


def test_touched_sources_are_told_after_the_commit(place: Place) -> None:
    place.add("one").get()
    (touched,) = place.touched
    assert set(touched) == {"queue-o"}
    assert touched["queue-o"] == pytest.approx(time.time(), abs=60)


def test_a_lock_is_waited_for_and_callers_are_unharmed(place: Place, locked: sqlite3.Connection) -> None:
    answer = place.add("waits", timeout=30)
    assert not answer._waiter.wait(0.3)
    locked.execute("COMMIT")
    assert answer.get() == "WAITS"


def test_work_whose_time_is_over_fails_and_the_rest_waits_on(place: Place, locked: sqlite3.Connection) -> None:
    patient, short = place.add("patient"), place.add("short", timeout=0.2)
    error = short.error()
    assert isinstance(error, BrokerUnavailable)
    assert "locked by another process" in str(error)
    assert patient.count == 0
    locked.execute("COMMIT")
    patient.get()
    assert place.rows() == {"first", "patient"}


def test_what_comes_late_to_a_locked_file_fails_at_its_own_time(place: Place, locked: sqlite3.Connection) -> None:
    patient = place.add("patient")
    for _ in range(3):
        assert isinstance(place.add("short", timeout=0.1).error(), BrokerUnavailable)
    locked.execute("COMMIT")
    patient.get()


def test_close_gives_up_on_a_locked_file(place: Place, locked: sqlite3.Connection) -> None:
    answer = place.add("never")
    place.writer.close(0.3)
    assert isinstance(answer.error(), BrokerUnavailable)
    locked.execute("ROLLBACK")
    assert place.rows() == {"first"}


def test_an_outbox_hands_over_once_a_commit(place: Place, locked: sqlite3.Connection) -> None:
    handed: list[int] = []
    results: list[Any] = []

    def dispatch(call: Any) -> None:
        handed.append(1)
        call()

    outbox = Outbox(lambda: dispatch)
    place.writer.outboxes = (outbox,)
    for n in range(20):
        place.writer.add(Note(f"t{n}", lambda result, error: results.append(result), outbox))
    last = place.add("last")
    locked.execute("ROLLBACK")
    last.get()
    place.writer.close(5)
    assert sorted(results) == sorted(f"T{n}" for n in range(20))
    assert len(handed) <= 3


def test_a_callback_that_raises_harms_nobody(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(lambda: None)
    place.writer.outboxes = (outbox,)

    def raises(result: Any, error: Exception | None) -> None:
        raise RuntimeError("a bug of the caller's")

    place.writer.add(Note("one", raises, outbox))
    assert place.add("two").get() == "TWO"
    assert place.add("three").get() == "THREE"
    assert "a bug of the caller's" in caplog.text


def test_threads_write_at_once_and_each_gets_its_own_answer(place: Place) -> None:
    wrong: list[str] = []

    def run(number: int) -> None:
        for n in range(20):
            text = f"{number}-{n}"
            if place.writer.call(lambda done, text=text: Note(text, done)) != text:
                wrong.append(text)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(place.rows()) == 160


def test_a_full_disk_is_waited_for_within_the_callers_time(place: Place) -> None:
    place.add("first").get()
    connection = place.writer.connection
    assert connection is not None
    pages = connection.execute("PRAGMA page_count").fetchone()[0]

    class Big(Note):
        @classmethod
        def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
            tx.connection.execute(f"PRAGMA max_page_count = {limit}")
            tx.connection.execute("INSERT INTO meta VALUES ('big', zeroblob(100000))")

    limit = pages
    short = Answer()
    place.writer.add(Big("x", short, timeout=0.3))
    error = short.error()
    assert isinstance(error, BrokerUnavailable)
    assert "disk is full" in str(error)
    patient = Answer()
    place.writer.add(Big("x", patient))
    assert not patient._waiter.wait(0.2)
    limit = 1_000_000
    patient.get()


def test_only_what_must_survive_a_power_loss_waits_for_the_disk(place: Place) -> None:
    modes: list[int] = []

    class Probe(Note):
        @classmethod
        def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
            modes.append(tx.connection.execute("PRAGMA synchronous").fetchone()[0])

    class Fleeting(Probe):
        durable = False

    for kind in (Probe, Fleeting, Fleeting, Probe, Fleeting):
        answer = Answer()
        place.writer.add(kind("x", answer))
        answer.get()
    assert modes == [2, 1, 1, 2, 1]


def test_a_file_that_was_removed_is_made_anew(place: Place, tmp_path: Path) -> None:
    place.add("first").get()
    for file in tmp_path.glob("psq.db*"):
        file.unlink()
    place.writer._checked_at = 0.0
    place.add("second").get()
    assert place.rows() == {"second"}
