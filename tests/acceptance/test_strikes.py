"""A task that kills its worker among a thousand that do not: only it becomes a dead letter, and soon."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest

import psq
from psq.brokers.base import DeadLetter, DeadLetters
from psq.dead import dead_letters
from tests.acceptance.memory_group import memory_group
from tests.acceptance.processes import wait_until
from tests.integration import jobs
from tests.integration.daemons import Site

INNOCENTS = 1000
#: Seconds from a killer's enqueue to its dead letter.
SOON = 60
#: What a worker, its keeper and a process for the suspects need, and some more; bytes.
ROOM = 700 << 20


def _dead(place: DeadLetters, count: int) -> list[DeadLetter]:
    letters = list(place.list_dead())
    return letters if len(letters) >= count else []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("broker", "how", "storage"),
    [
        ("sqlite", "signal", "without storage"),
        ("sqlite", "segfault", "with storage"),
        ("front", "signal", "with storage"),
        ("front", "memory", "without storage"),
    ],
)
def test_of_a_thousand_and_one_only_the_killer_is_a_dead_letter(
    request: pytest.FixtureRequest, broker: str, how: str, storage: str
) -> None:
    place: Site = request.getfixturevalue(f"{broker}_site")
    client = psq.connect(place.broker)
    q = psq.Queue(client, storage=place.storage if storage == "with storage" else None)
    letters = dead_letters(client.broker, q.storage)
    config: dict[str, object] = {"queues": {"default": {"concurrency": 100}}, "logging": {"tasks": "failures"}}
    if q.storage is None:
        config["storage"] = "none"
    daemon = place.daemon("a", config)
    with contextlib.ExitStack() as stack:
        if how == "memory":
            group = stack.enter_context(memory_group(ROOM))
            stack.callback(place.end)
            daemon.prefix = group.prefix
        daemon.start()
        first = q.enqueue_many([(jobs.nap, (0.2,), {}) for _ in range(INNOCENTS // 2)])
        sent = time.monotonic()
        killer = q.enqueue(jobs.kills, how)
        second = q.enqueue_many([(jobs.nap, (0.2,), {}) for _ in range(INNOCENTS // 2)])
        wait_until(lambda: any(x.id == killer.id for x in _dead(letters, 1)), 180, lambda: daemon.log)
        took = time.monotonic() - sent
        ids = {r.id for r in (*first, *second)}
        wait_until(lambda: set(place.runs("end")) | {x.id for x in letters.list_dead()} >= ids, 120, lambda: daemon.log)
        print(f"\n{place.broker.partition(':')[0]}, {how}, {storage}: a dead letter after {took:.1f} s")
        dead = list(letters.list_dead())
        assert [x.id for x in dead] == [killer.id], daemon.log
        assert set(place.runs("end")) == ids
        assert len(dead[0].deaths) == 3, dead[0].deaths
        assert took <= SOON, daemon.log
        assert daemon.stop() == 0
        place.nothing_left()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_several_killers_beside_long_tasks_take_no_innocent_with_them(front_site: Site) -> None:
    """With one killer after the other an innocent task can be there three times: that alone convicts nobody."""
    place = front_site
    client = psq.connect(place.broker)
    q = psq.Queue(client, storage=place.storage)
    config = {"queues": {"default": {"concurrency": 20}}, "logging": {"tasks": "failures"}}
    daemons = [place.daemon(name, config).start() for name in ("a", "b")]
    calls: list[tuple[Callable[..., object], tuple[object, ...], dict[str, object]]] = []
    for n in range(60):
        if n % 20 == 10:
            calls.append((jobs.kills, ("segfault" if n == 10 else "signal",), {}))
        calls.append((jobs.nap, (1,), {}))
    results = q.enqueue_many(calls)
    killers = {r.id for r, call in zip(results, calls, strict=True) if call[0] is jobs.kills}
    innocents = {r.id for r in results} - killers
    letters = dead_letters(client.broker, q.storage)
    wait_until(
        lambda: {x.id for x in letters.list_dead()} | set(place.runs("end")) >= killers | innocents, 180, place.logs
    )
    assert {x.id for x in letters.list_dead()} == killers, place.logs()
    assert set(place.runs("end")) == innocents
    assert [daemon.stop() for daemon in daemons] == [0, 0]
    place.nothing_left()
