"""Names of workers in broadcast queues: the lowest free number of the machine, held by a file lock."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from psq.errors import ConfigError
from psqd.worker.members import Members


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / f"psqd-{os.getuid()}"


def test_workers_get_the_lowest_free_numbers_a_queue_and_keep_them(folder: Path) -> None:
    one, two = Members("broker", "host"), Members("broker", "host")
    assert [one.member("a", "process"), one.member("b", "process")] == ["host-0", "host-0"]
    assert [two.member("a", "process"), two.member("a", "process")] == ["host-1", "host-1"]
    assert one.member("a", "process") == "host-0"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_workers_of_different_brokers_do_not_share_numbers() -> None:
    one, other = Members("broker", "host"), Members("another", "host")
    assert one.member("a", "process") == other.member("a", "process") == "host-0"


def test_of_scope_host_the_machine_is_the_name() -> None:
    assert Members("broker", "host").member("a", "host") == Members("broker", "host").member("a", "host") == "host"


@pytest.mark.parametrize(
    ("host", "name"), [("Web-1.example.org", "web-1"), ("a_b", "a-b"), ("_", "host"), ("-x-", "x")]
)
def test_a_machines_name_becomes_what_a_subscription_can_be_called(host: str, name: str) -> None:
    assert Members("broker", host).host == name


def test_a_name_is_free_again_when_its_process_has_ended() -> None:
    code = (
        "import sys; from psqd.worker.members import Members; m = Members('broker', 'host');"
        "print(m.member('a', 'process'), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "host-0\n"
        assert Members("broker", "host").member("a", "process") == "host-1"
        other.kill()
    assert Members("broker", "host").member("a", "process") == "host-0"


def test_a_folder_that_can_not_be_used_is_a_wrong_setting(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(ConfigError, match=r"queues\.a: .*XDG_RUNTIME_DIR"):
        Members("broker", "host").member("a", "process")


def test_a_folder_of_somebody_else_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = Members("broker", "host")
    monkeypatch.setattr(os, "getuid", lambda: folder.parent.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="somebody else"):
        members.member("a", "process")
