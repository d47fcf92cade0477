"""The `psq` command on real files: what a person types, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from psq.brokers.base import DeadLetter, Delivery, QueueSpec
from psq.brokers.sqlite import SQLiteBroker
from psq.concurrency import Waiter
from psq.message import decode
from tests.unit.dead_fakes import letter

WAIT = 30.0  # seconds; a bound, not a pause
ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.unpatched


class Bench:
    def __init__(self, folder: Path, storage: str) -> None:
        self.path = str(folder / "psq.db")
        self.broker = SQLiteBroker(self.path)
        self.environment = {
            **os.environ,
            "PSQ_BROKER": f"sqlite://{self.path}",
            "PSQ_STORAGE": storage and f"{storage}",
            "XDG_STATE_HOME": str(folder),
        }
        if storage == "none":
            self.place = self.broker.dead_letters()
        else:
            from psq.storages.sqlite import SQLiteStorage

            self.place = SQLiteStorage(self.path)

    def put(self, *letters: DeadLetter) -> None:
        for one in letters:
            done = Waiter()
            self.place.put_dead(one, lambda _, error, done=done: done.set(error))
            assert done.wait(WAIT)
            assert done.value is None

    def psq(self, *args: str, before: str = "") -> subprocess.CompletedProcess[str]:
        script = f"{before}\nfrom psq.cli.main import main\nmain()"
        command = [sys.executable, "-W", "error", "-c", script, *args]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=WAIT, check=False
        )

    def keys(self) -> list[str]:
        return [one.key for one in self.place.list_dead()]

    def receive(self, n: int, queue: str = "default") -> list[bytes]:
        """What waits in a queue, acked."""
        spec = QueueSpec(queue)
        self.broker.declare(spec)
        got: list[Delivery] = []
        enough = Waiter()

        def deliver(deliveries: list[Delivery]) -> None:
            got.extend(deliveries)
            if len(got) >= n:
                enough.set()

        receiver = self.broker.receiver(spec, deliver)
        receiver.start()
        receiver.ask(100)
        assert enough.wait(WAIT)
        acked = [Waiter() for _ in got]
        for delivery, done in zip(got, acked, strict=True):
            self.broker.ack(delivery, lambda _, error, done=done: done.set(error))
        assert all(done.wait(WAIT) for done in acked)
        stopped = Waiter()
        receiver.stop(0, stopped.set)
        assert stopped.wait(WAIT)
        return [delivery.data for delivery in got]

    def close(self) -> None:
        if self.place is not self.broker.dead_letters() and hasattr(self.place, "close"):
            self.place.close()
        self.broker.close()


@pytest.fixture(params=["storage", "none"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "storage" and find_spec("psq.storages.sqlite") is None:
        pytest.skip("no SQLiteStorage yet")
    made = Bench(tmp_path, "none" if request.param == "none" else "")
    yield made
    made.close()


def test_a_dead_letter_is_listed_shown_and_runs_again(bench: Bench) -> None:
    bench.put(letter("aa", queue="default"), letter("bb", queue="slow"))
    listed = json.loads(bench.psq("dead", "list", "--json").stdout)
    assert {one["id"] for one in listed} == {"aa:3", "bb:3"}
    assert "ValueError: no" in bench.psq("dead", "show", "aa").stdout
    done = bench.psq("dead", "requeue", "aa")
    assert (done.returncode, done.stderr) == (0, "")
    (data,) = bench.receive(1)
    message = decode(data)
    assert (message.id, message.run, message.attempt, list(message.strikes)) == ("aa", 2, 1, [])
    assert bench.keys() == ["bb:3"]


def test_all_of_a_queue_are_requeued(bench: Bench) -> None:
    bench.put(*(letter(f"t{n}", queue="slow") for n in range(450)), letter("other"))
    done = bench.psq("dead", "requeue", "--queue", "slow")
    assert done.stdout.splitlines()[-1] == "450 requeued"
    assert bench.keys() == ["other:3"]


def test_an_undecodable_payload_is_shown_and_requeued_as_it_is(bench: Bench) -> None:
    payload = b"\xff\x00 not ours"
    bench.put(letter("bad-77", 1, payload=payload, function="", reason="undecodable"))
    assert "ff002006" not in bench.psq("dead", "show", "bad-77").stdout
    assert "ff00206e" in bench.psq("dead", "show", "bad-77").stdout
    assert bench.psq("dead", "requeue", "bad-77").returncode == 0
    assert bench.receive(1) == [payload]
    assert bench.keys() == []


def test_killed_between_publish_and_delete_it_may_run_twice_and_is_not_lost(bench: Bench) -> None:
    bench.put(letter("aa"))
    kill = (
        "import os\n"
        "from psq.dead import dead_letters\n"
        "import psq.cli.places as places\n"
        "def killed(broker, storage):\n"
        "    place = dead_letters(broker, storage)\n"
        "    place.discard = lambda letters: os._exit(9)\n"
        "    return place\n"
        "places.dead_letters = killed\n"
    )
    assert bench.psq("dead", "requeue", "aa", before=kill).returncode == 9
    assert bench.keys() == ["aa:3"]
    assert bench.psq("dead", "requeue", "aa").returncode == 0
    assert [decode(data).id for data in bench.receive(2)] == ["aa", "aa"]
    assert bench.keys() == []


def test_rich_is_not_loaded_for_a_pipe(bench: Bench) -> None:
    bench.put(letter("aa"))
    check = "import atexit, sys\natexit.register(lambda: sys.stderr.write(str('rich' in sys.modules)))"
    assert bench.psq("dead", "list", before=check).stderr == "False"
