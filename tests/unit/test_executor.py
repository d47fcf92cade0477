"""The table of outcomes: each delivery ends in exactly one of ack, nack, park, after what must come first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from psq.errors import BrokerUnavailable, ConfigError, LeaseLost, MessageTooLarge, StorageRefused
from psq.message import Message, decode, encode
from psqd.worker import steps
from psqd.worker.invocation import Invocation
from tests.unit.worker_fakes import Bench

TASKS = "tests.unit.worker_tasks:"


def message(function: str, *args: Any, **more: Any) -> Message:
    return Message("id-1", TASKS + function, list(args), {}, "q", time.time(), **more)


def test_a_result_is_stored_before_the_ack_and_the_lease_ends_with_its_answer() -> None:
    bench = Bench()
    bench.outside.hold = True
    delivery = bench.run(message("add", 2, 3))
    assert bench.outside.calls == [("put", ("finished", b"5", None, "id-1"))]
    assert bench.link.marks == [("started", 0), ("ended", 0)]
    bench.outside.done.pop()(None, None)
    assert bench.outside.names() == ["put", "ack"]
    assert delivery.slot >= 0
    bench.outside.done.pop()(None, None)
    assert delivery.slot == -1
    gevent.sleep(0)
    assert bench.link.released == [0]


def test_without_storage_a_finished_task_is_just_acked() -> None:
    bench = Bench(storage=False)
    bench.run(message("add", 2, 3))
    assert bench.outside.names() == ["ack"]


def test_states_that_are_not_wanted_are_not_stored() -> None:
    bench = Bench(store_on_status=["failed"])
    bench.run(message("add", 2, 3))
    assert bench.outside.names() == ["ack"]
    bench.run(message("fail"))
    assert bench.outside.names() == ["ack", "put", "ack"]


def test_states_that_do_not_stay_are_stored_where_they_are_wanted() -> None:
    bench = Bench(store_on_status=["started", "retrying", "finished", "failed"], retries=1, retry={"first": 0})
    bench.run(message("fail"))
    assert [call[1][0] for call in bench.outside.calls if call[0] == "put"] == ["started", "retrying"]


def test_an_exception_without_retries_is_stored_and_acked_and_no_dead_letter() -> None:
    bench = Bench()
    bench.run(message("fail", "oh"))
    assert bench.outside.names() == ["put", "ack"]
    state, _, error, _ = bench.outside.calls[0][1]
    assert (state, error["type"], error["message"]) == ("failed", "builtins:ValueError", "oh")


@pytest.mark.parametrize("function", ["leave"])
def test_system_exit_fails_the_task(function: str) -> None:
    bench = Bench()
    bench.run(message(function))
    assert bench.outside.names() == ["put", "ack"]
    assert bench.outside.calls[0][1][2]["type"] == "builtins:SystemExit"


def test_a_retry_is_published_before_the_ack() -> None:
    bench = Bench(retries=2, retry={"first": 10.0, "jitter": 0.0})
    before = time.time()
    bench.run(message("fail"))
    assert bench.outside.names() == ["publish", "ack"]
    out = bench.outside.calls[0][1]
    sent = decode(out.data)
    assert (sent.id, sent.attempt) == ("id-1", 2)
    assert sent.due_at is not None
    assert sent.due_at == out.due_at
    assert before + 10 <= sent.due_at <= time.time() + 10


def runs(bench: Bench, function: str, **said: Any) -> int:
    """Attempts until a task has ended for good, 5 at most."""
    for attempt in range(1, 5):
        before = len(bench.outside.calls)
        bench.run(message(function, attempt=attempt, **said))
        if "publish" not in [name for name, _ in bench.outside.calls[before:]]:
            return attempt
    return 5


@pytest.mark.parametrize(
    ("function", "queue", "said", "expected"),
    [
        ("fail", 2, {}, 3),
        ("fails_soon", 2, {}, 3),  # @task says when, the queue says how often
        ("fails_once_more", 3, {}, 2),  # @task over the queue
        ("fails_once_more", 3, {"retries": 2}, 3),  # options over @task
        ("fails_once_more", 3, {"retry": {"retries": 2}}, 3),
        ("fails_once_more", 3, {"retry": {"factor": 1.5}}, 2),
        ("again", 0, {}, 5),  # no limit
        ("again", 0, {"retry": {"first": 0.1}}, 5),  # that says when, not how often
        ("again", 0, {"retry": {"retries": 1}}, 2),
        ("again", 0, {"retries": 1}, 2),
        ("again", 2, {}, 3),
        ("again", 2, {"retry": {"retries": None}}, 5),
        ("again_soon", 0, {}, 5),
        ("again_once_more", 0, {}, 2),
    ],
)
def test_retries_are_those_of_the_options_over_the_task_over_the_queue(
    function: str, queue: int, said: dict[str, Any], expected: int
) -> None:
    assert runs(Bench(retries=queue, retry={"first": 0}), function, **said) == expected


def test_what_the_task_leaves_out_of_its_policy_is_the_queues() -> None:
    bench = Bench(retries=2, retry={"first": 10.0, "factor": 3.0, "jitter": 0.0, "not_on": ["KeyError"]})
    resolved = bench.runtime.allowed.resolve(TASKS + "fails_soon")
    policy = bench.invocation.policy(message("fails_soon", retry={"max": 7.0}), resolved)
    assert (policy.retries, policy.first, policy.factor, policy.max, policy.not_on) == (2, 0.5, 3.0, 7.0, ("KeyError",))


def wait_for(condition: Callable[[], bool]) -> None:
    with gevent.Timeout(5):
        while not condition():
            gevent.sleep(0.005)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that fail are taken again soon."""
    monkeypatch.setattr(steps, "FIRST_PAUSE", 0.01)


