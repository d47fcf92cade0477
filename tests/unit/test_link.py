"""The link between keeper and worker, both ends in one process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from psqd.keeper.link import ENDED, FREE, LINK_VARIABLE, STARTED, KeeperEnd, LinkBroken, WorkerEnd

# Both ends in one process: the keeper's is never patched. Patched, the worker's end is tested by real daemons.
pytestmark = pytest.mark.unpatched

pytestmark = pytest.mark.unpatched

Ends = tuple[KeeperEnd, WorkerEnd]


@pytest.fixture
def ends() -> Iterator[Ends]:
    keeper = KeeperEnd()
    copies = [os.dup(fd) for fd in keeper.worker_fds]
    environ = {LINK_VARIABLE: ",".join(map(str, copies)), "HOME": "/"}
    worker = WorkerEnd.from_environment(environ)
    assert worker is not None
    assert environ == {"HOME": "/"}
    keeper.close_worker_side()
    yield keeper, worker
    keeper.close()
    worker.close()


def read_all(keeper: KeeperEnd) -> list[tuple[Any, ...]]:
    frames: list[tuple[Any, ...]] = []
    while True:
        more, size, _ = keeper.read_leases()
        frames += more
        if not size:
            return frames


def read_until(keeper: KeeperEnd, count: int) -> list[tuple[Any, ...]]:
    frames: list[tuple[Any, ...]] = []

    def enough() -> bool:
        frames.extend(read_all(keeper))
        return len(frames) >= count

    wait_until(enough)
    return frames


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        threading.Event().wait(0.001)


def test_without_a_keeper_there_is_no_link() -> None:
    assert WorkerEnd.from_environment({}) is None


def test_an_environment_that_names_no_descriptors_is_an_error() -> None:
    for value in ("", "1,2", "a,b,c", "900001,900002,900003"):
        with pytest.raises(ValueError, match=LINK_VARIABLE):
            WorkerEnd.from_environment({LINK_VARIABLE: value})


def test_descriptors_are_not_inherited_by_subprocesses(ends: Ends) -> None:
    keeper, worker = ends
    assert not os.get_inheritable(worker.fileno_leases())
    assert not os.get_inheritable(keeper.leases_fd)
    assert not os.get_inheritable(keeper.control_fd)


def test_leases_arrive_as_they_were_taken_and_released(ends: Ends) -> None:
    keeper, worker = ends
    first, second = worker.allocate(), worker.allocate()
    leases = [(first, "ack-1", 12.5, b"{}"), (second, "ack-2", 13.5, None)]
    worker.take("projects/p/subscriptions/s", leases)
    worker.release([first])
    assert read_all(keeper) == [("T", "projects/p/subscriptions/s", leases), ("R", [first])]


def test_a_slot_is_used_again_only_after_its_release_was_written(ends: Ends) -> None:
    keeper, worker = ends
    slot = worker.allocate()
    worker.take("s", [(slot, "k", 1.0, b"x" * (3 << 20))])  # more than the pipe holds
    assert worker.backlog() > 0
    worker.release([slot])
    assert worker.allocate() != slot
    assert [frame[0] for frame in read_until(keeper, 2)] == ["T", "R"]
    wait_until(lambda: worker.backlog() == 0)
    assert worker.allocate() == slot


def test_what_does_not_fit_is_written_by_itself_and_in_order(ends: Ends) -> None:
    keeper, worker = ends
    for number in range(400):
        worker.take("s", [(number, f"k{number}", 1.0, b"x" * 10_000)])
    assert worker.backlog() > 0  # four megabytes, of which the pipe holds one
    assert [frame[2][0][0] for frame in read_until(keeper, 400)] == list(range(400))
    wait_until(lambda: worker.backlog() == 0)


def test_a_keeper_that_is_gone_stops_nothing(ends: Ends) -> None:
    keeper, worker = ends
    keeper.close()
    slot = worker.allocate()
    worker.take("s", [(slot, "k", 1.0, b"x" * (3 << 20))])
    worker.release([slot])
    worker.send({"op": "ready"})
    assert worker.backlog() == 0
    assert worker.allocate() == slot


def test_states_of_slots_are_seen_at_once(ends: Ends) -> None:
    keeper, worker = ends
    slot = worker.allocate()
    assert keeper.state(slot) == FREE
    worker.mark_started(slot)
    assert keeper.state(slot) == STARTED
    worker.mark_ended(slot)
    assert keeper.state(slot) == ENDED
    worker.release([slot])
    assert keeper.state(slot) == FREE


def test_the_slot_that_started_last_is_known_when_it_has_ended_too(ends: Ends) -> None:
    keeper, worker = ends
    assert keeper.last_started() == -1
    first, second = worker.allocate(), worker.allocate()
    worker.mark_started(second)
    worker.mark_started(first)
    worker.mark_ended(second)
    assert keeper.last_started() == first
    worker.mark_ended(first)
    assert keeper.last_started() == first


def test_the_heartbeat_is_the_last_beat_and_before_it_the_links_birth(ends: Ends) -> None:
    keeper, worker = ends
    born = keeper.heartbeat()
    assert 0 < born <= time.monotonic()
    worker.beat()
    assert born < keeper.heartbeat() <= time.monotonic()


WRITER = """
import os
from psqd.keeper.link import WorkerEnd
worker = WorkerEnd.from_environment(os.environ)
worker.mark_started(7)
print("begun", flush=True)
while True:
    worker.beat()
    worker.mark_started(7)
