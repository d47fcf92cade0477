"""A worker for the keeper's tests: it uses WorkerEnd as the real one does, and does what the test says.

Run by `scripted_keeper.py`. The test talks to it over the unix socket named in
KEEPER_BENCH: one JSON object a line, in both directions.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import socket
import subprocess
import threading
import time
from typing import Any

from psqd.keeper.link import WorkerEnd

bench = socket.socket(socket.AF_UNIX)
bench.connect(os.environ["KEEPER_BENCH"])
lock = threading.Lock()
obeys = True


def tell(**event: Any) -> None:
    with lock:
        bench.sendall(json.dumps(event).encode() + b"\n")


tell(who="worker", pid=os.getpid(), sid=os.getsid(0), life=os.environ.get("KEEPER_BENCH_LIFE", ""))
if os.environ.get("STANDIN_HANDLERS", "yes") == "yes":
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

the_link = WorkerEnd.from_environment(os.environ)
assert the_link is not None
link: WorkerEnd = the_link
children: list[subprocess.Popen[bytes]] = []


def on_message(message: dict[str, Any]) -> None:
    tell(event="message", message=message)
    if message["op"] == "drain" and obeys:
        link.send({"op": "stopping"})
        os._exit(0)


def on_end() -> None:
    tell(event="end")
    os._exit(1)


def beat() -> None:
    while beating:
        link.beat()
        threading.Event().wait(0.05)


def obey(command: dict[str, Any]) -> None:
    global obeys, beating
    match command["do"]:
        case "send":
            link.send(command["message"])
        case "take":
            slots = [link.allocate() for _ in command["keys"]]
            data = command.get("data", "{}")
            until = time.monotonic() + command.get("seconds", 10)
            leases = [
                (slot, key, until, data.encode() if data is not None else None)
                for slot, key in zip(slots, command["keys"], strict=True)
            ]
            link.take(command["source"], leases)
            for slot, state in zip(slots, command.get("states", []), strict=False):
                if state == "started":
                    link.mark_started(slot)
                elif state == "ended":
                    link.mark_started(slot)
                    link.mark_ended(slot)
            tell(event="taken", slots=slots)
        case "release":
            link.release(command["slots"])
        case "ignore":
            obeys = False
        case "stop beating":
            beating = False
        case "child":
            child = subprocess.Popen(["sleep", "600"])
            children.append(child)
            tell(event="child", pid=child.pid)
        case "orphan":
            # as a daemon is made: the shell ends, and who it started is nobody's
            shell = subprocess.run(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], capture_output=True, check=True)
            tell(event="orphan", pid=int(shell.stdout))
        case "close link":
            os.closerange(link.fileno_leases(), link.fileno_leases() + 2)
        case "write":
            os.write(link.fileno_leases(), command["bytes"].encode())
        case _:
            die(command)
    tell(event="done", do=command["do"])


def die(command: dict[str, Any]) -> None:
    match command["do"]:
        case "exit":
            os._exit(command["code"])
        case "segfault":
            ctypes.string_at(0)


beating = True
threading.Thread(target=beat, daemon=True).start()
if os.environ.get("STANDIN_LISTENS", "yes") == "yes":
    link.listen(on_message, on_end)
for line in bench.makefile():
    obey(json.loads(line))
