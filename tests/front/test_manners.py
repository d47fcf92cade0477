"""Each manner of the front bites a naive client, and what psq's own channel or receiver makes of it."""

from __future__ import annotations

import time

import grpc
import pytest

from psq.brokers import pubsub_wire as wire
from psq.brokers.base import QueueSpec
from psq.brokers.pubsub import PubSubBroker
from psq.google.channel import Channel, Target
from psq.message import decode
from tests.contract.helpers import ack, outgoing, publish, receiving
from tests.front.client import Front
from tests.front.helpers import Client, code_of, eventually
from tests.front.naive import Naive

QUEUE = QueueSpec("work")


# TLS and tokens


def test_a_client_without_tls_gets_nowhere(front: Front) -> None:
    with grpc.insecure_channel(front.endpoint) as channel:
        code = code_of(lambda: channel.unary_unary(wire.PULL.path, lambda data: data)(b"", timeout=5))
        assert code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_a_client_that_does_not_know_the_certificate_gets_nowhere(front: Front) -> None:
    from tests.front.certificates import make_certificate

    other = make_certificate(front.folder / "other")
    with grpc.secure_channel(front.endpoint, grpc.ssl_channel_credentials(other.read_bytes())) as channel:
        assert code_of(lambda: channel.unary_unary(wire.PULL.path, lambda data: data)(b"", timeout=5)) == "UNAVAILABLE"


def test_a_client_without_a_token_of_the_fronts_own_is_not_let_in(front: Front, client: Client) -> None:
    assert code_of(client(token="made-up").make) == "UNAUTHENTICATED"
    assert front.stats()["unauthenticated"] == 1


def test_a_client_that_keeps_its_token_for_ever_is_locked_out_when_it_is_over(front: Front, client: Client) -> None:
    account = front.account("short-lived", token_seconds=1.0)
    first = client(account).make()  # google-auth fetches one
    keeps = client(token=first.credentials.token, like=first)
    keeps.publish(b"while it lasts")

    def locked_out() -> bool:
        request = wire.PublishRequest(topic=keeps.topic, messages=[{"data": b"again"}])
        return bool(keeps.future(wire.PUBLISH, request).code() is grpc.StatusCode.UNAUTHENTICATED)

    eventually(locked_out)
    first.publish(b"google-auth has fetched another")


def test_google_auth_fetches_another_token_225_seconds_before_the_end(front: Front, client: Client) -> None:
    first = client(front.account("refreshed", token_seconds=226.0)).make()
    token = first.credentials.token

    def another() -> bool:
        first.publish(b"x")
        return bool(first.credentials.token != token)

    eventually(another)
    assert front.stats()["unauthenticated"] == 0


def test_a_revoked_token_locks_a_client_out_until_somebody_throws_it_away(front: Front, naive: Naive) -> None:
    front.revoke_tokens()
    for _ in range(2):  # google-auth thinks that it is good for minutes
        assert code_of(lambda: naive.publish(b"x")) == "UNAUTHENTICATED"
    channel = Channel(Target(front.endpoint))
    try:
        front.revoke_tokens()
        request = wire.PublishRequest(topic=naive.topic, messages=[wire.PubsubMessage(data=b"x")])
        channel.call(wire.PUBLISH, request, 10.0)
        front.revoke_tokens()
        with pytest.raises(Exception, match="UNAUTHENTICATED"):
            channel.call(wire.PUBLISH, request, 10.0)
        channel.call(wire.PUBLISH, request, 10.0)  # psq did
    finally:
        channel.close()


def test_a_token_server_that_is_down_stops_a_client(front: Front, client: Client) -> None:
    front.rule("Token", status="UNAVAILABLE")
    assert code_of(client().make) == "UNAVAILABLE"


# streams, size, time


def test_the_101st_call_on_a_connection_waits_for_another_to_end(front: Front, naive: Naive) -> None:
    front.manners(empty=0.0)
    polls = [naive.future(wire.PULL, naive.pull_request()) for _ in range(100)]
    eventually(lambda: front.stats()["polls"] == 100)
    look = wire.GetSubscriptionRequest(subscription=naive.subscription)
    assert code_of(lambda: naive.call(wire.GET_SUBSCRIPTION, look, timeout=0.5)) == "DEADLINE_EXCEEDED"
    assert front.stats()["polls"] == 100
    polls[0].cancel()
    naive.call(wire.GET_SUBSCRIPTION, look)
    for poll in polls:
        poll.cancel()


