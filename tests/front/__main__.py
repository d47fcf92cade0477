"""The front's process: ``python -m tests.front --control PORT --folder PATH --pubsub ADDRESS``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
from pathlib import Path

import grpc.aio

from tests.front.certificates import CERTIFICATE, KEY, public_key
from tests.front.control import Control
from tests.front.edge import Edge
from tests.front.service import Service
from tests.front.tokens import Tokens

#: Calls at a time on one connection, as on Google's front.
STREAMS = 100


async def run(options: argparse.Namespace) -> None:
    """Serve until TERM."""
    folder = Path(options.folder)
    service = Service(Tokens(public_key(folder)), options.pubsub, options.datastore)
    socket = folder / f"front-{os.getpid()}.sock"
    server = grpc.aio.server(
        options=[
            ("grpc.max_concurrent_streams", options.streams),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
    )
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    edge = Edge(folder / CERTIFICATE, folder / KEY, str(socket))
    port = await edge.start()
    await Control(service, edge, port).start(options.control)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    parent = os.getppid()
    while not ended.is_set() and os.getppid() == parent:  # a front whose tests were killed ends by itself
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), 1.0)
    edge.cut()
    await server.stop(None)
    socket.unlink(missing_ok=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.front", description=__doc__)
    parser.add_argument("--control", type=int, required=True, help="port of the tests' switchboard")
    parser.add_argument("--folder", required=True, help="where certificate and keys are")
    parser.add_argument("--pubsub", required=True, help="address of the Pub/Sub emulator")
    parser.add_argument("--datastore", default="", help="address of the Datastore emulator")
    parser.add_argument("--streams", type=int, default=STREAMS, help="calls at a time on one connection")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
