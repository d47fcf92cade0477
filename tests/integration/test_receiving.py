"""Receiving as the service has it: short and empty answers, refusals, large messages, mute connections."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

import psq
from psq.brokers import pubsub_maker
from psq.brokers.base import Broker, Delivery, QueueSpec, Receiver
from psq.brokers.pubsub import PubSubBroker
from psq.concurrency import Waiter
from psq.errors import BrokerUnavailable
from psq.google.channel import _connected
from psq.message import decode
from tests.contract.helpers import PATIENCE, Answer, ack, nack, outgoing, publish, receiving, stop
from tests.front.client import Front
from tests.front.helpers import eventually
from tests.integration import receiving_jobs
from tests.integration.daemons import Site

QUEUE = QueueSpec("work")
ROUND_TRIP, SHORT = 0.25, 20

Make = Callable[..., PubSubBroker]


@pytest.fixture
def make(front: Front, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes brokers of a project of its own, behind the front."""
    monkeypatch.setattr(pubsub_maker, "MAX_RATE", 1000.0)
    project = f"r-{uuid.uuid4().hex[:12]}"
    made: list[PubSubBroker] = []

    def make(**options: Any) -> PubSubBroker:
        made.append(PubSubBroker(project, endpoint=front.endpoint, **options))
        return made[-1]

    yield make
    for broker in made:
        broker.close()


class Eater:
    """A consumer with free slots that acks whatever comes.

    Attributes:
        seen: How often each task came.
        sizes: Bytes of each message.
    """

    def __init__(self, broker: Broker, queue: QueueSpec, slots: int = 1000) -> None:
        self.seen: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.acked = 0
        self._slots, self._broker = slots, broker
        self._expected, self._all = 0, Waiter()
        broker.declare(queue)
        self.receiver = broker.receiver(queue, self._deliver)

    def start(self) -> Eater:
        self.receiver.start()
        self.receiver.ask(self._slots)
        return self

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self.seen[decode(delivery.data).id] += 1
            self.sizes.append(len(delivery.data))
            self._broker.ack(delivery, self._ended)
        self.receiver.ask(self._slots)

    def _ended(self, result: Any, error: Exception | None) -> None:
        self.acked += error is None
        if self.acked == self._expected:
            self._all.set()

    def wait(self, count: int) -> None:
        """Wait until so many are acked."""
        self._expected = count
        if self.acked < count:
            assert self._all.wait(PATIENCE), f"{self.acked} of {count} acked; {self.receiver.stats}"


def stop_all(receivers: Iterable[Receiver]) -> None:
    """Stop many at a time."""
    waiters = []
    for receiver in receivers:
        waiters.append(Waiter())
        receiver.stop(0.0, waiters[-1].set)
    assert all(waiter.wait(PATIENCE) for waiter in waiters)


def ids(count: int) -> list[str]:
    return [f"t{number}" for number in range(count)]


def test_short_answers_are_made_up_for_by_pulls_side_by_side(make: Make, front: Front) -> None:
    broker, count = make(), 2000
    broker.declare(QUEUE)
    publish(broker, *(outgoing(QUEUE, name) for name in ids(count)))
    front.manners(round_trip=ROUND_TRIP)  # long, so that it counts and not how fast this machine is
    eater = Eater(broker, QUEUE).start()
    began = time.monotonic()
    eater.wait(count)
    took = time.monotonic() - began
    stop(eater.receiver)
    one_by_one = count / SHORT * ROUND_TRIP
    print(f"\n{count / took:.0f} messages/s; one pull at a time could not have more than {count / one_by_one:.0f}")
    assert took < one_by_one / 4
    assert set(eater.seen) == set(ids(count))


def test_empty_answers_mean_nothing(make: Make, front: Front) -> None:
    broker, count = make(), 1000
    front.manners(empty=0.6)
    broker.declare(QUEUE)
    publish(broker, *(outgoing(QUEUE, name) for name in ids(count)))
    eater = Eater(broker, QUEUE).start()
    eater.wait(count)
    stop(eater.receiver)
    assert eater.seen == Counter(ids(count))
    assert eater.receiver.stats["empty"] > 0
    assert eater.receiver.error == ""


@pytest.mark.parametrize("status", ["RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL", "CANCELLED"])
def test_what_the_service_says_now_and_then_costs_no_publish_no_message_and_no_ack(
    make: Make, front: Front, status: str
) -> None:
    broker, count = make(), 200
    eater = Eater(broker, QUEUE).start()
    front.rule(status=status, share=0.3)
    answers = []
    for name in ids(count):
        answers.append(Answer())
        broker.publish(outgoing(QUEUE, name), answers[-1], timeout=PATIENCE)
        if len(answers) % 20 == 0:
            answers[-1].get()
    for answer in answers:
        answer.get()
    eater.wait(count)
    stop(eater.receiver)
    assert eater.seen == Counter(ids(count))
    assert sum(number for what, number in front.stats()["errors"].items() if what.endswith(status)) > 0


def test_messages_of_a_pull_whose_answer_was_lost_come_again_after_their_lease(make: Make, front: Front) -> None:
    front.manners(shortest_ack_deadline=2, empty=0.0)
    broker, queue = make(), QueueSpec("work", ack_deadline=2.0)
    broker.declare(queue)
    publish(broker, *(outgoing(queue, name) for name in ids(10)))
    front.rule("Pull", drop_answer=True, times=1)
    eater = Eater(broker, queue).start()
    eater.wait(10)
    stop(eater.receiver)
    assert eater.seen == Counter(ids(10))


