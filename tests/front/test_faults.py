"""Faults and permissions by rule, and what networks do to connections."""

from __future__ import annotations

import grpc
import pytest

from psq.brokers import pubsub_wire as wire
from psq.google.channel import Channel, Target
from psq.google.errors import error_of
from tests.front.client import Front
from tests.front.helpers import Client, code_of, eventually
from tests.front.naive import Naive

# faults


def test_a_status_by_rule_ends_a_client_that_tries_once(front: Front, naive: Naive) -> None:
    front.rule("Publish", status="RESOURCE_EXHAUSTED", details="quota", times=1)
    with pytest.raises(grpc.RpcError, match="quota") as caught:
        naive.publish(b"x")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    naive.publish(b"x")
    assert front.stats()["errors"]["Publish:RESOURCE_EXHAUSTED"] == 1


def test_a_lost_answer_makes_two_of_one_for_a_client_that_tries_again(front: Front, naive: Naive) -> None:
    front.manners(empty=0.0)
    front.rule("Publish", drop_answer=True, times=1)
    assert code_of(lambda: naive.publish(b"once")) == "UNAVAILABLE"
    naive.publish(b"once")
    assert naive.pull_all(2) == [b"once", b"once"]


def test_a_late_answer_is_too_late_for_a_short_timeout_although_it_took_effect(front: Front, naive: Naive) -> None:
    front.manners(empty=0.0)
    front.rule("Publish", answer_delay=30.0, times=1)
    assert code_of(lambda: naive.publish(b"there", timeout=0.5)) == "DEADLINE_EXCEEDED"
    assert naive.pull() == [b"there"]


def test_a_delay_comes_before_the_effect(front: Front, naive: Naive) -> None:
    front.manners(empty=0.0)
    front.rule("Publish", delay=30.0, times=1)
    assert code_of(lambda: naive.publish(b"not there", timeout=0.5)) == "DEADLINE_EXCEEDED"
    naive.publish(b"there")
    assert naive.pull() == [b"there"]


def test_rules_choose_by_method_resource_account_chance_and_time(front: Front, client: Client, naive: Naive) -> None:
    other = client(front.account("other")).make()
    front.rule("Publish", status="INTERNAL", match=naive.project)
    other.publish(b"x")
    assert code_of(lambda: naive.publish(b"x")) == "INTERNAL"
    front.reset()
    front.rule(status="ABORTED", account=front.email("other"))
    naive.publish(b"x")
    assert code_of(lambda: other.publish(b"x")) == "ABORTED"
    front.reset()
    front.rule("Publish", status="ABORTED", share=0.5)
    ends = set()
    for _ in range(100):
        ends.add(naive.future(wire.PUBLISH, wire.PublishRequest(topic=naive.topic, messages=[{"data": b"x"}])).code())
    assert ends == {grpc.StatusCode.OK, grpc.StatusCode.ABORTED}
    front.reset()
    front.rule("Publish", status="ABORTED", for_seconds=0.3)
    assert code_of(lambda: naive.publish(b"x")) == "ABORTED"

    def over() -> bool:
        try:
            naive.publish(b"x")
        except grpc.RpcError:
            return False
        return True

    eventually(over)
    number = front.rule("Publish", status="ABORTED")
    assert code_of(lambda: naive.publish(b"x")) == "ABORTED"
    front.remove(number)
    naive.publish(b"x")


