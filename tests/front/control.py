"""The front's plain HTTP port: its token server, and the switchboard of the tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any
from urllib.parse import parse_qs

from tests.front.edge import Edge
from tests.front.rules import Manners
from tests.front.service import Service
from tests.front.tokens import BadToken

__all__ = ["Control"]


class Control:
    """Answers ``POST /token`` and ``POST /control``.

    Args:
        service: The methods.
        edge: The connections.
        port: Where clients reach the edge.
    """

    def __init__(self, service: Service, edge: Edge, port: int) -> None:
        self._service, self._edge, self._port = service, edge, port
        self._flow: asyncio.TimerHandle | None = None
        self._does: dict[str, Callable[..., Any]] = {
            "state": lambda: {"port": port},
            "rule": lambda **what: service.rules.add(what),
            "remove": service.rules.remove,
            "reset": self._reset,
            "manners": self._manners,
            "allow": service.tokens.allow,
            "revoke": service.tokens.revoke,
            "refuse": self._refuse,
            "cut": edge.cut,
            "swallow": self._swallow,
            "flow": self._flow_again,
            "stats": self._stats,
        }

    async def start(self, port: int) -> None:
        """Listen on loopback."""
        await asyncio.start_server(self._accept, "127.0.0.1", port)

    def _reset(self) -> None:
        self._service.reset()
        self._refuse(0)
        self._flow_again()
        self._edge.refused = self._edge.accepted = 0

    def _manners(self, **what: Any) -> None:
        if "token_seconds" in what:
            self._service.tokens.seconds = float(what.pop("token_seconds"))
        unknown = what.keys() - {field.name for field in fields(Manners)}
        if unknown:
            raise ValueError(f"no such manner: {', '.join(sorted(unknown))}")
        self._service.manners = replace(self._service.manners, **what)
        self._service.polls.strand = self._service.manners.strand
        self._service.polls.staggered = self._service.manners.staggered

    def _refuse(self, first: int) -> None:
        self._edge.refuse = first

    def _swallow(self, seconds: float | None = None) -> None:
        self._flow_again()
        self._edge.swallow()
        if seconds is not None:
            self._flow = asyncio.get_running_loop().call_later(seconds, self._flow_again)

    def _flow_again(self) -> None:
        self._edge.swallowing = False
        if self._flow is not None:
            self._flow.cancel()
            self._flow = None

    def _stats(self) -> dict[str, Any]:
        edge = self._edge
        more = {"connections": len(edge), "connections_made": edge.accepted, "refused_streams": edge.refused}
        return self._service.stats() | more

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            path = lines[0].split(" ")[1]
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            status, answer = await self._answer(path, body)
            data = json.dumps(answer).encode()
            writer.write(
                f"HTTP/1.1 {status} .\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
                "connection: close\r\n\r\n".encode()
                + data
            )
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/token":
            return await self._token(parse_qs(body.decode()))
        if path != "/control":
            return 404, {"error": f"nothing at {path}"}
        question = json.loads(body)
        does = self._does.get(question["do"])
        if does is None:
            return 400, {"error": f"no such thing: {question['do']}"}
        try:
            return 200, {"result": does(*question.get("args", []), **question.get("what", {}))}
        except (TypeError, ValueError) as error:
            return 400, {"error": f"{type(error).__name__}: {error}"}

    async def _token(self, form: dict[str, list[str]]) -> tuple[int, Any]:
        for rule in self._service.rules.of("Token", "", ""):
            if rule.delay:
                await asyncio.sleep(rule.delay)
            if rule.status:
                return 503, {"error": "internal_failure", "error_description": rule.details or "by a rule"}
        try:
            token, seconds = self._service.tokens.give(form.get("assertion", [""])[0])
        except BadToken as error:
            return 400, {"error": "invalid_grant", "error_description": str(error)}
        return 200, {"access_token": token, "expires_in": int(seconds), "token_type": "Bearer"}
