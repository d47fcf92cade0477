"""The receiver of Pub/Sub against a channel whose answers the test gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from psq.brokers import pubsub_receiver
from psq.brokers import pubsub_wire as wire
from psq.brokers.base import Delivery, QueueSpec
from psq.brokers.pubsub_receiver import MAX_EXTRA, MAX_PULLS, SPREAD, PubSubReceiver, poll_for
from tests.unit.pubsub_fakes import FakeCall, FakeChannel, direct

NAME = "projects/p/subscriptions/psq-work-shared"


class Rig:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, queue: QueueSpec | None = None, **options: Any) -> None:
        self.channel = FakeChannel()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.got: list[Delivery] = []
        self.dropped: list[Delivery] = []
        self.gone: list[PubSubReceiver] = []
        self.denied: list[PubSubReceiver] = []
        self.doubtful: list[PubSubReceiver] = []
        self.stopped = 0
        monkeypatch.setattr(pubsub_receiver, "call_later", self.call_later)
        options = {"lease": lambda: 10.0, "poll": 60.0, "post": direct, **options}
        self.receiver = PubSubReceiver(
            self.channel,  # type: ignore[arg-type]
            queue or QueueSpec("work"),
            NAME,
            self.got.extend,
            drop=self.dropped.append,
            gone=self.gone.append,
            denied=self.denied.append,
            doubtful=self.doubtful.append,
            **options,
        )

    def call_later(self, seconds: float, function: Callable[[], None]) -> Any:
        entry = (seconds, function)
        self.timers.append(entry)
        timers = self.timers

        class Timer:
            def cancel(self) -> None:
                if entry in timers:
                    timers.remove(entry)

        return Timer()

    def fire(self) -> float:
        """Run the next timer; its pause."""
        seconds, function = self.timers.pop(0)
        function()
        return seconds

    def begin(self, room: int) -> FakeCall:
        self.receiver.start()
        self.receiver.ask(room)
        (call,) = self.channel.open
        return call

    def stop(self, grace: float = 0.5) -> None:
        def count() -> None:
            self.stopped += 1

        self.receiver.stop(grace, count)


def messages(count: int, **attributes: str) -> Any:
    response = wire.PULL.deserialize(b"")  # type: ignore[misc]
    for number in range(count):
        one = response.received_messages.add(ack_id=f"id{number}")
        one.message.data = b"x"
        for name, value in attributes.items():
            one.message.attributes[name.replace("_", "-")] = value
    return response


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def asked(rig: Rig) -> list[int]:
    return [call.request.max_messages for call in rig.channel.open]


def test_an_idle_queue_has_one_long_poll_out_for_all_there_is_room_for(rig: Rig) -> None:
    call = rig.begin(100)
    assert call.request.max_messages == 100
    assert not call.request.return_immediately
    assert 60.0 <= call.timeout <= 60.0 * (1 + SPREAD)
    assert rig.receiver.requests == 1
    assert rig.receiver.asked_at > 0
    rig.receiver.ask(100)
    assert len(rig.channel.open) == 1


def test_nothing_is_asked_for_before_the_start_or_without_room(rig: Rig) -> None:
    rig.receiver.ask(5)
    assert not rig.channel.open
    rig.receiver.ask(0)
    rig.receiver.start()
    assert not rig.channel.open


def test_a_poll_is_longer_where_there_are_very_many_queues() -> None:
    assert poll_for(1) == 60.0
    assert poll_for(600) == 60.0
    assert poll_for(1000) == 100.0
    assert poll_for(2000) == 200.0


def test_more_pulls_join_while_answers_bring_messages_and_never_ask_for_more_than_the_room(rig: Rig) -> None:
    rig.begin(1000).answer(messages(20))
    most = 0
    for _ in range(100):
        rig.receiver.ask(1000)  # what came has run already
        assert sum(asked(rig)) <= 1000
        assert sum(not c.request.return_immediately for c in rig.channel.open) == 1
        most = max(most, len(rig.channel.open))
        rig.channel.open[0].answer(messages(20))
    assert most == MAX_PULLS


def test_where_the_room_shrank_nothing_more_is_sent_until_what_is_out_fits(rig: Rig) -> None:
    rig.begin(1000).answer(messages(100))
    assert asked(rig) == [200, 200]
    rig.receiver.ask(150)
    rig.channel.open[0].answer(messages(50))  # 100 left, and 200 are still out
    assert asked(rig) == [200]
    rig.channel.open[0].answer(messages(0))
    assert asked(rig) == [100]


def test_further_pulls_return_immediately_and_end_with_the_first_empty_answer(rig: Rig) -> None:
    rig.begin(1000).answer(messages(20))
    assert len(rig.channel.open) == 2
    short = [c for c in rig.channel.open if c.request.return_immediately]
    assert len(short) == 1
    short[0].answer(messages(0))
    assert [c.request.return_immediately for c in rig.channel.open] == [False]


def test_an_empty_answer_by_chance_does_not_make_one_pull_ask_for_all_the_room(rig: Rig) -> None:
    rig.begin(1000).answer(messages(20))
    for _ in range(4):
        rig.channel.open[-1].answer(messages(20))
    long = next(call for call in rig.channel.open if not call.request.return_immediately)
    out = len(rig.channel.open)
    assert out > 3
    long.answer(messages(0))
    assert len(rig.channel.open) == out  # it was sent again
    assert max(asked(rig)) < 100
    rig.channel.open[0].answer(messages(20))
    assert len(rig.channel.open) == out + 1


def busy_rigs(monkeypatch: pytest.MonkeyPatch, count: int) -> list[Rig]:
    busy: set[PubSubReceiver] = set()
    rigs = [Rig(monkeypatch, busy=busy) for _ in range(count)]
    for rig in rigs:
        rig.begin(1000).answer(messages(20))
    for rig in rigs * 40:
        rig.receiver.ask(1000)
        rig.channel.open[0].answer(messages(20))
    return rigs


def test_twenty_busy_queues_have_all_their_pulls_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {len(rig.channel.open) for rig in busy_rigs(monkeypatch, 20)} == {MAX_PULLS}


def test_where_very_many_queues_are_busy_they_share_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    rigs = busy_rigs(monkeypatch, 100)
    assert sum(len(rig.channel.open) - 1 for rig in rigs) == MAX_EXTRA
    for rig in rigs[10:]:  # the others have nothing to do any more
        for call in list(rig.channel.open):
            call.answer(messages(0))
    for rig in rigs[:10] * 40:
        rig.receiver.ask(1000)
        rig.channel.open[0].answer(messages(20))
    assert {len(rig.channel.open) for rig in rigs[:10]} == {MAX_PULLS}


def test_each_of_several_pulls_asks_for_twice_the_mean_answer(rig: Rig) -> None:
    rig.begin(200).answer(messages(20))
    assert asked(rig) == [40, 40]


def test_one_message_now_and_then_costs_one_further_pull_not_fifteen(rig: Rig) -> None:
    rig.begin(1000).answer(messages(1))
    assert len(rig.channel.open) == 2


def test_a_small_room_is_not_cut_into_pulls_of_single_messages(rig: Rig) -> None:
    rig.begin(100).answer(messages(50))
    assert asked(rig) == [50]  # all there is room for, in one


def test_what_is_on_its_way_through_dispatch_counts_against_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    hops: list[tuple[Any, tuple[Any, ...]]] = []
    rig = Rig(monkeypatch, post=lambda function, *args: hops.append((function, args)))
    rig.begin(10).answer(messages(10))
    rig.receiver.ask(10)  # the consumer has not seen them yet
    assert not rig.channel.open
    for function, args in hops:
        function(*args)
    assert len(rig.got) == 10
    rig.receiver.ask(3)
    assert asked(rig) == [3]


def test_a_delivery_says_when_its_pull_was_sent_and_when_its_lease_ends(rig: Rig) -> None:
    before = time.monotonic()
    call = rig.begin(1)
    after = time.monotonic()
    call.answer(messages(1, psq_id="t1"))
    (delivery,) = rig.got
    assert before <= delivery.asked_at <= after
    assert delivery.lease_until == delivery.asked_at + 10.0
    assert delivery.lease_key == "id0"
    assert delivery.attributes == {"psq-id": "t1"}
    assert delivery.redelivered is None


def test_an_empty_answer_is_an_answer_and_the_poll_goes_out_again(rig: Rig) -> None:
    rig.begin(5).answer(messages(0))
    assert rig.receiver.answered_at > 0
    assert rig.receiver.stats == {"receives": 2, "empty": 1, "messages": 0, "errors": 0}
    assert asked(rig) == [5]


def test_a_server_that_answers_polls_at_once_with_nothing_is_not_asked_in_a_loop(rig: Rig) -> None:
    rig.begin(5)
    for _ in range(10):
        if not rig.channel.open:
            break
        rig.channel.open[0].answer(messages(0))
    assert not rig.channel.open
    assert len(rig.timers) == 1
    rig.fire()
    assert asked(rig) == [5]


def test_a_deadline_is_nothing_yet_and_no_failure(rig: Rig) -> None:
    call = rig.begin(5)
    rig.channel.answered_at = time.monotonic()  # something else was heard from the server meanwhile
    call.fail("DEADLINE_EXCEEDED")
    assert rig.receiver.answered_at > 0
    assert rig.receiver.error == ""
    assert rig.receiver.stats["errors"] == 0
    assert not rig.timers
    assert asked(rig) == [5]
    assert not rig.doubtful


def test_a_deadline_with_no_other_sign_of_life_is_looked_into(rig: Rig) -> None:
    rig.begin(5).fail("DEADLINE_EXCEEDED")
    assert rig.receiver.answered_at == 0.0
    assert rig.doubtful == [rig.receiver]
    rig.receiver.alive()
    assert rig.receiver.answered_at > 0


def test_polls_that_end_without_any_sign_of_life_are_one_long_silence(rig: Rig) -> None:
    """Else a server that takes every call and answers none would pass for one that is about to answer."""
    call = rig.begin(5)
    began = rig.receiver.asked_at
    for _ in range(3):
        call.fail("DEADLINE_EXCEEDED")
        (call,) = rig.channel.open
        assert rig.receiver.asked_at == began
    rig.receiver.alive()
    assert rig.receiver.asked_at > began


def test_a_queue_that_had_no_room_meanwhile_is_not_silent(rig: Rig) -> None:
    rig.begin(5).fail("DEADLINE_EXCEEDED")
    began = rig.receiver.asked_at
    rig.receiver.ask(0)
    rig.channel.open[0].fail("DEADLINE_EXCEEDED")
    assert not rig.channel.open
    rig.receiver.ask(0)
    rig.receiver.ask(5)
    assert rig.receiver.asked_at > began


def test_a_transient_error_is_tried_again_after_fifty_milliseconds_then_backs_off(rig: Rig) -> None:
    rig.begin(5)
    pauses = []
    for _ in range(6):
        rig.channel.open[0].fail("UNAVAILABLE", "refused stream")
        assert not rig.channel.open
        assert "UNAVAILABLE" in rig.receiver.error
        pauses.append(rig.fire())
    assert pauses[0] == 0.05
    assert pauses == sorted(pauses)
    assert 1.0 < pauses[-1] <= 10.0
    rig.channel.open[0].answer(messages(1))
    assert rig.receiver.error == ""
    rig.channel.open[0].fail("UNAVAILABLE")
    assert rig.fire() == 0.05


@pytest.mark.unpatched
def test_a_pause_that_is_over_before_it_was_noted_is_over_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine, where a timer's thread may overtake the one that started it."""
    threads: list[threading.Thread] = []

    def call_later(seconds: float, function: Callable[[], None]) -> threading.Thread:
        threads.append(threading.Thread(target=function))
        threads[0].start()
        threads[0].join(0.1)  # it gets as far as it can
        return threads[0]

    monkeypatch.setattr(pubsub_receiver, "call_later", call_later)
    rig.begin(5).fail("UNAVAILABLE")
    threads[0].join()
    assert asked(rig) == [5]


