"""Shared commits against a server that refuses, forgets to answer and is contested."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest

from psq.errors import StorageRefused, StorageUnavailable
from psq.google.errors import CallError
from psq.group_commit import GroupCommit
from psq.storages.base import FAILED, FINISHED, QUEUED, RETRYING, STARTED, Scheduled, TaskRecord
from psq.storages.datastore import DatastoreStorage
from tests.contract.helpers import Answer
from tests.unit.datastore_server import Server, key_of, storage_on

LATER = 4_000_000_000.0


def record(id: str, state: str = FINISHED, **fields: Any) -> TaskRecord:
    return TaskRecord(id, state, "work", "m:f", expires_at=LATER, **fields)


def put(storage: Any, *records: TaskRecord) -> list[Answer]:
    answers = [Answer() for _ in records]
    for one, answer in zip(records, answers, strict=True):
        storage.put(one, answer)
    return answers


def mutations(commit: Any) -> list[tuple[str, str]]:
    """(Operation, key name) of a commit."""
    found = []
    for mutation in commit.mutations:
        operation = mutation.WhichOneof("operation")
        value = getattr(mutation, operation)
        found.append((operation, key_of(value if operation == "delete" else value.key)[1]))
    return found


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, no commit is started because the last one takes long."""
    monkeypatch.setattr("psq.storages.datastore_commit.GroupCommit", partial(GroupCommit, hasten=1000.0))


@pytest.mark.usefixtures("patient")
def test_who_arrives_while_a_commit_is_out_shares_the_next() -> None:
    server = Server()
    storage = storage_on(server)
    server.hold = True
    answers = put(storage, *(record(f"t{i}") for i in range(1000)))
    assert [len(commit.mutations) for commit in server.commits] == [1, 1, 1, 1]
    server.release()
    for answer in answers:
        answer.get(0)
    assert [len(commit.mutations) for commit in server.commits] == [1, 1, 1, 1, 400, 400, 196]


@pytest.mark.usefixtures("patient")
def test_a_commit_has_at_most_three_and_a_half_megabytes() -> None:
    server = Server()
    storage = storage_on(server)
    server.hold = True
    answers = put(storage, *(record(f"t{i}", result=os.urandom(800_000)) for i in range(14)))
    server.release()
    for answer in answers:
        answer.get(0)
    assert [len(commit.mutations) for commit in server.commits] == [1, 1, 1, 1, 4, 4, 2]


def test_a_bad_record_fails_alone() -> None:
    server = Server()
    storage = storage_on(server)
    server.bad = {("psq-task", "t7")}
    server.hold = True
    answers = put(storage, *(record(f"t{i}") for i in range(50)))
    server.release()
    errors = {i: error for i, answer in enumerate(answers) if (error := answer.error(0)) is not None}
    assert list(errors) == [7]
    assert isinstance(errors[7], StorageRefused)
    assert "psq-task 't7'" in str(errors[7])
    assert len(storage.get([f"t{i}" for i in range(50)])) == 49


def test_a_record_that_can_not_be_encoded_fails_alone() -> None:
    server = Server()
    storage = storage_on(server)
    server.hold = True
    bad = record("bad")
    bad.attempt = "one"  # type: ignore[assignment]
    worse = record("worse", error={"message": object()})
    answers = put(storage, record("t0"), record("t1"), record("t2"), record("t3"), record("t4"), bad, worse)
    server.release()
    assert [type(answer.error(0)) for answer in answers] == [type(None)] * 5 + [StorageRefused] * 2


def test_a_contested_commit_costs_one_look_up_and_one_commit() -> None:
    server = Server()
    first = storage_on(server)
    for answer in put(first, record("t3", worker="first"), record("t5", worker="first"), record("t8", STARTED)):
        answer.get(0)
    server.requests.clear()
    second = storage_on(server)
    server.hold = True
    answers = put(second, *(record(f"x{i}") for i in range(4)), *(record(f"t{i}", worker="second") for i in range(9)))
    server.release()
    for answer in answers:
        answer.get(0)
    workers = {id: one.worker for id, one in second.get([f"t{i}" for i in range(9)]).items()}
    assert workers == {f"t{i}": "first" if i in (3, 5) else "second" for i in range(9)}
    contested = server.requests[4:7]
    assert [len(contested[0].mutations), len(contested[1].keys), len(contested[2].mutations)] == [9, 9, 7]
    assert ("update", "t8") in mutations(contested[2])


def test_states_of_one_task_are_written_in_order_and_without_looking() -> None:
    server = Server()
    storage = storage_on(server)
    server.hold = True
    answers = put(storage, *(record("t1", state) for state in (QUEUED, STARTED, RETRYING, FINISHED)))
    assert len(server.commits) == 1
    server.release()
    for answer in answers:
        answer.get(0)
    assert server.lookups == []
    assert [mutations(commit) for commit in server.commits] == [[("insert", "t1")]] + [[("update", "t1")]] * 3
    assert storage.get(["t1"])["t1"].state == FINISHED


