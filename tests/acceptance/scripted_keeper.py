"""The keeper with a lease client that tells the test of each call and answers as the test says.

``scripted_keeper.py [--pid FILE] WORKER…``; KEEPER_BENCH names the test's unix socket.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from psq.brokers.base import LeaseClient
from psq.errors import BrokerUnavailable
from psqd.keeper import clients, keeper
from psqd.keeper.main import run


class TellingClient(LeaseClient):
    """Answers from a thread of its own, as real ones do."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = spec
        self.knows_documents = spec["kind"] == "sqlite"  # type: ignore[misc]
        self.mode = spec.get("mode", "ok")
        self.lock = threading.Lock()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.environ["KEEPER_BENCH"])
        self.tell(who="client", pid=os.getpid(), spec=dict(spec))
        threading.Thread(target=self.listen, daemon=True).start()

    def tell(self, **event: Any) -> None:
        with self.lock:
            self.socket.sendall(json.dumps(event).encode() + b"\n")

    def listen(self) -> None:
        for line in self.socket.makefile():
            self.mode = json.loads(line)["mode"]
            self.tell(event="mode", mode=self.mode)

    def connect(self) -> None:
        self.tell(event="connect")

    def answer(self, done: Callable[..., None], keys: Sequence[str] = ()) -> None:
        if self.mode == "silent":
            return
        error = BrokerUnavailable("away") if self.mode == "away" else None
        threading.Thread(target=done, args=(list(keys) if error else [], error)).start()

    def extend(
        self, source: str, keys: Sequence[str], seconds: float, timeout: float, done: Callable[..., None]
    ) -> None:
        self.tell(event="extend", source=source, keys=list(keys), seconds=seconds, at=time.monotonic())
        self.answer(done)

    def give_back(self, source: str, keys: Sequence[str], timeout: float, done: Callable[..., None]) -> None:
        self.tell(event="give_back", source=source, keys=list(keys), at=time.monotonic())
        self.answer(done)

    def strike(
        self, source: str, items: Sequence[tuple[str, bytes]], record: Mapping[str, Any], done: Callable[..., None]
    ) -> None:
        keys, documents = [key for key, _ in items], [data.decode() for _, data in items]
        at = time.monotonic()
        self.tell(event="strike", source=source, keys=keys, documents=documents, record=dict(record), at=at)
        self.answer(done, keys)

    def close(self) -> None:
        self.tell(event="close")


if __name__ == "__main__":
    for name, value in json.loads(os.environ.get("KEEPER_CONSTANTS", "{}")).items():
        assert hasattr(keeper, name)
        setattr(keeper, name, value)
    clients.Clients.__init__.__defaults__ = (TellingClient,)
    argv, pid_file = sys.argv[1:], None
    if argv[0] == "--pid":
        pid_file, argv = argv[1], argv[2:]
    code = run(argv, pid_file=pid_file, title="psqd: keeper under test")
    foreign = {"gevent", "pydantic", "yaml", "google", "grpc"} & set(sys.modules)
    assert not foreign, foreign
    sys.exit(code)
