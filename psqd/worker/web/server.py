"""The HTTP server: gevent's own, with limits on what a client may hold."""

from __future__ import annotations

import errno
import logging
from types import TracebackType
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from psq.errors import ConfigError

__all__ = ["WebServer"]

#: Seconds without a byte, in either direction, after which a connection is closed.
IDLE = 15.0
#: Seconds for a whole request, answer included: a client that sends or reads byte by byte holds no longer.
REQUEST = 60.0
#: Connections at a time; more wait in the backlog.
CONNECTIONS = 200

log = logging.getLogger("psqd.http")


class _TooSlow(BaseException):
    """The request's time is over; a BaseException, so that no page takes it for an error of its own."""


class _Handler(WSGIHandler):
    """pywsgi has no timeout of its own, and prints some errors to stderr."""

    def handle(self) -> None:
        self.socket.settimeout(IDLE)
        super().handle()

    def handle_one_request(self) -> Any:
        try:
            with gevent.Timeout(REQUEST, _TooSlow):
                return super().handle_one_request()
        except _TooSlow:
            log.debug("closing %s: its request took longer than %g s", self.client_address, REQUEST)
            return None

    def _handle_client_error(self, error: Exception) -> Any:
        if isinstance(error, OSError):  # it went away, or sent nothing for too long
            self.close_connection = True
            return None
        log.debug("a request that is none, from %s: %s", self.client_address, error)
        self.close_connection = True
        return "400", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-length: 0\r\n\r\n"

    def handle_error(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(value, (_TooSlow, OSError)):  # the client's doing: no answer would reach it
            self.close_connection = True
        else:
            super().handle_error(kind, value, traceback)

    def _log_error(self, kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if not issubclass(kind, gevent.GreenletExit):
            log.error("%s failed", self.requestline, exc_info=(kind, value, traceback))


class WebServer:
    """Serves an application on one address. `start` and `stop` are idempotent.

    Args:
        app: WSGI.
        host: Address to listen on; "" for all.
        port: 0 for a free one.
    """

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._app, self._host, self._port = app, host.strip("[]"), port
        self._server: WSGIServer | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        if self._server is None:
            return self._host, self._port
        return self._server.server_host or "", self._server.server_port or 0

    def start(self) -> None:
        """Listen, and serve in greenlets. Returns at once.

        Raises:
            ConfigError: The address can't be had; the text says why and what to do.
        """
        if self._server is not None:
            return
        server = WSGIServer(
            (self._host, self._port),
            self._app,
            log=None,
            error_log=log,
            handler_class=_Handler,
            spawn=Pool(CONNECTIONS),
            # else it looks the address up in DNS
            environ={"SERVER_NAME": self._host or "localhost"},
        )
        try:
            server.start()
        except OSError as error:
            raise ConfigError(self._told(error)) from error
        self._server = server
        host, port = self.address
        self._port = port  # of a free one that was taken: kept when it is started again
        log.info("http on %s:%d", f"[{host}]" if ":" in host else host, port)

    def stop(self, timeout: float = 1.0) -> None:
        """Listen no more; requests that are being answered have `timeout` seconds."""
        server, self._server = self._server, None
        if server is not None:
            server.stop(timeout=timeout)

    def _told(self, error: OSError) -> str:
        where = f"http.bind: can't listen on {self._host or '*'}:{self._port}: "
        match error.errno:
            case errno.EADDRINUSE:
                return where + (
                    "the port is taken, by another psqd perhaps; give each process its own, "
                    "with bind: 127.0.0.1:${PSQD_HTTP_PORT:-9191} and the variable set for each"
                )
            case errno.EACCES:
                return where + "ports below 1024 need privileges; take a higher one"
            case errno.EADDRNOTAVAIL:
                return where + "this machine has no such address; 127.0.0.1 and 0.0.0.0 always work"
        return where + str(error.strerror or error)
