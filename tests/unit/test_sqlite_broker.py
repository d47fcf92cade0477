"""What is the SQLite broker's alone: claims, waiting without polling, the shared file, forks."""

from __future__ import annotations

import _imp
import ctypes
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from psq.brokers.base import Outgoing, QueueSpec
from psq.brokers.sqlite import SQLiteBroker, from_url
from psq.brokers.sqlite_leases import SQLiteLeaseClient, from_spec
from psq.errors import BrokerRefused, BrokerUnavailable, ConfigError
from psq.message import decode
from psq.sqlite import database, members, messages
from psq.storages.sqlite import SQLiteStorage
from tests.contract.helpers import Answer, Inbox, ack, nack, outgoing, publish, receiving, stop

QUEUE = QueueSpec("work", ack_deadline=60.0)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "psq.db")


@pytest.fixture
def broker(path: str) -> Iterator[SQLiteBroker]:
    broker = SQLiteBroker(path)
    yield broker
    broker.close()


@pytest.fixture
def other(path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SQLiteBroker]:
    """A broker with a connection and a writer of its own, as another process has."""
    with closing(SQLiteBroker(path)) as other:
        with monkeypatch.context() as patch:
            patch.setattr(database, "_databases", {})
            other._handle.open()
        yield other


def query(path: str, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


# receiving


def test_an_idle_receiver_does_not_poll(broker: SQLiteBroker) -> None:
    with receiving(broker, QUEUE) as (inbox, receiver):
        assert inbox.nothing(0.3)
        before = dict(broker.stats()), dict(receiver.stats)
        looks = broker._handle.database.watch().looks
        assert inbox.nothing(1.2)
        assert (broker.stats(), receiver.stats) == before
        assert broker._handle.database.watch().looks == looks


def test_a_receiver_sleeps_until_the_next_due_time(broker: SQLiteBroker) -> None:
    with receiving(broker, QUEUE) as (inbox, receiver):
        publish(broker, outgoing(QUEUE, "later", due_at=time.time() + 1.0))
        assert inbox.nothing(0.5)
        before = receiver.stats["receives"]
        assert inbox.nothing(0.3)
        assert receiver.stats["receives"] == before
        inbox.one()


def test_a_message_that_is_due_sooner_is_not_missed_for_a_later_one(broker: SQLiteBroker) -> None:
    with receiving(broker, QUEUE) as (inbox, _):
        publish(broker, outgoing(QUEUE, "late", due_at=time.time() + 3600))
        publish(broker, outgoing(QUEUE, "soon", due_at=time.time() + 0.3))
        assert decode(inbox.one().data).id == "soon"


def test_the_net_finds_what_no_datagram_told(broker: SQLiteBroker, path: str) -> None:
    with receiving(broker, QUEUE) as (inbox, _):
        assert inbox.nothing(0.3)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("INSERT INTO message (queue, visible_at, body) VALUES ('work', 0, x'00')")
        assert inbox.one().data == b"\x00"


def test_a_process_is_told_at_once_what_another_published(broker: SQLiteBroker, other: SQLiteBroker) -> None:
    with receiving(broker, QUEUE) as (inbox, _):
        assert inbox.nothing(0.5)
        assert other._handle.database is not broker._handle.database
        publish(other, outgoing(QUEUE))
        inbox.one()
        assert other.stats()["wakeups"] >= 1


def test_what_was_asked_for_while_nothing_was_there_is_served_later(broker: SQLiteBroker) -> None:
    with receiving(broker, QUEUE, ask=0) as (inbox, receiver):
        publish(broker, outgoing(QUEUE, "t1"))
        assert inbox.nothing(0.4)
        receiver.ask(1)
        inbox.one()
        publish(broker, outgoing(QUEUE, "t2"))
        assert inbox.nothing(0.1)
        receiver.ask(1)
        inbox.one()


def test_a_receiver_counts_what_it_has_not_handed_over(broker: SQLiteBroker) -> None:
    """The consumer asks again before its hub has run what the last claim brought."""
    publish(broker, *(outgoing(QUEUE, f"t{n}") for n in range(20)))
    broker.declare(QUEUE)
    waiting: list[Any] = []
    broker.dispatch = waiting.append
    inbox = Inbox()
    receiver = broker.receiver(QUEUE, inbox)
    receiver.start()
    receiver.ask(5)
    deadline = time.monotonic() + 10
    while not waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    receiver.ask(5)
    broker._handle.open()
    for call in waiting:
        call()
    broker.dispatch = None
    broker._handle.open()
    assert len(inbox.all) == 5
    assert query(broker.path, "SELECT count(*) FROM message WHERE lease = 1") == [(5,)]
    stop(receiver)


def test_given_back_messages_come_before_those_that_wait(broker: SQLiteBroker) -> None:
    publish(broker, *(outgoing(QUEUE, f"t{n}") for n in range(3)))
    with receiving(broker, QUEUE, ask=1) as (inbox, receiver):
        first = inbox.one()
        nack(broker, first)
        receiver.ask(3)
        assert [decode(d.data).id for d in inbox.take(3)] == ["t0", "t1", "t2"]


def test_large_messages_come_in_several_claims(broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_CLAIM_BYTES", 300_000)
    bodies = [
        bytes([n]) * size for n, size in enumerate((10, 100_000, 100_000, 0, 250_000, 400_000, 7, 65_536, 65_537))
    ]
    publish(broker, *(Outgoing(QUEUE, body) for body in bodies))
    with receiving(broker, QUEUE) as (inbox, receiver):
        assert [d.data for d in inbox.take(len(bodies))] == bodies
        assert receiver.stats["receives"] >= 4
        ack(broker, *inbox.all)
    assert query(broker.path, "SELECT count(*) FROM message") == [(0,)]


def test_a_queue_longer_than_a_claim_is_drained_in_order(broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_CLAIM", 7)
    publish(broker, *(outgoing(QUEUE, f"t{n}") for n in range(50)))
    with receiving(broker, QUEUE) as (inbox, _):
        assert [decode(d.data).id for d in inbox.take(50)] == [f"t{n}" for n in range(50)]


def test_a_stop_in_the_middle_of_a_claim_gives_back_what_it_brings(broker: SQLiteBroker, path: str) -> None:
    publish(broker, outgoing(QUEUE))
    broker.declare(QUEUE)
    inbox = Inbox()
    receiver = broker.receiver(QUEUE, inbox)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        receiver.start()
        receiver.ask(1)
        stop(receiver, grace=0.1)
        holder.execute("ROLLBACK")
    with receiving(broker, QUEUE) as (second, _):
        second.one()
    assert inbox.all == []


# the fence


def test_a_number_is_never_used_twice(broker: SQLiteBroker) -> None:
    publish(broker, outgoing(QUEUE, "t1"))
    with receiving(broker, QUEUE, ask=1) as (inbox, receiver):
        first = inbox.one()
        ack(broker, first)
        publish(broker, outgoing(QUEUE, "t2"))
        receiver.ask(1)
        second = inbox.one()
        assert second.lease_key.split(":")[0] != first.lease_key.split(":")[0]


def test_acks_of_lost_and_good_leases_in_one_commit_are_told_apart(broker: SQLiteBroker, path: str) -> None:
    publish(broker, *(outgoing(QUEUE, f"t{n}") for n in range(6)))
    with receiving(broker, QUEUE) as (inbox, _):
        held = inbox.take(6)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE message SET lease = lease + 1 WHERE seq IN (2, 4)")
        answers = []
        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")  # so that they all go in few commits
            for delivery in [*held, held[0]]:
                answers.append(Answer())
                broker.ack(delivery, answers[-1])
            holder.execute("ROLLBACK")
        lost = [answer.error() is not None for answer in answers]
        assert lost == [False, True, False, True, False, False, True]
        assert query(path, "SELECT seq FROM message") == [(2,), (4,)]


def test_lost_leases_in_a_nack_are_no_error(broker: SQLiteBroker, path: str) -> None:
    publish(broker, outgoing(QUEUE))
    with receiving(broker, QUEUE) as (inbox, _):
        delivery = inbox.one()
        ack(broker, delivery)
        nack(broker, delivery)


# the keeper's client


def test_a_strike_of_a_lease_that_is_over_is_not_done(broker: SQLiteBroker) -> None:
    publish(broker, outgoing(QUEUE), Outgoing(QUEUE, b"not a message"))
    record = {"signal": "SIGKILL", "host": "here", "at": 1.0}
    with receiving(broker, QUEUE) as (inbox, _):
        good, bad = inbox.take(2)
        with closing(from_spec(broker.lease_spec())) as keeper:
            answer = Answer()
            keeper.strike("work", [("999:1", b""), (good.lease_key, b""), (bad.lease_key, b"")], record, answer)
            assert answer.get() == ["999:1", bad.lease_key]
            answer = Answer()
            keeper.strike("work", [(good.lease_key, b"")], record, answer)
            assert answer.get() == [good.lease_key]


def test_a_closed_client_refuses(path: str) -> None:
    keeper = SQLiteLeaseClient(path)
    keeper.connect()
    keeper.close()
    answer = Answer()
    keeper.extend("work", ["1:1"], 10.0, 1.0, answer)
    assert isinstance(answer.error(), BrokerUnavailable)


def test_the_keepers_calls_end_in_time_beside_a_lock(broker: SQLiteBroker, path: str) -> None:
    broker.declare(QUEUE)
    with (
        closing(from_spec(broker.lease_spec())) as keeper,
        closing(sqlite3.connect(path, isolation_level=None)) as holder,
    ):
        holder.execute("BEGIN IMMEDIATE")
        answer = Answer()
        keeper.extend("work", ["1:1"], 10.0, 0.2, answer)
        assert isinstance(answer.error(), BrokerUnavailable)
        holder.execute("ROLLBACK")


# broadcast


def test_members_without_a_worker_for_a_day_are_swept_with_their_copies(broker: SQLiteBroker, path: str) -> None:
    for name in ("host-0", "host-1"):
        broker.declare(QueueSpec("fleet", broadcast=True, member=name))
    publish(broker, outgoing(QueueSpec("fleet", broadcast=True)))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE member SET seen_at = seen_at - 86401 WHERE member = 'host-1'")
    broker._handle.call(lambda done: members.Sweep(done, broker._handle.kinds))
    assert query(path, "SELECT queue FROM message") == [("fleet/host-0",)]
    assert query(path, "SELECT member FROM member") == [("host-0",)]


def test_a_members_beat_keeps_it(broker: SQLiteBroker, path: str) -> None:
    broker.declare(QueueSpec("fleet", broadcast=True, member="host-0"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE member SET seen_at = 1")
    broker.tick()
    broker._handle.open()
    assert query(path, "SELECT seen_at > 1 FROM member") == [(1,)]


# the file


def test_broker_and_storage_of_one_file_share_a_writer(broker: SQLiteBroker, path: str) -> None:
    with closing(SQLiteStorage(path)) as storage:
        broker._handle.open()
        storage._handle.open()
        assert broker._handle.database is storage._handle.database
    publish(broker, outgoing(QUEUE))  # the storage's close has not closed the broker's file


def test_a_file_that_was_replaced_is_noticed_by_the_watcher(broker: SQLiteBroker, path: str, tmp_path: Path) -> None:
    with receiving(broker, QUEUE) as (inbox, _):
        assert inbox.nothing(0.3)
        for file in tmp_path.glob("psq.db*"):
            if file.is_file():
                file.unlink()
        deadline = time.monotonic() + 20
        while not inbox.all and time.monotonic() < deadline:
            publish(broker, outgoing(QUEUE))
            inbox.take(1, 0.3)
        assert inbox.all


def test_a_url_makes_the_same_broker(path: str) -> None:
    for mode in ("FULL", "NORMAL"):
        made = from_url(SQLiteBroker(path, synchronous=mode).url)
        assert (made.path, made.lease_spec()["synchronous"]) == (path, mode)
    with pytest.raises(ConfigError):
        SQLiteBroker("relative.db")


@pytest.mark.unpatched
def test_a_fork_behind_pythons_back_is_refused_in_the_child(broker: SQLiteBroker, path: str) -> None:
    """As uWSGI forks: without the hooks that close the file before."""
    publish(broker, outgoing(QUEUE, "before"))
    libc = ctypes.PyDLL(None)
    _imp.acquire_lock()  # Python 3.13's PyOS_AfterFork_Child lets go of it
    child = libc.fork()
    if child == 0:
        code = 1
        try:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            publish(broker, outgoing(QUEUE, "child"))
        except BrokerRefused as error:
            code = 0 if "lazy-apps" in str(error) else 2
        finally:
            os._exit(code)
    _imp.release_lock()
    assert os.waitpid(child, 0)[1] == 0
    publish(broker, outgoing(QUEUE, "after"))
    assert query(path, "SELECT count(*) FROM message") == [(2,)]


@pytest.mark.unpatched
def test_a_fork_in_the_middle_of_writing_harms_neither_side(broker: SQLiteBroker, path: str) -> None:
    with receiving(broker, QUEUE, ask=0):
        answers = [Answer() for _ in range(300)]
        for n, answer in enumerate(answers):
            broker.publish(outgoing(QUEUE, f"parent-{n}"), answer)
        children = []
        for number in range(3):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    publish(broker, *(outgoing(QUEUE, f"child-{number}-{n}") for n in range(50)))
                    broker.close()
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        for answer in answers:
            answer.get()
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert query(path, "SELECT count(*) FROM message") == [(450,)]
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