def test_several_pulls_that_fail_together_make_one_pause(rig: Rig) -> None:
    rig.begin(1000).answer(messages(20))
    assert len(rig.channel.open) == 2
    for call in list(rig.channel.open):
        call.fail("UNAVAILABLE")
    assert [seconds for seconds, _ in rig.timers] == [0.05]


def test_resource_exhausted_halves_what_is_asked_for_and_answers_bring_it_back(rig: Rig) -> None:
    rig.begin(100).fail("RESOURCE_EXHAUSTED")
    rig.fire()
    assert asked(rig) == [50]
    rig.channel.open[0].fail("RESOURCE_EXHAUSTED")
    rig.fire()
    assert asked(rig) == [25]
    rig.channel.open[0].answer(messages(25))
    rig.receiver.ask(1000)
    assert max(asked(rig)) == 50


def test_a_refusal_is_told_and_tried_again_seldom(rig: Rig) -> None:
    rig.begin(5).fail("PERMISSION_DENIED", "no pubsub.subscriptions.consume")
    assert "consume" in rig.receiver.error
    assert rig.denied == [rig.receiver]
    assert rig.fire() == 10.0
    assert asked(rig) == [5]


def test_a_subscription_that_is_gone_is_reported_and_waited_for(rig: Rig) -> None:
    rig.begin(5).fail("NOT_FOUND")
    assert rig.gone == [rig.receiver]
    rig.fire()
    assert not rig.channel.open
    rig.receiver.resume()
    assert asked(rig) == [5]


