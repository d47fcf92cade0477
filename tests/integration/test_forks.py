"""Processes that fork while they use gRPC: parents and children go on, and nothing is sent twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from psq.concurrency import is_patched
from tests.acceptance.processes import ROOT
from tests.integration.echo_server import Echo

pytestmark = pytest.mark.skipif(is_patched(), reason="grpc's servers do not work under gevent")


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.stop()


def run(program: list[str], handlers: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    if handlers:
        environment["GRPC_ENABLE_FORK_SUPPORT"] = handlers
    return subprocess.run(
        [sys.executable, *program],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    ("mode", "handlers"),
    [(mode, handlers) for mode in ("plain", "gevent") for handlers in ("", "0", "1")] + [("later", "")],
)
def test_parents_and_children_call_on_whatever_grpcs_fork_handlers_are(echo: Echo, mode: str, handlers: str) -> None:
    done = run(["-m", "tests.integration.fork_calls", mode, echo.address], handlers)
    assert done.returncode == 0, done.stdout + done.stderr
    codes, parents = done.stdout.splitlines()
    assert codes == "[0, 0, 0, 0]", done.stderr
    assert done.stderr == ""  # gRPC's own handlers had nothing to say, and no channel of the parent was left to warn of
    assert set(echo.seen.values()) == {1}
    children = [text for text in echo.seen if text.startswith(b"child-")]
    assert len(children) == 4 * (5 + 3 * 5)
    assert sum(text.startswith(b"parent-") for text in echo.seen) == int(parents) > 0


SUBPROCESSES = """
import sys, gevent, os
if sys.argv[1] == "gevent":
    from gevent import monkey
    monkey.patch_all()
import subprocess
from psq.google.channel import Channel, Method, Target
channel = Channel(Target(sys.argv[2], secure=False))
channel.polls = sys.argv[3] == "polls"
echo = Method("/test.Service/Echo")
channel.call(echo, b"first", 20.0)
before = channel._channel
subprocess.run(["true"], check=True)
assert channel._channel is before, "a subprocess is no reason to close it"
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
print("open" if channel._channel is before else "closed", channel.call(echo, b"last", 20.0))
"""


@pytest.mark.parametrize("mode", ["plain", "gevent"])
@pytest.mark.parametrize(("kind", "outcome"), [("calls", "closed"), ("polls", "open")])
def test_no_channel_is_closed_for_a_subprocess_nor_one_that_polls_for_a_fork(
    echo: Echo, mode: str, kind: str, outcome: str
) -> None:
    done = run(["-W", "ignore", "-c", SUBPROCESSES, mode, echo.address, kind])
    assert done.stdout == f"{outcome} b'last'\n", done.stdout + done.stderr


HUNG = """
import sys, os, time
from gevent import monkey
monkey.patch_all()
from psq.google.channel import Channel, Method, Target
from psq.google import rest
from psq.google.errors import CallError
rest.LONG_PATIENCE = 0.5
channel = Channel(Target(sys.argv[1], secure=False))
echo = Method("/test.Service/Echo")
channel.call(echo, b"first", 20.0)
answers = []
channel.start(echo, b"slow", 20.0, lambda response, error: answers.append((response, error)))
pid = os.fork()
if pid == 0:
    try:
        channel.call(echo, b"child", 20.0)
    except CallError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print(channel.call(echo, b"last", 20.0), flush=True)
while not answers:
    time.sleep(0.01)
print(answers, flush=True)
"""


def test_a_fork_does_not_wait_for_ever_and_its_child_says_why_it_can_not_call() -> None:
    echo = Echo(0.02)
    try:
        done = run(["-c", HUNG, echo.address])
    finally:
        echo.stop()
    said, last, slow = done.stdout.splitlines()
    assert said.startswith("FAILED_PRECONDITION"), done.stderr
    assert "docs/web-apps.md" in said
    assert (last, slow) == ("b'last'", "[(b'slow', None)]")
    assert echo.seen == {b"first": 1, b"slow": 1, b"last": 1}


OTHERS = """
import os, sys, faulthandler
if sys.argv[1] == "gevent":
    from gevent import monkey
    monkey.patch_all()
import grpc
from psq.google.channel import Channel, Method, Target
from psq.google import rest
from psq.google.errors import CallError
faulthandler.dump_traceback_later(30, exit=True)
rest.PATIENCE = rest.LONG_PATIENCE = 60.0
channel = Channel(Target(sys.argv[2], secure=False))
echo = Method("/test.Service/Echo")
channel.call(echo, b"first", 20.0)
if sys.argv[3] == "other":
    rest.ENDING = rest.LONG_ENDING = 0.1
    other = grpc.insecure_channel(sys.argv[2])
    other.unary_unary("/test.Service/Echo")(b"other")
else:
    rest.ENDING = rest.LONG_ENDING = 60.0
    rest.os.listdir = lambda path: open("/proc/there-is-none-here")
pid = os.fork()
if pid == 0:
    try:
        print(channel.call(echo, b"child", 20.0), flush=True)
    except CallError as error:
        print(error.code, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print(channel.call(echo, b"last", 20.0), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("mode", ["plain", "gevent"])
@pytest.mark.parametrize("why", ["other", "unknown"])
def test_a_fork_does_not_wait_for_channels_of_others_nor_where_nobody_can_tell(echo: Echo, mode: str, why: str) -> None:
    """A Firestore client, say, keeps gRPC's threads alive; and not all systems list a process's threads."""
    done = run(["-W", "ignore", "-c", OTHERS, mode, echo.address, why])
    child = "b'child'" if mode == "plain" else "FAILED_PRECONDITION"  # gRPC's own handlers are on, or off
    assert done.stdout == f"{child}\nb'last'\n", done.stdout + done.stderr


AT_ONCE = """
import os, sys, faulthandler
from psq.google.channel import Channel, Method, Target  # before the patching, as with gunicorn --preload
from gevent import monkey
monkey.patch_all()
import gevent
faulthandler.dump_traceback_later(30, exit=True)
channel = Channel(Target(sys.argv[1], secure=False))
echo = Method("/test.Service/Echo")
channel.call(echo, b"first", 20.0)
channel.start(echo, b"slow", 20.0, lambda response, error: None)
def fork(number):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if channel.call(echo, b"child-%d" % number, 20.0) else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
forks = [gevent.spawn(fork, number) for number in range(3)]
gevent.joinall(forks)
print([fork.value for fork in forks], channel.call(echo, b"last", 20.0), flush=True)
os._exit(0)
"""


def test_greenlets_that_fork_at_the_same_time_wait_for_each_other_and_stop_nobody() -> None:
    echo = Echo(0.005)
    try:
        done = run(["-W", "ignore", "-c", AT_ONCE, echo.address])
    finally:
        echo.stop()
    assert done.stdout == "[0, 0, 0] b'last'\n", done.stdout + done.stderr
    assert set(echo.seen.values()) == {1}


def test_what_greenlets_publish_while_their_process_forks_is_published_once(pubsub_emulator: str) -> None:
    """Under gevent a fork copies the greenlets, and what they had in hand."""
    broker = f"pubsub://p-{uuid.uuid4().hex[:8]}?endpoint=http://{pubsub_emulator}"
    done = run(["-m", "tests.integration.fork_publishes", broker])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("accepted") > 6 * 5
    assert found == {"codes": [0] * 6, "lost": [], "more than once": {}}, done.stderr