@pytest.mark.parametrize("what", [{}, {"times": 3}, {"stauts": "ABORTED"}])
def test_a_rule_that_says_nothing_or_nonsense_is_refused(front: Front, what: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        front.rule("Pull", **what)


# permissions


def test_who_may_only_publish_can_neither_make_a_queue_nor_look_at_one(
    front: Front, client: Client, naive: Naive
) -> None:
    may_publish = client(front.account("web", permissions=["pubsub.topics.publish"]), like=naive)
    may_publish.publish(b"x")
    look = wire.GetSubscriptionRequest(subscription=naive.subscription)
    for call in (may_publish.make, may_publish.pull, lambda: may_publish.call(wire.GET_SUBSCRIPTION, look)):
        with pytest.raises(grpc.RpcError, match="User not authorized to perform this action") as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    asked = ("pubsub.topics.publish", "pubsub.topics.delete")
    assert may_publish.permissions(naive.topic, *asked) == {"pubsub.topics.publish"}
    assert naive.permissions(naive.topic, *asked) == set(asked)
    assert naive.permissions(naive.topic + "-nowhere", *asked) == set()


def test_a_permission_can_be_taken_from_all_or_from_one_resource(front: Front, naive: Naive) -> None:
    front.rule(deny="pubsub.subscriptions.consume", match="no-such-project")
    front.rule(deny="datastore.entities.create")
    assert naive.pull(immediately=True) == []
    with pytest.raises(grpc.RpcError, match="Missing or insufficient permissions"):
        naive.commit(naive.upsert("k"))
    front.rule(deny="pubsub.subscriptions.consume", match=naive.project)
    assert code_of(lambda: naive.pull(immediately=True)) == "PERMISSION_DENIED"
    assert naive.permissions(naive.subscription, "pubsub.subscriptions.consume") == set()


# connections


def test_a_burst_on_a_fresh_connection_meets_refused_streams(front: Front, naive: Naive, client: Client) -> None:
    front.refuse_streams(20)
    fresh = client(like=naive)
    request = wire.PublishRequest(topic=naive.topic, messages=[{"data": b"x"}])
    calls = [fresh.future(wire.PUBLISH, request) for _ in range(30)]
    codes = [call.code().name for call in calls]
    assert codes.count("UNAVAILABLE") >= 1
    assert front.stats()["refused_streams"] == 20
    refused = next(call for call in calls if call.code() is grpc.StatusCode.UNAVAILABLE)
    assert not error_of(refused).sent, refused.details()  # psq knows that it was never read
    fresh.publish(b"x")  # headers are still understood on both sides
    assert front.stats()["calls"]["Publish"] == codes.count("OK") + 1


def test_a_cut_connection_ends_every_call_on_it(front: Front, naive: Naive) -> None:
    front.manners(empty=0.0)
    polls = [naive.future(wire.PULL, naive.pull_request()) for _ in range(5)]
    eventually(lambda: front.stats()["polls"] == 5)
    front.cut()
    assert {poll.code().name for poll in polls} == {"UNAVAILABLE"}
    assert front.stats()["connections"] == 0
    eventually(lambda: naive.future(wire.PULL, naive.pull_request(immediately=True)).code() is grpc.StatusCode.OK)
    assert front.stats()["connections_made"] >= 2


def test_swallowed_bytes_leave_a_connection_that_looks_well_and_never_answers(front: Front, naive: Naive) -> None:
    front.swallow()
    assert code_of(lambda: naive.publish(b"x", timeout=0.5)) == "DEADLINE_EXCEEDED"
    front.flow()
    assert code_of(lambda: naive.publish(b"x", timeout=0.5)) == "DEADLINE_EXCEEDED"  # the connection is there
    assert front.stats()["connections"] == 1
    channel = Channel(Target(front.endpoint))
    try:
        request = wire.PublishRequest(topic=naive.topic, messages=[{"data": b"x"}])
        channel.call(wire.PUBLISH, request, 20.0)  # a new one works
        front.swallow()
        with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
            channel.call(wire.PUBLISH, request, 0.5)
        front.flow()
        channel.renew("test")
        channel.call(wire.PUBLISH, request, 20.0)
    finally:
        channel.close()


def test_bytes_can_be_swallowed_for_a_while(front: Front, naive: Naive, client: Client) -> None:
    front.swallow(0.5)
    assert code_of(lambda: naive.publish(b"x", timeout=0.2)) == "DEADLINE_EXCEEDED"

    def flows() -> bool:
        try:
            client(like=naive).publish(b"x", timeout=0.5)
        except grpc.RpcError:
            return False
        return True

    eventually(flows)