def test_refused_streams_of_a_fresh_connection_delay_no_queue(make: Make, front: Front) -> None:
    broker = make()
    queues = [QueueSpec(f"q{number}") for number in range(40)]
    eaters = [Eater(broker, queue) for queue in queues]
    front.refuse_streams(30)
    front.cut()
    for eater in eaters:
        eater.start()
    eventually(lambda: front.stats()["refused_streams"] >= 30)
    began = time.monotonic()
    publish(make(), *(outgoing(queue, queue.name) for queue in queues))
    for eater in eaters:
        eater.wait(1)
    took = time.monotonic() - began
    stop_all(eater.receiver for eater in eaters)
    print(f"\nserved after {took:.2f} s; {sum(eater.receiver.stats['errors'] for eater in eaters)} pulls failed")
    assert sum(eater.receiver.stats["errors"] for eater in eaters) > 0
    assert took < 5.0


def test_a_publish_whose_streams_are_all_refused_was_never_sent(make: Make, front: Front) -> None:
    broker = make()
    publish(broker, outgoing(QUEUE, "before"))
    front.refuse_streams(100_000)
    front.cut()
    # A publish on the old connection may have been accepted.
    eventually(lambda: not _connected(broker.channel._channel))
    answer = Answer()
    broker.publish(outgoing(QUEUE, "never"), answer, timeout=1.0)
    with pytest.raises(BrokerUnavailable):
        answer.get()
    front.refuse_streams(0)
    front.cut()
    eater = Eater(make(), QUEUE).start()
    eater.wait(1)
    stop(eater.receiver)
    assert set(eater.seen) == {"before"}


def test_messages_of_nearly_ten_megabytes_are_sent_received_and_acked(make: Make) -> None:
    broker = make()
    eater = Eater(broker, QUEUE, slots=10).start()
    sent = [outgoing(QUEUE, name, "x" * 9_900_000) for name in ids(4)]
    publish(broker, *sent)
    eater.wait(4)
    stop(eater.receiver)
    assert eater.seen == Counter(ids(4))
    assert min(eater.sizes) > 9_900_000


def not_ready(receiver: Any) -> bool:
    """As `psqd.worker.status` judges it."""
    return time.monotonic() - max(receiver.answered_at, receiver.asked_at) > 2 * float(receiver.poll_seconds)


@pytest.mark.parametrize("how", ["mute connection", "mute service"])
def test_a_channel_that_stopped_answering_is_made_anew_and_its_queues_are_not_ready_meanwhile(
    make: Make, front: Front, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = make(poll=0.5)
    with receiving(broker, QUEUE) as (inbox, receiver):
        publish(broker, outgoing(QUEUE, "before"))
        ack(broker, inbox.one())
        assert not not_ready(receiver)
        if how == "mute connection":
            front.swallow()
        else:
            front.rule(delay=3600.0)  # the connection lives: its pings are answered
        eventually(lambda: not_ready(receiver))
        front.flow() if how == "mute connection" else front.reset()
        assert broker.stats()["channel_renewals"] == 0  # nobody has called `tick` yet

        def renewed() -> bool:
            broker.tick()
            return broker.stats()["channel_renewals"] >= 1

        if how == "mute connection":
            eventually(renewed)
            assert "is made anew: no answer for" in caplog.text
        publish(make(), outgoing(QUEUE, "after"))
        ack(broker, inbox.one())
        assert not not_ready(receiver)


def test_a_token_that_was_revoked_while_a_poll_was_out_is_replaced(make: Make, front: Front) -> None:
    broker = make(poll=2.0)
    eater = Eater(broker, QUEUE).start()
    tokens = front.stats()["tokens"]
    front.revoke_tokens()
    publish(broker, outgoing(QUEUE, "after"))
    eater.wait(1)
    stop(eater.receiver)
    assert front.stats()["tokens"] > tokens


def stopped_midway(make: Make, front: Front, grace: float) -> int:
    """Stop a receiver while the answer to its poll is on its way; how many messages it still gets."""
    broker = make()
    front.manners(strand=True, empty=0.0)
    front.rule("Pull", answer_delay=0.3)
    with receiving(broker, QUEUE) as (inbox, receiver):
        publish(broker, outgoing(QUEUE))
        publish(broker, outgoing(QueueSpec("other")))  # by then the poll has got the first
        stop(receiver, grace)
        nack(broker, *inbox.all)
    return len(inbox.all)


def test_a_stop_that_lets_pulls_answer_strands_nothing(make: Make, front: Front) -> None:
    assert stopped_midway(make, front, 0.5) == 1
    assert front.stats()["stranded"] == 0


def test_a_stop_that_cancels_at_once_would(make: Make, front: Front) -> None:
    """What the grace is there for; if this fails, it is not needed any more."""
    assert stopped_midway(make, front, 0.0) == 0
    eventually(lambda: front.stats()["stranded"] == 1)


def test_a_daemon_runs_tasks_of_nearly_ten_megabytes_each_once(front_site: Site) -> None:
    config = {
        "queues": {"work": {"concurrency": 2}},
        "storage": "none",
        "imports": ["tests.integration.receiving_jobs"],
    }
    daemon = front_site.daemon("a", config).start()
    queue = psq.Queue(psq.connect(front_site.broker), "work", storage=None)
    sent = [queue.enqueue(receiving_jobs.measured, "x" * 9_900_000).id for _ in range(3)]
    front_site.wait_journal("run", len(sent), 60)
    assert daemon.stop() == 0
    assert front_site.runs() == Counter(sent)
    assert {line[4] for line in front_site.journal("run")} == {"9900000"}
    front_site.nothing_left()