def test_staggered_polls_do_not_all_wait_for_as_long(front: Front, naive: Naive) -> None:
    front.manners(empty=0.0, staggered=True)
    polls = [naive.future(wire.PULL, naive.pull_request()) for _ in range(99)]
    eventually(lambda: any(poll.done() for poll in polls))
    assert {len(poll.result().received_messages) for poll in polls if poll.done()} == {0}
    assert not all(poll.done() for poll in polls)
    for poll in polls:
        poll.cancel()


def test_a_channel_with_grpcs_own_limit_of_4_mb_never_gets_a_large_message(front: Front, client: Client) -> None:
    front.manners(empty=0.0, shortest_ack_deadline=2)
    naive = client().make(ack_deadline=2)
    naive.publish(b"x" * 5_000_000)
    for _ in range(2):
        assert code_of(naive.pull) == "RESOURCE_EXHAUSTED"


def test_each_call_takes_a_round_trip(front: Front, naive: Naive) -> None:
    front.manners(round_trip=0.1)
    began = time.monotonic()
    for _ in range(10):
        naive.publish(b"x")
    assert time.monotonic() - began >= 1.0


# pulls


def test_a_short_answer_is_no_sign_of_an_empty_queue(front: Front, naive: Naive) -> None:
    front.manners(empty=0.0)
    naive.publish(*(b"%d" % number for number in range(50)))
    assert len(naive.pull(1000)) <= 20  # "fewer than I asked for: that was all"
    assert front.stats()["calls"]["Pull"] == 1


def test_an_empty_answer_is_no_sign_of_an_empty_queue(front: Front, naive: Naive) -> None:
    naive.publish(b"there")
    front.rule("Pull", empty=1.0, times=1)
    front.manners(empty=0.0)
    assert naive.pull() == []
    assert naive.pull() == [b"there"]


def test_psq_receives_all_of_a_queue_in_short_and_empty_answers(front: Front) -> None:
    front.manners(empty=0.5, short=7)
    broker = PubSubBroker("naive-not", endpoint=front.endpoint)
    try:
        with receiving(broker, QUEUE, ask=100) as (inbox, _):
            publish(broker, *(outgoing(QUEUE, f"t{number}") for number in range(100)))
            found = inbox.take(100)
            assert {decode(one.data).id for one in found} == {f"t{number}" for number in range(100)}
            ack(broker, *found)
    finally:
        broker.close()


@pytest.mark.parametrize("strand", [False, True])
def test_what_an_orphaned_poll_took_comes_again_at_once_or_is_left_to_lapse(
    front: Front, client: Client, strand: bool
) -> None:
    front.manners(empty=0.0, shortest_ack_deadline=2, strand=strand)
    naive = client().make(ack_deadline=2)
    poll = naive.future(wire.PULL, naive.pull_request())
    eventually(lambda: front.stats()["polls"] == 1)
    poll.cancel()
    eventually(lambda: front.stats()["polls"] == 0)
    naive.publish(b"taken by the orphan")
    eventually(lambda: front.stats()["stranded_by"].get(naive.subscription) == 1)
    if strand:
        assert code_of(lambda: naive.pull(timeout=1.0)) == "DEADLINE_EXCEEDED"
    assert naive.pull() == [b"taken by the orphan"]


def test_a_poll_takes_over_from_an_orphan_of_its_subscription(front: Front, naive: Naive) -> None:
    front.manners(empty=0.0, strand=True)
    poll = naive.future(wire.PULL, naive.pull_request())
    eventually(lambda: front.stats()["polls"] == 1)
    poll.cancel()
    eventually(lambda: front.stats()["polls"] == 0)
    poll = naive.future(wire.PULL, naive.pull_request())
    eventually(lambda: front.stats()["polls"] == 1)
    naive.publish(b"x")
    assert [one.message.data for one in poll.result().received_messages] == [b"x"]
    assert front.stats()["stranded_by"].get(naive.subscription, 0) == 0


def test_a_poll_takes_nothing_over_from_an_orphan_of_a_deleted_subscription(front: Front, naive: Naive) -> None:
    front.manners(empty=0.0)
    poll = naive.future(wire.PULL, naive.pull_request())
    eventually(lambda: front.stats()["polls"] == 1)
    poll.cancel()
    eventually(lambda: front.stats()["polls"] == 0)
    naive.call(wire.DELETE_SUBSCRIPTION, wire.DeleteSubscriptionRequest(subscription=naive.subscription))
    naive.call(wire.CREATE_SUBSCRIPTION, wire.Subscription(name=naive.subscription, topic=naive.topic))
    naive.publish(b"x")
    assert naive.pull() == [b"x"]