def test_what_is_missing_is_told_until_it_was_seen_again_and_empty_answers_are_no_sign_of_it(rig: Rig) -> None:
    call = rig.begin(5)
    rig.receiver.missing, rig.receiver.mending = "its topic was deleted", True
    call.answer(messages(0))
    assert rig.receiver.missing
    rig.receiver.mending = False
    rig.receiver.resume(sure=False)  # we may not look at it
    assert rig.receiver.missing
    rig.channel.open[0].answer(messages(0))
    assert not rig.receiver.missing
    rig.receiver.missing = "once more"
    rig.receiver.resume()
    assert not rig.receiver.missing


def test_after_a_mend_nobody_waits_for_the_polls_at_what_was_deleted(rig: Rig) -> None:
    call = rig.begin(5)
    rig.receiver.resume()
    assert call.cancelled
    assert asked(rig) == [5]
    rig.channel.open[0].answer(messages(2))
    assert len(rig.got) == 2
    assert asked(rig) == [3]
    assert rig.receiver.stats["errors"] == 0


def test_a_copy_for_another_member_is_acked_unseen_and_leaves_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, QueueSpec("fleet", broadcast=True, member="here-0"))
    call = rig.begin(3)
    response = messages(1, psq_member="there-0")
    response.received_messages.extend(messages(1, psq_member="here-0").received_messages)
    response.received_messages.extend(messages(1).received_messages)
    call.answer(response)
    assert len(rig.got) == 2
    assert [d.attributes["psq-member"] for d in rig.dropped] == ["there-0"]
    assert rig.receiver.stats["messages"] == 2
    rig.receiver.ask(1)
    assert asked(rig) == [1]