def test_a_task_with_another_run_looks_first() -> None:
    server = Server()
    storage = storage_on(server)
    put(storage, record("t1", FAILED))[0].get(0)
    server.requests.clear()
    put(storage, record("t1", FINISHED, run=2))[0].get(0)
    assert [len(server.lookups), mutations(server.commits[0])] == [1, [("update", "t1")]]


def test_a_commit_whose_answer_is_lost_is_answered_once_and_written_once() -> None:
    server = Server()
    storage = storage_on(server)
    lost = [CallError("DEADLINE_EXCEEDED", "no answer"), CallError("UNAVAILABLE", "gone")]

    def lose(request: Any) -> None:
        if lost:
            raise lost.pop()

    server.after = lose
    answers = put(storage, record("t1", result=b"1"))
    answers[0].get()
    assert answers[0].count == 1
    assert storage.get(["t1"])["t1"].result == b"1"
    assert [mutations(commit) for commit in server.commits] == [[("insert", "t1")]] * 2


def test_a_refused_commit_that_was_written_in_part_is_completed() -> None:
    server = Server()
    storage = storage_on(server)
    server.partial = True
    server.bad = {("psq-task", "t7")}
    server.hold = True
    answers = put(storage, *(record(f"t{i}", result=b"%d" % i) for i in range(12)))
    server.release()
    assert [i for i, answer in enumerate(answers) if answer.error(0)] == [7]
    assert {one.result for one in storage.get([f"t{i}" for i in range(12)]).values()} == {
        b"%d" % i for i in range(12) if i != 7
    }


@pytest.mark.parametrize(("attempt", "worker"), [(1, "two"), (2, "one")])
def test_a_server_that_skips_a_stale_update_instead_of_refusing_it_is_noticed(attempt: int, worker: str) -> None:
    server = Server()
    server.keeps_fail = False
    one, two = storage_on(server), storage_on(server)
    put(one, record("t1", STARTED))[0].get(0)  # `one` remembers this version
    put(two, record("t1", FAILED, worker="two"))[0].get(0)
    put(one, record("t1", FINISHED, attempt=attempt, worker="one"))[0].get(0)
    assert one.get(["t1"])["t1"].worker == worker


def test_no_permission_fails_all_with_one_request() -> None:
    server = Server()
    storage = storage_on(server)

    def deny(request: Any) -> None:
        raise CallError("PERMISSION_DENIED", "datastore.entities.create")

    server.before = deny
    server.hold = True
    answers = put(storage, *(record(f"t{i}") for i in range(200)))
    server.release()
    errors = [answer.error(0) for answer in answers]
    assert all(isinstance(error, StorageRefused) and "entities.create" in str(error) for error in errors)
    assert len(server.requests) == 5


def test_contention_is_tried_again_later() -> None:
    server = Server()
    storage = storage_on(server)
    times = [3]

    def contended(request: Any) -> None:
        times[0] -= 1
        if times[0] >= 0:
            raise CallError("ABORTED", "too much contention")

    server.before = contended
    put(storage, record("t1"))[0].get()
    assert storage.get(["t1"])["t1"].state == FINISHED


def test_a_refusal_that_no_key_explains_is_the_records_own() -> None:
    server = Server()
    storage = storage_on(server)

    def refuse(request: Any) -> None:
        if ("insert", "t2") in mutations(request):
            raise CallError("FAILED_PRECONDITION", "not today")

    server.before = refuse
    server.hold = True
    answers = put(storage, *(record(f"x{i}") for i in range(4)), *(record(f"t{i}") for i in range(5)))
    server.release()
    assert [i for i, answer in enumerate(answers) if answer.error(0)] == [6]


def test_parts_are_written_first_and_the_head_last() -> None:
    server = Server()
    storage = storage_on(server)
    put(storage, record("t1", result=os.urandom(3_000_000)))[0].get()
    kinds = [
        [key_of(m.insert.key if m.HasField("insert") else m.upsert.key)[0] for m in c.mutations] for c in server.commits
    ]
    assert [kind for commit in kinds for kind in commit] == ["psq-part"] * 4 + ["psq-task"]
    assert kinds[-1] == ["psq-task"]


def test_parts_of_what_was_replaced_or_not_written_are_deleted() -> None:
    server = Server()
    storage = storage_on(server)
    first, second, third = (os.urandom(2_000_000) for _ in range(3))
    put(storage, record("t1", result=first))[0].get()
    put(storage, record("t1", result=second))[0].get()  # the first stays
    assert sum(kind == "psq-part" for kind, _ in server.entities) == 3
    assert storage.get(["t1"])["t1"].result == first
    put(storage, record("t1", result=third, attempt=2))[0].get()
    assert sum(kind == "psq-part" for kind, _ in server.entities) == 3
    assert storage.get(["t1"])["t1"].result == third
    put(storage, record("t1", result=b"3", attempt=3))[0].get()
    assert sum(kind == "psq-part" for kind, _ in server.entities) == 0


