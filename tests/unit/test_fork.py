"""After a fork the client makes itself anew, whatever the parent was in the middle of."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

import psq
from psq import fork
from tests.unit.memory import MemoryBroker, MemoryStorage

ROOT = Path(__file__).parents[2]


def test_brokers_storages_and_clients_are_told() -> None:
    broker, storage = MemoryBroker(), MemoryStorage()
    q = psq.Queue(psq.Client(broker=broker), storage=storage)
    lock = q.client._lock
    fork._in_child()
    assert (broker.resets, storage.resets) == (1, 1)
    assert q.client._lock is not lock, "the parent's may be held for ever"


def test_what_is_told_is_not_kept_alive() -> None:
    reference = weakref.ref(fork.reset_after_fork(MemoryBroker()))
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("mode", ["plain", "patched"])
def test_children_forked_in_the_middle_of_enqueues_and_waits_enqueue_and_wait(tmp_path: Path, mode: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.fork_script", str(tmp_path / "psq.db"), mode],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[0, 0, 0]" in done.stdout
