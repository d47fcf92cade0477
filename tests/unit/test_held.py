"""What a worker holds, and what the keeper is told of it."""

from __future__ import annotations

from typing import Any

import gevent

from psq.brokers.base import Delivery, QueueSpec
from psq.errors import BrokerUnavailable
from psqd.worker.held import MAX_STRIKE_BYTES, Held
from tests.unit.worker_fakes import FakeLink, Recorder


def bench(*, carry: bool = True) -> tuple[Held, FakeLink, Any]:
    link, outside = FakeLink(), Recorder()
    broker: Any = outside
    return Held(link, broker, carry=carry), link, outside


def delivery(queue: str = "q", data: bytes = b"x", *, broadcast: bool = False) -> Delivery:
    return Delivery(QueueSpec(queue, broadcast=broadcast), f"key-{queue}", data, {}, 1.0, 11.0, None)


def test_the_keeper_is_told_in_one_frame_with_what_a_strike_needs() -> None:
    held, link, _ = bench()
    small, large = delivery(data=b"small"), delivery(data=b"x" * (MAX_STRIKE_BYTES + 1))
    held.take([small, large])
    assert link.taken == [("q", [(0, "key-q", 11.0, b"small"), (1, "key-q", 11.0, None)])]
    assert len(held) == 2


def test_a_broadcast_message_that_kills_its_worker_can_be_struck_too() -> None:
    held, link, _ = bench()
    held.take([delivery(broadcast=True)])
    assert link.taken[0][1][0][3] == b"x"


def test_what_a_broker_refuses_to_take_back_at_once_is_released_all_the_same() -> None:
    held, _, outside = bench()

    def broken(*args: Any) -> None:
        raise RuntimeError("a bug")

    outside.nack = outside.park = broken
    items = [delivery(), delivery()]
    held.take(items)
    held.give_back(items[:1])
    held.park(items[1:], 5.0)
    assert len(held) == 0


def test_releases_of_one_turn_go_in_one_frame_and_only_once() -> None:
    held, link, _ = bench()
    items = [delivery(), delivery()]
    held.take(items)
    for item in (*items, *items):
        held.release(item)
    assert link.released == []
    gevent.sleep(0)
    assert link.released == [0, 1]
    assert len(held) == 0


def test_giving_back_names_one_queue_a_request() -> None:
    held, _, outside = bench()
    items = [delivery("a"), delivery("b"), delivery("a")]
    for item in items:
        held.take([item])
    held.give_back(items)
    assert [[one.queue.name for one in what] for _, what in outside.calls] == [["a", "a"], ["b"]]
    assert len(held) == 0


def test_what_could_not_be_given_back_is_released_all_the_same() -> None:
    held, _, outside = bench()
    outside.answers["nack"] = BrokerUnavailable("away")
    item = delivery()
    held.take([item])
    held.give_back([item])
    assert len(held) == 0


def test_lost_leases_are_those_that_are_still_held() -> None:
    held, _, _ = bench()
    first, second = delivery(), delivery()
    held.take([first, second])
    held.release(first)
    assert held.mark_lost([0, 1, 7], ["key-q"] * 3) == [second]
    assert held.mark_lost([1], ["of another lease in the same slot"]) == []
