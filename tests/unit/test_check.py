"""`psqd --check`: every mistake on a line, nothing received, exit code 0 or 2."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests import parts

ROOT = Path(__file__).parents[2]


class Site:
    """A folder with a config and modules to import."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module("shoptasks", "def work(): pass\nclass Context:\n    def __enter__(self): pass\n")
        self.config("")

    def module(self, name: str, text: str) -> None:
        (self.folder / f"{name}.py").write_text(text)

    def config(self, more: str, *, broker: str | None = None, imports: str = "shoptasks", queues: str = "a: ") -> None:
        broker = broker or f"sqlite://{self.folder}/psq.db"
        text = f"broker: {broker}\nimports: [{imports}]\npath: [{self.folder}]\nqueues: {{{queues}}}\n{more}\n"
        (self.folder / "psqd.yaml").write_text(text)

    def run(self, *args: str, env: dict[str, str] | None = None, before: str = "") -> subprocess.CompletedProcess[str]:
        command = ["-m", "psqd", "-c", "psqd.yaml", "--check", *args]
        if before:  # the process behind it, with a part replaced
            code = textwrap.dedent(before) + "\nimport sys, psqd.check\nsys.exit(psqd.check.main(sys.argv[1:]))"
            command = ["-c", code, "--config", "psqd.yaml"]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        return subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=variables, cwd=self.folder, timeout=100
        )

    def told(self, *args: str, env: dict[str, str] | None = None, before: str = "") -> list[str]:
        """What is wrong, without the file's name; the exit code must say so."""
        done = self.run(*args, env=env, before=before)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        return [line.removeprefix("psqd.yaml:").strip() for line in done.stderr.splitlines()]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_config_that_would_start_is_fine(site: Site) -> None:
    site.config("", queues="a: {extra_context: 'shoptasks:Context'}, b: {type: broadcast}")
    done = site.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "psqd.yaml: nothing is wrong\n"


def test_the_check_receives_nothing(site: Site) -> None:
    import psq

    with_task = psq.Queue(psq.connect(f"sqlite://{site.folder}/psq.db"), "a")
    result = with_task.enqueue("shoptasks:work")
    assert site.run().returncode == 0
    assert result.status in ("queued", "unknown")


def test_mistakes_in_the_file_are_told_as_at_a_start(site: Site) -> None:
    site.config("colour: red")
    (line,) = site.told()
    assert line.startswith("5:1: unknown key `colour`; ")


def test_everything_that_is_wrong_is_told_at_once(site: Site) -> None:
    site.module("broken", "1 / 0")
    site.module("ends", "raise SystemExit(5)")
    site.config(
        "storage: none\nlogging: {file: /nowhere/psqd.log}",
        imports="shoptasks, broken, missing, ends",
        queues="a: {extra_context: 'shoptasks:nothing'}, b: {extra_context: 'gone:x'}",
    )
    lines = site.told()
    assert [line.partition(":")[0] for line in lines] == [
        "logging.file",
        "imports",
        "imports",
        "imports",
        "queues.a.extra_context",
        "queues.b.extra_context",
    ]
    assert "broken can't be imported: ZeroDivisionError: division by zero" in lines[1]
    assert "missing can't be imported: ModuleNotFoundError: No module named 'missing'" in lines[2]
    assert "ends can't be imported: SystemExit: 5" in lines[3]
    assert "module 'shoptasks' has no attribute 'nothing'" in lines[4]
    assert "No module named 'gone'" in lines[5]


def test_a_folder_that_is_not_there_is_told(site: Site) -> None:
    (site.folder / "psqd.yaml").write_text(
        f"broker: sqlite://{site.folder}/psq.db\nimports: [json]\npath: [lib]\nqueues: {{a: }}\n"
    )
    assert site.told() == [f"path: there is no folder lib (seen from {site.folder})"]


def test_path_options_are_where_modules_are_found(site: Site) -> None:
    other = site.folder / "other"
    other.mkdir()
    (other / "moretasks.py").write_text("")
    site.config("", imports="moretasks")
    assert len(site.told()) == 1
    assert site.run("--path", str(other)).returncode == 0


def test_a_database_that_cannot_be_opened_is_told(site: Site) -> None:
    (site.folder / "psq.db").write_text("this is no database, but it is long enough to look like one " * 100)
    lines = site.told()
    assert len(lines) == 2
    assert lines[0].startswith(("broker: ", "queues.a: "))
    assert lines[1].startswith("storage: ")
    assert all("psq.db" in line for line in lines)


def test_a_broker_that_cannot_be_reached_is_told_once(site: Site) -> None:
    port = parts.free_port()
    site.config("storage: none", broker="pubsub://p", queues=", ".join(f"q{n}: " for n in range(30)))
    lines = site.told(env={"PUBSUB_EMULATOR_HOST": f"127.0.0.1:{port}"})
    assert len(lines) == 1
    assert lines[0].startswith("broker: pubsub://p")
    assert " can't be reached: " in lines[0]


SCRIPTED = """
    import psq.connect, psq.errors
    class Broker:
        url, scheme = "scripted://", "scripted"
        def check_queue_name(self, name):
            if name == "bad":
                raise psq.errors.ConfigError("no topic can be called bad")
        def declare(self, spec):
            assert not spec.member
            return self.answer(spec)
        def lacks(self, spec):
            return []
        def close(self):
            pass
        def answer(self, spec):
            ANSWER
    psq.connect.broker_of = lambda url, declare: Broker()
    psq.connect.storage_of = lambda url, broker: None
"""


def scripted(answer: str) -> str:
    return SCRIPTED.replace("ANSWER", answer)


def test_a_queue_that_the_broker_refuses_is_told_beside_the_others(site: Site) -> None:
    site.config("", queues="a: , b: , bad: ")
    answer = 'if spec.name == "b": raise psq.errors.BrokerRefused("no permission:\\n  gcloud …")\n            return []'
    assert site.told(before=scripted(answer)) == [
        "queues.bad: no topic can be called bad",
        "queues.b: no permission: gcloud …",
    ]


def test_what_the_broker_says_of_every_queue_is_told_once(site: Site) -> None:
    site.config("", queues=", ".join(f"q{n}: " for n in range(30)))
    answer = 'raise psq.errors.BrokerRefused("no permission")'
    assert site.told(before=scripted(answer)) == ["queues.q0: no permission (and 29 more queues)"]


def test_what_works_and_should_be_known_is_a_warning(site: Site) -> None:
    done = site.run(before=scripted('return ["its ack deadline is 20 s"]'))
    assert done.returncode == 0
    assert done.stdout == "warning: psqd.yaml: queues.a: its ack deadline is 20 s\npsqd.yaml: nothing is wrong\n"


def test_a_broker_that_does_not_answer_is_given_up(site: Site) -> None:
    before = scripted("import gevent.event; gevent.event.Event().wait()")
    before += "\n    import psqd.check; psqd.check.Check.__init__.__defaults__ = ((), 0.2)\n"
    assert site.told(before=before) == ["broker: scripted:// can't be reached: no answer in 0.2 s"]
