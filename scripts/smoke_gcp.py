"""Tries psq and psqd on the real service; scripts/smoke-gcp.sh says how, and what is needed before.

Each step prints what it measured. A step that is not as promised is marked, and
makes the exit code 1; the steps after it are still tried. All that was made is
deleted in any case.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
from smoke_cleanup import delete_entities, delete_topics

import psq

HERE = Path(__file__).resolve().parent
QUEUES = ["smoke", "hog"]
CONFIG = """\
broker: {broker}
storage: {storage}
imports: [smoke_tasks]
path: [{here}]
queues:
  smoke: {{concurrency: 200}}
  hog: {{concurrency: 1}}
http: {{bind: "127.0.0.1:{port}"}}
logging: {{tasks: failures}}
"""


class Failed(Exception):
    """A step is not as promised; the text says what."""


class Smoke:
    """One trial: its names, its daemon, its figures.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="psq-smoke-"))
        self.name = f"psq-smoke-{uuid.uuid4().hex[:8]}"
        self.prefix = f"{self.name}-"
        at = f"&endpoint={options.endpoint}" if options.endpoint else ""
        self.broker = f"pubsub://{options.project}?prefix={self.prefix}{at}"
        at = f"&endpoint={options.datastore_endpoint}" if options.datastore_endpoint else ""
        self.storage = options.storage or f"datastore://{options.project}?namespace={self.name}{at}"
        self.client = psq.connect(self.broker)
        self.queue = psq.Queue(self.client, "smoke", storage=self.storage)
        self.results = self.storage != "none"
        self.journal = self.folder / "journal"
        self.journal.touch()
        self.port = free_port()
        self.daemon: subprocess.Popen[bytes] | None = None
        self.problems: list[str] = []

    # what the steps share

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """A step: an error is told, kept, and the next one is tried."""
        print(f"\n{what}", flush=True)
        try:
            yield
        except (Failed, psq.PsqError, OSError, subprocess.SubprocessError) as error:
            self.problems.append(f"{what}: {error}")
            print(f"   NOT AS PROMISED: {type(error).__name__}: {error}", flush=True)

    def say(self, what: str, value: str) -> None:
        """A figure."""
        print(f"   {what:42} {value}", flush=True)

    def starts(self) -> Counter[str]:
        """How often each task was started."""
        return Counter(line.split()[1] for line in self.journal.read_text().splitlines())

    def started_after(self, instant: float, ids: set[str]) -> list[float]:
        """Seconds from an instant to the first start of each task after it."""
        found: dict[str, float] = {}
        for line in self.journal.read_text().splitlines():
            _, task, at = line.split()
            if task in ids and float(at) > instant:
                found.setdefault(task, float(at) - instant)
        return sorted(found.values())

    def wait_started(self, ids: set[str], seconds: float) -> None:
        """Until each of these tasks has been started."""
        wait_for(
            lambda: ids <= set(self.starts()), seconds, lambda: f"{len(ids - set(self.starts()))} tasks not started"
        )

    def once(self, ids: set[str]) -> None:
        """Tell how many of these tasks were started more than once."""
        twice = sum(count > 1 for task, count in self.starts().items() if task in ids)
        self.say("started more than once", f"{twice} of {len(ids)}" + (" (allowed, but rare)" if twice else ""))

    def metric(self, name: str) -> float:
        """A figure of the daemon, of all queues."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        values = re.findall(rf"^{name}(?:_total)?(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, values))

    # the steps

    def run(self) -> None:
        """All steps, in order."""
        with self.step("Making a topic and its subscription"):
            self.declare()
        if self.problems:
            return  # nothing else would work
        with self.step("Publishing, before any daemon runs"):
            self.publish()
        with self.step("A daemon comes, and does what waits"):
            self.start()
            self.work()
        if self.daemon is None:
            return
        with self.step("From enqueue to the result"):
            self.round_trip()
        with self.step("A delayed task, and a large one"):
            self.delayed_and_large()
        with self.step("A task that computes without a pause, beside tasks that wait"):
            self.hog()
        with self.step("kill -9 of the worker, while it runs 20 tasks"):
            self.kill()
        with self.step("Stopping"):
            self.stop()

    def declare(self) -> None:
        """The first enqueue makes what is missing."""
        began = time.monotonic()
        self.first = self.queue.enqueue("smoke_tasks:quick", 0)
        self.say("topic, subscription and first publish", f"{time.monotonic() - began:.2f} s")

    def publish(self) -> None:
        """One at a time, many at a time."""
        times = []
        for number in range(30):
            began = time.monotonic()
            self.queue.enqueue("smoke_tasks:quick", number)
            times.append(1000 * (time.monotonic() - began))
        self.say("round trip of enqueue: median, worst", f"{statistics.median(times):.0f} ms, {max(times):.0f} ms")
        began = time.monotonic()
        with ThreadPoolExecutor(50) as pool:
            sent = list(pool.map(lambda n: self.queue.enqueue("smoke_tasks:quick", n).id, range(self.options.tasks)))
        self.say("enqueue from 50 threads", f"{len(sent) / (time.monotonic() - began):,.0f} tasks/s")
        calls = [("smoke_tasks:quick", (number,), {}) for number in range(self.options.tasks)]
        began = time.monotonic()
        sent += [result.id for result in self.queue.enqueue_many(calls)]
        self.say("enqueue_many", f"{self.options.tasks / (time.monotonic() - began):,.0f} tasks/s")
        self.sent = set(sent)

    def start(self) -> None:
        """`psqd --check`, then psqd."""
        file = self.folder / "psqd.yaml"
        file.write_text(CONFIG.format(broker=self.broker, storage=self.storage, here=HERE, port=self.port))
        psqd = [sys.executable, "-m", "psqd", "-c", str(file)]
        environment = os.environ | {"SMOKE_JOURNAL": str(self.journal), "PYTHONPATH": str(HERE.parent)}
        check = subprocess.run(
            [*psqd, "--check"], check=False, env=environment, capture_output=True, text=True, timeout=120
        )
        for line in (check.stdout + check.stderr).splitlines():
            self.say("psqd --check", line)
        if check.returncode:
            raise Failed(f"psqd --check ended with exit code {check.returncode}")
        began = time.monotonic()
        with open(self.folder / "psqd.log", "wb") as log:
            self.daemon = subprocess.Popen(psqd, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self.ready, 120, lambda: "psqd is not ready")
        self.say("ready after", f"{time.monotonic() - began:.1f} s")

    def ready(self) -> bool:
        """True when every queue is served."""
        if self.daemon is None or self.daemon.poll() is not None:
            raise Failed("psqd has ended: its log stands below")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def work(self) -> None:
        """What waited is done, every task."""
        self.wait_started(self.sent, 300)
        lines = [float(line.split()[2]) for line in self.journal.read_text().splitlines()]
        seconds = max(0.001, max(lines) - min(lines))
        self.say("tasks run", f"{len(lines) / seconds:,.0f} tasks/s ({len(lines)} in {seconds:.1f} s)")
        self.pulls()
        self.once(self.sent)
        if self.results and self.first.result(timeout=60) != 0:
            raise Failed("a result is not what the task returned")

    def pulls(self) -> None:
        """How the service answered."""
        answered, empty, received = (
            self.metric(name) for name in ("psqd_receives", "psqd_receives_empty", "psqd_received")
        )
        full = max(1.0, answered - empty)
        self.say("pulls answered, of them with nothing", f"{answered:.0f}, {empty:.0f}")
        self.say("messages a pull that brought any", f"{received / full:.1f}")

    def round_trip(self) -> None:
        """One task after another, each waited for."""
        times = []
        for number in range(10):
            began = time.monotonic()
            sent = self.queue.enqueue("smoke_tasks:quick", number)
            if self.results:
                sent.result(timeout=60)
            else:
                self.wait_started({sent.id}, 60)
            times.append(1000 * (time.monotonic() - began))
        until = "its result is read" if self.results else "it starts"
        self.say(f"until {until}: median, worst", f"{statistics.median(times):.0f} ms, {max(times):.0f} ms")

    def delayed_and_large(self) -> None:
        """Never early; 9.9 MB."""
        due = time.time() + 12
        delayed = self.queue.enqueue_at(due, "smoke_tasks:quick", 1)
        began = time.time()
        large = self.queue.enqueue("smoke_tasks:size", "x" * 9_900_000)
        self.wait_started({large.id}, 60)
        self.say("9.9 MB: from enqueue to start", f"{self.started_after(began, {large.id})[0]:.1f} s")
        self.wait_started({delayed.id}, 60)
        [late] = self.started_after(due - 12, {delayed.id})
        self.say("due in 12 s: started late by", f"{late - 12:.2f} s")
        if late < 12 - 0.001:  # the journal's milliseconds
            raise Failed("a delayed task was started too early")

    def hog(self) -> None:
        """Longer than a lease: the keeper extends what the busy worker can't."""
        seconds = self.options.hog
        naps = {result.id for result in self.queue.enqueue_many([("smoke_tasks:nap", (seconds + 5,), {})] * 20)}
        self.wait_started(naps, 60)
        hog = psq.Queue(self.client, "hog", storage=self.storage).enqueue("smoke_tasks:hog", seconds)
        self.wait_started({hog.id}, 60)
        self.say("computing for", f"{seconds:.0f} s, first lease 10 s, extensions 30 s")
        time.sleep(seconds + 8)  # a lease that was lost would have shown by now
        self.once(naps | {hog.id})
        lost = self.metric("psqd_leases_lost")
        self.say("leases lost", f"{lost:.0f}")
        if lost or any(count > 1 for task, count in self.starts().items() if task in naps | {hog.id}):
            raise Failed("a task was delivered twice while another computed")

    def kill(self) -> None:
        """Its tasks start again in the next worker."""
        assert self.daemon is not None
        naps = {result.id for result in self.queue.enqueue_many([("smoke_tasks:nap", (8,), {})] * 20)}
        self.wait_started(naps, 60)
        [worker] = psutil.Process(self.daemon.pid).children()
        instant = time.time()
        worker.kill()
        wait_for(lambda: len(self.started_after(instant, naps)) == len(naps), 60, lambda: "not all were started again")
        again = self.started_after(instant, naps)
        self.say("started again, in a new worker, after", f"{again[0]:.1f} s, the last after {again[-1]:.1f} s")

    def stop(self) -> None:
        """TERM."""
        assert self.daemon is not None
        began = time.monotonic()
        self.daemon.terminate()
        code = self.daemon.wait(timeout=60)
        self.say("TERM: exit code, after", f"{code}, {time.monotonic() - began:.1f} s")
        if code != 0:
            raise Failed(f"exit code {code}")

    def end(self) -> None:
        """Stop what runs, delete what was made."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()
            time.sleep(3)  # its worker gives back, and ends
        if self.options.keep:
            print(f"\nKept: topics and subscriptions {self.prefix}…, entities of namespace {self.name}, {self.folder}")
            return
        left = delete_topics(self.client, self.options.project, self.prefix, QUEUES)
        if not self.options.storage:
            left += delete_entities(self.queue.storage)
        self.client.close()
        print("\nCleaned up." if not left else "\nLEFT OVER, delete it by hand:\n   " + "\n   ".join(left))
        self.problems += left
        if self.problems and (self.folder / "psqd.log").exists():
            print("\nThe end of psqd's log:")
            print("   " + "\n   ".join((self.folder / "psqd.log").read_text(errors="replace").splitlines()[-40:]))
        shutil.rmtree(self.folder)


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float, problem: Callable[[], str]) -> None:
    """Wait until a condition holds, or raise `Failed`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{problem()} after {seconds:.0f} s")
        time.sleep(0.05)