def test_the_same_large_result_twice_is_one_set_of_parts() -> None:
    server = Server()
    storage = storage_on(server)
    result = os.urandom(2_000_000)
    for answer in put(storage, record("t1", result=result), record("t1", result=result)):
        answer.get()
    assert sum(kind == "psq-part" for kind, _ in server.entities) == 3
    assert storage.get(["t1"])["t1"].result == result


def test_a_head_without_its_parts_is_not_read() -> None:
    server = Server()
    storage = storage_on(server)
    put(storage, record("t1", result=os.urandom(2_000_000)), record("t2"))[0].get()
    del server.entities[next(key for key in server.entities if key[0] == "psq-part")]
    assert set(storage.get(["t1", "t2"])) == {"t2"}


def test_keys_are_looked_up_in_groups_and_deferred_ones_again() -> None:
    server = Server()
    storage = storage_on(server)
    for answer in put(storage, *(record(f"t{i}") for i in range(1500))):
        answer.get(0)
    server.requests.clear()
    server.defers = 700
    assert len(storage.get([f"t{i}" for i in range(1500)])) == 1500
    assert [len(request.keys) for request in server.lookups] == [1000, 800, 100]


def test_a_read_is_tried_again_while_its_error_may_go_away() -> None:
    server = Server()
    storage = storage_on(server)
    put(storage, record("t1"))[0].get(0)
    errors = [CallError("UNAVAILABLE", "refused stream"), CallError("RESOURCE_EXHAUSTED", "slow down")]

    def fail(request: Any) -> None:
        if errors:
            raise errors.pop()

    server.lookup = fail
    assert set(storage.get(["t1"])) == {"t1"}


def test_a_read_gives_up_in_time_and_one_without_permission_at_once() -> None:
    server = Server()
    storage = storage_on(server, timeout=0.2)

    def away(request: Any) -> None:
        raise CallError("UNAVAILABLE", "away")

    def denied(request: Any) -> None:
        raise CallError("PERMISSION_DENIED", "datastore.entities.get")

    server.lookup = away
    with pytest.raises(StorageUnavailable, match="away"):
        storage.get(["t1"])
    server.lookup = denied
    server.requests.clear()
    with pytest.raises(StorageRefused, match=r"entities\.get"):
        storage.get(["t1"])
    assert len(server.requests) == 1


def test_close_fails_what_could_not_be_written_and_nothing_is_pending() -> None:
    server = Server()
    storage = storage_on(server, close_timeout=0.1)
    server.hold = True
    answers = put(storage, *(record(f"t{i}") for i in range(10)))
    assert storage.pending_bytes() > 0
    storage.close()
    assert all(isinstance(answer.error(0), StorageUnavailable) for answer in answers)
    assert storage.pending_bytes() == 0
    server.release()
    assert [answer.count for answer in answers] == [1] * 10


def test_after_close_everything_is_unavailable() -> None:
    server = Server()
    storage = storage_on(server)
    storage.close()
    late = Answer()
    storage.schedule(Scheduled("t1:1", 1.0, "work", b"x"), late)
    assert isinstance(late.error(0), StorageUnavailable)


def test_a_storage_that_was_never_used_is_closed_without_looking_for_a_project() -> None:
    storage = DatastoreStorage()
    storage.close()
    with pytest.raises(StorageUnavailable, match="closed"):
        storage.get(["t1"])
    late = put(storage, record("t1"))[0]
    assert isinstance(late.error(0), StorageUnavailable)


def test_answers_go_through_dispatch_and_the_error_with_them() -> None:
    server = Server()
    storage = storage_on(server, max_result_bytes=1000)
    calls: list[Any] = []
    storage.dispatch = calls.append
    good, bad = put(storage, record("t1"), record("t2", result=b"x" * 1001))
    assert [good.count, bad.count] == [0, 0]
    for call in calls:
        call()
    good.get(0)
    with pytest.raises(StorageRefused, match="1,000"):
        bad.get(0)


def test_a_forked_child_knows_nothing_of_what_its_parent_has_under_way() -> None:
    server = Server()
    storage = storage_on(server)
    server.hold = True
    put(storage, record("t1"))
    storage.reset_after_fork()
    assert server.abandoned
    assert storage.pending_bytes() == 0
    storage._channel = Server()  # type: ignore[assignment]  # the child's own
    put(storage, record("t2"))[0].get(0)
    assert set(storage.get(["t1", "t2"])) == {"t2"}
