"""`psq declare`: what a deployer makes for the daemons of a config, and the settings that go with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from psq.brokers.base import QueueSpec
from psq.brokers.sqlite import SQLiteBroker
from psq.connect import broker_of
from psq.errors import ConfigError
from psqd.config import Config
from psqd.configfile import loads
from psqd.declare import specs

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.unpatched


def config(more: str = "", *, broker: str = "pubsub://p", queues: str = "{a: }") -> Config:
    return loads(f"broker: {broker}\nimports: [m]\nqueues: {queues}\n{more}\n", environ={})


def test_the_copies_of_a_broadcast_queues_hosts_are_made_too_and_wait_for_their_daemons_for_ever() -> None:
    made = list(
        specs(
            config(
                queues="{a: {ack_deadline: 20}, each: {type: broadcast, hosts: [web-1, Web-2.example.com]}, "
                "machine: {type: broadcast, scope: host, hosts: [web-1]}, none: {type: broadcast, on_drain: delete}}"
            )
        )
    )
    assert made == [
        QueueSpec("a", ack_deadline=20.0),
        QueueSpec("each", broadcast=True),
        QueueSpec("each", broadcast=True, member="web-1-0", lasting=True),
        QueueSpec("each", broadcast=True, member="web-2-0", lasting=True),
        QueueSpec("machine", broadcast=True),
        QueueSpec("machine", broadcast=True, member="web-1", lasting=True),
        QueueSpec("none", broadcast=True, delete_on_close=True),
    ]


@pytest.mark.parametrize(
    ("key", "url", "is_now"),
    [
        ("", "pubsub://p", "auto"),
        ("declare: check", "pubsub://p", "check"),
        ("", "pubsub://p?declare=never", "never"),
        ("declare: never", "pubsub://p?prefix=a-&declare=never", "never"),
        ("declare: auto", "pubsub://p?declare=check", "check"),
        ("declare: check", "sqlite:///x", "check"),  # of no interest there
    ],
)
def test_the_setting_or_the_brokers_url_says_whether_topics_are_made(key: str, url: str, is_now: str) -> None:
    assert config(key, broker=url).declares == is_now


@pytest.mark.parametrize(
    ("key", "url", "queue", "said"),
    [
        ("declare: check", "pubsub://p?declare=never", "", "4:10: `declare` is check, and the broker's URL says"),
        ("declare: never", "pubsub://p", "type: broadcast, on_drain: delete", "`on_drain` in queues.a is for"),
        ("", "pubsub://p?declare=check", "type: broadcast, on_drain: delete", "`on_drain` in queues.a is for"),
        ("declare: sometimes", "pubsub://p", "", "`declare` must be one of auto, check, never"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(key: str, url: str, queue: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(key, broker=url, queues=f"{{a: {{{queue}}}}}")


def test_a_brokers_url_says_how_it_declares_and_says_it_back() -> None:
    for url in ("pubsub://p?endpoint=http://h:1", "pubsub://p?endpoint=http://h:1&declare=never"):
        broker = broker_of(url)
        assert broker.url == url
        broker.close()
    with_setting = broker_of("pubsub://p?endpoint=http://h:1&declare=never", "check")
    assert with_setting.url.endswith("declare=check")
    with_setting.close()
    with pytest.raises(ConfigError, match="declare is one of auto, check, never, not 'maybe'"):
        broker_of("pubsub://p?declare=maybe")


def psq(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", "from psqd.mixture import psq; psq()", *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_declares_every_queue_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "psqd.yaml").write_text(
        f"broker: sqlite://{tmp_path}/psq.db\nimports: [m]\nqueues: {{a: , b: {{type: broadcast, hosts: [web-1]}}}}\n"
    )
    done = psq(tmp_path, "declare", "-c", "psqd.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == ["a: there", "b: there", "b of web-1-0: there"]
    assert lines[-1] == f"2 queues on sqlite://{tmp_path}/psq.db: all there"
    broker = SQLiteBroker(str(tmp_path / "psq.db"))
    assert broker.declare(QueueSpec("a")) == []
    broker.close()


def test_a_config_with_mistakes_is_refused_with_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "psqd.yaml").write_text("broker: pubsub://p\nimports: [m]\nqueues: {a: {colour: red}}\nzzz: 1\n")
    done = psq(tmp_path, "declare", "-c", "psqd.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 2
    assert psq(tmp_path, "declare", "-c", "nowhere.yaml").returncode == 2


def test_a_broker_that_is_away_is_told_once(tmp_path: Path) -> None:
    queues = ", ".join(f"q{number}: " for number in range(30))
    (tmp_path / "psqd.yaml").write_text(
        f"broker: pubsub://p?endpoint=http://127.0.0.1:1\nimports: [m]\nqueues: {{{queues}}}\n"
    )
    done = psq(tmp_path, "declare", "-c", "psqd.yaml")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("q0: declaring the queue q0: UNAVAILABLE")