def main() -> int:
    """Try it; 0 or 1."""
    parser = argparse.ArgumentParser(prog="scripts/smoke-gcp.sh", description="Try psq and psqd on the real service.")
    parser.add_argument("project", help="the project's id")
    parser.add_argument("--storage", help="a storage's URL, or none; default: the project's Datastore")
    parser.add_argument("--endpoint", metavar="HOST", help="a regional endpoint, europe-west1-pubsub.googleapis.com")
    parser.add_argument("--datastore-endpoint", metavar="HOST", help="likewise, of Datastore")
    parser.add_argument("--tasks", type=int, default=2000, help="tasks for the throughput, twice as many in all")
    parser.add_argument("--hog", type=float, default=35.0, help="seconds for which a task computes")
    parser.add_argument("--keep", action="store_true", help="delete nothing at the end")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that it cleans up then, too
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    for name in ("PUBSUB_EMULATOR_HOST", "DATASTORE_EMULATOR_HOST"):
        if os.environ.get(name):
            print(f"{name} is set: what follows says nothing about the real service")
    try:
        smoke = Smoke(options)
    except psq.PsqError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"psq {psq.__version__} on {smoke.broker}, results in {smoke.storage}")
    try:
        smoke.run()
    except KeyboardInterrupt:
        smoke.problems.append("interrupted")
    finally:
        smoke.end()
    if smoke.problems:
        print("\nNot as promised:", *smoke.problems, sep="\n   ")
        return 1
    print("\nAll as promised. Please tell us the figures: an issue with this page is worth more than our emulators.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
