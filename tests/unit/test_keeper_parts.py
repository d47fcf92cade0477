"""The keeper's smaller parts: its log, pid file, signals, pauses, loop, lease clients."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

import pytest

from psq.errors import ConfigError
from psqd.keeper.clients import Clients, client_from
from psqd.keeper.log import MAX_WAITING, Log
from psqd.keeper.loop import Loop
from psqd.keeper.pid_file import PidFile
from psqd.keeper.signals import Signals, name_of
from psqd.keeper.worker_process import Ended, Pauses, Settings, Worker
from tests.unit.lease_script import Clock, ScriptedClient

pytestmark = pytest.mark.unpatched

# the log


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_line_has_the_layout_of_the_workers_lines(pipe: tuple[int, int]) -> None:
    log = Log(pipe[1], lambda: 1795560001.123)
    log.info("worker 7 started")
    log.warning("that")
    log.debug("not asked for")
    log.close()
    pid = os.getpid()
    assert os.read(pipe[0], 4096).decode().splitlines() == [
        f"2026-11-24T22:40:01.123Z INFO  keeper[{pid}] worker 7 started",
        f"2026-11-24T22:40:01.123Z WARNING keeper[{pid}] that",
    ]


def test_a_line_has_the_keys_of_the_workers_json(pipe: tuple[int, int]) -> None:
    log = Log(pipe[1], lambda: 1795560001.5)
    log.configure("json", "warning")
    log.info("not asked for")
    log.error('a "quote"')
    log.close()
    (line,) = os.read(pipe[0], 4096).splitlines()
    assert json.loads(line) == {
        "time": "2026-11-24T22:40:01.500Z",
        "level": "ERROR",
        "logger": "keeper",
        "pid": os.getpid(),
        "message": 'a "quote"',
    }


def test_text_from_outside_can_neither_forge_a_line_nor_drive_a_terminal() -> None:
    log = Log()
    line = log.line("INFO", "a\nINFO forged \x1b[31m")
    assert line.endswith(r"a\nINFO forged \x1b[31m")
    assert len(log.line("INFO", "x" * 100_000)) < 10_000


def test_settings_that_are_unknown_change_nothing() -> None:
    log = Log()
    log.configure("xml", "loud")
    assert (log.format, log.level) == ("text", 20)


def read_lines(reader: int, log: Log, count: int) -> None:
    """Read all, so that its thread ends: it would write to whatever has the number of the pipe afterwards."""
    left = count * (len(log.line("INFO", "x" * 1000)) + 1)
    while left:
        left -= len(os.read(reader, left))


def test_a_log_that_nobody_reads_stops_nobody(pipe: tuple[int, int]) -> None:
    log = Log(pipe[1])
    for _ in range(20 * MAX_WAITING):
        log.info("x" * 1000)
    assert log.dropped > 0
    log.close(0.01)
    read_lines(pipe[0], log, 20 * MAX_WAITING - log.dropped)


def test_a_settled_log_has_written_its_lines_and_one_that_nobody_reads_does_not_wait(pipe: tuple[int, int]) -> None:
    log = Log(pipe[1])
    assert log.settle(0.0)  # it has nothing to write
    log.info("before the stacks")
    assert log.settle(30.0)
    assert os.read(pipe[0], 4096).endswith(b"before the stacks\n")
    for _ in range(MAX_WAITING // 2):  # more than a pipe holds
        log.info("x" * 1000)
    assert not log.settle(0.01)
    read_lines(pipe[0], log, MAX_WAITING // 2)
    assert log.settle(30.0)
    log.close()


def test_a_log_that_is_closed_at_the_other_end_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = Log(writer)
    log.info("nobody reads this")
    log.close()
    os.close(writer)


# the pid file


def test_a_pid_file_replaces_one_that_was_left_over_and_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "psqd.pid"
    path.write_text("99999\n")
    file = PidFile(path)
    file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_pid_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="'" + str(tmp_path / "missing" / "psqd.pid") + "'$"):
        PidFile(tmp_path / "missing" / "psqd.pid").write()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        PidFile(tmp_path / "folder").write()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# signals


def test_signals_are_read_in_order_and_what_was_there_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGHUP)
    signals = Signals()
    signals.install()
    try:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert signals.read() == [signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1]
        assert signals.read() == []
    finally:
        signals.restore()
        signals.restore()
    assert signal.getsignal(signal.SIGHUP) is before


def test_every_signal_has_a_name() -> None:
    assert name_of(9) == "SIGKILL"
    assert name_of(50) == "signal 50"
    assert str(Ended(-9)) == "SIGKILL"
    assert str(Ended(2)) == "exit 2"


# workers


def test_pauses_grow_to_half_a_minute_and_start_over_after_a_healthy_life() -> None:
    pauses = Pauses()
    assert [pauses.after(1.0) for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert pauses.after(61.0) == 0
    assert pauses.after(1.0) == 0.5


def test_what_a_worker_does_not_say_is_the_default() -> None:
    assert Settings.of({"op": "settings", "shutdown_timeout": 3, "max_strikes": 0, "log_level": None}) == Settings(
        shutdown_timeout=3, max_strikes=0
    )


@pytest.fixture
def sleeper() -> Iterator[Worker]:
    worker = Worker.start([sys.executable, "-c", "import time; time.sleep(600)"], time.monotonic())
    yield worker
    worker.kill("the test is over")
    with contextlib.suppress(ChildProcessError):  # it was reaped
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    worker.reap()
    worker.link.close()


def test_a_stall_is_seen_twice_before_it_counts(sleeper: Worker) -> None:
    sleeper.settings = Settings(hub_stall_limit=300)
    beat = sleeper.link.heartbeat()
    assert not sleeper.stalled(beat + 298)
    assert sleeper.look_again() == pytest.approx(beat + 299, abs=0.1)
    # We were both stopped for an hour, and are going on: it beats in a moment.
    assert not sleeper.stalled(beat + 3600)
    assert sleeper.look_again() == beat + 3601
    assert sleeper.stalled(beat + 3601)


def test_a_stall_counts_the_moment_it_is_longer_than_allowed(sleeper: Worker) -> None:
    sleeper.settings = Settings(hub_stall_limit=300)
    beat = sleeper.link.heartbeat()
    seen = sleeper.look_again()
    assert not sleeper.stalled(seen)
    assert sleeper.look_again() == pytest.approx(beat + 300, abs=0.1)
    assert not sleeper.stalled(beat + 300)
    assert sleeper.stalled(sleeper.look_again())


def test_a_worker_that_beats_again_after_a_pause_of_the_machine_did_not_stall(sleeper: Worker) -> None:
    beat = sleeper.link.heartbeat()
    assert not sleeper.stalled(beat + 3600)
    sleeper.link._memory[:8] = struct.pack("d", beat + 3600.5)
    assert not sleeper.stalled(beat + 3601)
    assert sleeper.look_again() == pytest.approx(beat + 3899.5, abs=0.1)


def test_a_worker_that_was_reaped_gets_no_more_signals(sleeper: Worker) -> None:
    assert sleeper.reap() is None
    sleeper.kill("enough")
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert sleeper.reap() == Ended(-signal.SIGKILL)
    sleeper.signal(signal.SIGTERM)
    sleeper.kill("again")
    assert sleeper.ending == "enough"


def test_what_is_written_before_the_broker_is_known_is_kept(sleeper: Worker) -> None:
    from psqd.keeper.leases import Leases

    sleeper.apply([("T", "s", [(0, "a", 0.0, None)])])
    sleeper.apply([("T", "s", [(1, "b", 0.0, None)])])
    sleeper.leases = Leases(ScriptedClient(Clock()), lambda: None, lambda slots, keys: None)
    sleeper.apply([("R", [0])])
    assert [lease[1] for lease in sleeper.leases.held()["s"]] == ["b"]


# the loop


def test_the_loop_calls_for_what_is_readable_until_it_is_muted(pipe: tuple[int, int]) -> None:
    loop = Loop()
    calls: list[bytes] = []
    loop.watch(pipe[0], lambda: calls.append(os.read(pipe[0], 1)))
    os.write(pipe[1], b"ab")
    loop.wait(inf)
    loop.mute(pipe[0])
    loop.wait(0.0)
    assert calls == [b"a"]
    loop.unmute(pipe[0])
    loop.wait(inf)
    assert calls == [b"a", b"b"]
    loop.unwatch(pipe[0])
    loop.unwatch(pipe[0])
    loop.close()


def test_another_thread_ends_a_wait_of_the_loop() -> None:
    loop = Loop()
    thread = threading.Thread(target=loop.wake)
    thread.start()
    loop.wait(inf)
    thread.join()
    loop.close()
    loop.wake()  # a late answer is no error


def test_a_call_that_ends_another_watch_is_not_followed_by_its_call() -> None:
    loop = Loop()
    one, two = os.pipe(), os.pipe()
    calls: list[int] = []

    def first_come(fd: int) -> None:
        calls.append(fd)
        loop.unwatch(one[0])
        loop.unwatch(two[0])

    for reader, writer in (one, two):
        loop.watch(reader, lambda fd=reader: first_come(fd))  # type: ignore[misc]
        os.write(writer, b"x")
    loop.wait(inf)
    assert len(calls) == 1
    loop.close()
    for fd in (*one, *two):
        os.close(fd)


# lease clients


class Client(ScriptedClient):
    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(Clock())
        self.spec, self.state = spec, "made"

    def connect(self) -> None:
        self.state = "connected"

    def close(self) -> None:
        self.state = "closed"


def test_a_lease_client_is_kept_over_the_death_of_a_worker() -> None:
    clients = Clients(Client)
    first = clients.of({"kind": "a"})
    assert isinstance(first, Client)
    assert first.state == "connected"
    assert clients.of({"kind": "a"}) is first
    second = clients.of({"kind": "b"})
    assert isinstance(second, Client)
    assert first.state == "connected"  # something may still be given back through it
    clients.close_old()
    assert first.state == "closed"
    assert second.state == "connected"
    clients.close()
    clients.close()
    assert second.state == "closed"


def test_a_lease_client_of_no_known_kind_is_an_error() -> None:
    with pytest.raises(ConfigError, match="carrier pigeon"):
        client_from({"kind": "carrier pigeon"})


def test_a_lease_client_for_a_file_is_made_without_anything_of_the_worker(tmp_path: Path) -> None:
    client = client_from({"kind": "sqlite", "path": str(tmp_path / "psq.db")})
    assert client.knows_documents
    client.close()
