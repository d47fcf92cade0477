"""What a dead worker held is given back or struck, at once, and again until the leases are over."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import pytest

from psq.errors import BrokerRefused, BrokerUnavailable
from psqd.keeper.leases import HeldLease
from psqd.keeper.link import ENDED, FREE, STARTED
from psqd.keeper.returns import MAX_STRIKE_BYTES, Returns
from tests.unit.lease_script import Call, Clock, ScriptedClient

AWAY = BrokerUnavailable("away")
RECORD = {"signal": "SIGKILL", "host": "h", "at": 1.0}


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.client = ScriptedClient(self.clock)
        self.wakes = 0
        self.returns = Returns(self.client, self._wake, self.clock, lambda: 0.5)

    def _wake(self) -> None:
        self.wakes += 1

    def lease(self, slot: int, seconds: float = 30.0, data: bytes | None = b"doc", key: str = "k") -> HeldLease:
        return (slot, f"{key}{slot}", self.clock.now + seconds, data)

    def add(
        self,
        *leases: HeldLease,
        states: Mapping[int, int] | None = None,
        record: Mapping[str, Any] | None = RECORD,
        source: str = "s",
    ) -> tuple[int, int, int]:
        return self.returns.add({source: list(leases)}, lambda slot: (states or {}).get(slot, FREE), record)

    def run_until(self, instant: float) -> None:
        for _ in range(10_000):
            wakes = self.wakes
            at = self.returns.run()
            if self.wakes != wakes:
                continue
            if at > instant:
                break
            self.clock.now = max(at, self.clock.now)
        else:
            pytest.fail("it never comes to rest")
        self.clock.now = instant


def told(calls: list[Call]) -> list[tuple[str, list[str]]]:
    return sorted((call.verb, call.keys) for call in calls)


def test_what_had_started_is_struck_and_the_rest_is_given_back() -> None:
    bench = Bench()
    states = {1: STARTED, 2: ENDED}
    assert bench.add(bench.lease(0), bench.lease(1), bench.lease(2), states=states) == (2, 1, 0)
    assert told(bench.client.calls) == [("give_back", ["k0", "k2"]), ("strike", ["k1"])]
    (strike,) = [call for call in bench.client.calls if call.verb == "strike"]
    assert strike.documents == [b"doc"]
    assert strike.record == RECORD
    bench.returns.run()
    assert bench.returns.pending == 0
    assert (bench.returns.given_back, bench.returns.struck, bench.returns.left) == (2, 1, 0)
    assert bench.returns.run() == inf


def test_without_a_record_of_a_death_nothing_is_struck() -> None:
    bench = Bench()
    assert bench.add(bench.lease(0), states={0: STARTED}, record=None) == (1, 0, 0)
    assert told(bench.client.calls) == [("give_back", ["k0"])]


@pytest.mark.parametrize("data", [None, b"x" * (MAX_STRIKE_BYTES + 1)])
def test_without_a_document_that_can_be_published_again_there_is_no_strike(data: bytes | None) -> None:
    bench = Bench()
    assert bench.add(bench.lease(0, data=data), states={0: STARTED}) == (1, 0, 1)
    assert told(bench.client.calls) == [("give_back", ["k0"])]


def test_a_broker_that_knows_the_documents_needs_none() -> None:
    bench = Bench()
    bench.client.knows_documents = True  # type: ignore[misc]
    assert bench.add(bench.lease(0, data=None), states={0: STARTED}) == (0, 1, 0)
    assert told(bench.client.calls) == [("strike", ["k0"])]


def test_a_lost_lease_is_not_struck_since_somebody_else_may_run_it() -> None:
    bench = Bench()
    lost = (0, "k0", -inf, None)
    assert bench.add(lost, states={0: STARTED}) == (1, 0, 0)
    assert told(bench.client.calls) == [("give_back", ["k0"])]


def test_requests_stay_under_the_limits_of_keys_and_bytes() -> None:
    bench = Bench()
    waiting = [bench.lease(slot) for slot in range(2500)]
    long = [bench.lease(slot, key="x" * 2000) for slot in range(2500, 3000)]
    large = [bench.lease(slot, data=b"x" * 200_000) for slot in range(3000, 3100)]
    bench.returns.add(
        {"s": waiting, "long": long, "large": large}, lambda slot: STARTED if slot >= 3000 else FREE, RECORD
    )
    calls = bench.client.calls
    assert max(len(call.keys) for call in calls) == 1000
    assert max(sum(map(len, call.keys)) for call in calls) <= 512 * 1024
    assert max(sum(map(len, call.documents)) for call in calls) <= 10_000_000
    assert len({key for call in calls for key in call.keys}) == 3100


def test_a_failed_request_is_sent_again_with_growing_pauses_until_its_leases_are_over() -> None:
    bench = Bench()
    bench.client.answer = ((), AWAY)
    start = bench.clock.now
    bench.add(bench.lease(0), states={0: STARTED})
    bench.add(bench.lease(1, seconds=20))
    bench.run_until(start + 15)
    assert bench.returns.pending == 2
    bench.run_until(start + 60)
    assert bench.returns.pending == 0
    assert bench.returns.left == 2
    assert "away" in bench.returns.last_error
    strikes = [call.at - start for call in bench.client.calls if call.verb == "strike"]
    backs = [call.at - start for call in bench.client.calls if call.verb == "give_back"]
    assert strikes[:4] == pytest.approx([0, 0.05, 0.15, 0.35])
    assert 28 < strikes[-1] < 30
    assert 18 < backs[-1] < 20


def test_of_a_strike_only_what_was_not_done_is_sent_again() -> None:
    bench = Bench()
    bench.client.answer = (["k1"], AWAY)
    bench.add(bench.lease(0), bench.lease(1), states={0: STARTED, 1: STARTED})
    bench.client.answer = ((), None)
    bench.run_until(bench.clock.now + 1)
    assert [call.keys for call in bench.client.calls] == [["k0", "k1"], ["k1"]]
    assert bench.returns.struck == 2


def test_who_may_not_publish_gives_back_without_the_strike() -> None:
    bench = Bench()
    bench.client.answer = (["k0"], BrokerRefused("no permission to publish"))
    bench.add(bench.lease(0), states={0: STARTED})
    bench.client.answer = ((), None)
    bench.run_until(bench.clock.now + 0.01)
    assert [(call.verb, call.keys) for call in bench.client.calls] == [("strike", ["k0"]), ("give_back", ["k0"])]
    assert (bench.returns.given_back, bench.returns.struck) == (1, 0)


def test_a_document_that_cannot_be_published_again_is_given_back_without_the_strike() -> None:
    bench = Bench()
    bench.client.answer = (["k1"], None)
    bench.add(bench.lease(0), bench.lease(1), states={0: STARTED, 1: STARTED})
    bench.client.answer = ((), None)
    bench.run_until(bench.clock.now + 0.01)
    assert told(bench.client.calls) == [("give_back", ["k1"]), ("strike", ["k0", "k1"])]
    assert (bench.returns.given_back, bench.returns.struck) == (1, 1)


def test_a_strike_without_an_answer_is_not_sent_twice() -> None:
    bench = Bench()
    bench.client.answer = None
    bench.add(bench.lease(0), states={0: STARTED})
    bench.run_until(bench.clock.now + 60)
    assert [call.verb for call in bench.client.calls] == ["strike"]
    assert bench.returns.pending == 0
    assert bench.returns.left == 1


def test_a_giving_back_without_an_answer_is_sent_again() -> None:
    bench = Bench()
    bench.client.answer = None
    bench.add(bench.lease(0, seconds=60))
    bench.run_until(bench.clock.now + 6)
    bench.client.answer = ((), None)
    bench.run_until(bench.clock.now + 10)
    assert [call.verb for call in bench.client.calls] == ["give_back", "give_back"]
    assert bench.returns.given_back == 1


def test_a_client_that_raises_is_tried_again() -> None:
    bench = Bench()
    bench.client.raises = RuntimeError("a bug")
    bench.add(bench.lease(0))
    bench.client.raises = None
    bench.run_until(bench.clock.now + 1)
    assert bench.returns.given_back == 1


def test_many_sources_are_given_back_with_no_more_than_64_requests_in_flight() -> None:
    bench = Bench()
    bench.client.answer = None
    bench.returns.add({f"s{n}": [bench.lease(n)] for n in range(200)}, lambda slot: FREE, RECORD)
    assert len(bench.client.calls) == 64
    bench.client.answer = ((), None)
    for call in list(bench.client.calls):
        call.done([], None)
    bench.run_until(bench.clock.now)
    assert bench.returns.given_back == 200
    assert len({call.source for call in bench.client.calls}) == 200


def test_of_the_task_that_started_last_its_strike_tells_so() -> None:
    bench = Bench()
    states = dict.fromkeys(range(3), STARTED)
    leases = [bench.lease(n) for n in range(3)]
    assert bench.returns.add({"s": leases}, lambda slot: states[slot], RECORD, last=1) == (0, 3, 0)
    assert [(call.keys, call.record) for call in bench.client.calls] == [
        (["k0", "k2"], RECORD),
        (["k1"], {**RECORD, "last": True}),
    ]
