"""The examples run as their first lines say."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.processes import ROOT, Family, family, free_ports, wait_until

BIN = Path(sys.executable).parent


@pytest.fixture
def members() -> Iterator[Family]:
    with family() as it:
        yield it


def start(members: Family, environment: dict[str, str], log: Path, *command: str | Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return members.start(command, cwd=ROOT, env=environment, stdout=out, stderr=out)


@pytest.mark.timeout(120)
def test_the_shipped_configuration_runs_the_example_task(tmp_path: Path, members: Family) -> None:
    environment = members.environment(XDG_STATE_HOME=str(tmp_path), PSQD_HTTP_PORT=str(free_ports(1)))
    log = tmp_path / "log"
    daemon = start(members, environment, log, BIN / "psqd", "-c", "conf/psqd.yaml")
    wait_until(lambda: "ready: " in log.read_text(), 60, log.read_text)
    said = subprocess.run(
        [sys.executable, "examples/enqueue.py", "5", "6"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[-1] == "result: 11"
    daemon.terminate()
    assert daemon.wait(40) == 0, log.read_text()


@pytest.mark.timeout(120)
def test_the_flask_example_enqueues_and_its_tasks_have_the_app(tmp_path: Path, members: Family) -> None:
    port = free_ports(1)
    environment = members.environment(XDG_STATE_HOME=str(tmp_path))
    log = tmp_path / "log"
    worker = start(members, environment, log, BIN / "psqworker", "--path", ".", "examples.flask_app.q")
    web = start(members, environment, log, BIN / "flask", "--app", "examples.flask_app", "run", "--port", str(port))
    url = f"http://127.0.0.1:{port}/greetings"

    def ask(path: str = "", body: bytes | None = None) -> dict[str, str]:
        with urllib.request.urlopen(url + path, data=body, timeout=10) as answer:
            found: dict[str, str] = json.load(answer)
            return found

    def served() -> bool:
        assert web.poll() is None, log.read_text()
        try:
            ask("/no-such-task")
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    wait_until(served, 60, log.read_text)
    task_id = ask(body=b"name=Ada")["id"]
    wait_until(lambda: ask(f"/{task_id}")["status"] == "finished", 60, log.read_text)
    assert ask(f"/{task_id}")["result"] == "Good day, Ada"
    for process in (web, worker):
        process.terminate()
    assert worker.wait(40) == 0, log.read_text()
