"""Real psqd processes for the tests: a config, the process, its lines, its worker, its end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.acceptance.processes import ROOT, Family, family, wait_until

__all__ = ["Psqd", "Site", "site"]

#: How long a daemon may take to be ready on a busy machine of two cores, seconds.
START = 60.0


class Psqd:
    """One psqd process and what it says."""

    def __init__(self, where: Site, name: str, config: Mapping[str, Any], **environment: str) -> None:
        self.site, self.name = where, name
        self.config_path = where.folder / f"{name}.yaml"
        self.lines: list[str] = []
        self._seen = threading.Condition()
        self._environment = environment
        self.configure(config)
        self.process: subprocess.Popen[str] | None = None
        #: A command that becomes the daemon.
        self.prefix: Sequence[str] = ()

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write its file."""
        document = {"broker": self.site.broker, "imports": ["tests.integration.jobs"], **config}
        if "storage" not in document and self.site.storage:
            document["storage"] = self.site.storage
        fresh = self.config_path.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(document))
        fresh.replace(self.config_path)

    def command(self) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "psqd", "-c", str(self.config_path)]

    def start(self, *, wait: bool = True) -> Psqd:
        """Start it, and wait until it is ready."""
        environment = self.site.environment(**self._environment)
        command = [*self.prefix, *self.command()]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        if wait:
            self.wait_line(r"ready: \d+ queues", START)
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for line in stream:
                with self._seen:
                    self.lines.append(line.rstrip("\n"))
                    self._seen.notify_all()
        with self._seen:
            self._seen.notify_all()

    @property
    def log(self) -> str:
        """All it said."""
        return "\n".join(self.lines)

    def mark(self) -> int:
        """The number of lines so far, for `wait_line`."""
        return len(self.lines)

    def wait_line(self, pattern: str, seconds: float = 30.0, *, since: int = 0) -> re.Match[str]:
        """Wait until a line matches."""
        deadline = time.monotonic() + seconds
        with self._seen:
            at = since
            while True:
                while at < len(self.lines):
                    if found := re.search(pattern, self.lines[at]):
                        return found
                    at += 1
                left = deadline - time.monotonic()
                ended = self.process is not None and self.process.poll() is not None
                if left <= 0 or (ended and at >= len(self.lines)):
                    raise AssertionError(f"no line of {self.name} matches {pattern!r}; it said:\n{self.log}")
                self._seen.wait(min(left, 0.2))

    @property
    def pid(self) -> int:
        """The keeper's."""
        assert self.process is not None
        return self.process.pid

    def worker_pid(self) -> int:
        """The worker's."""
        children = psutil.Process(self.pid).children()
        assert len(children) == 1, f"{self.name} has {len(children)} children"
        return int(children[0].pid)

    def signal(self, number: int) -> None:
        """Send the keeper a signal."""
        os.kill(self.pid, number)

    def stop(self, seconds: float = 45.0) -> int:
        """TERM, and its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = 45.0) -> int:
        """Its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {seconds} s; it said:\n{self.log}") from None


class Psqworker(Psqd):
    """One psqworker process."""

    def __init__(self, where: Site, name: str, queue: str, imports: Sequence[str]) -> None:
        super().__init__(where, name, {}, TEST_BROKER=where.broker, TEST_STORAGE=where.storage or "none")
        self._queue, self._imports = queue, imports

    def command(self) -> list[str]:
        """The command line."""
        options = [part for module in self._imports for part in ("--import", module)]
        run = "from psqd.cli import psqworker; psqworker()"
        return [sys.executable, "-c", run, "--path", str(ROOT), *options, self._queue]


class Site:
    """A folder, a broker and a storage, a journal, and the daemons that use them."""

    def __init__(self, folder: Path, it: Family, broker: str, storage: str | None, more: Mapping[str, str]) -> None:
        self.folder, self._family, self.broker, self.storage, self._more = folder, it, broker, storage, dict(more)
        self.journal_path = folder / "journal"
        self.daemons: list[Psqd] = []

    def environment(self, **more: str) -> dict[str, str]:
        """For daemons and senders."""
        return self._family.environment(
            TEST_JOURNAL=str(self.journal_path),
            PYTHONPATH=str(ROOT),
            XDG_RUNTIME_DIR=str(self.folder),
            **(self._more | more),
        )

    def daemon(self, name: str, config: Mapping[str, Any], **environment: str) -> Psqd:
        """A daemon, not started."""
        daemon = Psqd(self, name, config, **environment)
        self.daemons.append(daemon)
        return daemon

    def worker(self, name: str, queue: str, imports: Sequence[str]) -> Psqworker:
        """A psqworker, started."""
        worker = Psqworker(self, name, queue, imports)
        self.daemons.append(worker)
        worker.start()
        return worker

    def journal(self, *kinds: str) -> list[list[str]]:
        """Lines of the journal, as words: kind, task id, pid, monotonic time, more."""
        if not self.journal_path.exists():
            return []
        lines = [line.split() for line in self.journal_path.read_text().splitlines()]
        return [line for line in lines if not kinds or line[0] in kinds]

    def runs(self, kind: str = "run") -> Counter[str]:
        """How often each task id has a line of this kind."""
        return Counter(line[1] for line in self.journal(kind))

    def wait_journal(self, kind: str, count: int, seconds: float) -> None:
        """Wait until so many different tasks have a line of this kind."""
        wait_until(
            lambda: len(self.runs(kind)) >= count,
            seconds,
            lambda: f"{len(self.runs(kind))} of {count} tasks have a {kind!r} line\n" + self.logs(),
        )

    def wait_runs(self, task_id: str, count: int, seconds: float) -> None:
        """Wait until a task has so many ``run`` lines."""
        wait_until(
            lambda: self.runs()[task_id] >= count,
            seconds,
            lambda: f"{self.runs()[task_id]} of {count} runs of {task_id}\n" + self.logs(),
        )

    def logs(self) -> str:
        """What all daemons said, the end of it."""
        return "\n".join(f"--- {d.name}\n" + "\n".join(d.lines[-60:]) for d in self.daemons)

    def end(self) -> None:
        """Kill whatever is left, and wait for it."""
        self._family.end()
        for daemon in self.daemons:
            if daemon.process is not None:
                daemon.process.wait(10)

    def nothing_left(self, seconds: float = 5.0) -> None:
        """No process of ours is there any more."""
        wait_until(lambda: not self._family.alive(), seconds, lambda: f"left over:\n{self._family.describe()}")


@contextlib.contextmanager
def site(folder: Path, broker: str, storage: str | None = None, **environment: str) -> Iterator[Site]:
    """A site that is cleaned up whatever happens."""
    with family() as it:
        where = Site(folder, it, broker, storage, environment)
        try:
            yield where
        finally:
            it.end()
            for daemon in where.daemons:
                if daemon.process is not None:
                    daemon.process.wait(10)
