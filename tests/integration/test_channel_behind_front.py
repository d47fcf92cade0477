"""The one channel when tokens are revoked and connections die without a word."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from psq.brokers import pubsub_wire as wire
from psq.concurrency import Waiter
from psq.google.channel import Channel, Target
from psq.google.errors import CallError
from psq.google.silence import LOOK
from tests.acceptance.processes import wait_until
from tests.front.client import Front

REQUEST = wire.GetSubscriptionRequest(subscription="projects/nobody/subscriptions/nothing")


@pytest.fixture
def channel(front: Front) -> Iterator[Channel]:
    channel = Channel(Target(front.endpoint))
    yield channel
    channel.close()


def answer(channel: Channel, timeout: float = 20.0) -> str:
    """How a call ends; NOT_FOUND is an answer."""
    with pytest.raises(CallError) as caught:
        channel.call(wire.GET_SUBSCRIPTION, REQUEST, timeout)
    return caught.value.code


def test_each_time_that_tokens_are_revoked_one_call_is_lost_and_no_more(front: Front, channel: Channel) -> None:
    for _ in range(3):
        assert answer(channel) == "NOT_FOUND"
        front.revoke_tokens()
        assert answer(channel) == "UNAUTHENTICATED"
    assert answer(channel) == "NOT_FOUND"


def test_a_server_that_takes_no_token_is_not_asked_with_a_new_one_each_time(front: Front, channel: Channel) -> None:
    front.rule("GetSubscription", status="UNAUTHENTICATED")
    for _ in range(10):
        assert answer(channel) == "UNAUTHENTICATED"
    assert front.stats()["tokens"] <= 2


def test_a_connection_that_answers_nothing_any_more_is_made_anew_after_one_call(front: Front, channel: Channel) -> None:
    assert answer(channel) == "NOT_FOUND"
    front.swallow()
    began = time.monotonic()
    poll = wire.PullRequest(subscription=REQUEST.subscription, max_messages=1)
    polled = Waiter()
    channel.start(wire.PULL, poll, 60.0, lambda response, error: polled.set(error))
    front_flows = threading.Timer(1.0, front.flow)
    front_flows.start()
    while not channel.renewals:  # a second call, where this process was late: tests/unit/test_silence.py
        assert time.monotonic() - began < 20.0  # gRPC's own keepalive takes 51 s
        assert answer(channel, 3.0) == "DEADLINE_EXCEEDED"
        time.sleep(2 * LOOK)  # for the verdict
    front_flows.join()
    assert answer(channel) == "NOT_FOUND"
    assert polled.wait(5)
    assert polled.value.transient


def test_a_slow_answer_beside_others_that_come_is_no_sign_of_a_dead_connection(front: Front, channel: Channel) -> None:
    assert answer(channel) == "NOT_FOUND"
    front.rule("GetSubscription", delay=30.0, times=1)
    slow = Waiter()
    channel.start(wire.GET_SUBSCRIPTION, REQUEST, 3.2, lambda response, error: slow.set(error))
    wait_until(lambda: front.stats()["calls"].get("GetSubscription", 0) >= 1, 5, "never asked")
    assert answer(channel) == "NOT_FOUND"
    assert slow.wait(10)
    assert slow.value.code == "DEADLINE_EXCEEDED"
    time.sleep(0.5)  # nothing to await: it is to stay as it is
    assert channel.renewals == 0
