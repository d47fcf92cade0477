"""The pages: /healthz, /readyz, /metrics, /status."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
from typing import Any

import gevent
from flask import Flask, Response, request
from gevent import get_hub
from werkzeug.exceptions import HTTPException

from psqd.worker.metrics import Metrics
from psqd.worker.status import DaemonView, ready, snapshot

__all__ = ["make_app"]

PAGES = ("/healthz", "/readyz", "/metrics", "/status")

log = logging.getLogger("psqd.http")


def make_app(daemon: DaemonView, host: str = "", token: str = "") -> Flask:
    """The WSGI application.

    Args:
        daemon: What is shown.
        host: Where it listens: on a loopback address only local names are accepted as
            Host, so that a page in a browser on this machine can't read it by DNS rebinding.
        token: Asked for on every page but /healthz; "" for none.
    """
    app = Flask("psqd", static_folder=None)
    app.config["TRUSTED_HOSTS"] = _trusted_hosts(host)
    app.config["MAX_CONTENT_LENGTH"] = 64 * 1024
    metrics = Metrics(daemon)
    expected = f"Bearer {token}".encode()

    @app.before_request
    def check() -> Response | None:
        if request.path == "/healthz" or not token:
            return None
        given = request.headers.get("Authorization", "").encode("latin-1", "replace")
        if hmac.compare_digest(given, expected):  # constant time
            return None
        refused = _json({"error": "this page asks for the token of http.token: Authorization: Bearer …"}, 401)
        refused.headers["WWW-Authenticate"] = 'Bearer realm="psqd"'
        return refused

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.get("/healthz")
    def healthz() -> Response:
        """The hub turns, or this would not answer."""
        return _json({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        is_ready, reasons = ready(daemon)
        why = reasons.pop("", [])
        return _json({"ready": is_ready, "why": why, "queues": reasons}, 200 if is_ready else 503)

    @app.get("/metrics")
    def show_metrics() -> Response:
        text, content_type = metrics.scrape(request.headers.get("Accept", ""))
        return Response(text, content_type=content_type)

    @app.get("/status")
    def status() -> Response:
        document = snapshot(daemon, lambda: gevent.sleep(0))
        text = get_hub().threadpool.apply(json.dumps, (document,), {"indent": 1})
        return Response(text + "\n", mimetype="application/json")

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        if isinstance(error, HTTPException):
            document: dict[str, Any] = {"error": error.description}
            if error.code == 404:
                document = {"error": f"no such page; there are {', '.join(PAGES)}"}
            response = _json(document, error.code or 500)
            for name, value in error.get_headers():
                if name == "Allow":
                    response.headers[name] = value
            return response
        log.error("%s %s failed", request.method, request.path, exc_info=error)
        return _json({"error": "see the log"}, 500)

    return app


def _json(document: dict[str, Any], code: int = 200) -> Response:
    return Response(json.dumps(document, indent=1) + "\n", code, mimetype="application/json")


def _trusted_hosts(host: str) -> list[str] | None:
    try:
        local = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        local = False
    return ["localhost", "127.0.0.1", "[::1]", host] if local else None
