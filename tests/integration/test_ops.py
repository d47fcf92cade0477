"""What an operator sees of a real daemon: its pages, its metrics, its log, its dead letters."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

import psq
from tests.acceptance.processes import ROOT, wait_until
from tests.integration import jobs
from tests.integration.daemons import Psqd, Site

QUEUES = {"default": {"concurrency": 20}, "slow": {"concurrency": 2}}


def config(port: int = 0, **more: Any) -> dict[str, Any]:
    return {"queues": QUEUES, "http": {"bind": f"127.0.0.1:{port}"}, **more}


def port_of(daemon: Psqd, since: int = 0) -> int:
    return int(daemon.wait_line(r"http on 127\.0\.0\.1:(\d+)", since=since)[1])


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def get_json(port: int, path: str) -> tuple[int, Any]:
    code, body = get(port, path)
    return code, json.loads(body)


def metrics(port: int) -> dict[tuple[str, ...], float]:
    """Values by name and label values."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(get(port, "/metrics")[1]):
        for sample in family.samples:
            found[sample.name, *(sample.labels[name] for name in sorted(sample.labels))] = sample.value
    return found


def until_ready(daemon: Psqd, port: int) -> None:
    wait_until(lambda: get(port, "/readyz")[0] == 200, 30, lambda: f"{get(port, '/readyz')}\n{daemon.log}")


def test_the_pages_and_metrics_tell_what_became_of_the_tasks(place: Site) -> None:
    daemon = place.daemon("a", config()).start()
    port = port_of(daemon)
    assert get_json(port, "/healthz") == (200, {"status": "ok"})
    until_ready(daemon, port)
    q = psq.Queue(psq.connect(place.broker), storage=place.storage)
    assert [q.enqueue(jobs.adder, n, 1).result(timeout=20) for n in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="broken"):
        q.enqueue(jobs.fails, "broken").result(timeout=20)
    q.enqueue("os:system", "true")
    wanted = {
        ("psqd_tasks_total", "finished", "default"): 3.0,
        ("psqd_tasks_total", "failed", "default"): 1.0,
        ("psqd_tasks_total", "dead", "default"): 1.0,
        ("psqd_dead_letters_total", "default", "not allowed"): 1.0,
        ("psqd_received_total", "default"): 5.0,
        ("psqd_acks_total", "default"): 5.0,
        ("psqd_leases_held", "default"): 0.0,
        ("psqd_queue_ready", "slow"): 1.0,
        ("psqd_ready",): 1.0,
        ("psqd_task_run_seconds_count", "default"): 4.0,
    }
    found: dict[tuple[str, ...], float] = {}

    def as_wanted() -> bool:
        found.clear()
        found.update(metrics(port))
        return {key: found.get(key) for key in wanted} == wanted

    wait_until(as_wanted, 20, lambda: f"{ {key: found.get(key) for key in wanted} }\n{daemon.log}")
    code, status = get_json(port, "/status")
    assert code == 200
    assert status["queues"]["default"]["tasks"] == {"finished": 3, "failed": 1, "dead": 1}
    assert status["keeper"] == {"alive": True, "pid": daemon.pid}
    assert status["process"]["pid"] == daemon.worker_pid()
    assert daemon.stop() == 0


def test_a_reload_and_its_error_show_in_status_and_metrics(sqlite_site: Site) -> None:
    daemon = sqlite_site.daemon("a", config()).start()
    port = port_of(daemon)
    before = get_json(port, "/status")[1]["config"]["hash"]
    daemon.configure(config(queues={**QUEUES, "new": {"concurrency": 1}}))
    daemon.signal(signal.SIGHUP)
    daemon.wait_line("reloaded: ")
    status = get_json(port, "/status")[1]
    assert status["config"]["hash"] != before
    assert "new" in status["queues"]
    assert status["reloads"]["ok"] == 1
    daemon.configure(config(queues={**QUEUES, "new": {"concurency": 1}}))
    daemon.signal(signal.SIGHUP)
    daemon.wait_line("reload failed")
    status = get_json(port, "/status")[1]
    assert status["reloads"]["failed"] == 1
    assert "did you mean `concurrency`?" in status["reloads"]["last_error"]
    assert status["ready"]  # the old config runs on
    found = metrics(port)
    assert (found["psqd_reloads_total", "ok"], found["psqd_reloads_total", "failed"]) == (1, 1)
    assert found["psqd_last_reload_ok",] == 0


