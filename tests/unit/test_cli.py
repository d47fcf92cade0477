"""The commands: what they hand to the keeper, what they refuse, and that their process stays light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import psqd.keeper.main
from psqd import __version__, cli
from psqd.configfile import load, loads

ROOT = Path(__file__).parents[2]
FINE = "imports: [json]\nqueues: {default: }\nhttp: {bind: '127.0.0.1:0', token: s3cret}\n"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the keeper would have been started with."""
    calls: list[dict[str, Any]] = []

    def run(argv: Sequence[str], **options: Any) -> int:
        calls.append({"argv": list(argv), **options})
        return 0

    monkeypatch.setattr(psqd.keeper.main, "run", run)
    return calls


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "psqd.yaml"
    path.write_text(FINE)
    return str(path)


def invoke(command: Any, *args: str) -> Result:
    return CliRunner().invoke(command, args)


def python(*args: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=variables, cwd=cwd, timeout=60)


# psqd


def test_psqd_becomes_the_keeper_of_a_worker_with_the_file(
    kept: list[dict[str, Any]], file: str, tmp_path: Path
) -> None:
    result = invoke(cli.psqd, "-c", file, "--path", str(tmp_path), "--path", "/", "--pid", "psqd.pid")
    assert result.exit_code == 0, result.output
    assert kept == [
        {
            "argv": [
                *(sys.executable, "-m", "psqd.worker", "--config", file),
                *("--path", str(tmp_path), "--path", "/"),
            ],
            "pid_file": os.path.abspath("psqd.pid"),
            "title": "psqd: keeper",
        }
    ]


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_the_keepers_exit_code_is_the_commands(monkeypatch: pytest.MonkeyPatch, file: str, code: int) -> None:
    monkeypatch.setattr(psqd.keeper.main, "run", lambda *_, **__: code)
    assert invoke(cli.psqd, "-c", file).exit_code == code
    assert invoke(cli.psqworker, "config.q").exit_code == code


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-c", "none.yaml"], "none.yaml: can't be read: No such file or directory"),
        (["-c", "/"], "/: can't be read: Is a directory"),
        ([], "Missing option '-c'"),
        (["-c", "FILE", "--path", "/none"], "Directory '/none' does not exist"),
        (["-c", "FILE", "--check", "--print-config"], "exclude each other"),
        (["-c", "FILE", "--chek"], "No such option"),
        (["-c", "FILE", "more"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_ends_with_2_before_anything_starts(
    kept: list[dict[str, Any]], file: str, args: list[str], said: str
) -> None:
    result = invoke(cli.psqd, *(file if arg == "FILE" else arg for arg in args))
    assert (result.exit_code, kept) == (2, [])
    assert said in result.output


def test_the_config_is_printed_with_secrets_as_stars_and_reads_back(file: str) -> None:
    result = invoke(cli.psqd, "-c", file, "--print-config")
    assert result.exit_code == 0
    assert "s3cret" not in result.output
    assert loads(result.output.replace("***", "s3cret"), environ={}) == load(file, {})


def test_printing_a_wrong_config_says_what_is_wrong_and_ends_with_2(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("imports: [m]\nqueues: {a: {concurency: 1}}\n")
    result = CliRunner().invoke(cli.psqd, ["-c", str(wrong), "--print-config"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{wrong}:2:14: unknown key `concurency` in queues.a; did you mean `concurrency`?\n"


def test_help_says_the_exit_codes_and_the_signals() -> None:
    for command in (cli.psqd, cli.psqworker):
        said = " ".join(invoke(command, "--help").output.split())
        assert "Exit codes: 0 stopped; 1 forced" in said
        assert "HUP reloads" in said


def test_the_version_is_psqs_own() -> None:
    import psq

    assert invoke(cli.psqd, "--version").output == f"psqd {psq.__version__}\n"
    assert __version__ == psq.__version__


# psqworker


def test_psqworker_becomes_the_keeper_of_a_worker_with_the_queue(kept: list[dict[str, Any]], tmp_path: Path) -> None:
    args = ["--path", str(tmp_path), "--import", "a", "--import", "b.c", "--concurrency", "7", "config.q"]
    result = invoke(cli.psqworker, *args)
    assert result.exit_code == 0, result.output
    worker = [sys.executable, "-m", "psqd.worker", "--queue", "config.q", "--path", str(tmp_path)]
    worker += ["--import", "a", "--import", "b.c", "--concurrency", "7"]
    assert kept == [{"argv": worker, "pid_file": None, "title": "psqworker: keeper"}]


@pytest.mark.parametrize("name", ["config.q", "config:q", "shop.config.q", "shop.config:q"])
def test_psqworker_takes_a_module_and_an_attribute(kept: list[dict[str, Any]], name: str) -> None:
    assert invoke(cli.psqworker, name).exit_code == 0
    assert kept[0]["argv"][-1] == name


@pytest.mark.parametrize("args", [[], ["config"], ["config."], ["config.py:q()"], ["a:b:c"], ["x y.z"]])
def test_psqworker_refuses_what_names_no_queue(kept: list[dict[str, Any]], args: list[str]) -> None:
    result = invoke(cli.psqworker, *args)
    assert (result.exit_code, kept) == (2, [])
    assert "MODULE.QUEUE" in result.output


@pytest.mark.parametrize("number", ["0", "-1", "many", "10001"])
def test_psqworker_refuses_a_concurrency_that_is_none(kept: list[dict[str, Any]], number: str) -> None:
    assert invoke(cli.psqworker, "--concurrency", number, "config.q").exit_code == 2
    assert kept == []


# the process

LIGHT = """
import json, sys
sys.argv = json.loads(sys.argv[1])
import psqd.cli, psqd.keeper.main
psqd.keeper.main.run = lambda argv, **options: print(json.dumps(sorted(sys.modules))) or 0
getattr(psqd.cli, sys.argv[0])(prog_name=sys.argv[0])
"""


@pytest.mark.parametrize("command", ["psqd", "psqworker"])
def test_the_process_that_becomes_the_keeper_has_loaded_nothing_heavy(command: str, file: str) -> None:
    argv = [command, *(["-c", file] if command == "psqd" else ["config.q"])]
    done = python("-c", LIGHT, json.dumps(argv))
    assert done.returncode == 0, done.stderr
    heavy = {"gevent", "pydantic", "yaml", "grpc", "google", "flask", "rich", "prometheus_client", "sqlite3", "cronsim"}
    assert not heavy & {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_the_package_runs_as_a_module(file: str) -> None:
    done = python("-m", "psqd", "-c", file, "--print-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert loads(done.stdout.replace("***", "s3cret"), environ={}) == load(file, {})
