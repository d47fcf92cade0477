"""The edge: ends TLS, and does to connections what networks and busy servers do.

It stands before the gRPC server and passes bytes, a connection for a
connection. Only while it refuses streams does it look at HTTP/2's frames, and
then at their heads alone (9 bytes: length, kind, flags, stream): a refused
stream's HEADERS go to the server, so that the compression of headers stays
right, followed by a RST_STREAM of ours; the client is told REFUSED_STREAM.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
import time
from pathlib import Path

__all__ = ["Edge"]

PREFACE = 24  # bytes: "PRI * HTTP/2.0 …"
HEADERS, RST_STREAM, CONTINUATION = 1, 3, 9
END_HEADERS = 4
REFUSED_STREAM, CANCEL = 7, 8
#: A connection is fresh for so long, seconds: later its streams are not refused any more.
FRESH = 1.0


def reset_frame(stream: int, code: int) -> bytes:
    """A RST_STREAM."""
    return struct.pack(">HBBBII", 0, 4, RST_STREAM, 0, stream, code)


class Frames:
    """Cuts a stream of bytes into whole frames.

    Args:
        skip: Bytes that stand before the first.
    """

    def __init__(self, skip: int = 0) -> None:
        self._skip, self._rest = skip, b""

    def feed(self, data: bytes) -> list[bytes]:
        """Whole frames, heads included; what is before the first is a piece of its own."""
        data = self._rest + data
        pieces: list[bytes] = []
        at = 0
        if self._skip:
            if len(data) < self._skip:
                self._rest = data
                return []
            pieces.append(data[: self._skip])
            at, self._skip = self._skip, 0
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            pieces.append(data[at:end])
            at = end
        self._rest = data[at:]
        return pieces

    def rest(self) -> bytes:
        """What is left of the next frame."""
        rest, self._rest = self._rest, b""
        return rest


class Connection:
    """One client's connection and ours to the server."""

    def __init__(self, edge: Edge, client: asyncio.StreamWriter, server: asyncio.StreamWriter, refuse: int) -> None:
        self._edge, self._client, self._server = edge, client, server
        self._left = refuse
        self._fresh_until = time.monotonic() + FRESH
        self._refused: int | None = None  # the stream whose headers are on their way
        self._up = Frames(PREFACE) if refuse else None
        self._down = Frames() if refuse else None
        self.swallowing = False

    async def run(self, client: asyncio.StreamReader, server: asyncio.StreamReader) -> None:
        """Pass until one side ends."""
        pumps = [asyncio.ensure_future(self._pump(client, True)), asyncio.ensure_future(self._pump(server, False))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self.close()

    def close(self) -> None:
        """End both, at once."""
        for writer in (self._client, self._server):
            writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, up: bool) -> None:
        target = self._server if up else self._client
        while data := await source.read(262144):
            if self.swallowing or self._edge.swallowing:
                self.swallowing = True  # for good: bytes are missing
                continue
            if up and self._up is not None:
                data = self._upward(data)
            elif not up and self._down is not None:
                data = self._downward(data)
            target.write(data)
            if target.transport.get_write_buffer_size() > 65536:
                await target.drain()

    def _upward(self, data: bytes) -> bytes:
        assert self._up is not None
        if time.monotonic() > self._fresh_until:
            self._left = 0
        passed: list[bytes] = []
        for frame in self._up.feed(data):
            passed.append(frame)
            if len(frame) == PREFACE and frame.startswith(b"PRI "):
                continue
            kind, flags, stream = frame[3], frame[4], int.from_bytes(frame[5:9], "big") & 0x7FFFFFFF
            if kind == HEADERS and self._left > 0 and stream % 2:
                self._left -= 1
                self._refused = stream
            if kind in (HEADERS, CONTINUATION) and stream == self._refused and flags & END_HEADERS:
                self._refused = None
                self._edge.refused += 1
                passed.append(reset_frame(stream, CANCEL))
                # Only whole frames have gone to the client so far, so this is a border.
                self._client.write(reset_frame(stream, REFUSED_STREAM))
        if self._left <= 0 and self._refused is None:
            passed.append(self._up.rest())
            self._up = None  # nothing to look at any more
        return b"".join(passed)

    def _downward(self, data: bytes) -> bytes:
        assert self._down is not None
        passed = b"".join(self._down.feed(data))
        if self._up is None:
            passed += self._down.rest()
            self._down = None
        return passed


class Edge:
    """The listener.

    Args:
        certificate: File of the certificate.
        key: File of its key.
        server: The gRPC server's unix socket.

    Attributes:
        refuse: First streams of each new connection that are refused, within its first second.
        swallowing: Bytes go nowhere, those of new connections too; see `swallow`.
        refused: Streams refused so far.
        accepted: Connections so far.
    """

    def __init__(self, certificate: Path, key: Path, server: str) -> None:
        self.refuse = 0
        self.swallowing = False
        self.refused = self.accepted = 0
        self._server = server
        self._open: set[Connection] = set()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._context.set_alpn_protocols(["h2"])

    def __len__(self) -> int:
        """Connections open now."""
        return len(self._open)

    async def start(self) -> int:
        """Listen on loopback; the port."""
        first = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._context, limit=1 << 20, backlog=512)
        port: int = first.sockets[0].getsockname()[1]
        return port

    def swallow(self) -> None:
        """From now on bytes go nowhere; connections stay, and those that are open now stay mute for good."""
        self.swallowing = True
        for connection in self._open:
            connection.swallowing = True

    def cut(self) -> None:
        """End every connection now."""
        for connection in list(self._open):
            connection.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._server, limit=1 << 20)
        except OSError:
            writer.transport.abort()
            return
        connection = Connection(self, writer, server_writer, self.refuse)
        self._open.add(connection)
        try:
            await connection.run(reader, server_reader)
        finally:
            self._open.discard(connection)
