"""The HTTP pages: real requests to a real server in a patched process."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

WAIT = 20.0  # seconds; a bound, not a pause


class Server:
    """The process, and what to ask it."""

    def __init__(self, **options: Any) -> None:
        self.sockets: list[socket.socket] = []
        script = Path(__file__).with_name("web_process.py")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(script), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.strip().isdigit():
            raise AssertionError(line + self.process.communicate(timeout=WAIT)[1])
        self.port = int(line)

    def do(self, line: str) -> str:
        """Run a line of Python there; what it printed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        printed = ""
        while (answer := self.process.stdout.readline()) != "done\n":
            assert answer, self.process.communicate(timeout=WAIT)[1]
            printed += answer
        return printed

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=names)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, body

    def json(self, path: str, **headers: str) -> tuple[int, Any]:
        code, _, body = self.get(path, **headers)
        return code, json.loads(body)

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        """A bare connection, closed at the end of the test."""
        made = socket.socket()
        self.sockets.append(made)
        if receive_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.settimeout(WAIT)
        made.connect(("127.0.0.1", self.port))
        return made

    def hang_up(self) -> None:
        for one in self.sockets:
            one.close()

    def end(self) -> str:
        """End it; what it logged."""
        return self.process.communicate(timeout=WAIT)[1]


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def begin(**options: Any) -> Server:
        servers.append(Server(**options))
        return servers[-1]

    yield begin
    for server in servers:
        server.hang_up()
        if server.process.returncode is None:
            server.process.kill()
            server.process.communicate(timeout=WAIT)


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    server = Server(queues=["default", "slow"])
    yield server
    log = server.end()
    assert server.process.returncode == 0
    assert "Traceback" not in log
    assert "http on 127.0.0.1:" in log


def test_healthz_answers_while_the_hub_turns(plain: Server) -> None:
    assert plain.json("/healthz") == (200, {"status": "ok"})


def test_readyz_is_200_when_every_queue_is_served(plain: Server) -> None:
    assert plain.json("/readyz") == (200, {"ready": True, "why": [], "queues": {}})


def test_readyz_is_503_and_says_why_not_per_queue(start: Callable[..., Server]) -> None:
    server = start(queues=["default", "slow", "gone"])
    server.do("daemon.consumers['slow'].problem = 'the broker can\\'t be reached: redis://u:hunter2@h'")
    server.do("daemon.consumers['gone'].state = 'draining'")
    server.do("daemon.keeper_alive = False")
    code, document = server.json("/readyz")
    assert code == 503
    assert document["why"] == ["the keeper is dead"]
    assert document["queues"] == {"slow": ["the broker can't be reached: redis://***@h"]}


def test_status_shows_config_reload_queues_and_keeper(plain: Server) -> None:
    plain.do("daemon.reloads.last_error = 'psqd.yaml:6:13: unknown key'")
    code, document = plain.json("/status")
    assert code == 200
    assert document["config"] == {"path": "/etc/psqd.yaml", "hash": "c0ffee"}
    assert document["reloads"]["last_error"] == "psqd.yaml:6:13: unknown key"
    assert document["keeper"]["alive"] is True
    assert set(document["queues"]) == {"default", "slow"}
    assert document["queues"]["slow"]["concurrency"] == 10
    plain.do("daemon.reloads.last_error = ''")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_metrics_can_be_parsed(plain: Server, accept: str) -> None:
    code, headers, body = plain.get("/metrics", Accept=accept)
    assert code == 200
    if accept:
        assert headers["content-type"].startswith("application/openmetrics-text")
        assert body.endswith("# EOF\n")
    else:
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(body)}
    assert {"psqd_tasks", "psqd_task_wait_seconds", "psqd_leases_held", "psqd_up"} <= names


def test_answers_are_not_cached_nor_sniffed(plain: Server) -> None:
    _, headers, _ = plain.get("/status")
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "application/json"


def test_other_pages_and_methods_are_refused_in_json(plain: Server) -> None:
    code, document = plain.json("/")
    assert (code, document) == (404, {"error": "no such page; there are /healthz, /readyz, /metrics, /status"})
    code, headers, body = plain.get("/status", "POST")
    assert code == 405
    assert "GET" in headers["allow"]
    assert "not allowed" in json.loads(body)["error"]
    assert plain.get("/status", "HEAD")[2] == ""


def test_on_loopback_a_foreign_host_name_is_refused(plain: Server) -> None:
    assert plain.json("/status", Host="evil.example")[0] == 400
    assert plain.json("/status", Host=f"localhost:{plain.port}")[0] == 200


def test_elsewhere_any_host_name_will_do(start: Callable[..., Server]) -> None:
    assert start(host="0.0.0.0").json("/status", Host="psqd.prod.example")[0] == 200


