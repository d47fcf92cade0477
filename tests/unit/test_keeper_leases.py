"""Leases are extended in time, in few requests, and lost by our own clock."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest

from psq.errors import BrokerUnavailable
from psqd.keeper.leases import MAX_IN_FLIGHT, Leases, Terms
from psqd.keeper.link import Lease
from tests.unit.lease_script import Clock, ScriptedClient

AWAY = BrokerUnavailable("away")


class Bench:
    """A `Leases` with a scripted client; `turn` moves the clock to where it wants to be called."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.client = ScriptedClient(self.clock)
        self.wakes = 0
        self.lost: list[tuple[int, str]] = []
        self.leases = Leases(self.client, self._wake, self._lose, self.clock, lambda: 0.5)
        self.slot = 0

    def _wake(self) -> None:
        self.wakes += 1

    def _lose(self, slots: list[int], keys: list[str]) -> None:
        self.lost += zip(slots, keys, strict=True)

    def take(self, count: int = 1, source: str = "s", seconds: float = 10.0, key: str = "k") -> list[int]:
        slots = list(range(self.slot, self.slot + count))
        self.slot += count
        leases: list[Lease] = [(slot, f"{key}{slot}", self.clock.now + seconds, b"doc") for slot in slots]
        self.leases.apply([("T", source, leases)])
        return slots

    def release(self, slots: list[int]) -> None:
        self.leases.apply([("R", slots)])

    def run_until(self, instant: float) -> None:
        """As the keeper's loop does: run when it is wanted, and after each answer."""
        for _ in range(100_000):
            wakes = self.wakes
            at = self.leases.run()
            if self.wakes != wakes:
                continue
            if at > instant:
                break
            self.clock.now = max(at, self.clock.now)
        else:
            pytest.fail("it never comes to rest")
        self.clock.now = instant


def test_a_lease_is_extended_at_a_third_of_what_is_left() -> None:
    bench = Bench()
    start = bench.clock.now
    bench.take()
    bench.run_until(start + 60)
    calls = bench.client.taken()
    assert [(call.source, call.keys, call.seconds) for call in calls[:2]] == [("s", ["k0"], 30.0)] * 2
    assert [call.at - start for call in calls] == pytest.approx(
        [10 / 3, 10 / 3 + 10, 10 / 3 + 20, 10 / 3 + 30, 10 / 3 + 40, 10 / 3 + 50]
    )
    assert bench.lost == []


def test_a_lease_that_was_released_before_it_was_due_costs_no_request() -> None:
    bench = Bench()
    for _ in range(1000):
        bench.release(bench.take(10))
    bench.run_until(bench.clock.now + 600)
    assert bench.client.calls == []
    assert bench.leases.run() == inf
    assert len(bench.leases) == 0


def test_a_slot_that_is_used_again_is_not_mistaken_for_the_lease_before() -> None:
    bench = Bench()
    start = bench.clock.now
    bench.leases.apply([("T", "s", [(7, "old", start + 10, None)])])
    bench.run_until(start + 3)
    bench.leases.apply([("R", [7]), ("T", "s", [(7, "new", start + 13, None)])])
    bench.run_until(start + 6)
    assert bench.client.calls == []
    bench.run_until(start + 7)
    assert [call.keys for call in bench.client.calls] == [["new"]]
    assert bench.client.calls[0].at - start == pytest.approx(3 + 10 / 3)


def test_all_that_a_source_holds_goes_in_few_requests() -> None:
    bench = Bench()
    for _ in range(250):
        bench.take(10)
    bench.take(5, source="other")
    bench.run_until(bench.clock.now + 5)
    calls = bench.client.taken()
    assert sorted((call.source, len(call.keys)) for call in calls) == [
        ("other", 5),
        ("s", 500),
        ("s", 1000),
        ("s", 1000),
    ]
    assert len({key for call in calls for key in call.keys}) == 2505


def test_a_larger_batch_than_a_request_takes_is_divided() -> None:
    bench = Bench()
    bench.take(2500)
    bench.run_until(bench.clock.now + 5)
    assert sorted(len(call.keys) for call in bench.client.calls) == [500, 1000, 1000]


def test_long_lease_ids_stay_under_the_bytes_of_a_request() -> None:
    bench = Bench()
    for _ in range(8):
        bench.take(100, key="x" * 1000)
        bench.clock.now += 0.3
    bench.run_until(bench.clock.now + 5)
    assert all(sum(map(len, call.keys)) <= 512 * 1024 for call in bench.client.calls)
    assert sum(len(call.keys) for call in bench.client.calls) == 800


def test_groups_that_are_nearly_due_go_along() -> None:
    bench = Bench()
    for _ in range(20):
        bench.take(1)
        bench.clock.now += 0.04
    bench.run_until(bench.clock.now + 6)
    assert [len(call.keys) for call in bench.client.calls] == [20]


