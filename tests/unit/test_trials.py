"""Who is suspected to kill workers runs alone, in a process of its own; only who kills that is a dead letter."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult

from psq.message import Message, decode, encode
from psqd.worker.trial_process import TrialDied, TrialFailed, TrialInterrupted
from psqd.worker.trials import MAX_BYTES, MAX_WAITING, Trials
from tests.unit.worker_fakes import Bench

TASKS = "tests.unit.worker_tasks:"
AT = 1_795_561_400.0


class FakeProcess:
    """Where suspects run: each answer is an outcome, or an error to raise."""

    def __init__(self) -> None:
        self.requests: list[Mapping[str, Any]] = []
        self.answers: list[Any] = []
        self.starts: list[Exception] = []
        self.held: list[AsyncResult[Any]] = []
        self.hold = False
        self.stopped = self.fresh = self.renewed = self.dumped = 0

    def start(self, *, fresh: bool = False) -> None:
        self.fresh += fresh
        if self.starts:
            raise self.starts.pop(0)
        gevent.sleep(0)  # a real one blocks, too

    def run(self, request: Mapping[str, Any]) -> Any:
        self.requests.append(request)
        if self.hold:
            running: AsyncResult[Any] = AsyncResult()
            self.held.append(running)
            answer: Any = running.get()
        else:
            answer = self.answers.pop(0) if self.answers else {"kind": "finished", "result": b"7"}
        if isinstance(answer, Exception):
            raise answer
        return answer

    def renew(self) -> None:
        self.renewed += 1

    def dump(self) -> None:
        self.dumped += 1

    def interrupt(self, why: str) -> None:
        for running in self.held:
            running.set(TrialInterrupted(why))

    def stop(self) -> None:
        self.stopped += 1

    def ids(self) -> list[str]:
        """Of the tasks that ran, in order."""
        return [decode(request["data"]).id for request in self.requests]


@pytest.fixture
def process() -> FakeProcess:
    return FakeProcess()


@pytest.fixture
def bench(process: FakeProcess) -> Iterator[Bench]:
    bench = Bench(retries=3)
    bench.runtime.trials = Trials(bench.held, process)
    yield bench
    settle(bench)


def struck(count: int, *, last: bool = False, task_id: str = "id-1", since: float = AT) -> Message:
    more = {"last": True} if last else {}
    strikes = [{"signal": "SIGKILL", "host": "h", "at": since + n, **more} for n in range(count)]
    return Message(task_id, TASKS + "add", [2, 3], {}, "q", time.time(), strikes=strikes)


def settle(bench: Bench) -> None:
    """Until nobody waits and nobody runs."""
    trials = bench.runtime.trials
    with gevent.Timeout(60):
        while trials.waiting(bench.executor) or bench.executor.apart:
            gevent.sleep(0.001)


def test_one_strike_runs_as_usual_and_two_run_apart(bench: Bench, process: FakeProcess) -> None:
    bench.run(struck(1))
    assert bench.outside.names() == ["put", "ack"]
    assert bench.link.marks == [("started", 0), ("ended", 0)]
    bench.run(struck(2))
    settle(bench)
    assert process.ids() == ["id-1"]
    assert process.requests[0]["queue"] == "q"
    assert process.requests[0]["keep"]
    assert bench.outside.calls[2] == ("put", ("finished", b"7", None, "id-1"))
    assert bench.outside.names() == ["put", "ack", "put", "ack"]


def test_while_it_runs_apart_the_death_of_the_worker_is_no_strike(bench: Bench) -> None:
    bench.run(struck(2))
    settle(bench)
    assert bench.link.marks == []


@pytest.mark.parametrize(("code", "signal"), [(-9, "SIGKILL"), (-11, "SIGSEGV"), (0, "exit 0")])
def test_who_kills_the_process_in_which_it_was_alone_is_a_dead_letter(
    bench: Bench, process: FakeProcess, code: int, signal: str
) -> None:
    process.answers = [TrialDied(code, alone=True)]
    before = struck(2)
    bench.run(before)
    settle(bench)
    assert bench.outside.names() == ["put_dead", "put", "ack"]
    letter = bench.outside.calls[0][1]
    assert letter.reason == "worker died"
    assert "died 3 times" in letter.error
    *earlier, last = letter.deaths
    assert earlier == before.strikes
    assert last["signal"] == signal
    assert last["host"]
    assert last["at"] == pytest.approx(time.time(), abs=20)


def test_who_may_have_died_for_the_memory_of_others_runs_once_more(
    bench: Bench, process: FakeProcess, caplog: pytest.LogCaptureFixture
) -> None:
    process.answers = [TrialDied(-9, alone=True, memory=True)]
    bench.run(struck(2))
    settle(bench)
    assert bench.outside.calls == [("park", 3.0)]
    assert "was ended for memory, which others may have taken: it runs once more" in caplog.text
    bench.run(struck(2))
    settle(bench)
    assert bench.outside.names() == ["park", "put", "ack"]


def test_who_dies_for_memory_alone_and_again_is_a_dead_letter(bench: Bench, process: FakeProcess) -> None:
    process.answers = [TrialDied(-9, alone=True, memory=True)] * 2
    bench.run(struck(2))
    settle(bench)
    bench.run(struck(2))
    settle(bench)
    assert bench.outside.names() == ["park", "put_dead", "put", "ack"]


def test_no_number_of_strikes_alone_convicts(bench: Bench, process: FakeProcess) -> None:
    bench.run(struck(9))
    settle(bench)
    assert bench.outside.names() == ["put", "ack"]
    assert len(process.requests) == 1


@pytest.mark.parametrize(("limit", "strikes"), [(1, 1), (2, 1), (3, 2), (5, 4)])
def test_the_last_start_before_it_would_be_a_dead_letter_is_apart(
    bench: Bench, process: FakeProcess, limit: int, strikes: int
) -> None:
    bench.runtime.max_strikes = limit
    if strikes > 1:
        bench.run(struck(strikes - 1))
    bench.run(struck(strikes))
    settle(bench)
    assert len(process.requests) == 1


def test_without_a_limit_nobody_is_suspected(bench: Bench, process: FakeProcess) -> None:
    bench.runtime.max_strikes = 0
    bench.run(struck(9))
    assert bench.outside.names() == ["put", "ack"]
    assert not process.requests


def test_others_run_while_suspects_wait_for_their_turn(bench: Bench, process: FakeProcess) -> None:
    process.hold = True
    bench.run(struck(2, task_id="first"))
    bench.run(struck(2, task_id="second"))
    gevent.sleep(0.01)
    assert process.ids() == ["first"]
    assert bench.executor.apart == 1
    bench.run(struck(0, task_id="other"))
    assert bench.outside.names() == ["put", "ack"]
    process.hold = False
    process.held[0].set({"kind": "finished", "result": b"1"})
    settle(bench)
    assert process.ids() == ["first", "second"]
    assert bench.executor.apart == 0


def test_the_last_to_start_each_time_is_tried_first(bench: Bench, process: FakeProcess) -> None:
    for n in range(5):
        bench.run(struck(2, task_id=f"beside-{n}"))
    bench.run(struck(2, task_id="killer", last=True))
    settle(bench)
    assert process.ids()[0] == "killer"


def test_a_conviction_clears_those_who_only_ran_beside(bench: Bench, process: FakeProcess) -> None:
    process.answers = [TrialDied(-9, alone=True)]
    beside = [bench.run(struck(2, task_id=f"beside-{n}")) for n in range(5)]
    bench.run(struck(2, task_id="killer", last=True))
    other = struck(2, task_id="other", since=AT + 1000)
    bench.run(other)
    settle(bench)
    assert process.ids() == ["killer", "other"]
    assert bench.again == beside
    bench.run(struck(2, task_id="late"))
    assert process.ids() == ["killer", "other"]


def test_a_task_that_raises_there_is_retried_with_its_strikes(bench: Bench, process: FakeProcess) -> None:
    error = {"type": "builtins:OSError", "message": "oh", "traceback": ""}
    process.answers = [{"kind": "retried", "delay": 0.0, "error": error}]
    bench.run(struck(2))
    settle(bench)
    assert bench.outside.names() == ["publish", "ack"]
    again = decode(bench.outside.calls[0][1].data)
    assert (again.attempt, len(again.strikes)) == (2, 2)


def test_a_task_that_fails_there_has_failed(bench: Bench, process: FakeProcess) -> None:
    error = {"type": "builtins:ValueError", "message": "oh", "traceback": ""}
    process.answers = [{"kind": "failed", "error": error, "out_of_retries": False}]
    bench.run(struck(2))
    settle(bench)
    assert bench.outside.calls[0] == ("put", ("failed", None, error, "id-1"))


def test_one_that_was_acked_early_and_can_not_be_tried_has_failed(process: FakeProcess) -> None:
    bench = Bench(ack="early")
    bench.runtime.trials = Trials(bench.held, process)
    process.answers = [TrialFailed("it does not know the function")]
    bench.run(struck(2))
    settle(bench)
    assert bench.outside.names() == ["ack", "put"]
    assert bench.outside.calls[1][1][0] == "failed"


def test_what_was_given_back_before_its_trial_was_interrupted_has_not_failed(
    bench: Bench, process: FakeProcess
) -> None:
    process.hold = True
    delivery = bench.run(struck(2))
    with gevent.Timeout(10):
        while not process.held:
            gevent.sleep(0.001)
    bench.held.give_back([delivery])
    bench.runtime.trials.interrupt("the keeper is gone")
    settle(bench)
    assert bench.outside.names() == ["nack"]


def test_an_interrupted_trial_convicts_nobody(bench: Bench, process: FakeProcess) -> None:
    process.hold = True
    bench.run(struck(2))
    gevent.sleep(0.01)
    bench.runtime.trials.interrupt("the worker stops")
    settle(bench)
    assert bench.outside.names() == ["nack"]


def test_where_the_process_can_not_start_they_wait_and_the_log_says_so(
    bench: Bench, process: FakeProcess, caplog: pytest.LogCaptureFixture
) -> None:
    process.starts = [TrialFailed("it ended with 2 before it was ready")]
    bench.run(struck(2))
    settle(bench)
    assert bench.outside.calls == [("park", 30.0)]
    assert "it ended with 2 before it was ready" in caplog.text
    bench.run(struck(2))
    settle(bench)
    assert bench.outside.names() == ["park", "put", "ack"]


def test_what_the_process_does_not_know_waits(bench: Bench, process: FakeProcess) -> None:
    process.answers = [TrialFailed("the config has no queue q")]
    bench.run(struck(2))
    settle(bench)
    assert bench.outside.calls == [("park", 30.0)]


def test_those_who_wait_are_given_back_when_the_queue_stops(bench: Bench, process: FakeProcess) -> None:
    process.hold = True
    bench.run(struck(2, task_id="first"))
    gevent.sleep(0.01)
    waits = bench.run(struck(2, task_id="waits"))
    known = bench.run(struck(2, task_id="known", last=True))
    lost = bench.run(struck(2, task_id="lost"))
    trials = bench.runtime.trials
    assert trials.waiting(bench.executor) == 3
    assert trials.discard(lost)
    assert not trials.discard(lost)
    assert trials.take_back(bench.executor, before=time.monotonic() + 1) == [waits]
    assert trials.take_back(bench.executor) == [known]
    trials.interrupt("the worker stops")


def test_more_than_can_wait_come_again_later(bench: Bench) -> None:
    for n in range(MAX_WAITING):
        bench.run(struck(2, task_id=f"t{n}"))
    assert bench.outside.names() == []
    bench.run(struck(2, task_id="one-more"))
    assert bench.outside.calls == [("park", 1.0)]
    assert len(bench.runtime.trials.take_back(bench.executor)) == MAX_WAITING


def test_a_task_larger_than_what_may_wait_is_tried_all_the_same(bench: Bench, process: FakeProcess) -> None:
    large = struck(2)
    large.args = ["x" * (MAX_BYTES + 1), ""]
    delivery = bench.delivery(encode(large))
    bench.executor.run(delivery)
    settle(bench)
    assert len(process.requests) == 1


# those that are less suspected


@pytest.fixture
def other(bench: Bench, process: FakeProcess) -> FakeProcess:
    """A second process, for those that were not the last to start."""
    other = FakeProcess()
    bench.runtime.trials = Trials(bench.held, process, other)
    return other


def test_who_was_the_last_to_start_is_tried_alone_and_others_together(
    bench: Bench, process: FakeProcess, other: FakeProcess
) -> None:
    process.hold = other.hold = True
    for n in range(5):
        bench.run(struck(2, task_id=f"beside-{n}"))
    bench.run(struck(2, task_id="last", last=True))
    gevent.sleep(0.01)
    assert process.ids() == ["last"]
    assert sorted(other.ids()) == [f"beside-{n}" for n in range(5)]
    for running in (*process.held, *other.held):
        running.set({"kind": "finished", "result": b"1"})
    settle(bench)
    assert bench.outside.names().count("ack") == 6


def test_if_they_die_together_each_is_tried_alone(bench: Bench, process: FakeProcess, other: FakeProcess) -> None:
    other.answers = [TrialDied(-9, alone=False), TrialDied(-9, alone=False)]
    process.answers = [TrialDied(-9, alone=True)]
    for name in ("slow-killer", "beside"):
        bench.run(struck(2, task_id=name))
    settle(bench)
    assert bench.outside.names() == ["park", "park"]
    bench.run(struck(2, task_id="slow-killer"))
    settle(bench)
    assert process.ids() == ["slow-killer"]
    assert bench.outside.names()[2:] == ["put_dead", "put", "ack"]


def test_who_dies_in_that_process_without_any_other_is_a_dead_letter(
    bench: Bench, process: FakeProcess, other: FakeProcess
) -> None:
    other.answers = [TrialDied(-9, alone=True)]
    bench.run(struck(2))
    settle(bench)
    assert bench.outside.names() == ["put_dead", "put", "ack"]
    assert not process.requests


def test_who_dies_where_another_ran_before_is_tried_in_a_fresh_process(bench: Bench, process: FakeProcess) -> None:
    process.answers = [TrialDied(-11, alone=False)]
    bench.run(struck(2))
    settle(bench)
    assert process.fresh == 1
    assert process.ids() == ["id-1", "id-1"]
    assert bench.outside.names() == ["put", "ack"]


def test_the_process_ends_after_the_last_task_however_long_that_ran(
    bench: Bench, process: FakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psqd.worker.suspects.LINGER", 0.02)
    process.hold = True
    bench.run(struck(2))
    with gevent.Timeout(10):
        while not process.held:
            gevent.sleep(0.001)
    gevent.sleep(0.05)
    assert process.stopped == 0
    process.held[0].set({"kind": "finished", "result": b"7"})
    with gevent.Timeout(10):
        while not process.stopped:
            gevent.sleep(0.001)


def test_a_task_that_the_process_does_not_know_waits_and_the_log_says_so(
    bench: Bench, process: FakeProcess, caplog: pytest.LogCaptureFixture
) -> None:
    process.answers = [TrialFailed("the config has no queue q")]
    bench.run(struck(2))
    settle(bench)
    assert bench.outside.calls == [("park", 30.0)]
    assert "can't run in a process of its own, again in 30 s: the config has no queue q" in caplog.text
    assert bench.counters.unknown == 0


def test_each_process_is_told_of_a_reload_and_of_a_dump(bench: Bench, process: FakeProcess) -> None:
    together = FakeProcess()
    trials = Trials(bench.held, process, together)
    trials.renew()
    trials.dump()
    assert [(one.renewed, one.dumped) for one in (process, together)] == [(1, 1)] * 2
