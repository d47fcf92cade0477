"""Real daemons, hit at any moment of their start; and those that can't start at all."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.integration.daemons import Psqd, Site

#: Seconds from the keeper's first line to the blow, of one daemon each. They start side by side, which takes seconds.
MOMENTS = [0.0, 0.3, 0.8, 1.4, 2.2, 3.2]


@pytest.fixture
def daemons(sqlite_site: Site) -> list[Psqd]:
    """Just started, a worker below each."""
    found = [sqlite_site.daemon(f"d{n}", {"queues": {f"q{n}": {}}}) for n in range(len(MOMENTS))]
    for daemon in found:
        daemon.start(wait=False)
    for daemon in found:
        daemon.wait_line(r"worker \d+ started")
    return found


def _at_each_moment(daemons: list[Psqd]) -> Iterator[Psqd]:
    """In turn, each at its moment."""
    began = time.monotonic()
    for daemon, moment in zip(daemons, MOMENTS, strict=True):
        time.sleep(max(0.0, began + moment - time.monotonic()))  # the moments are the point
        yield daemon


@pytest.mark.slow
def test_a_stop_at_any_moment_ends_in_order_and_leaves_nothing(sqlite_site: Site, daemons: list[Psqd]) -> None:
    for daemon in _at_each_moment(daemons):
        daemon.signal(signal.SIGTERM)
    assert [daemon.wait(20) for daemon in daemons] == [0] * len(daemons), sqlite_site.logs()
    sqlite_site.nothing_left()


@pytest.mark.slow
def test_of_a_keeper_that_is_killed_at_any_moment_nothing_is_left(sqlite_site: Site, daemons: list[Psqd]) -> None:
    for daemon in _at_each_moment(daemons):
        daemon.signal(signal.SIGKILL)
    sqlite_site.nothing_left(15.0)  # a worker that is not up yet ends as soon as it is


@pytest.mark.slow
def test_a_worker_that_is_killed_at_any_moment_is_replaced(sqlite_site: Site, daemons: list[Psqd]) -> None:
    for daemon in _at_each_moment(daemons):
        os.kill(daemon.worker_pid(), signal.SIGKILL)
    for daemon in daemons:
        daemon.wait_line(r"worker \d+ ended: SIGKILL")
        ended = next(n for n, line in enumerate(daemon.lines) if "ended: SIGKILL" in line)
        daemon.wait_line(r"ready: \d+ queues", since=ended)
    assert [daemon.stop() for daemon in daemons] == [0] * len(daemons), sqlite_site.logs()
    sqlite_site.nothing_left()


@pytest.mark.slow
def test_a_reload_at_any_moment_disturbs_nothing(sqlite_site: Site, daemons: list[Psqd]) -> None:
    workers = [daemon.worker_pid() for daemon in daemons]
    for daemon in _at_each_moment(daemons):
        daemon.signal(signal.SIGHUP)
    for daemon in daemons:
        daemon.wait_line(r"ready: \d+ queues")
    assert [daemon.worker_pid() for daemon in daemons] == workers
    assert [daemon.stop() for daemon in daemons] == [0] * len(daemons), sqlite_site.logs()
    sqlite_site.nothing_left()


def test_a_module_that_cannot_be_imported_ends_psqd_with_its_exit_code(sqlite_site: Site) -> None:
    modules = {
        "absent": (None, "No module named 'absent'"),
        "needs": ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        "wrong": ("def f(:", "SyntaxError"),
        "leaves": ("raise SystemExit(5)", "SystemExit: 5"),
    }
    daemons = {}
    for name, (source, _) in modules.items():
        if source is not None:
            (sqlite_site.folder / f"{name}.py").write_text(source + "\n")
        config = {"queues": {"default": {}}, "imports": [name], "path": [str(sqlite_site.folder)]}
        daemons[name] = sqlite_site.daemon(name, config).start(wait=False)
    for name, (_, said) in modules.items():
        daemon = daemons[name]
        assert daemon.wait(30) == 2, daemon.log
        daemon.wait_line(said)
        daemon.wait_line("ends with exit code 2: the config, an option or an import is wrong")
    sqlite_site.nothing_left()


@pytest.mark.slow
def test_a_module_that_kills_its_worker_is_tried_again_with_growing_pauses_and_a_stop_ends_that(
    sqlite_site: Site,
) -> None:
    (sqlite_site.folder / "bad_module.py").write_text("import os\nos.abort()\n")
    config = {"queues": {"default": {}}, "imports": ["bad_module"], "path": [str(sqlite_site.folder)]}
    daemon = sqlite_site.daemon("bad", config).start(wait=False)
    daemon.wait_line(r"a new worker is started in 1\.0 s")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait(10) == 0, daemon.log
    pauses = [line.partition("a new worker is started")[2] for line in daemon.lines if "a new worker" in line]
    assert pauses == ["", " in 0.5 s", " in 1.0 s"]
    sqlite_site.nothing_left()
