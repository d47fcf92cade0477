"""Leases against a broker that is slow, fails, and lets leases lapse as the real one does; by many random runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

import pytest

from psq.errors import BrokerUnavailable
from psqd.keeper.leases import MAX_IN_FLIGHT, Leases
from tests.unit.lease_script import Clock, ScriptedClient


class Broker(ScriptedClient):
    """Keeps the end of each lease; a request takes effect on its way, or never, and is answered later, or never."""

    def __init__(self, clock: Clock, chance: random.Random, trouble: float) -> None:
        super().__init__(clock)
        self.chance, self.trouble = chance, trouble
        self.ends: dict[str, float] = {}
        self.released: set[str] = set()
        self.wrongs: list[str] = []  # an assertion here would look like a failed request
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = self.in_flight = self.most = self.requests = 0

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.number += 1
        heappush(self.events, (self.clock() + seconds, self.number, call))

    def extend(
        self, source: str, keys: Sequence[str], seconds: float, timeout: float, done: Callable[..., None]
    ) -> None:
        if len(set(keys)) != len(keys) or not 0 < len(keys) <= self.max_keys:
            self.wrongs.append(f"{len(keys)} keys, {len(set(keys))} of them different")
        if self.released.intersection(keys):
            self.wrongs.append("what was released is extended")
        if not all(key.startswith(f"{source}-") for key in keys):
            self.wrongs.append("keys of another source")
        if seconds < 1 or timeout <= 0:
            self.wrongs.append(f"{seconds} s, within {timeout} s")
        self.requests += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        fate = self.chance.random()
        way = self.chance.uniform(0.001, 0.2)

        def take_effect() -> None:
            for key in keys:
                self.ends[key] = max(self.ends[key], self.clock() + seconds)

        def answer(error: Exception | None) -> None:
            self.in_flight -= 1
            done([], error)

        if fate < self.trouble / 2:  # it never arrives
            self.later(timeout, lambda: answer(BrokerUnavailable("no answer")))
        elif fate < self.trouble:  # refused for the moment
            self.later(way, lambda: answer(BrokerUnavailable("try again")))
        else:
            self.later(way, take_effect)
            self.later(2 * way, lambda: answer(None))


@pytest.mark.parametrize("trouble", [0.0, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("seed", range(2))
def test_no_lease_lapses_unsaid_and_none_is_lost_without_need(seed: int, trouble: float) -> None:
    chance = random.Random(f"{seed} {trouble}")
    clock = Clock()
    broker = Broker(clock, chance, trouble)
    lost: dict[str, float] = {}

    def on_lost(slots: list[int], keys: list[str]) -> None:
        for slot, key in zip(slots, keys, strict=True):
            assert held[slot] == key
            assert key not in lost
            lost[key] = clock()

    leases = Leases(broker, lambda: None, on_lost, clock, chance.random)
    held: dict[int, str] = {}
    slots = list(range(3000))
    for number in range(20):
        name = f"s{number}"
        leases.set_terms({name: {"lease": chance.choice([10, 30, 60]), "ack_deadline": 10, "max_lease": 100_000}})
    end = clock() + 120
    next_load = clock()
    taken = 0
    while clock() < end:
        while broker.events and broker.events[0][0] <= clock.now:
            heappop(broker.events)[2]()
        if clock() >= next_load:
            next_load = clock() + chance.expovariate(5)
            source = f"s{chance.randrange(20)}"
            frame = []
            for _ in range(min(len(slots), chance.choice([1, 1, 5, 40]))):
                taken += 1
                slot, key = slots.pop(), f"{source}-{taken}"
                held[slot] = key
                broker.ends[key] = clock() + 10
                frame.append((slot, key, clock() + 10, None))
            gone = chance.sample(sorted(held), min(len(held), chance.choice([0, 1, 10, 40])))
            frames: list[tuple[object, ...]] = [("T", source, frame)] if frame else []
            leases.apply([*frames, ("R", gone)])
            for slot in gone:
                broker.released.add(held.pop(slot))
                slots.append(slot)
            for key in held.values():  # what has lapsed at the broker was told
                assert broker.ends[key] >= clock() - 0.5 or key in lost, f"{key} lapsed and nobody said so"
        at = leases.run()
        assert len(leases) == len(held)
        clock.now = max(clock.now, min(at, next_load, broker.events[0][0] if broker.events else end)) + 1e-6
    assert broker.wrongs == []
    assert taken > 1000
    assert broker.most <= MAX_IN_FLIGHT
    if trouble <= 0.1:
        assert not lost
    if trouble == 0.9:
        assert lost
    if trouble == 0.0:
        assert broker.requests < 120 * 20  # hundreds are extended together, by source