def test_with_a_token_all_but_healthz_asks_for_it(start: Callable[..., Server]) -> None:
    server = start(token="s3cret-ü")
    assert server.json("/healthz")[0] == 200
    for path in ("/readyz", "/metrics", "/status", "/nothing"):
        code, headers, body = server.get(path)
        assert (code, headers["www-authenticate"]) == (401, 'Bearer realm="psqd"')
        assert "s3cret" not in body
        assert server.get(path, Authorization="Bearer s3cret")[0] == 401
        assert server.get(path, Authorization="s3cret-ü")[0] == 401
    right = "Bearer s3cret-ü".encode().decode("latin-1")
    assert server.get("/status", Authorization=right)[0] == 200
    assert "s3cret" not in server.get("/status", Authorization=right)[2]
    assert "s3cret" not in server.end()


def test_a_client_that_sends_nothing_is_let_go(start: Callable[..., Server]) -> None:
    server = start(idle=0.2)
    silent = server.connect()
    half = server.connect()
    half.sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
    assert silent.recv(100) == b""
    assert half.recv(100) == b""
    assert server.json("/healthz")[0] == 200
    assert "Traceback" not in server.end()


def test_a_client_that_sends_byte_by_byte_is_let_go(start: Callable[..., Server]) -> None:
    server = start(idle=WAIT, request=0.3)
    slow = server.connect()
    slow.sendall(b"GET /healthz HTTP/1.1\r\nX-Y: ")
    slow.settimeout(0.02)
    sent = 0
    while True:
        try:
            slow.sendall(b"y")
            sent += 1
            if slow.recv(100) == b"":
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    assert sent < 1_000
    assert "Traceback" not in server.end()


def test_a_client_that_reads_nothing_is_let_go(start: Callable[..., Server]) -> None:
    server = start(queues=[f"q{n}" for n in range(1_000)], idle=0.3)
    deaf = server.connect(receive_buffer=4096)
    deaf.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4)
    connections = "import gevent; gevent.sleep(0.05); print(len(web._server.pool))"
    assert server.json("/healthz")[0] == 200  # others are served meanwhile
    for _ in range(400):
        if server.do(connections) == "0\n":
            break
    else:
        pytest.fail("its greenlet is still there")
    assert "Traceback" not in server.end()


def test_what_is_no_http_gets_400_and_no_traceback(start: Callable[..., Server]) -> None:
    server = start()
    with server.connect() as odd:
        odd.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        assert odd.recv(1000).startswith(b"HTTP/1.1 400")
    assert "Traceback" not in server.end()


def test_a_page_that_fails_is_500_and_in_the_log(start: Callable[..., Server]) -> None:
    server = start()
    server.do("daemon.broker = None")
    code, document = server.json("/status")
    assert (code, document) == (500, {"error": "see the log"})
    log = server.end()
    assert "ERROR psqd.http[" in log
    assert "GET /status failed" in log
    assert log.count("Traceback") == 1


def test_a_taken_port_is_told_with_what_to_do(start: Callable[..., Server]) -> None:
    server = start()
    server.do("from types import SimpleNamespace")
    server.do("other = serve(daemon, SimpleNamespace(host='127.0.0.1', port=web.address[1], token=None))")
    told = server.do("exec('try:\\n other.start()\\nexcept Exception as e:\\n print(type(e).__name__, e)')")
    assert told.startswith(f"ConfigError http.bind: can't listen on 127.0.0.1:{server.port}: the port is taken")
    assert "${PSQD_HTTP_PORT:-9191}" in told


def test_start_and_stop_are_idempotent_and_the_port_is_free_afterwards(start: Callable[..., Server]) -> None:
    server = start()
    server.do("web.start(); web.stop(1); web.stop(1)")
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    server.do("web.start()")
    assert server.json("/healthz")[0] == 200


def test_scrapes_at_the_same_time_share_one_answer(start: Callable[..., Server]) -> None:
    server = start(queues=[f"q{n}" for n in range(50)])
    server.do("from psqd.worker import metrics; calls = []; old = metrics.figures")
    server.do("metrics.figures = lambda *a: (calls.append(1), old(*a))[1]")
    sockets = [server.connect() for _ in range(10)]
    for one in sockets:
        one.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    for one in sockets:
        text = b""
        while part := one.recv(1 << 16):
            text += part
        assert b" 200 OK" in text.splitlines()[0]
        one.close()
    assert server.do("print(len(calls))") in ("1\n", "2\n")  # two where a second went by


def test_nothing_of_it_is_imported_by_the_daemon_without_the_key() -> None:
    script = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import sys, psqd.worker.daemon\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('flask', 'werkzeug', 'prometheus_client')"
        " or m.startswith('psqd.worker.web')])"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=WAIT)
    assert done.stdout == "[]\n", done.stderr
