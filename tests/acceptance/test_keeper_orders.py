"""Keeper and worker start, restart and end in every order: what each event does in each state, row by row.

The keeper is the real one, the worker a stand-in that does as it is told. See test_keeper.py for what else happens
on the way, and test_moments.py for real daemons, hit at any moment of their start.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.keeper_bench import KeeperBench, Peer, wait_gone
from tests.acceptance.processes import alive

pytestmark = [pytest.mark.unpatched, pytest.mark.slow]

#: The worker has said hello and nothing more; told its settings; is ready; drains, since psqd was told to stop; has
#: died, and the next one is not due yet; is the second one, and has said nothing yet.
STATES = ("unborn", "told", "ready", "drains", "between", "again")
#: What becomes of psqd: it ends with this code; or a new worker starts, at once or after a pause; or all goes on as
#: before; or, of a killed keeper, nothing is left.
NOW, LATER, ON, GONE = "the next at once", "the next after a pause", "goes on", "gone"

TABLE: dict[str, dict[str, int | str]] = {
    # event:            the outcome in each state; "-": it can't happen there
    "TERM": dict(zip(STATES, (0, 0, 0, 1, 0, 0), strict=True)),  # one that drains gets its second
    "worker killed": dict(zip(STATES, (NOW, NOW, NOW, 1, "-", LATER), strict=True)),
    "worker exits 0": dict(zip(STATES, (NOW, NOW, NOW, 0, "-", LATER), strict=True)),
    "worker exits 1": dict(zip(STATES, (NOW, NOW, NOW, 1, "-", LATER), strict=True)),
    "worker exits 2": dict(zip(STATES, (2, 2, NOW, 1, "-", LATER), strict=True)),
    "worker exits 3": dict(zip(STATES, (3, 3, NOW, 1, "-", LATER), strict=True)),
    "HUP": dict(zip(STATES, (ON, ON, ON, ON, NOW, ON), strict=True)),
    "TSTP": dict(zip(STATES, (ON, ON, ON, ON, LATER, ON), strict=True)),
    "keeper killed": dict.fromkeys(STATES, GONE),
}
ROWS = [(state, event, row[state]) for event, row in TABLE.items() for state in STATES if row[state] != "-"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], KeeperBench]]:
    benches: list[KeeperBench] = []

    def make() -> KeeperBench:
        benches.append(KeeperBench(tmp_path))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def _brought(bench: KeeperBench, state: str) -> Peer | None:
    """The worker, once it is in this state; None between two."""
    worker = bench.worker()
    if state == "unborn":
        return worker
    bench.settle(worker)
    if state == "told":
        return worker
    worker.do("send", message={"op": "ready"})
    bench.logged("is ready")
    match state:
        case "drains":
            worker.do("ignore")
            bench.signal(signal.SIGTERM)
            worker.message("drain")
        case "between":
            worker.say(do="exit", code=1)
            bench.worker().say(do="exit", code=1)
            bench.logged("a new worker is started in 0.5 s")
            return None
        case "again":
            worker.say(do="exit", code=1)
            return bench.worker()
    return worker


@pytest.mark.parametrize(("state", "event", "outcome"), ROWS)
def test_each_event_in_each_state(start: Callable[[], KeeperBench], state: str, event: str, outcome: int | str) -> None:
    bench = start()
    worker = _brought(bench, state)
    before = bench.log().count("a new worker is started")
    match event.split():
        case ["worker", "killed"]:
            assert worker is not None
            os.kill(worker.pid, signal.SIGKILL)
        case ["worker", "exits", code]:
            assert worker is not None
            worker.say(do="exit", code=int(code))
        case ["keeper", "killed"]:
            bench.signal(signal.SIGKILL)
        case [name]:
            bench.signal(getattr(signal, f"SIG{name}"))

    match outcome:
        case int():
            assert bench.exit_code() == outcome
            assert not bench.pid_file.exists()
            if worker is not None:
                assert not alive(worker.pid)
        case "gone":
            assert bench.exit_code() == -signal.SIGKILL
            if worker is not None:
                wait_gone(worker.pid)
        case "goes on":
            assert worker is not None
            bench.signal(signal.SIGUSR1)  # it is the last of what the worker is told
            worker.message("reopen_logs")
            assert bench.process.poll() is None
            assert bench.log().count("a new worker is started") == before
        case _:
            successor = bench.worker()
            assert worker is None or successor.pid != worker.pid
            lines = [line for line in bench.log().splitlines() if "a new worker is started" in line]
            waited = " in " in lines[-1].partition("a new worker is started")[2]
            assert waited == (outcome == LATER or state == "between"), lines
            bench.settle(successor)
            bench.signal(signal.SIGTERM)
            successor.message("drain")
            assert bench.exit_code() == 0
            assert not alive(successor.pid)
