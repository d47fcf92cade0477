"""A TCP proxy that passes, swallows or cuts: what networks do to a connection."""

from __future__ import annotations

import contextlib
import socket
import threading


class TcpProxy:
    """Between a client and a server on loopback.

    Attributes:
        address: Where clients connect.
        swallowing: Bytes of both directions go nowhere; connections stay open. Those from which bytes were
            swallowed stay mute afterwards: with a hole in it, no server knows what to make of the rest.
        muting: Bytes of the server go nowhere; those of clients arrive.
        accepted: Connections so far.
    """

    def __init__(self, server: str) -> None:
        host, _, port = server.partition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.swallowing = self.muting = False
        self.accepted = 0
        self._open: list[socket.socket] = []
        self._all: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._all.append(client)
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.shutdown(socket.SHUT_RDWR)
                continue
            self._all.append(server)
            self._open += [client, server]
            lost = threading.Event()
            for source, target, muted in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._pump, args=(source, target, muted, lost), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, target: socket.socket, is_answer: bool, lost: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                if self.swallowing:
                    lost.set()
                if not (lost.is_set() or (self.muting and is_answer)):
                    target.sendall(data)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End all connections; new ones are accepted."""
        connections, self._open = self._open, []
        for one in connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(10)
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for one in self._all:
            one.close()
