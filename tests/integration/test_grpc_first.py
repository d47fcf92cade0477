"""Patched processes where something used gRPC before psq could make it work under gevent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from psq.concurrency import is_patched
from tests.acceptance.processes import ROOT
from tests.integration.echo_server import Echo

pytestmark = pytest.mark.skipif(is_patched(), reason="grpc's servers do not work under gevent")

SCRIPT = """
import json, sys
address, how = sys.argv[1:]
if how == "patched late":
    import grpc
    theirs = grpc.insecure_channel(address)
    theirs.unary_unary("/test.Service/Echo")(b"theirs", timeout=20)
from gevent import monkey
monkey.patch_all()
if how == "right":
    from grpc.experimental.gevent import init_gevent
    init_gevent()
import logging
from psq.google.channel import Channel, Method, Target
import grpc
if how in ("right", "wrong"):
    theirs = grpc.insecure_channel(address)
    slow = theirs.unary_unary("/test.Service/Echo").future(b"slow", timeout=20)
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("psq").addHandler(handler)
ours = Channel(Target(address, secure=False))
for text in (b"one", b"two"):
    assert ours.call(Method("/test.Service/Echo"), text, 20.0) == text
print(json.dumps({"said": said, "waited": "slow" in globals() and slow.done()}))
"""


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("how", "warns"),
    [
        ("wrong", True),  # a channel between the patching and psq
        ("patched late", True),
        ("right", False),  # as the warning advises
        ("imported", False),  # a module that imports grpc and does nothing does no harm
    ],
)
def test_psq_warns_once_where_grpc_was_used_before_it_was_made_to_work_under_gevent(
    echo: Echo, how: str, warns: bool
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, echo.address, how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert ["grpc was already in use" in text for text in found["said"]] == [True] * warns
    # What the warning says: everything stood still until that call had ended. Done right, nothing waited for it.
    assert found["waited"] is (how == "wrong")
