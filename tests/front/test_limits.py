"""The services' limits, which the emulators let pass or know otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from psq.brokers import pubsub_wire as wire
from psq.storages.datastore_api import pb
from tests.front.client import Front
from tests.front.naive import Naive


def publish(naive: Naive, *messages: Any) -> None:
    naive.call(wire.PUBLISH, wire.PublishRequest(topic=naive.topic, messages=messages))


def ack(naive: Naive, ids: list[str]) -> None:
    naive.call(wire.ACKNOWLEDGE, wire.AcknowledgeRequest(subscription=naive.subscription, ack_ids=ids))


def modify(naive: Naive, seconds: int, ids: list[str]) -> None:
    request = wire.ModifyAckDeadlineRequest(subscription=naive.subscription, ack_ids=ids, ack_deadline_seconds=seconds)
    naive.call(wire.MODIFY_ACK_DEADLINE, request)


def subscribe(naive: Naive, **fields: Any) -> None:
    fields.setdefault("name", naive.subscription + "-2")
    naive.call(wire.CREATE_SUBSCRIPTION, wire.Subscription(topic=naive.topic, **fields))


def lookup(naive: Naive, count: int) -> None:
    keys = [naive.key(f"k{number}") for number in range(count)]
    naive.call(pb().lookup, pb().LookupRequest(project_id=naive.project, keys=keys))


def attributes(count: int, size: int) -> Any:
    return wire.PubsubMessage(data=b"x", attributes={f"a{number}": "v" * size for number in range(count)})


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda n: n.publish(*[b"x"] * 1001), id="1,001 messages a publish"),
        pytest.param(lambda n: n.publish(b"x" * 10_000_001), id="10,000,001 bytes a message"),
        pytest.param(lambda n: n.publish(*[b"x" * 3_500_000] * 3), id="10.5 MB a publish"),
        pytest.param(lambda n: n.publish(b""), id="an empty message"),
        pytest.param(lambda n: publish(n, attributes(101, 1)), id="101 attributes"),
        pytest.param(lambda n: publish(n, attributes(1, 1025)), id="1,025 bytes an attribute"),
        pytest.param(lambda n: ack(n, [f"id-{i}" for i in range(1001)]), id="1,001 acks"),
        pytest.param(lambda n: ack(n, ["x" * 600] * 900), id="540 kB of acks"),
        pytest.param(lambda n: modify(n, 10, ["x" * 600] * 900), id="540 kB of modacks"),
        pytest.param(lambda n: modify(n, 601, ["x"]), id="a lease of 601 s"),
        pytest.param(lambda n: subscribe(n, ack_deadline_seconds=9), id="an ack deadline of 9 s"),
        pytest.param(lambda n: n.pull(0), id="a pull of nothing"),
        pytest.param(lambda n: n.commit(*(n.upsert(f"k{i}") for i in range(501))), id="501 entities a commit"),
        pytest.param(lambda n: n.commit(n.upsert("k"), n.upsert("k")), id="one key twice in a commit"),
        pytest.param(lambda n: n.commit(n.upsert("k", "x" * 1_100_000)), id="an entity of 1.1 MB"),
        pytest.param(lambda n: n.commit(n.upsert("k", "x" * 1501, indexed=True)), id="1,501 bytes in an index"),
        pytest.param(lambda n: lookup(n, 1001), id="1,001 keys a look-up"),
    ],
)
def test_what_the_service_refuses_is_refused(front: Front, naive: Naive, call: Callable[[Naive], Any]) -> None:
    front.manners(round_trip=0.0)
    with pytest.raises(grpc.RpcError) as caught:
        call(naive)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_the_service_takes_is_taken(front: Front, naive: Naive) -> None:
    front.manners(round_trip=0.0)
    naive.publish(*[b"x"] * 1000)
    naive.publish(b"x" * 9_900_000)
    publish(naive, attributes(100, 1024))
    subscribe(naive, ack_deadline_seconds=600)
    naive.commit(*(naive.upsert(f"k{number}") for number in range(500)))
    naive.commit(naive.upsert("k", "x" * 1_000_000))
    lookup(naive, 1000)


def test_31_days_of_retention_are_taken_as_by_the_service_and_told_again(front: Front, naive: Naive) -> None:
    days = {"message_retention_duration": {"seconds": 31 * 86400}}
    subscribe(naive, **days)
    found = naive.call(wire.GET_SUBSCRIPTION, wire.GetSubscriptionRequest(subscription=naive.subscription + "-2"))
    assert found.message_retention_duration.seconds == 31 * 86400
    with pytest.raises(grpc.RpcError, match="31 days"):
        subscribe(naive, name=naive.subscription + "-3", message_retention_duration={"seconds": 32 * 86400})


def test_limits_can_be_lifted_to_see_that_they_were_the_fronts(front: Front, naive: Naive) -> None:
    front.manners(enforce_limits=False)
    subscribe(naive, ack_deadline_seconds=9)
    naive.commit(*(naive.upsert(f"k{number}") for number in range(501)))
