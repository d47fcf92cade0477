"""Several processes on one file: nobody starves, nothing is lost when one is killed, a lock harms no caller."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from psq.brokers.base import Outgoing, QueueSpec
from psq.brokers.sqlite import SQLiteBroker
from psq.concurrency import is_patched
from psq.storages.sqlite import SQLiteStorage
from tests.contract.helpers import Answer, ack, outgoing, publish, receiving
from tests.contract.sqlite_child import QUEUE
from tests.contract.test_storage import record

Child = subprocess.Popen[str]
Spawn = Callable[..., Child]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "psq.db")


@pytest.fixture
def spawn(path: str) -> Iterator[Spawn]:
    """Starts a process of `sqlite_child`; all are killed at the end."""
    children: list[Child] = []

    def start(role: str, *arguments: str) -> Child:
        command = [sys.executable, "-m", "tests.contract.sqlite_child", role, path, *arguments]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def line(child: Child) -> list[str]:
    """Its next line."""
    assert child.stdout is not None
    return child.stdout.readline().split()


@pytest.fixture
def broker(path: str) -> Iterator[SQLiteBroker]:
    with closing(SQLiteBroker(path)) as broker:
        yield broker


def check(path: str) -> None:
    """The file is sound."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_of_four_processes_that_drain_one_file_none_starves(broker: SQLiteBroker, path: str, spawn: Spawn) -> None:
    answers = [Answer() for _ in range(40_000)]
    for number, answer in enumerate(answers):
        broker.publish(Outgoing(QUEUE, str(number).encode()), answer, timeout=60)
    for answer in answers:
        answer.get()
    workers = [spawn("worker", "2") for _ in range(4)]
    for child in workers:
        assert line(child) == ["ready"]
    for child in workers:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    counts = []
    for child in workers:
        word, count = line(child)
        assert word == "acked"
        counts.append(int(count))
    with closing(sqlite3.connect(path)) as connection:
        (left,) = connection.execute("SELECT count(*) FROM message").fetchone()
    assert left > 0, "they drained it all: this shows nothing about starving"
    assert sum(counts) == 40_000 - left
    assert min(counts) > sum(counts) / 4 / 5, counts
    check(path)


def test_kill_9_of_writers_loses_nothing_that_was_accepted(path: str, spawn: Spawn) -> None:
    accepted: set[str] = set()
    for _ in range(3):
        writers = [spawn("publisher", f"p{len(accepted)}-{n}") for n in range(2)]
        for child in writers:
            assert line(child) == ["ready"]
            for _ in range(60):
                accepted.add(line(child)[1])
        for child in writers:
            child.kill()
            output, _ = child.communicate()
            # the last line of a killed process may be cut
            accepted |= {row.split()[1] for row in output.splitlines(keepends=True)[1:] if row.endswith("\n")}
        check(path)
    with closing(sqlite3.connect(path)) as connection:
        kept = {row[0].decode() for row in connection.execute("SELECT body FROM message")}
    assert len(accepted) >= 360
    assert accepted - kept == set()


def test_what_a_killed_process_held_is_delivered_again_when_its_lease_is_over(
    broker: SQLiteBroker, path: str, spawn: Spawn
) -> None:
    publish(broker, *(outgoing(QUEUE, f"t{n}") for n in range(20)))
    child = spawn("holder")
    held: set[str] = set()
    while len(held) < 20:
        held |= set(line(child)[1:])
    child.kill()
    child.wait()
    with closing(sqlite3.connect(path)) as connection, connection:  # a minute later
        connection.execute("UPDATE message SET visible_at = visible_at - 60")
    with receiving(broker, QUEUE) as (inbox, _):
        again = inbox.take(20)
        assert len(again) == 20
        assert all(delivery.redelivered for delivery in again)
        ack(broker, *again)


def test_a_file_that_is_locked_for_seconds_harms_no_caller(broker: SQLiteBroker, path: str, spawn: Spawn) -> None:
    queue = QueueSpec("work", ack_deadline=60.0)
    with closing(SQLiteStorage(path)) as storage, receiving(broker, queue, ask=1) as (inbox, receiver):
        publish(broker, outgoing(queue, "before"))
        delivery = inbox.one()
        locker = spawn("locker", "2.5")
        assert line(locker) == ["ready"]
        published, acked, stored = Answer(), Answer(), Answer()
        began = time.monotonic()
        broker.publish(outgoing(queue, "during"), published)
        broker.ack(delivery, acked)
        storage.put(record("before"), stored)
        receiver.ask(1)
        assert time.monotonic() - began < 0.5, "a caller was held"
        assert storage.get(["before"]) == {}, "reading needs no lock"
        assert published.count == 0
        for answer in (published, acked, stored):
            answer.get()
        assert line(locker) == ["released"]
        ack(broker, inbox.one())
        assert set(storage.get(["before"])) == {"before"}


def test_a_hub_turns_while_the_file_is_locked(broker: SQLiteBroker, spawn: Spawn) -> None:
    if not is_patched():
        pytest.skip("there is a hub in a patched process alone")
    import gevent

    publish(broker, outgoing(QUEUE, "first"))
    locker = spawn("locker", "2.0")
    assert line(locker) == ["ready"]
    gaps: list[float] = []

    def beat() -> None:
        last = time.monotonic()
        while True:
            gevent.sleep(0.01)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    heart = gevent.spawn(beat)
    began = time.monotonic()
    publish(broker, outgoing(QUEUE, "second"))
    waited = time.monotonic() - began
    heart.kill()
    assert waited > 1.0, "the file was not locked: this shows nothing"
    assert max(gaps) < waited / 2
    with contextlib.suppress(ValueError):
        assert line(locker) == ["released"]


def test_four_processes_that_make_the_file_at_once_all_open_it(path: str, spawn: Spawn) -> None:
    children = [spawn("publisher", f"p{n}") for n in range(4)]
    for child in children:
        assert line(child) == ["ready"]
    for child in children:
        assert line(child)[0] == "accepted"
    for child in children:
        child.kill()
        child.communicate()
    check(path)
