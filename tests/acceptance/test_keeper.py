"""The real keeper with a stand-in worker: real signals, real processes, a scripted lease client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.keeper_bench import KeeperBench, Peer, wait_gone
from tests.acceptance.processes import alive

pytestmark = pytest.mark.unpatched

Start = Callable[..., KeeperBench]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    benches: list[KeeperBench] = []

    def make(**options: Any) -> KeeperBench:
        bench = KeeperBench(tmp_path, **options)
        benches.append(bench)
        return bench

    yield make
    for bench in benches:
        bench.close()


def constants(**values: float) -> dict[str, str]:
    return {"KEEPER_CONSTANTS": json.dumps(values)}


def keys_of(events: list[dict[str, Any]], name: str) -> set[str]:
    return {key for event in events if event.get("event") == name for key in event["keys"]}


# start and stop


def test_a_drain_ends_with_exit_0_and_leaves_nothing_over(start: Start) -> None:
    bench = start()
    worker, client = bench.serving()
    assert bench.pid_file.read_text() == f"{bench.process.pid}\n"
    assert worker.hello["sid"] == worker.pid  # a kill of the keeper's process group does not hit it
    bench.signal(signal.SIGTERM)
    worker.message("drain")
    assert bench.exit_code() == 0
    assert client.rest()[-1]["event"] == "close"
    assert not alive(worker.pid)
    assert not bench.pid_file.exists()
    assert list(bench.folder.iterdir()) == [bench.folder / "stderr"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_before_the_worker_is_up_ends_it_at_once(start: Start, number: signal.Signals) -> None:
    bench = start(environ={"STANDIN_HANDLERS": "no", "STANDIN_LISTENS": "no"})
    worker = bench.worker()
    bench.signal(number)
    assert bench.exit_code() == 0
    assert not alive(worker.pid)


def test_a_stop_of_a_worker_that_neither_listens_nor_dies_of_it_ends_too(start: Start) -> None:
    bench = start(environ={"STANDIN_LISTENS": "no", **constants(UNBORN_GRACE=0.2)})
    worker = bench.worker()
    worker.do("nothing")  # its handlers are there
    bench.signal(signal.SIGTERM)
    assert bench.exit_code() == 0
    assert not alive(worker.pid)


def test_a_worker_that_gets_its_settings_out_during_a_stop_drains_in_order(start: Start) -> None:
    bench = start()
    worker = bench.worker()
    worker.do("ignore")
    bench.signal(signal.SIGTERM)
    worker.message("drain")
    bench.settle(worker, shutdown_timeout=0.1)
    worker.do("take", source="s", keys=["k"])
    client = bench.clients.get(timeout=20)
    assert client.event("give_back")["keys"] == ["k"]
    assert bench.exit_code() == 1


@pytest.mark.parametrize(("code", "why"), [(2, "the config, an option or an import"), (3, "refused")])
def test_a_worker_that_cannot_start_ends_psqd_with_its_code_and_the_last_line_says_so(
    start: Start, code: int, why: str
) -> None:
    bench = start()
    bench.worker().say(do="exit", code=code)
    assert bench.exit_code() == code
    assert not bench.pid_file.exists()
    last = bench.log().splitlines()[-1]
    assert f"exit code {code}" in last
    assert why in last


def test_a_worker_that_is_refused_after_its_settings_ends_psqd_with_its_code(start: Start) -> None:
    bench = start()
    worker = bench.worker()
    bench.settle(worker)
    worker.say(do="exit", code=3)
    assert bench.exit_code() == 3


def test_a_worker_that_crashes_before_it_is_ready_is_started_again(start: Start) -> None:
    bench = start()
    bench.worker().say(do="exit", code=1)
    worker, _ = bench.serving()
    assert alive(worker.pid)


def test_a_config_that_broke_under_a_running_daemon_does_not_end_it(start: Start) -> None:
    bench = start()
    worker, _ = bench.serving()
    worker.say(do="exit", code=1)
    bench.worker().say(do="exit", code=2)
    bench.logged("a new worker is started in 0.5 s")
    bench.signal(signal.SIGHUP)  # it was mended: no need to wait
    worker = bench.worker()
    bench.signal(signal.SIGTERM)
    assert bench.exit_code() == 0


def test_a_pid_file_that_cannot_be_written_is_exit_2(tmp_path: Path, start: Start) -> None:
    (tmp_path / "psqd.pid").mkdir()
    bench = start()
    assert bench.exit_code() == 2
    assert "pid file" in bench.log()


def test_a_pid_file_of_another_process_is_not_removed(start: Start) -> None:
    bench = start()
    bench.serving()
    bench.pid_file.write_text("1\n")
    bench.signal(signal.SIGTERM)
    assert bench.exit_code() == 0
    assert bench.pid_file.read_text() == "1\n"


# a worker that dies


def test_a_killed_worker_is_given_back_struck_and_replaced(start: Start) -> None:
    bench = start()
    worker, client = bench.serving()
    worker.do(
        "take", source="s", keys=["waits", "runs", "ended", "acked"], states=["", "started", "ended"], data='{"a":1}'
    )
    worker.do("release", slots=[3])
    killed = time.monotonic()
    os.kill(worker.pid, signal.SIGKILL)
    strike = client.event("strike")
    back = client.event("give_back")
    assert strike["keys"] == ["runs"]
    assert strike["documents"] == ['{"a":1}']
    assert strike["record"]["signal"] == "SIGKILL"
    assert strike["record"]["host"]
    assert strike["record"]["at"] == pytest.approx(time.time(), abs=20)
    assert sorted(back["keys"]) == ["ended", "waits"]
    assert back["at"] - killed < 1.0  # a promise; a few milliseconds on an idle machine
    successor = bench.worker()
    assert successor.pid != worker.pid
    bench.settle(successor)
    successor.do("take", source="s", keys=["next"])
    os.kill(successor.pid, signal.SIGKILL)
    assert client.event("give_back")["keys"] == ["next"]  # the same connection: it was made at start


def test_a_segfault_leaves_the_state_of_each_task(start: Start) -> None:
    bench = start()
    worker, client = bench.serving()
    worker.do("take", source="s", keys=["a", "b"], states=["started"])
    worker.say(do="segfault")
    strike = client.event("strike")
    assert strike["keys"] == ["a"]
    assert strike["record"]["signal"] == "SIGSEGV"
    assert client.event("give_back")["keys"] == ["b"]


@pytest.mark.parametrize("code", [7, 0])  # os._exit(0) in a task kills the worker as well
def test_a_worker_that_exits_by_itself_is_a_death_too(start: Start, code: int) -> None:
    bench = start()
    worker, client = bench.serving()
    worker.do("take", source="s", keys=["a"], states=["started"])
    worker.say(do="exit", code=code)
    assert client.event("strike")["record"]["signal"] == f"exit {code}"
    bench.worker()


def test_a_started_task_without_a_document_is_given_back_without_a_strike(start: Start) -> None:
    bench = start()
    worker, client = bench.serving()
    worker.do("take", source="s", keys=["large"], states=["started"], data=None)
    os.kill(worker.pid, signal.SIGKILL)
    assert client.event("give_back")["keys"] == ["large"]
    bench.logged("1 started tasks are given back without a strike")


def test_a_broker_that_has_the_documents_strikes_without_ours(start: Start) -> None:
    bench = start()
    worker, client = bench.serving(lease_spec={"kind": "sqlite"})
    worker.do("take", source="s", keys=["k"], states=["started"], data=None)
    os.kill(worker.pid, signal.SIGKILL)
    assert client.event("strike")["keys"] == ["k"]


def test_no_strikes_where_they_are_switched_off(start: Start) -> None:
    bench = start()
    worker, client = bench.serving(max_strikes=0)
    worker.do("take", source="s", keys=["k"], states=["started"])
    os.kill(worker.pid, signal.SIGKILL)
    assert client.event("give_back")["keys"] == ["k"]


def test_what_a_dead_worker_held_is_offered_while_the_broker_is_away_until_it_is_taken(start: Start) -> None:
    bench = start()
    worker, client = bench.serving()
    worker.do("take", source="s", keys=["a", "b"], states=["started"])
    client.say(mode="away")
    client.event("mode")
    os.kill(worker.pid, signal.SIGKILL)
    for _ in range(3):
        client.event("strike")
        client.event("give_back")
    client.say(mode="ok")
    bench.logged("given back 1, struck 1")
    successor = bench.worker()
    assert alive(successor.pid)


def test_subprocesses_of_tasks_end_with_a_killed_worker(start: Start) -> None:
    bench = start()
    worker, _ = bench.serving()
    worker.do("child")
    child = worker.event("child")["pid"]
    assert alive(child)
    os.kill(worker.pid, signal.SIGKILL)
    wait_gone(child)


def test_workers_that_die_early_are_started_after_growing_pauses(start: Start) -> None:
    bench = start()
    worker, _ = bench.serving()
    worker.say(do="exit", code=1)
    bench.worker().say(do="exit", code=1)
    bench.worker().say(do="exit", code=1)
    bench.worker()
    log = bench.log()
    assert "a new worker is started\n" in log
    assert "a new worker is started in 0.5 s" in log
    assert "a new worker is started in 1.0 s" in log


def test_a_stop_during_the_pause_between_workers_ends_at_once(start: Start) -> None:
    bench = start()
    worker, _ = bench.serving()
    worker.say(do="exit", code=1)
    bench.worker().say(do="exit", code=1)
    bench.logged("started in 0.5 s")
    bench.signal(signal.SIGTERM)
    assert bench.exit_code() == 0


def test_a_worker_that_writes_nonsense_is_ended_and_replaced(start: Start) -> None:
    bench = start()
    worker, client = bench.serving()
    worker.do("take", source="s", keys=["k"], states=["started"])
    client.say(mode="ok")
    client.event("mode")
    worker.say(do="write", bytes="\x04\x00\x00\x00????")
    assert client.event("give_back")["keys"] == ["k"]  # no strike: the keeper ended it
    assert bench.worker().pid != worker.pid


def test_a_worker_that_closed_its_link_is_ended_and_replaced(start: Start) -> None:
    bench = start(environ=constants(CLOSED_GRACE=0.1))
    worker, client = bench.serving()
    worker.do("take", source="s", keys=["k"], states=["started"])
    worker.say(do="close link")
    assert client.event("give_back")["keys"] == ["k"]
    assert bench.worker().pid != worker.pid


# a keeper that dies


def test_a_killed_keeper_is_seen_by_its_worker(start: Start) -> None:
    bench = start()
    worker, _ = bench.serving()
    worker.do("child")  # a task's subprocess does not hold the link open
    bench.signal(signal.SIGKILL)
    worker.event("end")
    wait_gone(worker.pid)


def test_a_kill_of_the_keepers_process_group_hits_the_keeper_alone(start: Start) -> None:
    bench = start()
    worker, _ = bench.serving()
    os.killpg(bench.process.pid, signal.SIGKILL)
    worker.event("end")  # it lives to tell


# signals


def test_a_second_stop_ends_at_once_gives_back_and_exits_1(start: Start) -> None:
    bench = start()
    worker, client = bench.serving()
    worker.do("ignore")
    worker.do("take", source="s", keys=["a", "b"], states=["started"])
    bench.signal(signal.SIGTERM)
    worker.message("drain")
    bench.signal(signal.SIGTERM)
    assert bench.exit_code() == 1
    events = client.rest()
    assert keys_of(events, "give_back") == {"a", "b"}
    assert keys_of(events, "strike") == set()
    assert not alive(worker.pid)


def test_a_worker_that_does_not_drain_is_killed_at_the_deadline_with_its_stacks(start: Start) -> None:
    bench = start(environ=constants(DRAIN_SLACK=0.1))
    worker, client = bench.serving(shutdown_timeout=0.1)
    worker.do("ignore")
    worker.do("take", source="s", keys=["a", "b"], states=["started"])
    bench.signal(signal.SIGTERM)
    assert bench.exit_code() == 1
    events = client.rest()
    assert keys_of(events, "give_back") == {"a", "b"}
    assert keys_of(events, "strike") == set()
    assert not alive(worker.pid)
    assert "Fatal Python error: Aborted" in bench.log()
    assert "standin_worker.py" in bench.log()


def test_leases_stay_alive_while_it_drains(start: Start) -> None:
    bench = start(environ=constants(DRAIN_SLACK=0.0))
    worker, client = bench.serving(shutdown_timeout=2)
    worker.do("ignore")
    bench.signal(signal.SIGTERM)
    worker.message("drain")
    worker.do("take", source="s", keys=["k"], seconds=1)
    assert client.event("extend")["keys"] == ["k"]
    assert bench.exit_code() == 1


def test_a_worker_that_crashes_while_it_drains_is_not_replaced_and_exit_1(start: Start) -> None:
    bench = start()
    worker, client = bench.serving()
    worker.do("ignore")
    worker.do("take", source="s", keys=["k"], states=["started"])
    bench.signal(signal.SIGTERM)
    worker.message("drain")
    os.kill(worker.pid, signal.SIGKILL)
    assert client.event("strike")["keys"] == ["k"]
    assert bench.exit_code() == 1


def test_a_worker_that_dies_in_its_exit_handlers_with_nothing_held_has_stopped(start: Start) -> None:
    bench = start()
    worker, _ = bench.serving()
    worker.do("ignore")
    worker.do("take", source="s", keys=["k"])
    bench.signal(signal.SIGTERM)
    worker.message("drain")
    worker.do("send", message={"op": "stopping"})
    worker.do("release", slots=[0])
    worker.say(do="segfault")
    assert bench.exit_code() == 0


def test_an_exit_waits_for_what_is_given_back_but_not_for_a_broker_that_is_away(start: Start) -> None:
    bench = start(environ=constants(LAST_GRACE=0.3))
    worker, client = bench.serving()
    worker.do("ignore")
    worker.do("take", source="s", keys=["k"])
    client.say(mode="away")
    client.event("mode")
    bench.signal(signal.SIGTERM)
    worker.message("drain")
    bench.signal(signal.SIGTERM)
    assert bench.exit_code() == 1
    assert "1 deliveries could not be given back in time" in bench.log()


def test_reloads_are_forwarded_and_a_burst_is_one(start: Start) -> None:
    bench = start(environ=constants(RELOAD_PAUSE=1.0))
    worker, _ = bench.serving()
    bench.signal(signal.SIGHUP)
    worker.message("reload")
    for _ in range(20):
        bench.signal(signal.SIGHUP)
    worker.message("reload")
    bench.signal(signal.SIGUSR1)
    between = worker.until(lambda event: event.get("message", {}).get("op") == "reopen_logs")
    assert [event["message"]["op"] for event in between] == ["reopen_logs"]


def test_a_reload_after_a_stop_is_ignored(start: Start) -> None:
    bench = start()
    worker, _ = bench.serving()
    worker.do("ignore")
    bench.signal(signal.SIGTERM)
    worker.message("drain")
    bench.signal(signal.SIGHUP)
    bench.logged("SIGHUP")
    bench.signal(signal.SIGUSR1)
    between = worker.until(lambda event: event.get("message", {}).get("op") == "reopen_logs")
    assert "reload" not in [event["message"]["op"] for event in between]


@pytest.mark.parametrize(
    ("number", "op"),
    [
        (signal.SIGTSTP, "pause"),
        (signal.SIGCONT, "continue"),
        (signal.SIGUSR1, "reopen_logs"),
        (signal.SIGHUP, "reload"),
    ],
)
def test_signals_become_messages(start: Start, number: signal.Signals, op: str) -> None:
    bench = start()
    worker, _ = bench.serving()
    bench.signal(number)
    worker.message(op)


def test_a_pause_holds_for_the_next_worker_too(start: Start) -> None:
    bench = start()
    worker, _ = bench.serving()
    bench.signal(signal.SIGTSTP)
    worker.message("pause")
    os.kill(worker.pid, signal.SIGKILL)
    successor = bench.worker()
    bench.settle(successor)
    successor.message("pause")  # the answer to these settings
    successor.do("send", message={"op": "ready"})
    bench.signal(signal.SIGCONT)
    successor.message("continue")


def test_a_dump_has_the_workers_stacks_and_what_is_held(start: Start) -> None:
    bench = start()
    worker, _ = bench.serving()
    worker.do("take", source="s", keys=["k"])
    bench.signal(signal.SIGUSR2)
    worker.message("dump")
    bench.logged("holds s 1")
    bench.logged("standin_worker.py")
    assert alive(worker.pid)


def test_a_dump_before_the_worker_is_up_does_not_kill_it(start: Start) -> None:
    bench = start(environ={"STANDIN_HANDLERS": "no"})
    worker = bench.worker()
    bench.signal(signal.SIGUSR2)
    worker.message("dump")
    bench.settle(worker)
    assert alive(worker.pid)


# stalls and lost leases


def test_a_hub_that_stands_still_is_ended_with_its_stacks_given_back_and_replaced(start: Start) -> None:
    bench = start()
    worker, client = bench.serving(hub_stall_limit=0.5)
    worker.do("take", source="s", keys=["a", "b"], states=["started"])
    worker.do("stop beating")
    back = client.until(lambda event: event["event"] in ("give_back", "strike"))[-1]
    assert back["event"] == "give_back"
    assert set(back["keys"]) == {"a", "b"}
    assert bench.worker().pid != worker.pid
    log = bench.logged("its hub stood still")
    assert "Fatal Python error: Aborted" in log


def test_a_stopped_worker_keeps_its_leases(start: Start) -> None:
    bench = start()
    worker, client = bench.serving()
    worker.do("take", source="s", keys=["k"], seconds=1)
    os.kill(worker.pid, signal.SIGSTOP)
    assert client.event("extend")["keys"] == ["k"]
    os.kill(worker.pid, signal.SIGCONT)
    worker.do("release", slots=[0])


def test_a_worker_is_told_which_leases_are_lost(start: Start) -> None:
    bench = start()
    worker, client = bench.serving(sources={"s": {"lease": 10, "ack_deadline": 0.4, "max_lease": 3600}})
    client.say(mode="away")
    client.event("mode")
    worker.do("take", source="s", keys=["k"], seconds=0.4)
    message = worker.message("lost")["message"]
    assert message == {"op": "lost", "slots": [0], "keys": ["k"]}
    bench.logged("1 leases are lost")


def test_a_server_that_never_answers_does_not_keep_the_keeper_from_anything(start: Start) -> None:
    bench = start(environ=constants(LAST_GRACE=0.2))
    worker, client = bench.serving()
    client.say(mode="silent")
    client.event("mode")
    worker.do("take", source="s", keys=["k"], seconds=1)
    client.event("extend")
    bench.signal(signal.SIGHUP)
    worker.message("reload")
    os.kill(worker.pid, signal.SIGKILL)
    assert client.event("give_back")["keys"] == ["k"]
    bench.worker()


# as the first process of a container


def _may_unshare() -> bool:
    return subprocess.run(["unshare", "-Upf", "--map-root-user", "true"], capture_output=True).returncode == 0


@pytest.fixture
def container(start: Start) -> KeeperBench:
    if not _may_unshare():
        pytest.skip("this machine does not let us make a process namespace")
    return start(prefix=["unshare", "-Upf", "--map-root-user", "--mount-proc", "--kill-child"])


def _outside(bench: KeeperBench, inner: int) -> int:
    """The id out here of a process in the container."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        ids = lines.get("NSpid", "").split()
        if len(ids) == 2 and ids[1] == str(inner) and _in_container(bench, int(ids[0])):
            return int(ids[0])
    raise AssertionError(f"no process {inner} in the container")


def _in_container(bench: KeeperBench, pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{bench.process.pid}/ns/pid_for_children")
    except OSError:
        return False


def test_the_first_process_of_a_container_replaces_a_killed_worker_and_reaps_orphans(container: KeeperBench) -> None:
    worker, client = container.serving()
    assert container.pid_file.read_text() == "1\n"
    worker.do("orphan")
    orphan = worker.event("orphan")["pid"]
    outer = _outside(container, orphan)
    os.kill(outer, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{outer}").exists():  # as a zombie it would be there for ever
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.do("take", source="s", keys=["k"])
    os.kill(worker.pid, signal.SIGKILL)
    assert client.event("give_back")["keys"] == ["k"]
    successor: Peer = container.worker()
    container.settle(successor)
    os.kill(client.pid, signal.SIGTERM)
    successor.message("drain")
    assert container.exit_code() == 0