def test_stopping_sends_no_more_pulls_and_delivers_what_those_in_flight_bring(rig: Rig) -> None:
    rig.begin(1000).answer(messages(20))
    rig.stop()
    rig.receiver.ask(1000)
    assert len(rig.channel.open) == 2
    assert rig.stopped == 0
    rig.channel.open[0].answer(messages(3))
    assert len(rig.got) == 23
    assert len(rig.channel.open) == 1
    rig.channel.open[0].answer(messages(0))
    assert rig.stopped == 1


def test_after_the_grace_what_is_still_out_is_cancelled(rig: Rig) -> None:
    call = rig.begin(5)
    rig.stop(0.5)
    assert not call.cancelled
    assert rig.fire() == 0.5
    assert call.cancelled
    assert rig.stopped == 1
    assert rig.receiver.stats["errors"] == 0
    assert rig.receiver.requests == 0


def test_a_subscription_that_is_mended_while_its_receiver_stops_keeps_the_stop_from_nothing(rig: Rig) -> None:
    rig.begin(5)
    rig.stop(0.5)
    rig.receiver.resume()
    rig.fire()
    assert rig.stopped == 1
    assert not rig.channel.open


def test_a_call_that_does_not_end_when_cancelled_is_not_waited_for(rig: Rig) -> None:
    rig.channel.cancels = False
    call = rig.begin(5)
    rig.stop(0.5)
    rig.fire()
    assert rig.stopped == 0
    rig.fire()
    assert rig.stopped == 1
    call.answer(messages(1))
    assert rig.got == []


def test_stop_is_answered_each_time_and_at_once_where_nothing_is_out(rig: Rig) -> None:
    rig.stop()
    assert rig.stopped == 1
    rig.stop()
    assert rig.stopped == 2
    rig.receiver.start()
    assert not rig.channel.open


def test_stopping_during_a_pause_sends_nothing_more(rig: Rig) -> None:
    rig.begin(5).fail("UNAVAILABLE")
    rig.stop()
    assert rig.stopped == 1
    assert not rig.timers
    assert not rig.channel.open