def test_a_paused_daemon_is_not_ready_and_says_so(sqlite_site: Site) -> None:
    daemon = sqlite_site.daemon("a", config()).start()
    port = port_of(daemon)
    until_ready(daemon, port)
    daemon.signal(signal.SIGTSTP)
    daemon.wait_line(r"psqd\[\d+\] paused")
    code, document = get_json(port, "/readyz")
    assert code == 503
    assert document["why"] == ["the daemon is paused"]
    assert document["queues"]["default"] == ["paused"]
    daemon.signal(signal.SIGCONT)
    until_ready(daemon, port)


def test_a_taken_port_ends_the_start_with_exit_code_2_and_says_what_to_do(sqlite_site: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        daemon = sqlite_site.daemon("a", config(taken.getsockname()[1])).start(wait=False)
        assert daemon.wait(30) == 2
    daemon.wait_line(r"http\.bind: can't listen on 127\.0\.0\.1:\d+: the port is taken")
    sqlite_site.nothing_left()


def test_a_reload_to_a_taken_port_keeps_the_old_one(sqlite_site: Site) -> None:
    daemon = sqlite_site.daemon("a", config()).start()
    port = port_of(daemon)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        daemon.configure(config(taken.getsockname()[1]))
        daemon.signal(signal.SIGHUP)
        daemon.wait_line("the port is taken")
    assert "the port is taken" in get_json(port, "/status")[1]["reloads"]["last_error"]


def test_without_http_nothing_listens_and_a_reload_can_switch_it_on_and_off(sqlite_site: Site) -> None:
    daemon = sqlite_site.daemon("a", {"queues": QUEUES}).start()
    assert not any("http on" in line for line in daemon.lines)
    since = daemon.mark()
    daemon.configure(config())
    daemon.signal(signal.SIGHUP)
    port = port_of(daemon, since)
    assert get(port, "/healthz")[0] == 200
    since = daemon.mark()
    daemon.configure({"queues": QUEUES})
    daemon.signal(signal.SIGHUP)
    daemon.wait_line("reloaded", since=since)
    wait_until(lambda: is_closed(port), 20, lambda: daemon.log)


def test_a_log_file_is_opened_anew_on_usr1(sqlite_site: Site) -> None:
    file = sqlite_site.folder / "psqd.log"
    daemon = sqlite_site.daemon("a", {"queues": QUEUES, "logging": {"file": str(file), "format": "json"}}).start(
        wait=False
    )
    wait_until(lambda: file.exists() and "ready:" in file.read_text(), 60, lambda: daemon.log)
    old = file.rename(file.with_suffix(".1"))
    daemon.signal(signal.SIGUSR1)
    wait_until(file.exists, 20, lambda: daemon.log)
    q = psq.Queue(psq.connect(sqlite_site.broker), storage=sqlite_site.storage)
    task = q.enqueue(jobs.adder, 1, 2)
    assert task.result(timeout=20) == 3
    wait_until(lambda: '"finished"' in file.read_text(), 20, file.read_text)
    assert task.id not in old.read_text()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    life = [(line["outcome"], line["attempt"]) for line in lines if line.get("task_id") == task.id]
    assert life == [("started", 1), ("finished", 1)]
    assert daemon.stop() == 0


def test_a_dead_letter_is_listed_and_requeued_from_the_command_line(place: Site) -> None:
    daemon = place.daemon("a", {"queues": QUEUES}).start()
    q = psq.Queue(psq.connect(place.broker), storage=place.storage)
    task = q.enqueue("os:system", "touch /tmp/never")
    daemon.wait_line(f"{task.id} os:system dead")

    def command(*args: str) -> subprocess.CompletedProcess[str]:
        options = ["--broker", place.broker, "--storage", str(place.storage)]
        return subprocess.run(
            [sys.executable, "-m", "psq.cli", "dead", *args, *options],
            cwd=ROOT,
            env={**os.environ, **place.environment()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    (listed,) = json.loads(command("list", "--json").stdout)
    assert (listed["task_id"], listed["reason"], listed["queue"]) == (task.id, "not allowed", "default")
    assert "touch /tmp/never" in command("show", task.id).stdout
    since = daemon.mark()
    done = command("requeue", task.id)
    assert done.returncode == 0, done.stderr
    found = daemon.wait_line(f"{task.id} os:system dead", since=since)
    assert "run=2" in found.string
    # What died again before the old letter was deleted is still there.
    wait_until(
        lambda: [one["id"] for one in json.loads(command("list", "--json").stdout)] == [f"{task.id}:1.2"],
        20,
        lambda: f"{command('list').stdout}\n{daemon.log}",
    )