def test_what_is_due_first_is_sent_first_and_no_more_than_64_are_in_flight() -> None:
    bench = Bench()
    bench.client.answer = None
    start = bench.clock.now
    for number in range(100):
        bench.take(source=f"s{99 - number:02d}", seconds=10 + number / 100)
    bench.run_until(start + 4)
    calls = bench.client.taken()
    assert len(calls) == MAX_IN_FLIGHT
    assert [call.source for call in calls] == [f"s{99 - number:02d}" for number in range(MAX_IN_FLIGHT)]
    for call in calls[:10]:
        call.done([], None)
    bench.leases.run()
    assert [call.source for call in bench.client.taken()] == [f"s{35 - number:02d}" for number in range(10)]


def test_a_request_that_is_never_answered_holds_back_nobody_else() -> None:
    bench = Bench()
    bench.client.answer = None
    start = bench.clock.now
    bench.take(source="stuck")
    bench.run_until(start + 4)
    bench.client.taken()
    bench.client.answer = ((), None)
    bench.take(source="other")
    bench.run_until(start + 9)
    assert [call.source for call in bench.client.taken() if call.source == "other"] == ["other"]


def test_a_request_that_is_never_answered_is_given_up_and_sent_again() -> None:
    bench = Bench()
    bench.client.answer = None
    start = bench.clock.now
    bench.take()
    bench.run_until(start + 4)
    (call,) = bench.client.taken()
    assert call.timeout == pytest.approx(10 / 3)  # half of what was left
    bench.client.answer = ((), None)
    bench.run_until(start + 9.9)
    (again,) = bench.client.taken()
    assert again.at > call.at + call.timeout
    call.done([], AWAY)  # too late to count
    bench.run_until(start + 15)
    assert bench.lost == []
    assert bench.leases.requests.failed == 1


def test_a_failed_extension_is_sent_again_with_growing_pauses() -> None:
    bench = Bench()
    bench.client.answer = ((), AWAY)
    start = bench.clock.now
    bench.take()
    bench.run_until(start + 9.9)
    times = [call.at for call in bench.client.taken()]
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert pauses[:6] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
    assert bench.lost == []
    assert "away" in bench.leases.last_error


def test_a_client_that_raises_is_a_failed_extension() -> None:
    bench = Bench()
    bench.client.raises = RuntimeError("a bug")
    start = bench.clock.now
    bench.take()
    bench.run_until(start + 4)
    assert len(bench.client.taken()) > 2
    bench.client.raises = None
    bench.run_until(start + 60)
    assert bench.lost == []


def test_a_lease_is_lost_when_its_time_since_the_last_good_extension_is_over() -> None:
    bench = Bench()
    start = bench.clock.now
    (slot,) = bench.take()
    bench.run_until(start + 4)  # extended once, at 3.33
    bench.client.answer = ((), AWAY)
    bench.run_until(start + 33.3)
    assert bench.lost == []
    bench.run_until(start + 33.4)
    assert bench.lost == [(slot, "k0")]
    bench.client.taken()
    bench.run_until(start + 1000)
    assert bench.client.taken() == []  # nobody extends what is lost
    assert len(bench.leases) == 1  # but it is held until the worker lets go
    bench.release([slot])
    assert len(bench.leases) == 0
    assert bench.leases.requests.lost == 1


def test_a_first_lease_that_could_not_be_extended_is_lost_at_its_end() -> None:
    bench = Bench()
    bench.client.answer = ((), AWAY)
    start = bench.clock.now
    bench.take()
    bench.run_until(start + 9.99)
    assert bench.lost == []
    bench.run_until(start + 10.01)
    assert bench.lost == [(0, "k0")]


def test_an_extension_counts_from_its_sending_not_from_its_answer() -> None:
    bench = Bench()
    bench.client.answer = None
    start = bench.clock.now
    bench.take()
    bench.run_until(start + 5)
    (call,) = bench.client.taken()
    call.done([], None)
    bench.client.answer = ((), AWAY)
    bench.run_until(call.at + 29.99)
    assert bench.lost == []
    bench.run_until(call.at + 30.01)
    assert bench.lost == [(0, "k0")]


def test_what_the_broker_knows_to_be_lost_is_told_at_once_and_the_rest_goes_on() -> None:
    bench = Bench()
    bench.client.answer = None
    start = bench.clock.now
    bench.take(3)
    bench.run_until(start + 4)
    (call,) = bench.client.taken()
    call.done(["k1", "unknown"], None)
    bench.client.answer = ((), None)
    bench.run_until(start + 15)
    assert bench.lost == [(1, "k1")]
    assert [call.keys for call in bench.client.taken()] == [["k0", "k2"]]


