"""The keeper's requests are written by hand: they must be what Google's library reads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psq.brokers import pubsub_wire as wire
from psq.brokers.pubsub_leases import (
    MAX_IN_FLIGHT,
    PubSubLeaseClient,
    ack_request,
    modify_request,
    publish_request,
)
from psq.errors import BrokerUnavailable, PsqError
from psq.google.calls import Target
from psq.message import Message, decode, encode
from tests.unit.pubsub_fakes import FakeCall, FakeChannel

SHARED = "projects/p/subscriptions/x-psq-work-shared"
MEMBER = "projects/p/subscriptions/psq-fleet-here-0 projects/p/topics/psq-fleet here-0"
RECORD = {"signal": "SIGKILL", "host": "here", "at": 7.0}

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)


@given(texts, st.lists(texts, max_size=5), st.integers(0, 600))
def test_an_extension_is_what_protobuf_writes(name: str, keys: list[str], seconds: int) -> None:
    request = wire.ModifyAckDeadlineRequest(subscription=name, ack_ids=keys, ack_deadline_seconds=seconds)
    assert wire.ModifyAckDeadlineRequest.FromString(modify_request(name, keys, seconds)) == request


@given(texts, st.lists(texts, max_size=5))
def test_an_ack_is_what_protobuf_writes(name: str, keys: list[str]) -> None:
    request = wire.AcknowledgeRequest(subscription=name, ack_ids=keys)
    assert wire.AcknowledgeRequest.FromString(ack_request(name, keys)) == request


@given(texts, st.lists(st.tuples(st.binary(max_size=400), st.dictionaries(texts, texts, max_size=4)), max_size=4))
def test_a_publish_is_what_protobuf_writes(name: str, messages: list[tuple[bytes, dict[str, str]]]) -> None:
    expected = wire.PublishRequest(
        topic=name, messages=[wire.PubsubMessage(data=data, attributes=names) for data, names in messages]
    )
    assert wire.PublishRequest.FromString(publish_request(name, messages)) == expected


def test_the_keeper_loads_nothing_of_googles_library_and_no_gevent() -> None:
    code = """
import sys
from psq.brokers.pubsub_leases import from_spec
client = from_spec({"kind": "pubsub", "project": "p", "address": "127.0.0.1:1", "secure": False})
client.connect()
client.close()
names = ("google.protobuf", "google.cloud", "google.pubsub", "google.api", "gevent", "proto")
heavy = [name for name in sys.modules if name.startswith(names)]
print(heavy)
assert not heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Rig:
    def __init__(self) -> None:
        self.client = PubSubLeaseClient(Target("127.0.0.1:1", False), "p")
        self.channel = FakeChannel()
        self.client._channel = self.channel  # type: ignore[assignment]
        self.done: list[tuple[list[str], PsqError | None]] = []

    def ended(self, lost: Sequence[str], error: Any) -> None:
        self.done.append((list(lost), error))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_an_extension_names_its_leases_and_length(rig: Rig) -> None:
    rig.client.extend(SHARED, ["a", "b"], 30.9, 5.0, rig.ended)
    (call,) = rig.channel.open
    request = wire.ModifyAckDeadlineRequest.FromString(call.request)
    assert (request.subscription, list(request.ack_ids), request.ack_deadline_seconds) == (SHARED, ["a", "b"], 30)
    assert call.timeout == 5.0
    call.answer(b"")
    assert rig.done == [([], None)]


def test_giving_back_is_an_extension_of_nothing(rig: Rig) -> None:
    rig.client.give_back(MEMBER, ["a"], 5.0, rig.ended)
    request = wire.ModifyAckDeadlineRequest.FromString(rig.channel.open[0].request)
    assert (request.subscription, request.ack_deadline_seconds) == (MEMBER.split(maxsplit=1)[0], 0)


