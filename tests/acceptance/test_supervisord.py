"""deploy/supervisord.conf under a real supervisord: reload, kill, replacement, stop."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import psq
from tests.acceptance.processes import ROOT, Family, family, free_ports, wait_until

BIN = Path(sys.executable).parent

TASKS = """
    import os, time

    def note(path, text, seconds=0):
        with open(path, "a") as file:
            file.write(f"began {text} {os.getpid()}\\n")
        time.sleep(seconds)
        with open(path, "a") as file:
            file.write(f"ended {text} {os.getpid()}\\n")
        return text
"""

CONFIG = """
    broker: ${{PSQ_BROKER}}
    imports: [shoptasks]
    path: [{folder}]
    shutdown_timeout: 25
    http: {{bind: "127.0.0.1:${{PSQD_HTTP_PORT}}"}}
    queues:
      default: {{concurrency: 50}}
"""


class Site:
    """A deployed program: deploy/supervisord.conf with its paths moved into a folder."""

    def __init__(self, folder: Path, members: Family) -> None:
        self.folder, self.family = folder, members
        self.broker = f"sqlite://{folder}/psq.db"
        self.notes = folder / "notes"
        self.notes.touch()
        (folder / "shoptasks.py").write_text(textwrap.dedent(TASKS))
        (folder / "conf").mkdir()
        self.configure("")
        self.write_supervisord_conf()

    def configure(self, more: str) -> None:
        text = textwrap.dedent(CONFIG).format(folder=self.folder)
        (self.folder / "conf" / "psqd.yaml").write_text(text + textwrap.indent(textwrap.dedent(more), "  "))

    def write_supervisord_conf(self) -> None:
        text = (ROOT / "deploy" / "supervisord.conf").read_text()
        port = free_ports(4)
        for old, new in [
            ("/srv/shop/.venv/bin", str(BIN)),
            ("/srv/shop", str(self.folder)),
            ("/run/psqd", str(self.folder)),
            ("/var/log/psqd", str(self.folder)),
            ("sqlite:////var/lib/psq/psq.db", self.broker),
        ]:
            assert old in text, f"deploy/supervisord.conf has no {old} any more"
            text = text.replace(old, new)
        numbered = 'PSQD_HTTP_PORT="919%(process_num)d"'
        assert numbered in text
        text = text.replace(numbered, 'PSQD_HTTP_PORT="%(process_num)d"')
        text = text.replace("numprocs_start=1", f"numprocs_start={port}")
        (self.folder / "supervisord.conf").write_text(text)

    def ctl(self, *words: str) -> str:
        done = subprocess.run(
            [BIN / "supervisorctl", "-c", self.folder / "supervisord.conf", *words],
            env=self.family.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout + done.stderr

    def pids(self) -> dict[str, int]:
        """Process ids by name, of those that supervisord calls RUNNING."""
        return {name: int(pid) for name, pid in re.findall(r"(psqd:psqd_\d+) +RUNNING +pid (\d+)", self.ctl("status"))}

    def noted(self, verb: str) -> list[tuple[str, int]]:
        lines = [line.split() for line in self.notes.read_text().splitlines()]
        return [(text, int(pid)) for word, text, pid in lines if word == verb]

    def logs(self) -> str:
        """What the daemons said: for an error."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-5000:]}" for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def site() -> Iterator[Site]:
    # not tmp_path: a unix socket's name has to be shorter than that
    folder = Path(tempfile.mkdtemp(prefix="psq-site-"))
    try:
        with family() as members:
            it = Site(folder, members)
            supervisord = members.start(
                [BIN / "supervisord", "--nodaemon", "-c", folder / "supervisord.conf"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            yield it
            supervisord.terminate()
            supervisord.wait(timeout=60)
    finally:
        shutil.rmtree(folder)


def worker_of(pid: int) -> int:
    return psutil.Process(pid).children()[0].pid


@pytest.mark.timeout(180)
def test_supervisord_reloads_replaces_and_stops_the_daemons_and_nothing_is_lost(site: Site) -> None:
    wait_until(lambda: len(site.pids()) == 3, 30, lambda: site.ctl("status") + site.logs())
    before = site.pids()

    client = psq.connect(site.broker)
    queue = psq.Queue(client)
    results = [queue.enqueue("shoptasks:note", str(site.notes), f"first-{n}") for n in range(20)]
    assert [result.result(timeout=30) for result in results] == [f"first-{n}" for n in range(20)]

    # a changed file and HUP: the new queue is served, by the same processes
    site.configure("reports: {concurrency: 2}")
    site.ctl("signal", "HUP", "psqd:*")
    reports = psq.Queue(client, "reports")
    assert reports.enqueue("shoptasks:note", str(site.notes), "report").result(timeout=30) == "report"
    assert site.pids() == before

    # kill -9 of one daemon while its worker runs tasks: replaced, and its tasks done
    long_ones = [queue.enqueue("shoptasks:note", str(site.notes), f"long-{n}", 4) for n in range(12)]

    def started() -> list[tuple[str, int]]:
        return [(text, pid) for text, pid in site.noted("began") if text.startswith("long-")]

    wait_until(lambda: len(started()) == 12, 30, site.logs)
    busy = {pid for _, pid in started()}
    name, victim = next((name, pid) for name, pid in before.items() if worker_of(pid) in busy)
    dead_worker = worker_of(victim)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: site.pids().get(name, victim) != victim, 30, lambda: site.ctl("status") + site.logs())
    assert [result.result(timeout=60) for result in long_ones] == [f"long-{n}" for n in range(12)]
    ended = site.noted("ended")
    assert {f"long-{n}" for n in range(12)} <= {text for text, _ in ended}
    assert all(pid != dead_worker for text, pid in ended if text.startswith("long-"))
    others = {other: pid for other, pid in before.items() if other != name}
    assert {other: pid for other, pid in site.pids().items() if other != name} == others

    # stop the group under load: what runs ends, what waits is kept for the next start
    last = [queue.enqueue("shoptasks:note", str(site.notes), f"last-{n}", 0.5) for n in range(400)]
    site.ctl("stop", "psqd:*")
    wait_until(lambda: len(site.family.alive()) == 1, 10, site.family.describe)  # supervisord itself
    status = site.ctl("status")
    assert status.count("STOPPED") == 3, status
    began, ended_now = site.noted("began"), site.noted("ended")
    assert len([text for text, _ in began if text.startswith("last-")]) == len(
        [text for text, _ in ended_now if text.startswith("last-")]
    ), "a drain lets running tasks end"

    site.ctl("start", "psqd:*")
    assert [result.result(timeout=60) for result in last] == [f"last-{n}" for n in range(400)]
    runs = sorted(text for text, _ in site.noted("ended") if text.startswith("last-"))
    assert runs == sorted(f"last-{n}" for n in range(400)), "every task ran once"
    site.ctl("stop", "psqd:*")
    client.close()


@pytest.mark.timeout(60)
def test_a_wrong_config_is_not_started_again_and_again(site: Site) -> None:
    wait_until(lambda: len(site.pids()) == 3, 30, lambda: site.ctl("status") + site.logs())
    site.ctl("stop", "psqd:*")
    (site.folder / "conf" / "psqd.yaml").write_text("queues: {default: {concurency: 1}}\n")
    site.ctl("start", "psqd:*")
    wait_until(
        lambda: set(re.findall(r"RUNNING|STARTING|BACKOFF|FATAL|EXITED", site.ctl("status"))) <= {"FATAL", "EXITED"},
        30,
        lambda: site.ctl("status"),
    )
    assert "did you mean `concurrency`?" in site.logs()
