"""The broker seam: what every broker promises. README.md maps the promises of the design to these tests."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable

import pytest

from psq.brokers.base import DeadLetter, Outgoing
from psq.concurrency import Waiter, is_patched
from psq.errors import ConfigError, LeaseLost, MessageTooLarge
from psq.message import decode
from tests.contract.backends import BrokerPlace
from tests.contract.helpers import PATIENCE, Answer, Inbox, ack, nack, outgoing, publish, receiving, stop

# enqueue returned: the broker has it


def test_what_was_published_is_delivered_with_its_document(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    with receiving(broker, queue) as (inbox, _):
        message = outgoing(queue, "t1", 5, "ä\ud800\x00")
        publish(broker, message)
        delivery = inbox.one()
        assert delivery.data == message.data
        assert delivery.queue == queue
        ack(broker, delivery)


def test_a_message_is_safe_once_publish_was_answered_even_if_its_sender_is_gone(place: BrokerPlace) -> None:
    queue = place.queue()
    sender = place.make()
    publish(sender, outgoing(queue))
    sender.close()
    with receiving(place.open(), queue) as (inbox, _):
        assert decode(inbox.one().data).id == "t1"


def test_what_was_published_before_any_worker_existed_is_delivered(place: BrokerPlace) -> None:
    queue = place.queue()
    publish(place.open(), *(outgoing(queue, f"t{i}") for i in range(3)))
    with receiving(place.open(), queue) as (inbox, _):
        assert {decode(d.data).id for d in inbox.take(3)} == {"t0", "t1", "t2"}


def test_publish_calls_done_exactly_once(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    answers = [Answer() for _ in range(20)]
    for i, answer in enumerate(answers):
        broker.publish(outgoing(queue, f"t{i}"), answer)
    for answer in answers:
        answer.get()
    assert [answer.count for answer in answers] == [1] * 20


def test_many_threads_publish_at_once_and_everything_arrives_once(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue(ack_deadline=max(place.lease, 30.0))

    def sender(number: int) -> None:
        publish(broker, *(outgoing(queue, f"t{number}-{i}") for i in range(25)))

    with receiving(broker, queue, ask=1000) as (inbox, _):
        threads = [threading.Thread(target=sender, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ids = [decode(d.data).id for d in inbox.take(200)]
        assert sorted(ids) == sorted(f"t{n}-{i}" for n in range(8) for i in range(25))
        ack(broker, *inbox.all)


def test_a_message_over_the_limit_is_refused_locally_with_size_and_limit(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    answer = Answer()
    broker.publish(Outgoing(queue, b"x" * (broker.max_message_bytes + 1), task_id="big"), answer)
    with pytest.raises(MessageTooLarge) as caught:
        answer.get()
    assert caught.value.size > caught.value.limit
    assert str(caught.value.limit)[:2] in str(caught.value)


def test_a_message_of_nearly_ten_megabytes_passes(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue(ack_deadline=max(place.lease, 30.0))
    with receiving(broker, queue) as (inbox, _):
        message = outgoing(queue, "big", "x" * 9_800_000)
        publish(broker, message)
        delivery = inbox.one()
        assert delivery.data == message.data
        ack(broker, delivery)


def test_a_payload_that_is_no_message_of_ours_comes_through_unchanged(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    with receiving(broker, queue) as (inbox, _):
        publish(broker, Outgoing(queue, b"\xff\x00not json", task_id="bad"))
        delivery = inbox.one()
        assert delivery.data == b"\xff\x00not json"
        ack(broker, delivery)


# queues


def test_declaring_twice_is_no_error_and_gives_no_warnings(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    assert broker.declare(queue) == []
    assert broker.declare(queue) == []
    assert place.open().declare(queue) == []


def test_queues_are_apart(place: BrokerPlace) -> None:
    broker, one, two = place.open(), place.queue("one"), place.queue("two")
    with receiving(broker, one) as (inbox_one, _), receiving(broker, two) as (inbox_two, _):
        publish(broker, outgoing(one, "for-one"), outgoing(two, "for-two"))
        assert decode(inbox_one.one().data).id == "for-one"
        assert decode(inbox_two.one().data).id == "for-two"


@pytest.mark.parametrize("name", ["", "a b", "x/y", "work-dead", "work-shared", "ü", "x" * 300])
def test_a_name_that_can_not_be_a_queue_is_refused_with_what_is_valid(place: BrokerPlace, name: str) -> None:
    with pytest.raises(ConfigError):
        place.open().check_queue_name(name)


def test_ordinary_names_are_fine(place: BrokerPlace) -> None:
    broker = place.open()
    for name in ("default", "reports.daily", "Shop_1-eu", "abc" * 20):
        broker.check_queue_name(name)


def test_url_and_source_name_the_place_and_the_queue(place: BrokerPlace) -> None:
    broker = place.open()
    assert broker.url.startswith(f"{broker.scheme}://")
    assert broker.source(place.queue("one")) != broker.source(place.queue("two"))
    member = place.queue("fleet", broadcast=True, member="host-0")
    other = place.queue("fleet", broadcast=True, member="host-1")
    assert broker.source(member) != broker.source(other)


# acked only after it ended


def test_what_was_acked_never_comes_again(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    with receiving(broker, queue) as (inbox, _):
        publish(broker, outgoing(queue))
        ack(broker, inbox.one())
        assert inbox.nothing(place.lease * 1.5)
    with receiving(place.open(), queue) as (inbox, _):
        assert inbox.nothing(place.never)


def test_a_leased_message_goes_to_nobody_else(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue(ack_deadline=max(place.lease, 30.0))
    publish(broker, outgoing(queue))
    with receiving(broker, queue) as (inbox, _):
        delivery = inbox.one()
        with receiving(place.open(), queue) as (other, _):
            assert other.nothing(place.never)
        ack(broker, delivery)


def test_a_lease_that_runs_out_is_delivered_again(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    publish(broker, outgoing(queue))
    with receiving(broker, queue) as (inbox, _):
        first = inbox.one()
        again = inbox.one(place.lease + place.late + PATIENCE)
        assert again.data == first.data
        assert again.lease_key != first.lease_key
        if broker.reports_lost_leases:
            assert (first.redelivered, again.redelivered) == (False, True)
        else:
            assert (first.redelivered, again.redelivered) == (None, None)
        ack(broker, again)


def test_a_lease_begins_no_earlier_than_it_says(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    before = time.monotonic()
    publish(broker, outgoing(queue))
    with receiving(broker, queue) as (inbox, _):
        delivery = inbox.one()
        assert before - 100 < delivery.asked_at <= time.monotonic()
        assert delivery.lease_until == pytest.approx(delivery.asked_at + queue.ack_deadline)
        ack(broker, delivery)


def test_an_ack_of_a_lost_lease_is_reported_where_the_broker_knows(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    if not broker.reports_lost_leases:
        pytest.skip("this broker says yes to acks of lapsed leases")
    publish(broker, outgoing(queue))
    with receiving(broker, queue) as (inbox, _):
        first, again = inbox.take(2)
        answer = Answer()
        broker.ack(first, answer)
        assert isinstance(answer.error(), LeaseLost)
        ack(broker, again)  # the fence: the ack of the old lease has not touched the new one


def test_a_nacked_delivery_comes_again_at_once(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue(ack_deadline=60.0)
    publish(broker, outgoing(queue, "t1"), outgoing(queue, "t2"))
    with receiving(broker, queue) as (inbox, _):
        nack(broker, *inbox.take(2))
        again = inbox.take(2, place.late + PATIENCE)
        assert {decode(d.data).id for d in again} == {"t1", "t2"}
        ack(broker, *again)


def test_nacking_nothing_is_answered(place: BrokerPlace) -> None:
    broker = place.open()
    nack(broker)


def test_a_parked_delivery_comes_again_after_the_pause_and_not_before(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue(ack_deadline=60.0)
    publish(broker, outgoing(queue))
    with receiving(broker, queue) as (inbox, _):
        delivery = inbox.one()
        answer = Answer()
        parked_at = time.monotonic()
        broker.park([delivery], 1.5, answer)
        answer.get()
        again = inbox.one(1.5 + place.late + PATIENCE)
        assert time.monotonic() - parked_at >= 1.4
        ack(broker, again)


# never before its time


def test_a_delayed_message_comes_when_due_and_not_before_where_the_broker_schedules(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue(ack_deadline=60.0)
    if not broker.schedules:
        pytest.skip("this broker delivers at once; the worker parks what is early")
    with receiving(broker, queue) as (inbox, _):
        due = time.time() + 0.6
        publish(broker, outgoing(queue, "later", due_at=due), outgoing(queue, "now"))
        first, second = inbox.take(2)
        assert [decode(d.data).id for d in (first, second)] == ["now", "later"]
        assert time.time() >= due
        assert second.redelivered is False
        ack(broker, first, second)


def test_the_due_time_travels_in_the_document(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    with receiving(broker, queue) as (inbox, _):
        due = time.time() + 0.2
        publish(broker, outgoing(queue, "later", due_at=due))
        delivery = inbox.one()
        assert decode(delivery.data).due_at == pytest.approx(due)
        ack(broker, delivery)


# receiving


def test_a_receiver_takes_no_more_than_it_was_asked_for(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue(ack_deadline=max(place.lease, 30.0))
    publish(broker, *(outgoing(queue, f"t{i}") for i in range(10)))
    with receiving(broker, queue, ask=3) as (inbox, receiver):
        assert len(inbox.take(3)) == 3
        assert inbox.nothing(place.never)
        receiver.ask(2)
        assert len(inbox.take(2)) == 2
        assert inbox.nothing(place.never)
        ack(broker, *inbox.all)


def test_a_receiver_asked_for_nothing_takes_nothing(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    publish(broker, outgoing(queue))
    with receiving(broker, queue, ask=0) as (inbox, receiver):
        assert inbox.nothing(place.never)
        receiver.ask(1)
        ack(broker, inbox.one())


def test_an_idle_receiver_is_woken_by_a_publish_from_elsewhere(place: BrokerPlace) -> None:
    queue = place.queue()
    with receiving(place.open(), queue) as (inbox, _):
        assert inbox.nothing(place.never)
        publish(place.open(), outgoing(queue))
        inbox.one()


def test_two_receivers_share_a_queue_and_each_message_goes_to_one(place: BrokerPlace) -> None:
    queue = place.queue(ack_deadline=max(place.lease, 30.0))
    one, two = place.open(), place.open()
    with receiving(one, queue, ask=0) as (a, first), receiving(two, queue, ask=0) as (b, second):
        publish(one, *(outgoing(queue, f"t{i}") for i in range(40)))
        first.ask(20)
        second.ask(20)
        a.take(20)
        b.take(20)
        ids = [decode(d.data).id for d in a.all + b.all]
        assert sorted(ids) == sorted(f"t{i}" for i in range(40))
        ack(one, *a.all)
        ack(two, *b.all)


def test_a_stopped_receiver_delivers_nothing_more(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    with receiving(broker, queue) as (inbox, receiver):
        publish(broker, outgoing(queue, "before"))
        ack(broker, inbox.one())
        stop(receiver)
        receiver.ask(10)
        publish(broker, outgoing(queue, "after"))
        assert inbox.nothing(place.never)
    with receiving(place.open(), queue) as (inbox, _):
        assert decode(inbox.one(place.late + PATIENCE).data).id == "after"


def test_starting_and_stopping_a_receiver_twice_is_the_same_as_once(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    with receiving(broker, queue) as (inbox, receiver):
        receiver.start()
        publish(broker, outgoing(queue))
        ack(broker, inbox.one())
        assert inbox.nothing(place.never)
        stop(receiver)
        stop(receiver)


def test_a_receiver_that_was_never_started_stops(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    broker.declare(queue)
    stop(broker.receiver(queue, Inbox()))


def test_a_receiver_tells_when_it_was_last_answered_and_counts(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    with receiving(broker, queue) as (inbox, receiver):
        began = time.monotonic()
        publish(broker, outgoing(queue))
        delivery = inbox.one()
        assert began - 1 <= receiver.answered_at <= time.monotonic()
        assert receiver.error == ""
        assert receiver.stats["messages"] == 1
        assert receiver.stats["receives"] >= 1
        assert receiver.stats["errors"] == 0
        ack(broker, delivery)


def test_dispatch_carries_every_callback(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    broker.declare(queue)
    carried = threading.local()
    outside: list[str] = []
    stopped = Waiter()

    def dispatch(call: Callable[[], None]) -> None:
        carried.now = True
        try:
            call()
        finally:
            carried.now = False

    def noted(what: str, callback: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object) -> None:
            if not getattr(carried, "now", False):
                outside.append(what)
            callback(*arguments)

        return run

    broker.dispatch = dispatch
    inbox, published, acked, nacked = Inbox(), Answer(), Answer(), Answer()
    receiver = broker.receiver(queue, noted("deliver", inbox))
    receiver.start()
    receiver.ask(10)
    broker.publish(outgoing(queue), noted("publish", published))
    published.get()
    broker.nack([inbox.one()], noted("nack", nacked))
    nacked.get()
    broker.ack(inbox.one(place.late + PATIENCE), noted("ack", acked))
    acked.get()
    receiver.stop(0.5, noted("stopped", stopped.set))
    assert stopped.wait(PATIENCE)
    assert outside == []


# broadcast


def test_every_member_of_a_broadcast_queue_gets_a_copy(place: BrokerPlace) -> None:
    one, two, sender = place.open(), place.open(), place.open()
    first = place.queue("fleet", broadcast=True, member="host-0")
    second = place.queue("fleet", broadcast=True, member="host-1")
    with receiving(one, first) as (a, _), receiving(two, second) as (b, _):
        publish(sender, outgoing(place.queue("fleet", broadcast=True)))
        got = [a.one(), b.one()]
        assert [decode(d.data).id for d in got] == ["t1", "t1"]
        ack(one, got[0])
        ack(two, got[1])
        assert a.nothing(place.never)
        assert b.nothing(place.never)


def test_what_is_published_for_one_member_goes_to_that_one_alone(place: BrokerPlace) -> None:
    one, two = place.open(), place.open()
    first = place.queue("fleet", broadcast=True, member="host-0")
    second = place.queue("fleet", broadcast=True, member="host-1")
    with receiving(one, first) as (a, _), receiving(two, second) as (b, _):
        publish(one, outgoing(first))
        ack(one, a.one())
        assert b.nothing(place.never)
        publish(two, outgoing(place.queue("fleet", broadcast=True), "t2"))
        assert decode(b.one().data).id == "t2"


def test_a_member_finds_what_came_while_it_was_away(place: BrokerPlace) -> None:
    member = place.queue("fleet", broadcast=True, member="host-0")
    with receiving(place.open(), member) as (inbox, _):
        assert inbox.nothing(0)
    publish(place.open(), outgoing(place.queue("fleet", broadcast=True)))
    with receiving(place.open(), member) as (inbox, _):
        inbox.one(place.late + PATIENCE)


def test_a_new_member_gets_nothing_of_what_came_before_it(place: BrokerPlace) -> None:
    broker = place.open()
    everybody = place.queue("fleet", broadcast=True)
    publish(broker, outgoing(everybody, "early"))
    with receiving(broker, place.queue("fleet", broadcast=True, member="host-0")) as (inbox, _):
        publish(broker, outgoing(everybody, "late"))
        assert decode(inbox.one().data).id == "late"
        assert inbox.nothing(place.never)


def test_a_member_that_leaves_for_good_leaves_nothing_behind(place: BrokerPlace) -> None:
    member = place.queue("fleet", broadcast=True, member="host-0", delete_on_close=True)
    broker = place.open()
    with receiving(broker, member) as (inbox, _):
        assert inbox.nothing(0)
    broker.close()
    publish(place.open(), outgoing(place.queue("fleet", broadcast=True), "while-gone"))
    with receiving(place.open(), member) as (inbox, _):
        assert inbox.nothing(place.never)


# the keeper's client


def test_an_extended_lease_does_not_run_out(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    publish(broker, outgoing(queue))
    with receiving(broker, queue) as (inbox, _):
        delivery = inbox.one()
        keeper = place.lease_client(broker)
        answer = Answer()
        keeper.extend(broker.source(queue), [delivery.lease_key], place.lease * 3, 5.0, answer)
        assert list(answer.get() or []) == []
        assert inbox.nothing(place.lease * 1.5)
        ack(broker, delivery)


def test_the_keeper_gives_leases_back_and_they_come_again_at_once(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue(ack_deadline=60.0)
    publish(broker, *(outgoing(queue, f"t{i}") for i in range(5)))
    with receiving(broker, queue, ask=10) as (inbox, receiver):
        held = inbox.take(5)
        keeper = place.lease_client(broker)
        answer = Answer()
        receiver.ask(10)
        keeper.give_back(broker.source(queue), [d.lease_key for d in held], 5.0, answer)
        answer.get()
        again = inbox.take(5, place.late + PATIENCE)
        assert {d.data for d in again} == {d.data for d in held}
        ack(broker, *again)


def test_the_keeper_is_told_which_leases_were_lost_where_the_broker_knows(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    if not broker.reports_lost_leases:
        pytest.skip("this broker says yes to extensions of lapsed leases")
    publish(broker, outgoing(queue, "t1"))
    with receiving(broker, queue) as (inbox, _):
        first, again = inbox.take(2)
        keeper = place.lease_client(broker)
        answer = Answer()
        keeper.extend(broker.source(queue), [first.lease_key, again.lease_key], 30.0, 5.0, answer)
        assert list(answer.get()) == [first.lease_key]
        ack(broker, again)


def test_a_struck_message_comes_again_with_one_more_strike(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue(ack_deadline=60.0)
    publish(broker, outgoing(queue, "killer", 1, 2))
    with receiving(broker, queue) as (inbox, _):
        delivery = inbox.one()
        keeper = place.lease_client(broker)
        for strikes in (1, 2):
            answer = Answer()
            record = {"signal": "SIGKILL", "host": "here", "at": 1000.0 + strikes}
            keeper.strike(broker.source(queue), [(delivery.lease_key, delivery.data)], record, answer)
            assert list(answer.get() or []) == []
            delivery = inbox.one(place.late + PATIENCE)
            message = decode(delivery.data)
            assert message.id == "killer"
            assert message.args == [1, 2]
            assert len(message.strikes) == strikes
            assert message.strikes[-1]["at"] == 1000.0 + strikes
        ack(broker, delivery)
        assert inbox.nothing(place.never)


def test_a_closed_lease_client_ends_its_calls(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue(ack_deadline=60.0)
    publish(broker, outgoing(queue))
    with receiving(broker, queue) as (inbox, _):
        delivery = inbox.one()
        keeper = place.lease_client(broker)
        answer = Answer()
        keeper.extend(broker.source(queue), [delivery.lease_key], 20.0, 5.0, answer)
        keeper.close()
        keeper.close()
        answer.error()  # answered or ended with an error: not left hanging
        assert answer.count == 1
        ack(broker, delivery)


def test_the_lease_spec_is_json(place: BrokerPlace) -> None:
    spec = place.open().lease_spec()
    assert json.loads(json.dumps(spec)) == spec
    assert spec["kind"] == place.open().scheme


# dead letters in the broker's own place


def test_dead_letters_are_kept_listed_shown_and_deleted(place: BrokerPlace) -> None:
    dead = place.open().dead_letters()
    letters = [
        DeadLetter(f"t{i}", 1, queue, "m:f", "out of retries", b"{}", "E: no", "Traceback…", 5.0, 1e9 + i, deaths=[])
        for i, queue in enumerate(("one", "two", "one"))
    ]
    for letter in letters:
        answer = Answer()
        dead.put_dead(letter, answer)
        answer.get()
    other = place.open().dead_letters()
    assert {letter.key for letter in other.list_dead("one")} == {"t0:1", "t2:1"}
    assert len(list(other.list_dead("one", limit=1))) == 1
    assert other.get_dead("t0:1") == [letters[0]]
    other.delete_dead(["t0:1", "unknown:1"])
    assert other.get_dead("t0:1") == []
    assert {letter.key for letter in other.list_dead("one")} == {"t2:1"}


def test_a_dead_letter_that_was_written_again_is_not_discarded(place: BrokerPlace) -> None:
    dead = place.open().dead_letters()
    letters = [
        DeadLetter(id, 1, "one", "m:f", "undecodable", b"\xff", died_at=died_at)
        for id, died_at in (("t0", 1.0), ("t1", 1.0), ("t0", 2.0))
    ]
    for letter in letters:
        answer = Answer()
        dead.put_dead(letter, answer)
        answer.get()
    dead.discard(letters[:2])
    assert [(letter.key, letter.died_at) for letter in dead.list_dead("one")] == [("t0:1", 2.0)]
    dead.discard([])


def test_a_dead_letter_keeps_how_its_workers_died(place: BrokerPlace) -> None:
    dead = place.open().dead_letters()
    deaths = [{"signal": "SIGSEGV", "host": "here", "at": 7.0}]
    letter = DeadLetter("t1", 2, "work", "m:f", "worker died", b"\xffraw", deaths=deaths, died_at=9.0)
    answer = Answer()
    dead.put_dead(letter, answer)
    answer.get()
    found = dead.get_dead("t1")
    assert [(one.key, one.payload, list(one.deaths)) for one in found] == [("t1:2", b"\xffraw", deaths)]


# life


def test_close_sends_what_waits_and_may_be_called_twice(place: BrokerPlace) -> None:
    queue = place.queue()
    broker = place.make()
    broker.declare(queue)
    answers = [Answer() for _ in range(50)]
    for i, answer in enumerate(answers):
        broker.publish(outgoing(queue, f"t{i}"), answer)
    broker.close()
    broker.close()
    for answer in answers:
        answer.get()
    with receiving(place.open(), queue) as (inbox, _):
        assert len(inbox.take(50)) == 50


def test_tick_and_stats_may_be_called_at_any_time(place: BrokerPlace) -> None:
    broker = place.open()
    broker.tick()
    publish(broker, outgoing(place.queue()))
    broker.tick()
    assert all(isinstance(value, (int, float)) for value in broker.stats().values())


@pytest.mark.unpatched
def test_a_forked_child_makes_its_own_connections(place: BrokerPlace) -> None:
    if not place.forks or is_patched():
        pytest.skip("this backend's client is not forked in tests")
    broker, queue = place.open(), place.queue()
    publish(broker, outgoing(queue, "parent"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            broker.reset_after_fork()
            publish(broker, outgoing(queue, "child"))
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    publish(broker, outgoing(queue, "parent-again"))
    with receiving(broker, queue) as (inbox, _):
        ids = {decode(d.data).id for d in inbox.take(3)}
        assert ids == {"parent", "child", "parent-again"}


def test_a_waiter_is_woken_from_the_brokers_own_thread(place: BrokerPlace) -> None:
    broker, queue = place.open(), place.queue()
    waiter = Waiter()
    broker.publish(outgoing(queue), lambda result, error: waiter.set(error))
    assert waiter.wait(PATIENCE)
    assert waiter.value is None
