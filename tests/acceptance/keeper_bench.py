"""Runs a real keeper with a stand-in worker, and waits for what they tell."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.acceptance import processes

HERE = Path(__file__).parent
#: Longest wait for anything that must happen; nothing takes it when all is well.
PATIENCE = 20.0

Event = dict[str, Any]


class Peer:
    """A connection of the worker or of the keeper's lease client."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid: int = struct.unpack("3i", credentials)[0]
        self.hello: Event = {}
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._passed: deque[Event] = deque()  # what came while we waited for a command to be done

    def read(self, joined: Callable[[Peer], None]) -> None:
        try:
            for line in self.connection.makefile():
                event = json.loads(line)
                if not self.hello:
                    self.hello = event
                    joined(self)
                else:
                    self.events.put(event)
        except (OSError, ValueError):
            pass
        self.events.put(None)

    def say(self, **command: Any) -> None:
        self.connection.sendall(json.dumps(command).encode() + b"\n")

    def do(self, what: str, **command: Any) -> None:
        """A command, carried out.

        What is told meanwhile is still there to be waited for: the keeper's answer to a command may come before
        the worker tells that the command is done.
        """
        self.say(do=what, **command)
        *passed, _ = self.until(lambda event: event.get("event") == "done" and event["do"] == what)
        self._passed.extend(passed)

    def until(self, wanted: Callable[[Event], bool]) -> list[Event]:
        """Events up to the wanted one, which is the last."""
        events: list[Event] = []
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                event = self._next(max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"it did not come; there were {events}") from None
            assert event is not None, f"the connection ended; there were {events}"
            events.append(event)
            if wanted(event):
                return events

    def _next(self, timeout: float) -> Event | None:
        return self._passed.popleft() if self._passed else self.events.get(timeout=timeout)

    def event(self, name: str) -> Event:
        """The next event of this name; those before it are dropped."""
        return self.until(lambda event: event.get("event") == name)[-1]

    def message(self, op: str) -> Event:
        """(worker) the next control message of this kind."""
        found: Event = self.until(lambda event: event.get("event") == "message" and event["message"]["op"] == op)[-1]
        return found

    def rest(self) -> list[Event]:
        """All events until the connection ends."""
        events = []
        while (event := self._next(PATIENCE)) is not None:
            events.append(event)
        return events

    @property
    def name(self) -> int:
        """The process id that it has for itself and its keeper: another one inside a container."""
        return int(self.hello["pid"])


class KeeperBench:
    """A keeper process and those who connect to us from it."""

    def __init__(self, folder: Path, environ: dict[str, str] | None = None, prefix: list[str] | None = None) -> None:
        self.folder = folder
        self.pid_file = folder / "psqd.pid"
        # The path of a unix socket is short; pytest's folders are not.
        self._place = tempfile.TemporaryDirectory(prefix="psqd-")
        self._listener = socket.socket(socket.AF_UNIX)
        path = str(Path(self._place.name) / "bench")
        self._listener.bind(path)
        self._listener.listen()
        self.workers: queue.SimpleQueue[Peer] = queue.SimpleQueue()
        self.clients: queue.SimpleQueue[Peer] = queue.SimpleQueue()
        self._peers: list[Peer] = []
        threading.Thread(target=self._accept, daemon=True).start()
        self._stderr = (folder / "stderr").open("wb")
        root = str(HERE.parent.parent)
        self.process = subprocess.Popen(
            [*(prefix or []), sys.executable, str(HERE / "scripted_keeper.py"), "--pid", str(self.pid_file),
             sys.executable, str(HERE / "standin_worker.py")],
            env={**os.environ, "PYTHONPATH": root, "KEEPER_BENCH": path, **(environ or {})},
            stderr=self._stderr,
            start_new_session=True,
        )  # fmt: skip

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(connection)
            self._peers.append(peer)
            threading.Thread(target=peer.read, args=(self._joined,), daemon=True).start()

    def _joined(self, peer: Peer) -> None:
        (self.workers if peer.hello["who"] == "worker" else self.clients).put(peer)

    def worker(self) -> Peer:
        """The next worker that started."""
        return self.workers.get(timeout=PATIENCE)

    def serving(self, **settings: Any) -> tuple[Peer, Peer]:
        """A worker that told its settings and is ready, and the keeper's lease client."""
        worker = self.worker()
        self.settle(worker, **settings)
        client = self.clients.get(timeout=PATIENCE)
        client.event("connect")
        worker.do("send", message={"op": "ready"})
        self.logged(f"worker {worker.name} is ready")
        return worker, client

    def settle(self, worker: Peer, **settings: Any) -> None:
        """The worker tells its settings."""
        sources = {"s": {"lease": 30, "ack_deadline": 10, "max_lease": 3600}}
        message = {"op": "settings", "lease_spec": {"kind": "pubsub"}, "sources": sources, "shutdown_timeout": 25}
        worker.do("send", message={**message, **settings})

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE)

    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    def logged(self, text: str) -> str:
        """The log, once the text is in it."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.log():
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{self.log()}"
            assert self.process.poll() is None or text in self.log(), f"{text!r} is not in the log:\n{self.log()}"
            threading.Event().wait(0.005)
        return self.log()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        print(self.log())  # shown where the test fails
        self._listener.close()
        for peer in self._peers:
            peer.connection.close()
            if peer.hello.get("who") == "worker":
                wait_gone(peer.pid)
        self._stderr.close()
        self._place.cleanup()


def wait_gone(pid: int) -> None:
    processes.wait_gone([pid], time.monotonic() + PATIENCE)
