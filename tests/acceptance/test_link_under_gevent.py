"""The worker's end of the link in a process that gevent has patched, while a task holds the hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unpatched

SCRIPT = """
from gevent import monkey
monkey.patch_all()
import os, time
import gevent
from gevent.monkey import get_original
from psq.concurrency import native_thread
from psqd.keeper.link import LINK_VARIABLE, KeeperEnd, WorkerEnd

keeper = KeeperEnd()
worker = WorkerEnd.from_environment({LINK_VARIABLE: ",".join(str(os.dup(fd)) for fd in keeper.worker_fds)})
keeper.close_worker_side()
got, frames = [], []
note = lambda what: got.append((what, time.monotonic()))
worker.listen(lambda message: note(message["op"]), lambda: note("end"))
turns = []
gevent.spawn(lambda: [turns.append(time.monotonic()) or gevent.sleep(0.01) for _ in range(10_000)])
gevent.sleep(0.1)
for number in range(300):
    worker.take("s", [(worker.allocate(), "k", 1.0, b"x" * 10_000)])
assert worker.backlog() > 0  # three megabytes, of which the pipe holds one
pause = get_original("time", "sleep")

def keep():
    pause(0.2)  # the hog has begun
    while len(frames) < 300:
        frames.extend(keeper.read_leases()[0])
        pause(0.001)
    keeper.send({"op": "drain"})
    pause(0.2)
    keeper.close()

native_thread(keep)
hog_from = time.monotonic()
while time.monotonic() < hog_from + 3 and ("end" not in dict(got)):
    pass
hog_to = time.monotonic()
assert len(frames) == 300, len(frames)
assert worker.backlog() == 0
assert [op for op, _ in got] == ["drain", "end"], got
assert all(hog_from < at < hog_to for _, at in got)
assert not [at for at in turns if hog_from < at < hog_to], "the hub was to stand still meanwhile"
print("ok")
"""


def test_leases_get_out_and_messages_get_in_while_a_task_holds_the_hub() -> None:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout == "ok\n", done.stderr
