"""HTTP for probes, Prometheus and people. Imported only when the config has ``http:``."""

from __future__ import annotations

from typing import Protocol

from psqd.worker.status import DaemonView
from psqd.worker.web.app import make_app
from psqd.worker.web.server import WebServer

__all__ = ["HttpSettings", "serve"]


class HttpSettings(Protocol):
    """What is read of `psqd.config.HttpConfig`."""

    @property
    def host(self) -> str:
        """Address to listen on; "" for all."""

    @property
    def port(self) -> int:
        """Port; 0 for a free one."""

    @property
    def token(self) -> str | None:
        """Bearer token that is asked for, None or "" for none."""


def serve(daemon: DaemonView, http_config: HttpSettings) -> WebServer:
    """A server for the daemon's probes, metrics and status; not started yet.

    Args:
        daemon: What is shown.
        http_config: Address, port and token.
    """
    return WebServer(make_app(daemon, http_config.host, http_config.token or ""), http_config.host, http_config.port)
