"""A gRPC server that echoes after a while, and tells what it was sent."""

from __future__ import annotations

import time
from collections import Counter
from concurrent import futures
from typing import Any

import grpc


class Echo(grpc.GenericRpcHandler):
    """Answers a little later.

    Args:
        delay: Of each answer, seconds; of a request ``slow…`` a hundred times as long.

    Attributes:
        address: Where it listens.
        seen: How often each request came.
    """

    def __init__(self, delay: float = 0.02) -> None:
        self.seen: Counter[bytes] = Counter()
        self._delay = delay
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._echo)

    def _echo(self, request: bytes, context: Any) -> bytes:
        self.seen[request] += 1
        time.sleep(self._delay * (100 if request.startswith(b"slow") else 1))
        return request

    def stop(self) -> None:
        self._server.stop(0).wait()
