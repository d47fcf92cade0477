"""The one channel against servers of our own: streams, TLS and tokens, forks."""

from __future__ import annotations

import datetime as dt
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from psq.concurrency import Waiter, is_patched
from psq.google.channel import Channel, Method, Target, connections_for
from psq.google.errors import CallError
from tests.acceptance.processes import ROOT

HOLD, PING = Method("/test.Service/Hold"), Method("/test.Service/Ping")


class Server(grpc.GenericRpcHandler):
    """Holds some calls, answers others; at most ten streams a connection.

    Attributes:
        address: Where it listens.
        held: Released once for each call that is held.
        tokens: The authorization of each call that was answered.
        refuse: Tokens that are not taken.
    """

    def __init__(self, credentials: Any = None) -> None:
        self.held, self.release = threading.Semaphore(0), threading.Event()
        self.tokens: list[str] = []
        self.refuse: set[str] = set()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=64), options=[("grpc.max_concurrent_streams", 10)]
        )
        self._server.add_generic_rpc_handlers((self,))
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == HOLD.path:
            return grpc.unary_unary_rpc_method_handler(self._hold)
        return grpc.unary_unary_rpc_method_handler(self._ping)

    def _hold(self, request: Any, context: Any) -> bytes:
        self.held.release()
        self.release.wait(60)
        return b"held"

    def _ping(self, request: Any, context: Any) -> bytes:
        token = str(dict(context.invocation_metadata()).get("authorization", ""))
        if token in self.refuse:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "revoked")
        self.tokens.append(token)
        return bytes(request)

    def stop(self) -> None:
        self.release.set()
        self._server.stop(0).wait()


pytestmark = pytest.mark.skipif(is_patched(), reason="grpc's servers do not work under gevent")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def hold(channel: Channel, count: int) -> list[Waiter]:
    waiters = [Waiter() for _ in range(count)]
    for waiter in waiters:
        channel.start(HOLD, b"", 60.0, lambda response, error, waiter=waiter: waiter.set((response, error)))  # type: ignore[misc]
    return waiters


def test_more_connections_take_more_calls_than_one_connection_has_streams(server: Server) -> None:
    channel = Channel(Target(server.address, secure=False), connections=4)
    try:
        waiters = hold(channel, 25)
        assert all(server.held.acquire(timeout=30) for _ in range(25))
        assert channel.call(PING, b"hello", 10.0) == b"hello"
        assert len(channel) == 25
        server.release.set()
        assert all(waiter.wait(30) and waiter.value == (b"held", None) for waiter in waiters)
        assert len(channel) == 0
    finally:
        channel.close()


def test_one_connection_would_let_a_call_wait_behind_long_polls(server: Server) -> None:
    """What the channel is there to prevent; if this fails, connection scaling is not needed any more."""
    channel = grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
    polls = [channel.unary_unary(HOLD.path).future(b"", timeout=60) for _ in range(10)]
    assert all(server.held.acquire(timeout=30) for _ in range(10))
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(PING.path)(b"", timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.release.set()
    assert all(poll.result() == b"held" for poll in polls)
    channel.close()


def test_a_channel_has_enough_connections_for_all_its_queues() -> None:
    assert connections_for(1) * 100 >= 1 + 15 + 100
    assert connections_for(1000) * 100 >= 1000 + 15 * 20 + 100
    assert connections_for(100, hot=100) * 100 >= 100 + 15 * 100 + 100


def test_a_channel_that_grows_or_is_renewed_ends_its_calls_as_transient_and_goes_on(server: Server) -> None:
    channel = Channel(Target(server.address, secure=False), connections=2)
    try:
        for change in (lambda: channel.grow(3), lambda: channel.renew("test")):
            (waiter,) = hold(channel, 1)
            assert server.held.acquire(timeout=30)
            change()
            assert waiter.wait(30)
            error = waiter.value[1]
            assert isinstance(error, CallError)
            assert error.transient
            assert channel.call(PING, b"x", 10.0) == b"x"
        assert channel.renewals == 1
        channel.grow(1)  # never fewer
        assert channel.connections == 3
    finally:
        channel.close()


def test_a_closed_channel_ends_its_calls_for_good_and_takes_no_more(server: Server) -> None:
    channel = Channel(Target(server.address, secure=False))
    (waiter,) = hold(channel, 1)
    assert server.held.acquire(timeout=30)
    channel.close()
    channel.close()
    assert waiter.wait(30)
    assert not waiter.value[1].transient
    with pytest.raises(CallError) as caught:
        channel.call(PING, b"", 1.0)
    assert not caught.value.transient
    assert not caught.value.sent


def test_a_callback_that_fails_is_logged_and_the_channel_goes_on(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    channel = Channel(Target(server.address, secure=False))
    called = Waiter()

    def fails(response: Any, error: Any) -> None:
        called.set()
        raise ValueError("no")

    try:
        channel.start(PING, b"", 10.0, fails)
        assert called.wait(30)
        assert channel.call(PING, b"x", 10.0) == b"x"
        assert "a callback of /test.Service/Ping failed" in caplog.text
    finally:
        channel.close()


# TLS and tokens


class Tokens:
    """A token server, and the service account that it gives tokens to."""

    def __init__(self, folder: Path) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        self.given = 0
        tokens = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                tokens.given += 1
                body = json.dumps(
                    {"access_token": f"token-{tokens.given}", "expires_in": 3600, "token_type": "Bearer"}
                ).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.account = folder / "account.json"
        self.account.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": "p",
                    "private_key_id": "1",
                    "private_key": pem.decode(),
                    "client_email": "psqd@p.iam.gserviceaccount.com",
                    "token_uri": f"http://127.0.0.1:{self._http.server_port}/token",
                }
            )
        )

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def certificate(folder: Path) -> tuple[bytes, bytes, Path]:
    """Key, certificate for 127.0.0.1, and the certificate's file."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "front")])
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem = cert.public_bytes(serialization.Encoding.PEM)
    path = folder / "roots.pem"
    path.write_bytes(pem)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, pem, path


SECURE = """
import sys
if sys.argv[1] == "gevent":
    from gevent import monkey
    monkey.patch_all()
