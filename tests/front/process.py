"""Starting the front, once a session."""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import parts
from tests.front.certificates import ACCOUNT_KEY, CERTIFICATE, make_account_key, make_certificate
from tests.front.client import Front

ROOT = Path(__file__).resolve().parent.parent.parent
ROOTS_VARIABLE = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"


def trust() -> None:
    """Make the session's certificate and let this process trust it.

    gRPC reads the variable once, with the first secure channel of the process:
    so this must come before.
    """
    with contextlib.suppress(ImportError):  # without google-auth's cryptography nothing here is secure
        os.environ[ROOTS_VARIABLE] = str(make_certificate(folder()))


def folder() -> Path:
    """Where certificate, keys and accounts are: one folder a session."""
    return parts.state() / "front"


@contextlib.contextmanager
def front(pubsub: str, datastore: str = "", *, streams: int = 100) -> Iterator[Front]:
    """Run a front before the emulators.

    Args:
        pubsub: Address of the Pub/Sub emulator.
        datastore: Address of the Datastore emulator, or "".
        streams: Calls at a time on one connection.
    """
    where = folder()
    if not (where / CERTIFICATE).exists():
        trust()
    if not (where / ACCOUNT_KEY).exists():
        make_account_key(where)
    part = parts.Part("the front", lambda port: _command(port, where, pubsub, datastore, streams), _answers)
    part.start()
    try:
        yield Front(part.address, where, part.pid)
    finally:
        part.stop()


def _command(port: int, where: Path, pubsub: str, datastore: str, streams: int) -> list[str]:
    options = [f"--control={port}", f"--folder={where}", f"--pubsub={pubsub}", f"--streams={streams}"]
    if datastore:
        options.append(f"--datastore={datastore}")
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.front", *options]


def _answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("POST", "/control", '{"do": "state"}')
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