"""


def test_what_the_keeper_reads_while_the_worker_writes_it_is_whole() -> None:
    """With `struct.pack_into`, which clears first, 4 of 100 looks saw a heartbeat of 0: a hub that stands still."""
    keeper = KeeperEnd()
    born = keeper.heartbeat()
    command = [sys.executable, "-c", WRITER]
    environment = {**os.environ, **keeper.environment}
    fds = keeper.worker_fds
    with subprocess.Popen(command, env=environment, pass_fds=fds, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            looks = [(keeper.heartbeat(), keeper.last_started()) for _ in range(200_000)]
        finally:
            process.kill()
    keeper.close()
    assert min(beat for beat, _ in looks) >= born
    assert {slot for _, slot in looks} == {7}


def test_messages_go_both_ways_and_in_order(ends: Ends) -> None:
    keeper, worker = ends
    for number in range(100):
        worker.send({"op": "settings", "n": number})
    messages, open_ = keeper.read_control()
    assert open_
    assert [message["n"] for message in messages] == list(range(100))
    got: list[dict[str, Any]] = []
    ended = threading.Event()
    worker.listen(got.append, ended.set)
    keeper.send({"op": "reload"})
    keeper.send({"op": "lost", "slots": list(range(50_000))})
    keeper.send({"op": "drain"})
    wait_until(lambda: len(got) == 3)
    assert [message["op"] for message in got] == ["reload", "lost", "drain"]
    assert len(got[1]["slots"]) == 50_000
    keeper.close()
    assert ended.wait(10)


def test_a_listener_is_told_once_when_the_keeper_is_gone(ends: Ends) -> None:
    keeper, worker = ends
    calls: list[str] = []
    ended = threading.Event()

    def on_end() -> None:
        calls.append("end")
        ended.set()

    worker.listen(lambda message: None, on_end)
    with pytest.raises(RuntimeError):
        worker.listen(lambda message: None, on_end)
    keeper.close()
    assert ended.wait(10)
    assert calls == ["end"]


def test_the_keeper_sees_the_end_of_a_worker(ends: Ends) -> None:
    keeper, worker = ends
    worker.take("s", [(worker.allocate(), "k", 1.0, None)])
    worker.send({"op": "stopping"})
    worker.close()
    frames, _, open_ = keeper.read_leases()
    assert open_
    assert len(frames) == 1
    assert keeper.read_leases() == ([], 0, False)
    assert keeper.read_control() == ([{"op": "stopping"}], False)


def test_half_a_frame_is_not_a_frame(ends: Ends) -> None:
    keeper, worker = ends
    worker.release([7])
    os.write(worker.fileno_leases(), b"\x08\x00\x00\x00half")
    assert read_all(keeper) == [("R", [7])]


def test_nonsense_in_the_pipe_is_told(ends: Ends) -> None:
    keeper, worker = ends
    os.write(worker.fileno_leases(), b"\x04\x00\x00\x00\xff\xff\xff\xff")
    with pytest.raises(LinkBroken):
        keeper.read_leases()


def test_nonsense_on_the_control_socket_is_told(ends: Ends) -> None:
    keeper, worker = ends
    worker._control.write(b"no json\n")
    with pytest.raises(LinkBroken):
        keeper.read_control()


def test_a_forked_child_neither_speaks_for_the_worker_nor_keeps_its_pipe_open(ends: Ends) -> None:
    keeper, worker = ends
    go, done = os.pipe()
    said, says = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 does not like it where there are threads
        child = os.fork()
    if child == 0:  # as multiprocessing does in a task
        with contextlib.suppress(BaseException):
            worker.release([1])
            worker.send({"op": "ready"})
            os.close(done)
            os.write(says, b"x")
            os.read(go, 1)
        os._exit(0)
    os.close(go)
    assert os.read(said, 1) == b"x"
    worker.close()
    assert keeper.read_leases() == ([], 0, False)
    assert keeper.read_control() == ([], False)
    for fd in (done, said, says):
        os.close(fd)
    os.waitpid(child, 0)
