"""`make demo`: see psqd run tasks, die by kill -9 in the middle of them, and lose nothing.

Starts the real psqd with conf/psqd.yaml on the embedded broker, in a state
folder of its own and on free ports, and enqueues the tasks of
examples/tasks.py. What is shown of a task is read back from storage. Exit code
0 when every result is right and no process is left, else 1.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import psq
from psq.storages.base import TERMINAL, TaskRecord

ROOT = Path(__file__).resolve().parent.parent
MARK = f"PSQ_DEMO={uuid.uuid4()}"  # in the environment of all that we start, to find what is left of it
START_LIMIT = 30.0  # seconds for a daemon to be ready
TASKS_LIMIT = 60.0  # seconds for all tasks to end


class DemoFailed(Exception):
    """Something is not as it should be; the text says what."""


@dataclass
class Shown:
    """A task that was enqueued, and what must come of it."""

    what: str
    result: psq.TaskResult
    check: Callable[[TaskRecord, Any], str]  # "" when right, else what is wrong
    record: TaskRecord | None = None


@dataclass
class Daemon:
    """A psqd process of the demo."""

    title: str
    process: subprocess.Popen[bytes]
    port: int

    def ready(self) -> bool:
        """True when every queue of the daemon is being served."""
        if self.process.poll() is not None:
            raise DemoFailed(f"{self.title} ended with exit code {self.process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@dataclass
class Demo:
    """The state folder, the daemons, and the tasks."""

    folder: Path
    began: float = field(default_factory=time.monotonic)
    daemons: list[Daemon] = field(default_factory=list)
    tasks: list[Shown] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line, with the seconds since the start."""
        print(f"{time.monotonic() - self.began:6.1f}  {text}", flush=True)

    def environment(self) -> dict[str, str]:
        """The environment of daemons: nothing of the caller's psq settings, the demo's own files."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PSQ_", "PSQD_"))}
        name, _, value = MARK.partition("=")
        return own | {"PSQ_BROKER": self.broker_url, name: value}

    @property
    def broker_url(self) -> str:
        """Broker and storage: one file in the demo's own folder."""
        return f"sqlite://{self.folder}/psq.db"

    def start(self, title: str) -> Daemon:
        """Start a psqd and wait until it serves its queues."""
        port = free_port()
        with open(self.folder / "psqd.log", "ab") as log:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("psqd")), "-c", "conf/psqd.yaml"],
                cwd=ROOT,
                env=self.environment() | {"PSQD_HTTP_PORT": str(port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        daemon = Daemon(title, process, port)
        self.daemons.append(daemon)
        wait_for(daemon.ready, START_LIMIT, f"{title} is not ready")
        self.say(f"{title} is ready: psqd -c conf/psqd.yaml, process {process.pid}, worker {worker_of(process.pid)}")
        return daemon

    def enqueue(self, queue: psq.Queue, what: str, check: Callable[[TaskRecord, Any], str], *call: Any) -> None:
        """Enqueue a task and remember what must come of it."""
        self.tasks.append(Shown(what, queue.enqueue(*call), check))

    def watch(self, queue: psq.Queue, until: Callable[[], bool], seconds: float, problem: str) -> None:
        """Read the tasks from storage, show each that has ended, until a condition holds."""

        def look() -> bool:
            waiting = {task.result.id: task for task in self.tasks if task.record is None}
            for task_id, record in queue.storage.get(list(waiting)).items():
                if record.state in TERMINAL:
                    waiting[task_id].record = record
                    self.say(line_of(waiting[task_id]))
            return until()

        wait_for(look, seconds, problem)

    def all_ended(self) -> bool:
        """True when every task has a terminal state in storage."""
        return all(task.record is not None for task in self.tasks)


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], seconds: float, problem: str) -> None:
    """Wait until a condition holds, or fail with the problem."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"{problem} after {seconds:.0f} s")
        time.sleep(0.1)


def worker_of(pid: int) -> int:
    """The process that runs a daemon's tasks: the child of psqd."""
    children = psutil.Process(pid).children()
    return children[0].pid if children else 0


def line_of(task: Shown) -> str:
    """One task as storage has it."""
    record = task.record
    assert record is not None
    pid = record.worker.rpartition(":")[2]
    said = record.error["message"] if record.error else task.result.result(timeout=0)
    return f"  {record.state:9} {task.what:24} attempt {record.attempt}  worker {pid:>7}  {said}"


def left_over() -> list[psutil.Process]:
    """Processes of this demo that still run."""
    name, _, value = MARK.partition("=")
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def finished(expected: Callable[[Any], bool], attempt: int = 1) -> Callable[[TaskRecord, Any], str]:
    """A check: the task finished, at this attempt, with a result as expected."""

    def check(record: TaskRecord, value: Any) -> str:
        if record.state != "finished" or record.attempt != attempt:
            return f"{record.state} at attempt {record.attempt}, not finished at attempt {attempt}"
        return "" if expected(value) else f"wrong result {value!r}"

    return check


def failed(error_type: str) -> Callable[[TaskRecord, Any], str]:
    """A check: the task failed with this error."""

    def check(record: TaskRecord, value: Any) -> str:
        kind = record.error["type"] if record.error else "no error"
        return "" if record.state == "failed" and kind == error_type else f"{record.state} with {kind}"

    return check


