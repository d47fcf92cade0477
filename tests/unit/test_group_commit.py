"""Group commit: who is sent with whom, what an error does to whom, and that nobody is ever forgotten."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from psq import group_commit
from psq.group_commit import Finish, GroupCommit


class Again(Exception):
    """A transient error."""


class Server:
    """Requests in order, ended by the test."""

    def __init__(self) -> None:
        self.requests: list[tuple[list[Any], Finish]] = []

    def start(self, items: Sequence[Any], finish: Finish) -> None:
        self.requests.append((list(items), finish))

    def items(self, number: int = -1) -> list[Any]:
        return self.requests[number][0]

    def answer(self, number: int = -1, outcome: Any = None) -> None:
        self.requests[number][1](outcome)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Timers:
    """Stands for `call_later`: the test lets time pass."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.set = clock, list[tuple[float, Callable[[], None]]]()

    def __call__(self, seconds: float, function: Callable[[], None]) -> None:
        self.set.append((self.clock.now + seconds, function))

    def pass_time(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while due := [timer for timer in self.set if timer[0] <= until]:
            timer = min(due, key=lambda timer: timer[0])
            self.set.remove(timer)
            self.clock.now = max(self.clock.now, timer[0])
            timer[1]()
        self.clock.now = until


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timers(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Timers:
    timers = Timers(clock)
    monkeypatch.setattr(group_commit, "call_later", timers)
    monkeypatch.setattr(random, "uniform", lambda a, b: 1.0)
    return timers


class Ended:
    """What became of each item."""

    def __init__(self) -> None:
        self.of: dict[Any, tuple[Any, Exception | None]] = {}

    def __call__(self, item: Any) -> Callable[[Any, Exception | None], None]:
        def done(result: Any, error: Exception | None) -> None:
            assert item not in self.of, f"{item} ended twice"
            self.of[item] = (result, error)

        return done


@pytest.fixture
def ended() -> Ended:
    return Ended()


def commit(server: Server, clock: Clock, **settings: Any) -> GroupCommit[Any]:
    settings = {"max_items": 100, "max_bytes": 1000, "transient": lambda e: isinstance(e, Again)} | settings
    return GroupCommit(server.start, clock=clock, **settings)


def add(group: GroupCommit[Any], ended: Ended, *items: Any, size: int = 1, deadline: float | None = None) -> None:
    for item in items:
        group.add(item, size, ended(item), deadline=deadline)


def test_who_is_alone_is_sent_at_once(server: Server, clock: Clock, ended: Ended) -> None:
    group = commit(server, clock)
    add(group, ended, 1)
    assert server.items() == [1]
    assert not group.idle()
    server.answer(outcome=["one"])
    assert ended.of == {1: ("one", None)}
    assert group.idle()


def test_whoever_arrives_meanwhile_goes_in_the_next_request_in_order(
    server: Server, clock: Clock, ended: Ended
) -> None:
    group = commit(server, clock)
    add(group, ended, 1, 2, 3)
    assert [items for items, _ in server.requests] == [[1]]
    assert len(group) == 2
    server.answer(0)
    assert [items for items, _ in server.requests] == [[1], [2, 3]]
    server.answer(1, ["two", "three"])
    assert ended.of == {1: (None, None), 2: ("two", None), 3: ("three", None)}


def test_several_requests_may_be_in_flight_where_that_is_allowed(server: Server, clock: Clock, ended: Ended) -> None:
    group = commit(server, clock, in_flight=2)
    add(group, ended, 1, 2, 3)
    assert [items for items, _ in server.requests] == [[1], [2]]
    server.answer(1)
    assert server.items() == [3]


def test_a_request_holds_no_more_items_and_bytes_than_allowed(server: Server, clock: Clock, ended: Ended) -> None:
    group = commit(server, clock, max_items=3, max_bytes=10)
    add(group, ended, 0)
    add(group, ended, *"abcd", size=1)
    add(group, ended, "e", size=9)
    add(group, ended, "f", size=2)
    add(group, ended, "huge", size=50)
    add(group, ended, "g", size=1)
    for _ in range(6):
        server.answer()
    assert [items for items, _ in server.requests] == [[0], ["a", "b", "c"], ["d", "e"], ["f"], ["huge"], ["g"]]


def test_no_key_is_twice_in_a_request_and_its_order_is_kept(server: Server, clock: Clock, ended: Ended) -> None:
    group = commit(server, clock, key=lambda item: item[0])
    add(group, ended, "x", "a1", "b1", "a2", "c1", "b2", "a3")
    for _ in range(4):
        server.answer()
    assert [items for items, _ in server.requests] == [["x"], ["a1", "b1", "c1"], ["a2", "b2"], ["a3"]]


def test_a_request_that_hangs_holds_back_the_next_for_a_second_only(server: Server, clock: Clock, ended: Ended) -> None:
    group = commit(server, clock)
    add(group, ended, 1, 2)
    clock.now += 0.9
    group.kick()
    assert len(server.requests) == 1
    clock.now += 0.2
    group.kick()
    assert server.items() == [2]
    server.answer(0)
    server.answer(1)
    assert set(ended.of) == {1, 2}


def test_an_error_that_stays_is_bisected_to_its_culprit_and_fails_nobody_else(
    server: Server, clock: Clock, ended: Ended
) -> None:
    group = commit(server, clock)
    add(group, ended, "first", *range(10))
    server.answer()
    answered = 1
    while answered < len(server.requests):
        items = server.items(answered)
        server.answer(answered, ValueError("7 is bad") if 7 in items else [f"sent {item}" for item in items])
        answered += 1
    assert str(ended.of.pop(7)[1]) == "7 is bad"
    assert ended.of.pop("first") == (None, None)
    assert ended.of == {item: (f"sent {item}", None) for item in range(10) if item != 7}
    assert group.idle()


def test_a_transient_error_is_tried_again_with_growing_pauses(
    server: Server, clock: Clock, ended: Ended, timers: Timers
) -> None:
    group = commit(server, clock)
    add(group, ended, 1)
    for pause in (0.05, 0.1, 0.2, 0.4):
        begun = len(server.requests)
        server.answer(outcome=Again())
        timers.pass_time(pause - 0.001)
        assert len(server.requests) == begun
        timers.pass_time(0.002)
        assert len(server.requests) == begun + 1
    add(group, ended, 2)
    server.answer()
    server.answer(outcome=Again())
    timers.pass_time(0.051)  # a success began the pauses anew
    server.answer()
    assert ended.of == {1: (None, None), 2: (None, None)}
    assert timers.set == []


def test_pauses_do_not_grow_for_ever(server: Server, clock: Clock, ended: Ended, timers: Timers) -> None:
    group = commit(server, clock, longest_pause=0.3)
    add(group, ended, 1)
    for _ in range(20):
        server.answer(outcome=Again())
        timers.pass_time(0.31)
    assert len(server.requests) == 21


def test_nothing_is_sent_during_a_pause(server: Server, clock: Clock, ended: Ended, timers: Timers) -> None:
    group = commit(server, clock)
    add(group, ended, 1)
    server.answer(outcome=Again())
    add(group, ended, 2)
    assert len(server.requests) == 1
    timers.pass_time(0.1)
    assert server.items() == [1, 2]


def test_a_transient_error_is_final_after_the_deadline_and_only_for_those_that_have_one(
    server: Server, clock: Clock, ended: Ended, timers: Timers
) -> None:
    group = commit(server, clock)
    add(group, ended, "other")
    add(group, ended, "short", deadline=clock.now + 0.01)
    add(group, ended, "long")
    server.answer()
    clock.now += 0.02
    error = Again()
    server.answer(outcome=error)
    assert ended.of == {"other": (None, None), "short": (None, error)}
    timers.pass_time(0.1)
    assert server.items() == ["long"]


def test_a_pause_does_not_outlast_a_deadline(server: Server, clock: Clock, ended: Ended, timers: Timers) -> None:
    group = commit(server, clock)
    add(group, ended, 1)
    for _ in range(8):
        server.answer(outcome=Again())
        timers.pass_time(7)
    error = Again()
    server.answer(outcome=error)  # a pause of 5 s begins
    add(group, ended, "added in the pause", deadline=clock.now + 0.5)
    timers.pass_time(0.499)
    assert ended.of == {}
    timers.pass_time(0.002)
    assert ended.of == {"added in the pause": (None, error)}
    timers.pass_time(5)
    assert server.items() == [1]


def test_the_pause_of_one_that_was_sent_ends_with_its_deadline_too(
    server: Server, clock: Clock, ended: Ended, timers: Timers
) -> None:
    group = commit(server, clock)
    deadline = clock.now + 0.03
    add(group, ended, 1, deadline=deadline)
    error = Again()
    server.answer(outcome=error)
    timers.pass_time(0.031)
    assert ended.of == {1: (None, error)}
    timers.pass_time(1)
    assert group.idle()
    add(group, ended, 2)
    assert server.items() == [2]


def test_one_request_that_fails_does_not_end_the_pause_of_another(
    server: Server, clock: Clock, ended: Ended, timers: Timers
) -> None:
    group = commit(server, clock, in_flight=2)
    add(group, ended, 1, 2)
    server.answer(0, Again())
    server.answer(1, Again())
    timers.pass_time(0.09)
    assert len(server.requests) == 2
    timers.pass_time(0.02)
    assert sorted(server.items()) == [1, 2]


def test_a_start_that_raises_has_sent_nothing(clock: Clock, ended: Ended) -> None:
    def start(items: Sequence[Any], finish: Finish) -> None:
        if "bad" in items:
            raise ValueError("no")
        finish(None)

    group: GroupCommit[Any] = GroupCommit(start, max_items=10, max_bytes=10, clock=clock)
    add(group, ended, "bad", "good")
    assert str(ended.of["bad"][1]) == "no"
    assert ended.of["good"] == (None, None)


def test_an_interrupt_while_a_request_begins_forgets_nobody(clock: Clock, ended: Ended) -> None:
    def start(items: Sequence[Any], finish: Finish) -> None:
        if "first" in items:
            raise KeyboardInterrupt
        finish(None)

    group: GroupCommit[Any] = GroupCommit(start, max_items=10, max_bytes=10, clock=clock)
    with pytest.raises(KeyboardInterrupt):
        add(group, ended, "first")
    assert isinstance(ended.of["first"][1], RuntimeError)
    add(group, ended, "second")
    assert ended.of["second"] == (None, None)


def test_a_request_that_finishes_twice_counts_once(server: Server, clock: Clock, ended: Ended) -> None:
    group = commit(server, clock)
    add(group, ended, 1, 2)
    server.answer(0)
    server.answer(0, ValueError())
    assert ended.of == {1: (None, None)}


def test_a_wrong_number_of_results_is_an_error_of_all_not_a_hang(server: Server, clock: Clock, ended: Ended) -> None:
    group = commit(server, clock)
    add(group, ended, 1)
    server.answer(outcome=["a", "b"])
    assert isinstance(ended.of[1][1], RuntimeError)
    assert group.idle()


def test_a_callback_that_raises_hurts_no_other(
    server: Server, clock: Clock, ended: Ended, caplog: pytest.LogCaptureFixture
) -> None:
    group = commit(server, clock)
    add(group, ended, 0)

    def bad(result: Any, error: Exception | None) -> None:
        raise RuntimeError("mine")

    group.add(1, 1, bad)
    add(group, ended, 2)
    server.answer(0)
    server.answer(1)
    assert ended.of[2] == (None, None)
    assert "mine" in caplog.text


def test_a_judge_of_errors_that_raises_is_no_hang(
    server: Server, clock: Clock, ended: Ended, caplog: pytest.LogCaptureFixture
) -> None:
    def transient(error: Exception) -> bool:
        raise RuntimeError("can't tell")

    group = commit(server, clock, transient=transient)
    add(group, ended, 1)
    error = ValueError()
    server.answer(outcome=error)
    assert ended.of[1] == (None, error)
    assert "can't tell" in caplog.text


def test_the_next_request_begins_before_callbacks_run(server: Server, clock: Clock) -> None:
    group = commit(server, clock)
    begun: list[int] = []
    group.add(1, 1, lambda result, error: begun.append(len(server.requests)))
    group.add(2, 1, lambda result, error: None)
    server.answer(0)
    assert begun == [2]


def test_a_callback_may_add(server: Server, clock: Clock, ended: Ended) -> None:
    group = commit(server, clock)
    group.add(1, 1, lambda result, error: group.add(2, 1, ended(2)))
    server.answer()
    assert server.items() == [2]
    server.answer()
    assert ended.of == {2: (None, None)}


def test_requests_that_complete_at_once_do_not_nest(clock: Clock, ended: Ended) -> None:
    def start(items: Sequence[Any], finish: Finish) -> None:
        finish(None)

    held: list[Finish] = []
    starts = [lambda items, finish: held.append(finish)]
    group: GroupCommit[Any] = GroupCommit(
        lambda items, finish: (starts.pop() if starts else start)(items, finish), max_items=1, max_bytes=10, clock=clock
    )
    add(group, ended, *range(5000))
    held[0](None)
    assert len(ended.of) == 5000


def test_submit_waits_for_the_result_and_raises_the_error() -> None:
    def start(items: Sequence[Any], finish: Finish) -> None:
        answers = ValueError("odd") if items[0] % 2 else [item * 10 for item in items]
        threading.Thread(target=finish, args=(answers,)).start()

    group: GroupCommit[int] = GroupCommit(start, max_items=1, max_bytes=10)
    assert group.submit(2, 1) == 20
    with pytest.raises(ValueError, match="odd"):
        group.submit(1, 1)


def test_submit_gives_up_on_a_transient_error_after_its_timeout() -> None:
    def start(items: Sequence[Any], finish: Finish) -> None:
        finish(Again("away"))

    group: GroupCommit[int] = GroupCommit(
        start, max_items=1, max_bytes=10, transient=lambda error: isinstance(error, Again)
    )
    with pytest.raises(Again, match="away"):
        group.submit(1, 1, timeout=0.05)


def test_submit_starts_the_next_request_where_one_hangs() -> None:
    hanging: list[Finish] = []

    def start(items: Sequence[Any], finish: Finish) -> None:
        if "hang" in items:
            hanging.append(finish)
        else:
            finish(None)

    group: GroupCommit[str] = GroupCommit(start, max_items=1, max_bytes=10, hasten=0.01)
    group.add("hang", 1, lambda result, error: None)
    assert group.submit("next", 1) is None


def test_many_threads_lose_nothing_and_share_requests() -> None:
    requests: list[int] = []
    sent: list[int] = []

    def start(items: Sequence[int], finish: Finish) -> None:
        requests.append(len(items))

        def serve() -> None:
            sent.extend(items)
            finish([item + 1 for item in items])

        threading.Thread(target=serve).start()

    group: GroupCommit[int] = GroupCommit(start, max_items=50, max_bytes=10_000)
    wrong: list[int] = []

    def enqueue(base: int) -> None:
        for item in range(base, base + 50):
            if group.submit(item, 1) != item + 1:
                wrong.append(item)

    threads = [threading.Thread(target=enqueue, args=(number * 1000,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sorted(sent) == [number * 1000 + item for number in range(16) for item in range(50)]
    assert len(requests) < len(sent)
    assert group.idle()
