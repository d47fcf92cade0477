"""deploy/psqd.service under a real systemd: reload, kills, a stop in the middle of work, a wrong config."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import psq
from tests.acceptance.processes import ROOT, Family, family, free_ports, wait_until
from tests.acceptance.systemd import Systemd, systemd

BIN = Path(sys.executable).parent

TASKS = """
    import os, subprocess, time

    def note(path, text, seconds=0):
        with open(path, "a") as file:
            file.write(f"began {text} {os.getpid()}\\n")
        time.sleep(seconds)
        return text

    def program(path, text, seconds):
        with open(path, "a") as file:
            file.write(f"began {text} {os.getpid()}\\n")
        return subprocess.run(["sleep", str(seconds)]).returncode
"""

CONFIG = """
    broker: ${{PSQ_BROKER}}
    imports: [shoptasks]
    path: [{folder}]
    http: {{bind: "127.0.0.1:${{PSQD_HTTP_PORT}}"}}
    queues:
      default: {{concurrency: 50, ack_deadline: 60, lease: 60}}
"""


class Site:
    """A deployed program: deploy/psqd.service with its paths moved into a folder."""

    def __init__(self, folder: Path, manager: Systemd) -> None:
        self.folder, self.systemd = folder, manager
        self.broker = f"sqlite://{folder}/psq.db"
        self.notes = folder / "notes"
        self.notes.touch()
        (folder / "shoptasks.py").write_text(textwrap.dedent(TASKS))
        (folder / "conf").mkdir()
        self.configure("")
        (manager.units / "psqd.service").write_text(unit(folder, self.broker))
        manager.ctl("daemon-reload")

    def configure(self, more: str) -> None:
        text = textwrap.dedent(CONFIG).format(folder=self.folder)
        (self.folder / "conf" / "psqd.yaml").write_text(text + textwrap.indent(textwrap.dedent(more), "  "))

    def began(self) -> list[str]:
        return [line.split()[1] for line in self.notes.read_text().splitlines()]

    def main_pid(self) -> int:
        return int(self.systemd.shows("psqd", "MainPID"))


def unit(folder: Path, broker: str) -> str:
    text = (ROOT / "deploy" / "psqd.service").read_text()
    for old, new in [
        ("/srv/shop/.venv/bin", str(BIN)),
        ("/srv/shop", str(folder)),
        ("sqlite:////var/lib/psq/psq.db", broker),
        ("PSQD_HTTP_PORT=9191", f"PSQD_HTTP_PORT={free_ports(1)}"),
        ("User=www-data\n", ""),  # a user's manager can't change users
        ("network-online.target", "psq-test.target"),  # the system's own
    ]:
        assert old in text, f"deploy/psqd.service has no {old} any more"
        text = text.replace(old, new)
    return text


@pytest.fixture
def site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="psq-systemd-"))
    try:
        with family() as members, systemd(folder, members) as manager:
            yield Site(folder, manager)
    finally:
        shutil.rmtree(folder)


def left(members: Family) -> list[psutil.Process]:
    return [process for process in members.alive() if "psqd" in " ".join(process.cmdline())]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_systemd_reloads_replaces_and_stops_the_daemon_and_no_task_fails(site: Site) -> None:
    manager = site.systemd
    manager.ctl("start", "psqd")
    client = psq.connect(site.broker)
    queue = psq.Queue(client)
    assert queue.enqueue("shoptasks:note", str(site.notes), "first").result(timeout=30) == "first", manager.said()
    pid = site.main_pid()

    # a changed file and reload: the new queue is served by the same process
    site.configure("reports: {concurrency: 2}")
    manager.ctl("reload", "psqd")
    report = psq.Queue(client, "reports").enqueue("shoptasks:note", str(site.notes), "report")
    assert report.result(timeout=30) == "report", manager.said()
    assert site.main_pid() == pid

    # the worker is killed: psqd replaces it, and systemd sees nothing of it
    long = queue.enqueue("shoptasks:note", str(site.notes), "worker-killed", 1)
    wait_until(lambda: "worker-killed" in site.began(), 30, manager.said)
    psutil.Process(pid).children()[0].kill()
    assert long.result(timeout=40) == "worker-killed", manager.said()
    assert (site.main_pid(), manager.shows("psqd", "NRestarts")) == (pid, "0")

    # psqd itself is killed: its worker gives back and ends, and systemd starts another
    long = queue.enqueue("shoptasks:note", str(site.notes), "keeper-killed", 1)
    wait_until(lambda: "keeper-killed" in site.began(), 30, manager.said)
    os.kill(pid, signal.SIGKILL)
    assert long.result(timeout=40) == "keeper-killed", "it waited for its lease of 60 s\n" + manager.said()
    assert site.began().count("keeper-killed") == 2
    assert manager.shows("psqd", "NRestarts") == "1"

    # a stop while a task waits for a program that it has started: both may end
    program = queue.enqueue("shoptasks:program", str(site.notes), "program", 3)
    wait_until(lambda: "program" in site.began(), 30, manager.said)
    manager.ctl("stop", "psqd")
    assert program.result(timeout=1) == 0, "the program was ended in the middle of its work\n" + manager.said()
    assert manager.shows("psqd", "ActiveState") == "inactive"
    assert manager.shows("psqd", "Result") == "success"
    assert site.began().count("program") == 1
    assert left(manager._family) == []
    client.close()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_wrong_config_is_not_started_again_and_again_by_systemd(site: Site) -> None:
    (site.folder / "conf" / "psqd.yaml").write_text("queues: {default: {concurency: 1}}\n")
    site.systemd.ctl("start", "psqd")
    wait_until(lambda: site.systemd.shows("psqd", "ActiveState") == "failed", 30, site.systemd.said)
    assert site.systemd.shows("psqd", "ExecMainStatus") == "2"
    assert site.systemd.shows("psqd", "NRestarts") == "0"