def test_a_retry_that_can_not_be_published_is_published_again_and_the_task_does_not_run_again(quick: None) -> None:
    bench = Bench(retries=2)
    bench.outside.answers["publish"] = BrokerUnavailable("away")
    delivery = bench.run(message("fail"))
    wait_for(lambda: bench.outside.names() == ["publish"] * 3)
    assert delivery.slot >= 0
    bench.outside.answers.clear()
    wait_for(lambda: bench.outside.names()[3:] == ["publish", "ack"])
    assert len({call[1].data for call in bench.outside.calls[:4]}) == 1
    assert bench.link.marks.count(("started", 0)) == 1


def test_a_retry_that_is_too_large_by_now_is_a_dead_letter() -> None:
    bench = Bench(retries=2)
    bench.outside.answers["publish"] = MessageTooLarge("it has grown")
    bench.run(message("fail"))
    assert bench.outside.names() == ["publish", "put_dead", "put", "ack"]
    assert bench.outside.calls[1][1].key == "id-1:1"


def test_a_state_that_storage_refuses_is_stored_later_and_the_task_does_not_run_again(quick: None) -> None:
    bench = Bench()
    bench.outside.answers["put"] = StorageRefused("no permission")
    delivery = bench.run(message("fail"))
    wait_for(lambda: bench.outside.names() == ["put"] * 3)
    assert delivery.slot >= 0
    bench.outside.answers.clear()
    wait_for(lambda: bench.outside.names()[3:] == ["put", "ack"])
    assert delivery.slot == -1


def test_a_result_waits_for_a_storage_that_refuses_everything(quick: None) -> None:
    bench = Bench()
    refused = StorageRefused("no permission")
    refused.everything = True
    bench.outside.answers["put"] = refused
    bench.run(message("add", 1, 1))
    wait_for(lambda: bench.outside.names() == ["put"] * 3)
    bench.outside.answers.clear()
    wait_for(lambda: bench.outside.names()[3:] == ["put", "ack"])
    assert bench.outside.calls[3][1] == ("finished", b"2", None, "id-1")


def test_a_step_is_not_taken_again_once_its_delivery_was_given_back(quick: None) -> None:
    bench = Bench()
    bench.outside.answers["put"] = StorageRefused("no permission")
    delivery = bench.run(message("fail"))
    bench.held.give_back([delivery])
    gevent.sleep(0.05)
    assert bench.outside.names() == ["put", "nack"]


def test_a_state_of_what_was_acked_early_is_stored_later_too(quick: None) -> None:
    bench = Bench(ack="early")
    bench.outside.answers["put"] = StorageRefused("no permission")
    bench.run(message("fail"))
    bench.outside.answers.clear()
    wait_for(lambda: bench.outside.names() == ["ack", "put", "put"])


