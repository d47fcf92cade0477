"""Web servers for the tests, and a crowd of clients that asks them to enqueue."""

from __future__ import annotations

import http.client
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from tests.acceptance.processes import ROOT, Family, free_ports, wait_until

__all__ = ["SERVERS", "Crowd", "WebServer"]

#: Processes that answer requests.
WORKERS = 4
#: Threads, or connections at a time, of each.
THREADS = 8

GUNICORN = ["-m", "gunicorn", f"--workers={WORKERS}", "--graceful-timeout=20", "--log-level=warning"]
APP = "tests.acceptance.web_app"
#: The servers, by name: their commands without the address.
SERVERS = {
    "gthread": [*GUNICORN, "--worker-class=gthread", f"--threads={THREADS}", f"{APP}:app"],
    "gevent": [*GUNICORN, "--worker-class=gevent", f"{APP}:app"],
    "uvicorn": ["-m", "uvicorn", f"--workers={WORKERS}", "--log-level=warning", f"{APP}:asgi"],
}


class WebServer:
    """One server of several processes.

    Args:
        family: Whose process it is.
        name: Of `SERVERS`.
        log: Where it writes to.
        options: Added to the command.
        environment: Of the processes.
    """

    def __init__(self, family: Family, name: str, log: Path, options: list[str], environment: dict[str, str]) -> None:
        self.port, self.log = free_ports(1), log
        address = ["--port", str(self.port)] if name == "uvicorn" else ["--bind", f"127.0.0.1:{self.port}"]
        with log.open("wb") as out:
            self.process = family.start(
                [sys.executable, *SERVERS[name][:2], *address, *options, *SERVERS[name][2:]],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        wait_until(self._answers, 60, lambda: f"{name} does not answer:\n{self.text()}")

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"it ended with {self.process.returncode}:\n{self.text()}")
        try:
            self.post("nothing", 0)
        except OSError:
            return False
        return True

    def post(self, name: str, count: int) -> int:
        """Have tasks enqueued; the pid of who did it.

        Raises:
            OSError: There was no answer.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", f"/{name}/{count}")
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        assert answer.status == 200, text
        return int(text)

    def text(self) -> str:
        """What it wrote."""
        return self.log.read_text()

    def reload(self) -> None:
        """HUP: new workers take the places of the old, which end what they began."""
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        """TERM; the exit code."""
        self.process.terminate()
        return self.process.wait(60)


class Crowd:
    """Clients that have a server enqueue, until each of its workers has done so often enough.

    Args:
        server: The server.
        prefix: Of the tasks' ids.
        clients: Threads.
        batch: Tasks a request.

    Attributes:
        accepted: Ids of the tasks of requests that were answered.
        lost: Requests without an answer.
        by_pid: Tasks enqueued, by worker.
    """

    def __init__(self, server: WebServer, prefix: str, clients: int = 12, batch: int = 10) -> None:
        self.accepted: list[str] = []
        self.lost: list[str] = []
        self.errors: list[str] = []
        self.by_pid: Counter[int] = Counter()
        self._server, self._prefix, self._batch = server, prefix, batch
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            name = f"{self._prefix}{next(self._numbers)}"
            try:
                pid = self._server.post(name, self._batch)
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(f"{name}: {error!r}")
                time.sleep(0.05)
                continue
            except AssertionError as error:
                self.errors.append(str(error))
                self._stop.set()
                pid = 0
            with self._changed:
                if pid:
                    self.by_pid[pid] += self._batch
                    self.accepted += [f"{name}-{number}" for number in range(self._batch)]
                self._changed.notify_all()

    def wait(self, count: int, seconds: float, *, without: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
        """Wait until as many workers as there are have enqueued so many tasks each.

        Args:
            count: Tasks of each.
            seconds: When to give up.
            without: Workers that don't count.

        Returns:
            Their pids.
        """

        def done() -> bool:
            return bool(self.errors) or len(self._enough(count, without)) >= WORKERS

        with self._changed:
            ended = self._changed.wait_for(done, seconds)
        assert not self.errors, self.errors[0]
        assert ended, f"{dict(self.by_pid)}; lost {self.lost[:3]}\n{self._server.text()}"
        return self._enough(count, without)

    def _enough(self, count: int, without: set[int]) -> set[int]:
        return {pid for pid, made in self.by_pid.items() if made >= count and pid not in without}

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def stop(self) -> None:
        """Let the requests under way end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(90)
        assert not self.errors, self.errors[0]
