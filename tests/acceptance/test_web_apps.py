"""Where web apps live: each server's workers enqueue, across a reload, and every task is run once."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.processes import Family, family, wait_until
from tests.acceptance.web_servers import Crowd, WebServer
from tests.front.client import Front
from tests.integration.daemons import Site, site

#: Name: the server, and its options. Where it preloads, its master enqueues before and while it forks.
CASES: dict[str, tuple[str, list[str]]] = {
    "gthread": ("gthread", []),
    "gevent": ("gevent", []),
    "uvicorn": ("uvicorn", []),
    "gthread-preload": ("gthread", ["--preload"]),
    "gevent-preload": ("gevent", ["--preload"]),
    "gevent-patched-preload": ("gevent", ["--preload", "--config=tests/acceptance/patched_gunicorn.py"]),
}
#: Those of `make test`, with few tasks. With a thousand tasks a worker they are slow: each server once.
QUICK = [("sqlite", "gevent-patched-preload"), ("front", "gevent-preload")]


@contextlib.contextmanager
def _daemon(folder: Path, broker: str, **environment: str) -> Iterator[Site]:
    """A daemon for all servers of a broker: a queue for each."""
    with site(folder, broker, None, **environment) as where:
        queues = {name: {"concurrency": 100} for name in CASES}
        daemon = where.daemon("web", {"storage": "none", "queues": queues, "logging": {"level": "warning"}})
        daemon.start(wait=False)
        yield where
        assert daemon.stop() == 0, daemon.log


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("web")
    with _daemon(folder, f"sqlite://{folder}/psq.db") as where:
        yield where


@pytest.fixture(scope="module")
def on_front(tmp_path_factory: pytest.TempPathFactory, front_process: Front) -> Iterator[Site]:
    front_process.reset()
    broker = f"pubsub://p-{uuid.uuid4().hex[:8]}?endpoint={front_process.endpoint}"
    with _daemon(tmp_path_factory.mktemp("web"), broker, **front_process.environment()) as where:
        yield where


@pytest.fixture
def servers() -> Iterator[Family]:
    """The servers' processes."""
    with family() as it:
        yield it


def across_a_reload(where: Site, servers: Family, case: str, folder: Path, each: int) -> None:
    """Each worker enqueues so many tasks at least, the server is reloaded meanwhile, and the new ones go on."""
    name, options = CASES[case]
    preloads = "--preload" in options
    more = {"TEST_BROKER": where.broker, "TEST_QUEUE": case}
    log = folder / "master"
    if preloads:
        more["TEST_BEFORE_FORK"] = str(log)
    environment = servers.environment(**(where.environment(**more) | {"PSQ_TEST_FAMILY": servers.mark}))
    server = WebServer(servers, name, folder / "log", options, environment)
    run = uuid.uuid4().hex[:6]
    with Crowd(server, f"{run}-") as crowd:
        old = crowd.wait(each, 120)
        server.reload()
        crowd.wait(each // 4, 120, without=old)
        crowd.stop()
    assert not crowd.lost, crowd.lost[:3]
    assert server.stop() == 0, server.text()
    master = log.read_text().splitlines() if preloads else []
    assert not [line for line in master if line.startswith("error")][:1]
    expected = {*crowd.accepted, *master}
    assert len(expected) == len(crowd.accepted) + len(master)

    def missing() -> set[str]:
        return expected - where.runs().keys()

    wait_until(lambda: not missing(), 60, lambda: f"{len(missing())} of {len(expected)} did not run\n{where.logs()}")
    again = {task for task, count in where.runs().items() if count != 1}
    assert not again, sorted(line for line in where.journal() if line[1] in again)
    print(f"{len(expected)} tasks, of these {len(master)} by the master; the server said: {server.text()}")


@pytest.mark.parametrize(("broker", "case"), QUICK)
def test_what_web_workers_enqueue_across_a_reload_is_run_once(
    request: pytest.FixtureRequest, servers: Family, tmp_path: Path, broker: str, case: str
) -> None:
    across_a_reload(request.getfixturevalue(f"on_{broker}"), servers, case, tmp_path, 100)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("broker", "case"),
    # What differs between the servers is how they fork and what is patched, which gRPC feels and SQLite does not.
    [
        ("sqlite", "gthread"),
        ("front", "gevent"),
        ("front", "uvicorn"),
        ("front", "gthread-preload"),
        ("front", "gevent-preload"),
    ],
)
def test_a_thousand_tasks_of_each_web_worker_across_a_reload_are_run_once(
    request: pytest.FixtureRequest, servers: Family, tmp_path: Path, broker: str, case: str
) -> None:
    across_a_reload(request.getfixturevalue(f"on_{broker}"), servers, case, tmp_path, 1000)