@pytest.mark.parametrize("broken", ["ack", "put"])
def test_parts_that_raise_at_once_cost_no_lease(broken: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    real, calls = getattr(bench.outside, broken), []

    def fail_once(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("a bug of the broker")
        real(*args)

    monkeypatch.setattr(bench.outside, broken, fail_once)
    delivery = bench.run(message("add", 1, 1))
    assert calls
    wait_for(lambda: delivery.slot == -1)


def test_out_of_retries_is_buried_then_stored_then_acked() -> None:
    bench = Bench(retries=2)
    bench.run(message("fail", attempt=3))
    assert bench.outside.names() == ["put_dead", "put", "ack"]
    letter = bench.outside.calls[0][1]
    assert (letter.reason, letter.key) == ("out of retries", "id-1:3")
    assert b'"attempt":3' in letter.payload


def test_the_log_says_that_a_task_is_out_of_retries_and_where_it_is_now() -> None:
    bench = Bench(retries=2)
    bench.run(message("fail", attempt=3))
    outcome, detail = bench.log.outcomes[0]
    assert outcome == "failed"
    assert detail.startswith("out of retries, kept as a dead letter: ValueError: ")
    other = Bench()
    other.run(message("fail"))
    assert other.log.outcomes[0][1].startswith("ValueError: ")


def test_a_dead_letter_that_can_not_be_kept_is_kept_later(quick: None) -> None:
    bench = Bench()
    bench.outside.answers["put_dead"] = StorageRefused("no")
    delivery = bench.run(Message("id-1", "os:system", ["true"]))
    assert delivery.slot >= 0
    bench.outside.answers.clear()
    wait_for(lambda: bench.outside.names() == ["put_dead", "put_dead", "put", "ack"])


def test_raise_retry_has_no_limit_unless_retries_are_set() -> None:
    bench = Bench()
    bench.run(message("again", 5.0, attempt=50))
    assert bench.outside.names() == ["publish", "ack"]
    limited = Bench()
    limited.run(message("again", 5.0, attempt=3, retries=2))
    assert limited.outside.names() == ["put_dead", "put", "ack"]


def test_options_win_over_the_queue() -> None:
    bench = Bench(retries=5)
    bench.run(message("fail", retries=0))
    assert bench.outside.names() == ["put", "ack"]


def test_an_undecodable_payload_is_a_dead_letter_with_an_id_of_its_own() -> None:
    bench = Bench()
    bench.executor.run(bench.delivery(b"\x00garbage"))
    assert bench.outside.names() == ["put_dead", "put", "ack"]
    letter = bench.outside.calls[0][1]
    assert letter.reason == "undecodable"
    assert letter.id.startswith("bad-")
    assert letter.payload == b"\x00garbage"


def test_a_newer_wire_version_waits() -> None:
    bench = Bench()
    bench.executor.run(bench.delivery(encode(message("add")).replace(b'"v":1', b'"v":9')))
    assert bench.outside.names() == ["park"]


def test_a_newer_wire_version_is_known_by_its_id_where_there_are_no_attributes() -> None:
    bench = Bench()
    bench.runtime.unknown_function_grace = 0.0
    bench.executor.run(bench.delivery(encode(message("add")).replace(b'"v":1', b'"v":9')))
    assert bench.outside.names() == ["put_dead", "put", "ack"]
    letter = bench.outside.calls[0][1]
    assert (letter.id, letter.reason) == ("id-1", "too new")
    assert bench.outside.calls[1][1][3] == "id-1"


def test_what_is_not_known_yet_is_told_once_in_a_while_however_many_there_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    for _ in range(5):
        for name in ("of_tomorrow", "of_next_week"):
            bench.run(message(name))
    assert caplog.text.count("of_tomorrow here, yet") == caplog.text.count("of_next_week here, yet") == 1


def test_an_unknown_function_waits_and_is_a_dead_letter_after_the_grace() -> None:
    bench = Bench()
    bench.run(message("of_tomorrow"))
    assert bench.outside.names() == ["park"]
    bench.runtime.unknown_function_grace = 0.0
    bench.run(message("of_tomorrow"))
    assert bench.outside.names() == ["park", "put_dead", "put", "ack"]
    assert bench.outside.calls[1][1].reason == "not found"


@pytest.mark.parametrize(
    "name", ["os:system", "tests.unit.worker_tasks:gevent.sleep", "tests.unit.worker_tasks:TaskInterrupted"]
)
def test_what_the_operator_did_not_name_never_runs(name: str) -> None:
    bench = Bench()
    bench.run(Message("id-1", name, [0]))
    assert bench.outside.names() == ["put_dead", "put", "ack"]
    assert bench.outside.calls[0][1].reason == "not allowed"
    assert bench.link.marks == []


def test_early_is_parked_and_never_longer_than_the_broker_can() -> None:
    bench = Bench(storage=False)
    bench.run(message("add", 1, 1, due_at=time.time() + 100))
    bench.run(message("add", 1, 1, due_at=time.time() + 10_000))
    assert bench.outside.names() == ["park", "park"]
    first, second = (seconds for _, seconds in bench.outside.calls)
    assert 99 < first <= 100
    assert second == 600.0


def test_due_far_away_is_moved_to_the_schedule_before_the_ack() -> None:
    bench = Bench()
    due = time.time() + 10_000
    bench.run(message("add", 1, 1, due_at=due))
    assert bench.outside.names() == ["schedule", "ack"]
    item = bench.outside.calls[0][1]
    assert (item.id, item.due_at, item.queue) == ("id-1:1", due, "q")


def test_what_the_schedule_refuses_stays_with_the_broker() -> None:
    bench = Bench()
    bench.outside.answers["schedule"] = StorageRefused("too large")
    bench.run(message("add", 1, 1, due_at=time.time() + 10_000))
    assert bench.outside.names() == ["schedule", "park"]
    assert bench.outside.calls[1][1] == 600.0


def test_due_within_a_second_is_held_and_comes_back_when_it_is_due() -> None:
    bench = Bench()
    due = time.time() + 0.05
    delivery = bench.run(message("add", 1, 1, due_at=due))
    assert bench.outside.names() == []
    while not bench.outside.names():
        wait_for(lambda: bool(bench.again))
        assert bench.again == [delivery]
        bench.again.clear()
        bench.executor.run(delivery)  # a timer of the hub may be early: then it is held once more
    assert time.time() >= due
    assert bench.outside.names() == ["put", "ack"]


def test_an_interrupted_task_is_given_back_with_no_attempt_used() -> None:
    bench = Bench(retries=3)
    bench.run(message("stopped"))
    assert bench.outside.names() == ["nack"]


@pytest.mark.parametrize("ends", ["add", "fail", "stopped"])
def test_of_a_task_that_ends_after_it_was_given_back_nothing_is_stored(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(retries=1)
    delivery = bench.delivery(encode(message(ends, *[1, 1][: 2 * (ends == "add")])))
    run = bench.invocation.run

    def given_back_meanwhile(*args: Any) -> Any:
        outcome = run(*args)
        bench.held.give_back([delivery])
        return outcome

    monkeypatch.setattr(bench.invocation, "run", given_back_meanwhile)
    bench.executor.run(delivery)
    assert bench.outside.names() == ["nack"]


def test_the_log_names_a_task_that_starts_again_after_its_worker_died(caplog: pytest.LogCaptureFixture) -> None:
    """Its own line of the first start may have died with the worker."""
    bench = Bench()
    strikes = [{"signal": "SIGKILL", "host": "h", "at": 1.0}] * 2
    bench.run(message("add", 1, 1, strikes=strikes))
    assert "task id-1 of queue q (tests.unit.worker_tasks:add) starts again" in caplog.text
    assert "its worker died 2 times while it ran, last of SIGKILL; after 3 it is a dead letter" in caplog.text


def test_a_result_that_can_not_be_said_fails_the_task() -> None:
    bench = Bench()
    bench.run(message("unsayable"))
    assert bench.outside.names() == ["put", "ack"]
    assert bench.outside.calls[0][1][0] == "failed"


def test_a_result_that_storage_refuses_fails_the_task() -> None:
    bench = Bench()
    bench.outside.hold = True
    bench.run(message("add", 1, 1))
    bench.outside.done.pop()(None, StorageRefused("too large"))
    assert [call[1][0] for call in bench.outside.calls] == ["finished", "failed"]
    bench.outside.done.pop()(None, None)
    assert bench.outside.names() == ["put", "put", "ack"]


def test_a_broadcast_copy_leaves_its_own_state_and_the_one_that_the_sender_reads() -> None:
    bench = Bench(broadcast=True)
    bench.run(message("add", 2, 3))
    bench.run(message("fail"))
    assert [(name, call[0], call[3]) for name, call in bench.outside.calls if name == "put"] == [
        ("put", "finished", "id-1@host-0"),
        ("put", "finished", "id-1"),
        ("put", "failed", "id-1@host-0"),
        ("put", "failed", "id-1"),
    ]
    assert bench.outside.names() == ["put", "put", "ack"] * 2


def test_a_broadcast_result_that_storage_refuses_fails_the_task() -> None:
    bench = Bench(broadcast=True)
    bench.outside.hold = True
    bench.run(message("add", 1, 1))
    bench.outside.done.pop()(None, StorageRefused("too large"))
    bench.outside.done.pop()(None, None)
    bench.outside.done.pop()(None, None)
    assert [(call[0], call[3]) for name, call in bench.outside.calls if name == "put"] == [
        ("finished", "id-1@host-0"),
        ("failed", "id-1@host-0"),
        ("failed", "id-1"),
    ]
    assert bench.outside.names()[-1] == "ack"


def test_an_ack_that_comes_too_late_releases_all_the_same() -> None:
    bench = Bench(storage=False)
    bench.outside.answers["ack"] = LeaseLost("late")
    delivery = bench.run(message("add", 1, 1))
    assert delivery.slot == -1
    assert bench.counters.ack_errors == 1


def test_early_ack_is_answered_before_the_start_and_nothing_is_acked_after() -> None:
    bench = Bench(ack="early")
    bench.run(message("add", 1, 1))
    assert bench.outside.names() == ["ack", "put"]
    assert bench.link.marks == []


def test_an_early_ack_that_is_refused_leaves_the_task_to_others() -> None:
    bench = Bench(ack="early")
    bench.outside.answers["ack"] = LeaseLost("gone")
    bench.run(message("add", 1, 1))
    assert bench.outside.names() == ["ack"]


def test_a_broadcast_retry_is_published_for_its_own_worker_alone() -> None:
    bench = Bench(broadcast=True, retries=1, retry={"first": 5000.0, "max": 5000.0, "jitter": 0.0})
    before = time.time()
    bench.run(message("fail"))
    assert bench.outside.names() == ["publish", "ack"]
    out = bench.outside.calls[0][1]
    assert out.queue.member == "host-0"
    assert out.due_at >= before + 5000
    bench.run(decode(out.data))
    assert bench.outside.names()[2:] == ["park"]


def test_time_limits_interrupt_what_except_exception_does_not_catch() -> None:
    bench = Bench(time_limit=0.02)
    bench.run(message("sleep", 30))
    state, _, error, _ = bench.outside.calls[0][1]
    assert state == "failed"
    assert error["type"] == "psq.errors:TimeLimitExceeded"


def test_a_bug_of_ours_gives_the_delivery_back_and_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def broken(*args: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bench.invocation, "run", broken)
    bench.run(message("add", 1, 1))
    assert bench.outside.calls == [("park", steps.BUG_PAUSE)]


def test_a_storage_that_is_not_the_senders_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    for _ in range(3):
        bench.run(message("add", 1, 1, reply="elsewhere"))
    assert caplog.text.count("reads results in elsewhere") == 1


@contextmanager
def slow_to_leave(left: list[str]) -> Iterator[None]:
    try:
        yield
    finally:
        gevent.sleep(0.05)
        left.append("left")


def test_a_soft_time_limit_does_not_interrupt_the_leaving_of_contexts() -> None:
    left: list[str] = []
    bench = Bench(soft_time_limit=0.02)
    bench.executor.invocation = Invocation(
        None, lambda: slow_to_leave(left), bench.config.policy, None, 0.02, lambda module: True
    )
    bench.run(message("add", 1, 1))
    assert left == ["left"]
    assert bench.outside.calls[0][1][0] == "finished"


def test_contexts_are_left_when_the_soft_limit_ends_the_task() -> None:
    left: list[str] = []
    bench = Bench()
    bench.executor.invocation = Invocation(
        None, lambda: slow_to_leave(left), bench.config.policy, None, 0.02, lambda module: True
    )
    bench.run(message("sleep", 30))
    assert left == ["left"]
    assert bench.outside.calls[0][1][2]["type"] == "psq.errors:SoftTimeLimitExceeded"


@pytest.mark.parametrize("function", ["fail", "again"])
def test_a_policy_that_can_not_be_fails_the_task_and_does_not_run_it_for_ever(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    real, calls = bench.invocation.policy, []

    def policy(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:  # the first is for current_task.retries
            raise ConfigError("retry.first must be a number")
        return real(*args)

    monkeypatch.setattr(bench.invocation, "policy", policy)
    bench.run(message(function))
    assert bench.outside.names() == ["put", "ack"]
    assert bench.outside.calls[0][1][2]["message"] == "retry.first must be a number"


@pytest.mark.parametrize("id", ["__reserved__", "x" * 300, "a/b", ""])
def test_an_id_that_is_none_is_not_taken_from_the_attributes_of_what_can_not_be_read(id: str) -> None:
    bench = Bench()
    bench.executor.run(bench.delivery(b"garbage", {"psq-id": id}))
    assert bench.outside.calls[0][1].id.startswith("bad-")
