"""Publishing, acks and the watch against a channel whose answers the test gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from psq.brokers import pubsub_acks, pubsub_watch
from psq.brokers import pubsub_wire as wire
from psq.brokers.base import Delivery, Outgoing, QueueSpec
from psq.brokers.pubsub_acks import Acks
from psq.brokers.pubsub_names import Names
from psq.brokers.pubsub_publisher import Publisher
from psq.brokers.pubsub_watch import Watch
from psq.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    ConfigError,
    MessageTooLarge,
    PublishUnknown,
)
from psq.google import suspicion
from psq.google.errors import CallError
from tests.unit.pubsub_fakes import FakeCall, FakeChannel, direct

QUEUE = QueueSpec("work")
SUBSCRIPTION = "projects/p/subscriptions/psq-work-shared"


class FakeAdmin:
    """A stand-in for `Admin`.

    Attributes:
        calls: Names of what was asked.
        error: What the next ones raise.
        gate: They wait for it.
        sure: What is mended was seen.
    """

    project = "projects/p"
    sure = True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.gate.wait(30)
        if self.error is not None:
            raise self.error

    def ensure(self, queue: QueueSpec, timeout: float) -> None:
        self._called("ensure")

    def repair(self, queue: QueueSpec, timeout: float) -> bool:
        self._called("repair")
        return True

    def ensure_dead(self, queue: str, timeout: float, *, gone: bool = False) -> None:
        self._called("ensure_dead" + " again" * gone)

    def mend(self, queue: QueueSpec, timeout: float = 60.0) -> bool:
        self._called("mend")
        return self.sure

    def unusable(self, queue: QueueSpec, found: Any) -> str:
        return "it pushes" if found.push_config.push_endpoint else ""

    def missing(self, permission: str) -> str:
        return f"{permission} is missing: gcloud"


class Rig:
    def __init__(self) -> None:
        self.channel, self.admin = FakeChannel(), FakeAdmin()
        self.publisher = Publisher(self.channel, Names("p"), self.admin, direct)  # type: ignore[arg-type]
        self.ended: list[BrokerError | None] = []
        self._changed = threading.Condition()

    def done(self, result: Any, error: Any) -> None:
        with self._changed:
            self.ended.append(error)
            self._changed.notify_all()

    def publish(self, data: bytes = b"x", *, queue: QueueSpec = QUEUE, timeout: float = 10.0, **names: str) -> None:
        attributes = {name.replace("_", "-"): value for name, value in names.items()}
        self.publisher.publish(Outgoing(queue, data, attributes, None, "t1"), self.done, timeout)

    def call(self) -> FakeCall:
        """The call that is open, once there is one: the first publish makes the queue in another thread."""
        deadline = time.monotonic() + 30
        while not self.channel.open:
            assert time.monotonic() < deadline, "nothing was sent"
            time.sleep(0.001)
        assert len(self.channel.open) == 1
        return self.channel.open[0]

    def wait(self, count: int) -> list[BrokerError | None]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.ended) >= count, 30)
        return self.ended


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.admin.gate.set()


def sent(call: FakeCall) -> Any:
    return wire.PublishRequest.FromString(call.request)


def test_the_first_publish_makes_the_queue_and_the_next_ones_do_not(rig: Rig) -> None:
    rig.publish(b"a", psq_id="t1")
    request = sent(rig.call())
    assert request.topic == "projects/p/topics/psq-work"
    assert [(m.data, dict(m.attributes)) for m in request.messages] == [(b"a", {"psq-id": "t1"})]
    rig.call().answer(b"")
    rig.publish(b"b")
    rig.call().answer(b"")
    assert rig.ended == [None, None]
    assert rig.admin.calls == ["ensure"]


def test_what_arrives_while_a_request_is_out_goes_in_the_next_one(rig: Rig) -> None:
    rig.publish(b"0")
    first = rig.call()
    for number in range(1, 6):
        rig.publish(b"%d" % number)
    assert len(rig.channel.open) == 1
    first.answer(b"")
    assert [m.data for m in sent(rig.call()).messages] == [b"1", b"2", b"3", b"4", b"5"]
    rig.call().answer(b"")
    assert rig.ended == [None] * 6


def test_a_request_has_a_thousand_messages_and_ten_megabytes_at_most(rig: Rig) -> None:
    rig.publish()
    first = rig.call()
    for _ in range(1500):
        rig.publish()
    for _ in range(3):
        rig.publish(b"x" * 4_000_000)
    first.answer(b"")
    counts = []
    while rig.channel.open:
        call = rig.call()
        assert len(call.request) <= 10_000_000
        counts.append(len(sent(call).messages))
        call.answer(b"")
    assert counts == [1000, 502, 1]
    assert rig.ended == [None] * 1504


@pytest.mark.parametrize(
    ("data", "attributes", "says"),
    [
        (b"x" * 10_000_001, {}, "10,000,000"),
        (b"x", {str(n): "v" for n in range(101)}, "101 attributes"),
        (b"x", {"n" * 257: "v"}, "257 bytes"),
        (b"x", {"n": "ä" * 513}, "1026 bytes"),
    ],
)
def test_what_is_over_a_limit_is_refused_at_once_and_locally(
    rig: Rig, data: bytes, attributes: dict[str, str], says: str
) -> None:
    rig.publisher.publish(Outgoing(QUEUE, data, attributes), rig.done, 10.0)
    (error,) = rig.ended
    assert isinstance(error, MessageTooLarge)
    assert says in str(error)
    assert error.size > error.limit
    assert not rig.channel.all


def test_attributes_at_their_limits_pass(rig: Rig) -> None:
    rig.publisher.publish(Outgoing(QUEUE, b"x", {"n" * 256: "ä" * 512}), rig.done, 10.0)
    rig.call().answer(b"")
    assert rig.ended == [None]


def test_a_queue_that_can_not_be_called_so_is_refused(rig: Rig) -> None:
    rig.publish(queue=QueueSpec("a b"))
    assert isinstance(rig.ended[0], ConfigError)


def test_a_transient_error_is_tried_again(rig: Rig) -> None:
    rig.publish()
    rig.call().fail("UNAVAILABLE", "failed to connect to all addresses")
    rig.call().answer(b"")
    assert rig.wait(1) == [None]


def test_one_bad_message_fails_alone(rig: Rig) -> None:
    rig.publish(b"first")
    first = rig.call()
    for number in range(8):
        rig.publish(b"bad" if number == 5 else b"good")
    first.answer(b"")
    while rig.channel.open:
        call = rig.call()
        if any(m.data == b"bad" for m in sent(call).messages):
            call.fail("INVALID_ARGUMENT", "bad")
        else:
            call.answer(b"")
    assert sum(error is None for error in rig.ended) == 8
    assert sum(isinstance(error, BrokerRefused) for error in rig.ended) == 1


def test_a_refusal_of_the_topic_fails_all_with_one_request(rig: Rig) -> None:
    rig.publish()
    first = rig.call()
    for _ in range(20):
        rig.publish()
    first.answer(b"")
    rig.call().fail("PERMISSION_DENIED", "no pubsub.topics.publish")
    assert not rig.channel.open
    assert len(rig.channel.all) == 2
    assert all(isinstance(error, BrokerRefused) for error in rig.ended[1:])
    assert len(rig.ended) == 21


def test_a_topic_that_is_gone_is_looked_at_once_more_closely_then_published_to_again(rig: Rig) -> None:
    rig.publish()
    rig.call().fail("NOT_FOUND", "Topic not found")
    rig.call().answer(b"")
    assert rig.wait(1) == [None]
    assert rig.admin.calls == ["ensure", "repair"]


def test_a_topic_that_stays_away_is_a_refusal_until_somebody_has_made_it(rig: Rig) -> None:
    rig.publish()
    rig.call().fail("NOT_FOUND")
    rig.admin.error = BrokerRefused("we may not make it")
    (error,) = rig.wait(1)
    assert isinstance(error, BrokerRefused)
    assert "may not" in str(error)
    rig.admin.error = None  # a deployer has made it
    rig.publish()
    rig.call().answer(b"")
    assert rig.wait(2)[1] is None
    assert rig.admin.calls == ["ensure", "repair", "ensure"]


def test_a_queue_that_can_not_be_made_for_the_moment_is_tried_again(rig: Rig) -> None:
    rig.admin.error = CallError("UNAVAILABLE", "away", sent=False)
    rig.publish(timeout=30.0)
    deadline = time.monotonic() + 30
    while len(rig.admin.calls) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not rig.ended
    rig.admin.error = None
    rig.call().answer(b"")
    assert rig.wait(1) == [None]


def test_many_publishers_make_a_queue_once(rig: Rig) -> None:
    rig.admin.gate.clear()
    for _ in range(10):
        rig.publish()
    rig.admin.gate.set()
    rig.call().answer(b"")
    if len(rig.wait(1)) < 10:
        rig.call().answer(b"")
    assert rig.wait(10) == [None] * 10
    assert rig.admin.calls == ["ensure"]


def test_a_publish_that_was_never_sent_is_unavailable_when_its_time_is_over(rig: Rig) -> None:
    rig.publish(timeout=0.2)
    while not rig.ended:
        if rig.channel.open:
            rig.channel.open[0].fail("UNAVAILABLE", "failed to connect to all addresses")
        time.sleep(0.001)
    assert isinstance(rig.ended[0], BrokerUnavailable)


def test_a_publish_that_may_have_been_accepted_is_unknown_when_its_time_is_over(rig: Rig) -> None:
    rig.publish(timeout=0.2)
    rig.call().fail("UNAVAILABLE", "Stream removed (Socket closed)")  # sent
    while not rig.ended:
        if rig.channel.open:
            rig.channel.open[0].fail("UNAVAILABLE", "failed to connect to all addresses")  # not sent
        time.sleep(0.001)
    (error,) = rig.ended
    assert isinstance(error, PublishUnknown)
    assert error.task_id == "t1"


def test_a_requests_timeout_is_what_is_left_of_its_messages_time(rig: Rig) -> None:
    rig.publish(timeout=100.0)
    call = rig.call()
    assert 0 < call.timeout <= 100.0
    rig.publish(timeout=5.0)
    rig.publish(timeout=50.0)
    call.answer(b"")
    assert 0 < rig.call().timeout <= 5.0


def test_a_publish_to_a_member_is_marked_for_it_and_one_to_all_is_not(rig: Rig) -> None:
    rig.publish(queue=QueueSpec("fleet", broadcast=True, member="here-0"))
    (message,) = sent(rig.call()).messages
    assert message.attributes["psq-member"] == "here-0"
    rig.call().answer(b"")
    rig.publish(queue=QueueSpec("fleet", broadcast=True))
    (message,) = sent(rig.call()).messages
    assert "psq-member" not in message.attributes


# acks


class AckRig:
    def __init__(self) -> None:
        self.channel = FakeChannel()
        self.acks = Acks(self.channel, direct)  # type: ignore[arg-type]
        self.ended: list[Exception | None] = []

    def done(self, result: Any, error: Any) -> None:
        self.ended.append(error)

    def delivery(self, key: str) -> Delivery:
        return Delivery(QUEUE, key, b"", {}, 0.0, 0.0, None)

    def ack(self, *keys: str) -> None:
        for key in keys:
            self.acks.ack(SUBSCRIPTION, self.delivery(key), self.done)

    def modify(self, seconds: float, *keys: str) -> None:
        self.acks.modify(SUBSCRIPTION, [self.delivery(key) for key in keys], seconds, self.done)


@pytest.fixture
def ackrig() -> AckRig:
    return AckRig()


def test_acks_share_requests_of_a_thousand_ids_and_half_a_megabyte_at_most(ackrig: AckRig) -> None:
    ackrig.ack("first")
    ackrig.ack(*("k" * 200 + str(number) for number in range(4000)))
    ackrig.channel.open[0].answer()
    counts = []
    while ackrig.channel.open:
        (call,) = ackrig.channel.open
        counts.append(len(call.request.ack_ids))
        assert call.request.ByteSize() <= 512 * 1024
        call.answer()
    assert max(counts) == 1000
    assert sum(counts) == 4000
    assert ackrig.ended == [None] * 4001


def test_one_bad_ack_id_fails_alone(ackrig: AckRig) -> None:
    ackrig.ack("first", "a", "bad", "b")
    ackrig.channel.open[0].answer()
    while ackrig.channel.open:
        (call,) = ackrig.channel.open
        if "bad" in call.request.ack_ids:
            call.fail("INVALID_ARGUMENT", "Invalid ack id")
        else:
            call.answer()
    assert sum(error is None for error in ackrig.ended) == 3
    assert sum(isinstance(error, BrokerRefused) for error in ackrig.ended) == 1


def test_a_subscription_that_is_gone_fails_all_acks_with_one_request(ackrig: AckRig) -> None:
    ackrig.ack("first", *(str(number) for number in range(100)))
    ackrig.channel.open[0].answer()
    ackrig.channel.open[0].fail("NOT_FOUND")
    assert not ackrig.channel.open
    assert all(isinstance(error, BrokerRefused) for error in ackrig.ended[1:])
    assert len(ackrig.ended) == 101


def test_a_pause_is_rounded_up_and_giving_back_is_none(ackrig: AckRig) -> None:
    ackrig.modify(2.1, "a")
    ackrig.modify(0, "c")
    ackrig.modify(10_000, "d")
    found = {tuple(c.request.ack_ids): c.request.ack_deadline_seconds for c in ackrig.channel.open}
    assert found == {("a",): 3, ("c",): 0, ("d",): 600}


def test_giving_back_many_is_answered_once_with_the_first_error(ackrig: AckRig) -> None:
    ackrig.modify(0, *(str(number) for number in range(1500)))
    assert ackrig.ended == []
    ackrig.channel.open[0].fail("NOT_FOUND")
    while ackrig.channel.open:
        assert ackrig.ended == []
        ackrig.channel.open[0].answer()
    assert len(ackrig.ended) == 1
    assert isinstance(ackrig.ended[0], BrokerRefused)


def test_lengths_that_are_not_used_any_more_are_forgotten(ackrig: AckRig) -> None:
    for seconds in range(1, 300):
        ackrig.modify(seconds, "a")
    while ackrig.channel.open:
        ackrig.channel.open[0].answer()
    ackrig.acks.kick()
    assert len(ackrig.acks._groups) == 0
    assert ackrig.acks.idle()


def test_an_ack_that_is_transiently_refused_is_repeated(ackrig: AckRig, monkeypatch: pytest.MonkeyPatch) -> None:
    ackrig.ack("a")
    ackrig.channel.open[0].fail("UNAVAILABLE")
    deadline = time.monotonic() + 30
    while not ackrig.channel.open and time.monotonic() < deadline:
        time.sleep(0.001)
    ackrig.channel.open[0].answer()
    assert ackrig.ended == [None]
    assert pubsub_acks.CALL_TIMEOUT > 0


# the watch


class StubReceiver:
    def __init__(self) -> None:
        self.queue, self.subscription, self.poll_seconds = QUEUE, SUBSCRIPTION, 60.0
        self.requests, self.looked_at, self.messages_at, self.asked_at = 1, 0.0, 0.0, 0.0
        self.mending = self.is_stopping = self.told = False
        self.is_started = True
        self.mended_at = self.mend_pause = 0.0
        self.error = self.missing = ""
        self.lives = self.resumed = 0

    def alive(self) -> None:
        self.lives += 1

    def resume(self, *, sure: bool = True) -> None:
        self.resumed += 1
        if sure:
            self.missing = ""


class WatchRig:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.channel, self.admin = FakeChannel(), FakeAdmin()
        self.channel.answered_at = time.monotonic()
        self.later: list[tuple[float, Callable[[], None]]] = []
        monkeypatch.setattr(pubsub_watch, "call_later", lambda seconds, run: self.later.append((seconds, run)))
        monkeypatch.setattr(suspicion, "LEAST_APART", 0.0)  # every tick here counts
        self.watch = Watch(self.channel, self.admin)  # type: ignore[arg-type]
        self.receivers: list[StubReceiver] = []

    def receiver(self) -> StubReceiver:
        one = StubReceiver()
        self.receivers.append(one)
        self.watch.add(one)  # type: ignore[arg-type]
        return one

    def run(self) -> float:
        seconds, function = self.later.pop(0)
        function()
        return seconds


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> WatchRig:
    return WatchRig(monkeypatch)


def subscription(topic: str = "projects/p/topics/psq-work") -> Any:
    return wire.Subscription(name=SUBSCRIPTION, topic=topic)


def test_subscriptions_are_looked_at_a_few_a_second(watching: WatchRig) -> None:
    for _ in range(6):
        watching.receiver()
    busy = watching.receiver()  # with what was published before its topic was deleted, maybe
    busy.messages_at = time.monotonic()
    watching.watch.tick()
    assert len(watching.channel.open) == 3
    watching.watch.tick()
    watching.watch.tick()
    assert len(watching.channel.open) == 7
    watching.watch.tick()
    assert len(watching.channel.open) == 7


def test_where_looking_is_not_allowed_it_is_not_tried_again(watching: WatchRig) -> None:
    watching.receiver()
    watching.watch.tick()
    watching.channel.open[0].fail("PERMISSION_DENIED")
    watching.receiver()
    watching.watch.tick()
    assert not watching.channel.open
    assert not watching.later
    watching.watch._look_at = time.monotonic()  # minutes later: somebody may have allowed it
    watching.watch.tick()
    assert watching.channel.open


def test_many_subscriptions_are_listed_and_only_the_suspects_are_looked_at(watching: WatchRig) -> None:
    receivers = [watching.receiver() for _ in range(1001)]
    for number, receiver in enumerate(receivers):
        receiver.subscription = f"projects/p/subscriptions/psq-q{number}-shared"
    watching.watch.tick()
    watching.watch.tick()
    (listing,) = watching.channel.open
    assert (listing.name, listing.request.page_size) == ("ListSubscriptions", 1000)
    answer: Any = wire.LIST_SUBSCRIPTIONS.deserialize(b"")  # type: ignore[misc]
    for receiver in receivers[:1000]:
        answer.subscriptions.add(name=receiver.subscription, topic="projects/p/topics/psq-work")
    answer.subscriptions.add(name="projects/p/subscriptions/others", topic="_deleted-topic_")
    answer.subscriptions[7].topic = "_deleted-topic_"
    answer.subscriptions[9].push_config.push_endpoint = "https://example.com"
    answer.next_page_token = "more"
    listing.answer(answer)
    *looks, second = watching.channel.open
    assert [look.request.subscription for look in looks] == [receivers[7].subscription, receivers[9].subscription]
    assert second.request.page_token == "more"
    looks[0].answer(subscription("_deleted-topic_"))
    assert receivers[7].mending
    second.answer(wire.LIST_SUBSCRIPTIONS.deserialize(b""))  # type: ignore[misc]
    watching.watch.tick()
    assert [call.name for call in watching.channel.open] == ["GetSubscription"]  # half a minute has to go by


def test_where_listing_is_not_allowed_subscriptions_are_looked_at_one_by_one(watching: WatchRig) -> None:
    receivers = [watching.receiver() for _ in range(50)]
    watching.watch.tick()
    watching.channel.open[0].fail("PERMISSION_DENIED")
    for receiver in receivers:
        receiver.looked_at = 0.0
    watching.watch.tick()
    assert [call.name for call in watching.channel.open] == ["GetSubscription"] * 3


@pytest.mark.parametrize("gone", [True, False])
def test_a_subscription_that_is_gone_or_whose_topic_is_gets_mended(watching: WatchRig, gone: bool) -> None:
    receiver = watching.receiver()
    watching.watch.tick()
    if gone:
        watching.channel.open[0].fail("NOT_FOUND")
    else:
        watching.channel.open[0].answer(subscription("_deleted-topic_"))
    assert receiver.error
    watching.admin.error = BrokerRefused("no")
    watching.run()
    assert receiver.mending
    assert receiver.error == "no"
    watching.admin.error = None
    assert watching.run() > 0  # a pause before it is tried again
    assert watching.admin.calls == ["mend", "mend"]
    assert not receiver.mending
    assert (receiver.resumed, receiver.missing) == (1, "")


def test_what_an_operator_made_unusable_is_told_until_it_is_usable_again(watching: WatchRig) -> None:
    receiver = watching.receiver()
    watching.watch.tick()
    found = subscription()
    found.push_config.push_endpoint = "https://example.com"
    watching.channel.open[0].answer(found)
    assert receiver.missing.endswith("it pushes")


def test_what_can_be_neither_mended_nor_looked_at_is_tried_with_growing_pauses(watching: WatchRig) -> None:
    receiver = watching.receiver()
    watching.admin.sure = False
    pauses = []
    for _ in range(9):
        watching.watch.mend(receiver)  # type: ignore[arg-type]  # NOT_FOUND, again and again
        assert receiver.missing
        pauses.append(watching.run())
        assert receiver.missing  # nobody has seen it
    assert pauses[0] == 0.0
    assert all(one < next for one, next in pairwise(pauses[:7]))
    assert 20 < pauses[-1] < 40


def test_that_we_may_not_receive_is_told_once_with_the_line_that_allows_it(
    watching: WatchRig, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = watching.receiver()
    for _ in range(3):
        receiver.error = "PERMISSION_DENIED: User not authorized"
        watching.watch.denied(receiver)  # type: ignore[arg-type]
        assert receiver.error == f"{SUBSCRIPTION}: pubsub.subscriptions.consume is missing: gcloud"
    (record,) = caplog.records
    assert "nothing is received from" in record.getMessage()


def test_a_subscription_that_is_as_it_should_be_is_left_alone(watching: WatchRig) -> None:
    receiver = watching.receiver()
    watching.watch.tick()
    watching.channel.open[0].answer(subscription())
    assert not watching.later
    assert not receiver.mending


def test_one_look_is_the_sign_of_life_for_all_who_wait_for_one_even_if_it_is_refused(watching: WatchRig) -> None:
    receivers = [watching.receiver() for _ in range(3)]
    for receiver in receivers:
        watching.watch.probe(receiver)  # type: ignore[arg-type]
    assert len(watching.channel.open) == 1
    watching.channel.open[0].fail("PERMISSION_DENIED")
    assert [receiver.lives for receiver in receivers] == [1, 1, 1]
    watching.watch.probe(receivers[0])  # type: ignore[arg-type]
    watching.channel.open[0].fail("DEADLINE_EXCEEDED")
    assert receivers[0].lives == 1


def silence(watching: WatchRig, receiver: StubReceiver, seconds: float) -> None:
    heard = time.monotonic() - seconds
    watching.channel.answered_at = receiver.asked_at = watching.watch._renewed_at = heard


def test_a_connection_that_says_nothing_for_two_polls_is_made_anew_once(watching: WatchRig) -> None:
    receiver = watching.receiver()
    silence(watching, receiver, 119)
    for _ in range(5):
        watching.watch.tick()
    assert watching.channel.renewed == []
    silence(watching, receiver, 121)
    for _ in range(5):
        watching.watch.tick()
    assert len(watching.channel.renewed) == 1
    assert "no answer for 121 s" in watching.channel.renewed[0]


def test_a_queue_that_asks_again_after_hours_without_room_is_no_silence(watching: WatchRig) -> None:
    receiver = watching.receiver()
    silence(watching, receiver, 9_000)
    receiver.asked_at = time.monotonic()
    for _ in range(5):
        watching.watch.tick()
    assert watching.channel.renewed == []


def test_calls_that_outlive_their_timeouts_have_the_channel_made_anew(watching: WatchRig) -> None:
    watching.channel.late = 3
    for _ in range(3):
        watching.watch.tick()
    assert len(watching.channel.renewed) == 1


def test_a_hub_that_stood_still_is_no_reason_to_make_the_channel_anew(
    watching: WatchRig,
) -> None:
    receiver = watching.receiver()
    for _ in range(5):
        silence(watching, receiver, 500)
        watching.channel.late = 9
        watching.watch._suspicion._at = time.monotonic() - 60  # stood still again
        watching.watch.tick()
    assert watching.channel.renewed == []
    watching.channel.late = 0  # the callbacks have run
    silence(watching, receiver, 1)
    watching.watch.tick()
    watching.channel.late = 9
    watching.watch.tick()
    watching.watch.tick()
    assert watching.channel.renewed == []