from psq.google.channel import Channel, Method, Target
from psq.google.errors import CallError
channel = Channel(Target(sys.argv[2], audience="pubsub.googleapis.com"))
ping = Method("/test.Service/Ping")
for number in range(4):
    try:
        print(channel.call(ping, b"x", 10.0))
    except CallError as error:
        print(error.code, error.transient)
channel.close()
"""


@pytest.mark.parametrize("kind", ["plain", "gevent"])
def test_tls_and_tokens_of_a_service_account_and_a_revoked_token_is_replaced(tmp_path: Path, kind: str) -> None:
    key, pem, roots = certificate(tmp_path)
    tokens, server = Tokens(tmp_path), Server(grpc.ssl_server_credentials([(key, pem)]))
    try:
        server.refuse.add("Bearer token-1")
        done = subprocess.run(
            [sys.executable, "-c", SECURE, kind, server.address],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "GOOGLE_APPLICATION_CREDENTIALS": str(tokens.account),
                "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(roots),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["UNAUTHENTICATED True", "b'x'", "b'x'", "b'x'"], done.stderr
        assert server.tokens == ["Bearer token-2"] * 3
    finally:
        server.stop()
        tokens.stop()


@pytest.mark.parametrize("file", ["nowhere.json", "."], ids=["none", "not readable"])
def test_where_there_are_no_credentials_the_error_says_what_to_do(tmp_path: Path, file: str) -> None:
    code = """
from psq.google.channel import Channel, Method, Target
from psq.google.errors import broker_error
channel = Channel(Target("127.0.0.1:1"))
def done(response, error):
    print(type(broker_error(error, "pulling")).__name__, error)
channel.start(Method("/x/y"), b"", 1.0, done)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / file)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("BrokerRefused"), done.stdout + done.stderr
    assert "gcloud auth application-default login" in done.stdout


# forks

FORKED = """
import os, sys, threading
if sys.argv[1] == "gevent":
    from gevent import monkey
    monkey.patch_all()
from psq.google.channel import Channel, Method, Target
from psq.google import rest
from psq.google.errors import CallError
rest.PATIENCE = rest.LONG_PATIENCE = 0.2  # the call that is held never ends
channel = Channel(Target(sys.argv[2], secure=False))
ping, hold = Method("/test.Service/Ping"), Method("/test.Service/Hold")
ended = []
channel.call(ping, b"x", 20.0)
channel.start(hold, b"", 20.0, lambda response, error: ended.append(os.getpid()))
child = os.fork()
if child == 0:
    code = 1
    try:
        if sys.argv[1] == "later":
            from gevent import monkey
            monkey.patch_all(ssl=False)
        assert len(channel) == 0
        try:
            answers = []
            call = lambda: answers.append(channel.call(ping, b"x", 20.0))
            threads = [threading.Thread(target=call) for _ in range(5)]
            if sys.argv[1] == "gevent":
                print(channel.call(ping, b"x", 20.0), flush=True)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            print(answers, flush=True)
            code = 0 if answers == [b"x"] * 5 and not ended else 2
        except CallError as error:
            print(error.code, error.transient, flush=True)
            code = 3
    finally:
        os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), channel.call(ping, b"y", 20.0), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("plain", 0),
        ("later", 0),  # gunicorn's gevent worker: the master is plain, its children are patched
        ("gevent", 3),  # gRPC does not survive it: an error that says so, and not a call that hangs
    ],
)
def test_after_a_fork_with_a_call_in_flight(server: Server, kind: str, code: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", FORKED, kind, server.address],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == [f"{code} b'y'"], done.stdout + done.stderr
    if kind == "gevent":
        assert "FAILED_PRECONDITION False" in done.stdout
    if kind == "later":
        assert "grpc was already in use" in done.stderr