def run(demo: Demo) -> None:
    """The demo itself."""
    demo.say(f"state folder {demo.folder}")
    first = demo.start("the daemon")
    first_worker = worker_of(first.process.pid)

    client = psq.connect(demo.broker_url)
    queue, fleet = psq.Queue(client), psq.BroadcastQueue(client, "fleet")
    diary = demo.folder / "diary"
    slow = 6
    for number in range(1, 9):
        demo.enqueue(
            queue, f"fast({number})", finished(lambda v, n=number: v["square"] == n * n), "examples.tasks:fast", number
        )
    for number in range(1, slow + 1):
        demo.enqueue(
            queue, f"slow(3) no. {number}", finished(lambda v: v["slept"] >= 3), "examples.tasks:slow", 3, str(diary)
        )
    demo.enqueue(
        queue, "flaky, fails twice", finished(lambda v: v["attempt"] == 3, attempt=3), "examples.tasks:flaky", 2
    )
    demo.enqueue(
        queue, "broken, no retries", failed("builtins:ValueError"), "examples.tasks:broken", "as it was told to"
    )
    due = time.time() + 5
    demo.enqueue(
        queue.options(eta=due),
        "reminder, due in 5 s",
        finished(lambda v: 0 <= v["late"] < 30),
        "examples.tasks:reminder",
        "tea",
        due,
    )
    demo.say(f"{len(demo.tasks)} tasks are enqueued; each that ends is read back from storage:")

    def slow_started() -> bool:
        return diary.exists() and len(diary.read_text().splitlines()) == slow

    demo.watch(queue, slow_started, TASKS_LIMIT, "the slow tasks have not started")
    demo.say(f"kill -9 of process {first.process.pid}, while {slow} slow tasks run in its worker")
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()

    second = demo.start("the daemon, started again,")
    demo.watch(queue, demo.all_ended, TASKS_LIMIT, "not every task has ended")

    third = demo.start("a second daemon, for the broadcast,")
    fleet.enqueue("examples.tasks:announce", str(demo.folder / "heard"), "to all of you")
    heard = demo.folder / "heard"
    workers = {worker_of(daemon.process.pid) for daemon in (second, third)}

    def heard_by() -> set[int]:
        return {int(path.name.rpartition("-")[2]) for path in heard.iterdir()}

    wait_for(lambda: heard_by() >= workers, TASKS_LIMIT, "the broadcast was not heard by both workers")
    demo.say(f"  broadcast heard by workers {', '.join(map(str, sorted(heard_by())))}")

    for daemon in (second, third):
        daemon.process.terminate()
    for daemon in (second, third):
        code = daemon.process.wait(timeout=40)
        if code != 0:
            raise DemoFailed(f"{daemon.title} did not stop cleanly: exit code {code}")
    demo.say("TERM: both daemons stopped, exit code 0")
    judge(demo, first_worker, diary.read_text().splitlines())
    client.close()


def judge(demo: Demo, first_worker: int, diary: Iterable[str]) -> None:
    """Compare all that storage said with what must have come of it."""
    problems = []
    for task in demo.tasks:
        assert task.record is not None
        value = task.result.result(timeout=0) if task.record.state == "finished" else None
        if problem := task.check(task.record, value):
            problems.append(f"{task.what}: {problem}")
    starts = Counter(line.split()[0] for line in diary)
    for task in demo.tasks:
        if not task.what.startswith("slow"):
            continue
        if starts[task.result.id] != 2:
            problems.append(f"{task.what}: started {starts[task.result.id]} times, not twice")
        if task.record and task.record.worker.endswith(f":{first_worker}"):
            problems.append(f"{task.what}: its result is from the worker that was killed")
    if problems:
        raise DemoFailed("\n        ".join(problems))
    states = Counter(task.record.state for task in demo.tasks if task.record)
    demo.say(
        f"all as it should be: {states['finished']} finished, {states['failed']} failed as it was told to; "
        "the slow ones were begun twice and finished once"
    )


def main() -> int:
    """Run the demo; 0 or 1."""
    folder = Path(tempfile.mkdtemp(prefix="psq-demo-"))
    (folder / "heard").mkdir()
    demo = Demo(folder)
    problem = ""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left over then, either
    try:
        run(demo)
    except DemoFailed as error:
        problem = str(error)
    except subprocess.TimeoutExpired:
        problem = "a daemon did not stop after TERM"
    except psq.PsqError as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        for daemon in demo.daemons:  # the one whose parent died by -9 needs a moment to end by itself
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()
        deadline = time.monotonic() + 5
        while left_over() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = left_over()
        for process in left:
            process.kill()
    if left and not problem:
        problem = f"processes were left over: {', '.join(str(process.pid) for process in left)}"
    if problem:
        demo.say(f"FAILED: {problem}")
        log = folder / "psqd.log"
        if log.exists():
            print(f"\nthe end of {log}:", *log.read_text(errors="replace").splitlines()[-30:], sep="\n  ")
        return 1
    shutil.rmtree(folder)
    demo.say("no process is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