def test_many_long_keys_are_cut_into_requests_under_the_limit_and_answered_once(rig: Rig) -> None:
    keys = ["k" * 900 + str(number) for number in range(1500)]
    rig.client.extend(SHARED, keys, 30, 5.0, rig.ended)
    calls = list(rig.channel.open)
    assert len(calls) >= 3
    assert all(len(call.request) < 512 * 1024 for call in calls)
    sent = [key for call in calls for key in wire.ModifyAckDeadlineRequest.FromString(call.request).ack_ids]
    assert sent == keys
    calls[0].fail("UNAVAILABLE")
    for call in calls[1:]:
        assert rig.done == []
        call.answer(b"")
    ((lost, error),) = rig.done
    assert lost == []
    assert isinstance(error, BrokerUnavailable)


def test_nothing_to_extend_is_answered(rig: Rig) -> None:
    rig.client.extend(SHARED, [], 30, 5.0, rig.ended)
    assert rig.done == [([], None)]


def test_at_most_sixty_four_requests_are_in_flight(rig: Rig) -> None:
    for number in range(100):
        rig.client.extend(SHARED, [str(number)], 30, 5.0, rig.ended)
    assert len(rig.channel.open) == MAX_IN_FLIGHT
    while rig.channel.open:
        assert len(rig.channel.open) <= MAX_IN_FLIGHT
        rig.channel.open[0].answer(b"")
    assert len(rig.done) == 100


def strike(rig: Rig, source: str, *items: tuple[str, bytes]) -> FakeCall:
    rig.client.strike(source, items, RECORD, rig.ended)
    (call,) = rig.channel.open
    return call


def document(task_id: str = "t1") -> bytes:
    return encode(Message(task_id, "m:f", [1], {}))


def test_a_strike_is_published_first_and_acked_second(rig: Rig) -> None:
    call = strike(rig, SHARED, ("a", document()))
    assert call.name == "Publish"
    request = wire.PublishRequest.FromString(call.request)
    assert request.topic == "projects/p/topics/x-psq-work"
    (message,) = request.messages
    assert [dict(s) for s in decode(message.data).strikes] == [RECORD]
    assert message.attributes["psq-id"] == "t1"
    assert rig.done == []
    call.answer(b"")
    (ack,) = rig.channel.open
    assert ack.name == "Acknowledge"
    assert list(wire.AcknowledgeRequest.FromString(ack.request).ack_ids) == ["a"]
    assert rig.done == []
    ack.answer(b"")
    assert rig.done == [([], None)]


def test_a_strike_that_was_not_published_is_not_acked_and_named_as_not_done(rig: Rig) -> None:
    strike(rig, SHARED, ("a", document()), ("b", document("t2"))).fail("UNAVAILABLE", "away")
    assert not rig.channel.open
    ((left, error),) = rig.done
    assert left == ["a", "b"]
    assert isinstance(error, BrokerUnavailable)


def test_a_strike_whose_ack_fails_is_done_all_the_same(rig: Rig) -> None:
    strike(rig, SHARED, ("a", document())).answer(b"")
    rig.channel.open[0].fail("UNAVAILABLE")
    assert rig.done == [([], None)]  # published again it would be there twice


def test_a_document_that_is_none_of_ours_is_not_struck(rig: Rig) -> None:
    call = strike(rig, SHARED, ("bad", b"\xff"), ("a", document()))
    assert len(wire.PublishRequest.FromString(call.request).messages) == 1
    call.answer(b"")
    rig.channel.open[0].answer(b"")
    assert rig.done == [(["bad"], None)]


def test_a_strike_on_a_members_copy_is_for_that_member_alone(rig: Rig) -> None:
    request = wire.PublishRequest.FromString(strike(rig, MEMBER, ("a", document())).request)
    assert request.topic == "projects/p/topics/psq-fleet"
    assert request.messages[0].attributes["psq-member"] == "here-0"


def test_large_documents_are_struck_in_several_requests(rig: Rig) -> None:
    big = encode(Message("t", "m:f", ["x" * 4_000_000], {}))
    rig.client.strike(SHARED, [("a", big), ("b", big), ("c", big)], RECORD, rig.ended)
    assert [len(wire.PublishRequest.FromString(call.request).messages) for call in rig.channel.open] == [2, 1]
    assert all(len(call.request) < 10_000_000 for call in rig.channel.open)
