"""A task whose workers died twice runs in a process of its own: as any task does, and whatever ends around it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import psq
from psq.brokers.base import Outgoing
from psq.concurrency import Waiter
from psq.message import Message, attributes, encode
from psq.serializers import dump_call
from psq.storages.sqlite import SQLiteStorage
from tests.acceptance.memory_group import memory_group
from tests.acceptance.processes import ROOT, wait_until
from tests.integration import hogs, jobs
from tests.integration.daemons import Site

CONFIG = {"queues": {"default": {"concurrency": 5, "retry": {"first": 0.1}}}, "shutdown_timeout": 5}


def send_suspect(
    place: Site, function: Callable[..., object], *args: object, queue: str = "default", **more: object
) -> psq.TaskResult:
    """Enqueue a task that has two strikes."""
    q = psq.Queue(psq.connect(place.broker), queue, storage=place.storage)
    strikes = [{"signal": "SIGKILL", "host": "h", "at": time.time() - n} for n in range(2)]
    name = f"{function.__module__}:{function.__qualname__}"
    tagged, _ = dump_call(args, {}, name)
    message = Message(os.urandom(8).hex(), name, tagged, {}, strikes=strikes, **more)  # type: ignore[arg-type]
    waiter = Waiter()
    out = Outgoing(q.spec, encode(message), attributes(message), None, message.id)
    q.client.broker.publish(out, lambda _, error: waiter.set(error))
    assert waiter.wait(20)
    assert waiter.value is None
    return psq.TaskResult(message.id, q)


def pid_of(place: Site, result: psq.TaskResult, start: int = 0) -> int:
    """The process in which a start of a task happened."""
    wait_until(lambda: place.runs("start")[result.id] > start, 30, place.logs)
    return int([line for line in place.journal("start") if line[1] == result.id][start][2])


def test_it_runs_there_as_any_task_does(front_site: Site) -> None:
    place = front_site
    daemon = place.daemon("a", CONFIG).start()
    who = send_suspect(place, jobs.who)
    seen = who.result(timeout=30)
    assert (seen["id"], seen["queue"], seen["current_queue"]) == (who.id, "default", "default")
    assert (seen["attempt"], seen["strikes"]) == (1, 2)
    assert send_suspect(place, jobs.enqueues_on_own_queue).result(timeout=30) == [True, 42]
    assert send_suspect(place, jobs.fails_until, 2, retries=2).result(timeout=30) == 2
    with pytest.raises(psq.TaskFailed, match=r"time_limit of 0\.5 s"):
        send_suspect(place, jobs.nap, 30, time_limit=0.5).result(timeout=30)
    with pytest.raises(ValueError, match="oh"):
        send_suspect(place, jobs.fails, "oh").result(timeout=30)
    with pytest.raises(psq.TaskFailed, match="result of"):
        send_suspect(place, jobs.unstorable).result(timeout=30)
    beside = psq.Queue(psq.connect(place.broker), storage=place.storage)
    worker = daemon.worker_pid()
    assert beside.enqueue(jobs.nap, 0.01).result(timeout=20) == "slept"
    pids = {int(line[2]) for line in place.journal("run")}
    assert len(pids) == 1
    assert worker not in pids
    assert int(place.journal("end")[-1][2]) == worker
    assert daemon.stop() == 0
    place.nothing_left()


def test_who_kills_its_whole_process_group_there_leaves_the_worker_alone(sqlite_site: Site) -> None:
    daemon = sqlite_site.daemon("a", CONFIG).start()
    worker = daemon.worker_pid()
    with pytest.raises(psq.TaskFailed, match="worker died"):
        send_suspect(sqlite_site, jobs.kills, "group").result(timeout=30)
    assert daemon.worker_pid() == worker
    assert send_suspect(sqlite_site, jobs.adder, 1, 2).result(timeout=30) == 3


@pytest.mark.parametrize(
    "victim", ["worker", pytest.param("keeper", marks=pytest.mark.slow), pytest.param("both", marks=pytest.mark.slow)]
)
def test_it_ends_with_its_worker_and_runs_again_without_a_strike(sqlite_site: Site, victim: str) -> None:
    config = {**CONFIG, "queues": {"default": {"ack_deadline": 10, "lease": 10}}}
    first = sqlite_site.daemon("first", config).start()
    result = send_suspect(sqlite_site, jobs.nap, 3)
    pid = pid_of(sqlite_site, result)
    alone = psutil.Process(pid)
    worker = first.worker_pid()
    assert pid != worker
    pids = {"worker": [worker], "keeper": [first.pid], "both": [first.pid, worker]}[victim]
    for one in pids:
        os.kill(one, signal.SIGKILL)
    gone, _ = psutil.wait_procs([alone], timeout=3)
    assert gone
    if victim != "worker":
        sqlite_site.nothing_left()
        sqlite_site.daemon("second", config).start()
    assert pid_of(sqlite_site, result, start=1) != pid
    assert result.result(timeout=40) == "slept"
    assert SQLiteStorage(sqlite_site.broker.removeprefix("sqlite://")).get_dead(result.id) == []


@pytest.mark.slow
def test_who_stands_still_there_is_seen_in_the_log_ended_with_its_stacks_and_given_back(sqlite_site: Site) -> None:
    imports = ["tests.integration.jobs", "tests.integration.hogs"]
    daemon = sqlite_site.daemon("a", {**CONFIG, "hub_stall_limit": 5, "imports": imports}).start()
    worker = daemon.worker_pid()
    short = send_suspect(sqlite_site, hogs.hog, "python", 2.0)
    daemon.wait_line(rf"task {short.id} \(tests.integration.hogs:hog\) does not yield")
    assert short.result(timeout=20) == "python"
    stands = send_suspect(sqlite_site, jobs.keeps_the_interpreter)
    pid = pid_of(sqlite_site, stands)
    daemon.signal(signal.SIGUSR2)
    daemon.wait_line(
        rf'jobs.py", line {jobs.keeps_the_interpreter.__code__.co_firstlineno + 3} in keeps_the_interpreter'
    )
    seen = daemon.mark()
    assert psutil.pid_exists(pid)
    daemon.wait_line(r"Fatal Python error: Aborted", since=seen)
    daemon.wait_line(r"did not end in a process of its own: .*\(hub_stall_limit\)", since=seen)
    assert pid_of(sqlite_site, stands, start=1) != pid
    assert daemon.worker_pid() == worker
    assert daemon.stop() == 0
    sqlite_site.nothing_left()


@pytest.mark.slow
def test_it_ends_with_worker_and_keeper_while_c_code_keeps_its_interpreter(sqlite_site: Site) -> None:
    daemon = sqlite_site.daemon("a", CONFIG).start()
    pid_of(sqlite_site, send_suspect(sqlite_site, jobs.keeps_the_interpreter))
    for pid in (daemon.pid, daemon.worker_pid()):
        os.kill(pid, signal.SIGKILL)
    sqlite_site.nothing_left()


def test_it_finds_what_the_worker_found_and_knows_what_a_reload_has_brought(sqlite_site: Site) -> None:
    daemon = sqlite_site.daemon("a", CONFIG)
    daemon.config_path = Path(os.path.relpath(daemon.config_path, ROOT))
    daemon.start()
    q = psq.Queue(psq.connect(sqlite_site.broker), storage=sqlite_site.storage)
    assert q.enqueue(jobs.moves).result(timeout=30) == "/"
    assert send_suspect(sqlite_site, jobs.adder, 1, 2).result(timeout=20) == 3
    daemon.configure({**CONFIG, "queues": {"default": {}, "fresh": {}}})
    daemon.signal(signal.SIGHUP)
    daemon.wait_line("reloaded: added fresh")
    assert send_suspect(sqlite_site, jobs.adder, 3, 4, queue="fresh").result(timeout=20) == 7


@pytest.mark.slow
def test_who_dies_for_the_memory_of_others_is_no_dead_letter(sqlite_site: Site) -> None:
    door = sqlite_site.folder / "door"
    with memory_group(500 << 20) as group, contextlib.ExitStack() as stack:
        stack.callback(sqlite_site.nothing_left)
        stack.callback(sqlite_site.end)
        daemon = sqlite_site.daemon("a", CONFIG)
        daemon.prefix = group.prefix
        daemon.start()
        innocent = send_suspect(sqlite_site, jobs.until, str(door))
        pid_of(sqlite_site, innocent)
        psq.Queue(psq.connect(sqlite_site.broker), storage=sqlite_site.storage).enqueue(jobs.kills, "memory slowly")
        daemon.wait_line("was ended for memory, which others may have taken")
        door.touch()
        innocent.result(timeout=60)


def test_a_stop_gives_back_who_runs_alone_and_who_waits_for_it(sqlite_site: Site) -> None:
    first = sqlite_site.daemon("first", {**CONFIG, "shutdown_timeout": 2}).start()
    runs = send_suspect(sqlite_site, jobs.nap, 4)
    pid_of(sqlite_site, runs)
    waits = send_suspect(sqlite_site, jobs.adder, 1, 2)
    began = time.monotonic()
    assert first.stop() == 0
    assert time.monotonic() - began <= 2 + 5
    sqlite_site.nothing_left()
    sqlite_site.daemon("second", CONFIG).start()
    assert waits.result(timeout=30) == 3
    assert runs.result(timeout=30) == "slept"
    assert sqlite_site.runs("start")[runs.id] == 2


def test_under_psqworker_it_runs_there_in_its_contexts_too(sqlite_site: Site) -> None:
    worker = sqlite_site.worker("w", "tests.integration.flask_place.q", imports=["tests.integration.jobs"])
    assert send_suspect(sqlite_site, jobs.context_of_flask, queue="web").result(timeout=30) == "shop"
    worker.wait_line("starts again in a process of its own")
    assert worker.stop() == 0
    sqlite_site.nothing_left()