def test_a_lost_key_that_was_released_meanwhile_is_not_told() -> None:
    bench = Bench()
    bench.client.answer = None
    bench.take(2)
    bench.run_until(bench.clock.now + 4)
    (call,) = bench.client.taken()
    bench.release([0])
    bench.leases.apply([("T", "s", [(0, "again", bench.clock.now + 10, None)])])
    call.done(["k0", "k1"], None)
    bench.leases.run()
    assert bench.lost == [(1, "k1")]
    assert len(bench.leases) == 2


def test_a_message_of_a_long_poll_is_not_lost_before_it_was_ours() -> None:
    bench = Bench()
    bench.client.answer = ((), AWAY)
    start = bench.clock.now
    bench.take(seconds=-50)  # the poll was sent a minute ago, the message came just now
    bench.run_until(start + 4.9)
    assert bench.lost == []
    assert bench.client.taken()[0].at == pytest.approx(start + 1 / 3)
    bench.run_until(start + 5.1)
    assert bench.lost == [(0, "k0")]


def test_extensions_end_with_max_lease() -> None:
    bench = Bench()
    bench.leases.set_terms({"s": {"lease": 30, "ack_deadline": 10, "max_lease": 100}})
    start = bench.clock.now
    bench.take()
    bench.run_until(start + 99)
    calls = bench.client.taken()
    assert max(call.at + call.seconds for call in calls) <= start + 100
    assert bench.lost == []
    bench.run_until(start + 101)
    assert bench.lost == [(0, "k0")]


def test_a_short_max_lease_does_not_shorten_the_leases_beside_it() -> None:
    bench = Bench()
    bench.leases.set_terms({"s": {"lease": 30, "ack_deadline": 10, "max_lease": 60}})
    start = bench.clock.now
    bench.take()
    bench.run_until(start + 40)
    bench.take()
    bench.run_until(start + 99)
    assert bench.lost == [(0, "k0")]
    young = [call for call in bench.client.taken() if "k1" in call.keys]
    assert max(call.at + call.seconds for call in young) == pytest.approx(start + 100, abs=2)


def test_new_terms_hold_from_the_next_extension_on() -> None:
    bench = Bench()
    start = bench.clock.now
    bench.take()
    bench.run_until(start + 5)
    bench.leases.set_terms({"s": {"lease": 60, "ack_deadline": 10, "max_lease": 3600}})
    bench.run_until(start + 15)
    assert [call.seconds for call in bench.client.taken()] == [30.0, 60.0]


def test_terms_that_are_not_told_are_the_defaults() -> None:
    assert Terms.of({}) == Terms(30.0, 10.0, 43_200.0)
    assert Terms.of({"lease": 20, "max_lease": None}) == Terms(20.0, 10.0, 43_200.0)


def test_held_leases_are_listed_by_source_with_their_ends_and_documents() -> None:
    bench = Bench()
    start = bench.clock.now
    bench.take(1, "a")
    bench.take(2, "b")
    bench.release([1])
    assert bench.leases.counts() == {"a": 1, "b": 1}
    assert bench.leases.held() == {"a": [(0, "k0", start + 10, b"doc")], "b": [(2, "k2", start + 10, b"doc")]}


def test_no_lease_is_forgotten_by_a_broker_that_is_away_now_and_then() -> None:
    bench = Bench()
    for number in range(50):
        bench.take(3, source=f"s{number}")
    for step in range(200):
        bench.client.answer = ((), AWAY) if step % 3 == 0 else ((), None)
        bench.run_until(bench.clock.now + 7)
    bench.client.answer = ((), None)
    bench.client.taken()
    bench.run_until(bench.clock.now + 30)
    assert bench.lost == []
    assert {key for call in bench.client.taken() for key in call.keys} == {f"k{slot}" for slot in range(150)}


def test_a_lease_that_is_taken_while_its_group_is_being_extended_is_not_thought_extended() -> None:
    bench = Bench()
    start = bench.clock.now
    bench.take()
    bench.run_until(start + 3.3)
    bench.take(seconds=-50)  # due soon: it goes along with the first
    bench.client.answer = None
    bench.run_until(start + 3.4)
    (call,) = bench.client.taken()
    assert call.keys == ["k0", "k1"]
    bench.take(seconds=-50)
    call.done([], None)
    bench.client.answer = ((), None)
    bench.run_until(start + 5)
    assert [call.keys for call in bench.client.taken()] == [["k2"]]


def test_a_slot_that_is_released_and_taken_again_at_once_is_extended_once() -> None:
    bench = Bench()
    end = bench.clock.now + 10
    bench.leases.apply([("T", "s", [(0, "a", end, None)]), ("R", [0]), ("T", "s", [(0, "b", end, None)])])
    bench.run_until(bench.clock.now + 5)
    assert [call.keys for call in bench.client.calls] == [["b"]]
