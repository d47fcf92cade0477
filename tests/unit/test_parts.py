"""The tests' own servers: started, found missing, ended with all their processes."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests import parts
from tests.contract.running import emulator

SERVER = """
import socket, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(600)
"""


def answers(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def test_a_part_is_ended_with_its_children() -> None:
    part = parts.Part("a server", lambda port: [sys.executable, "-c", SERVER, str(port)], answers)
    address = part.start()
    group = part.pid
    assert answers(address)
    part.stop()
    part.stop()
    assert not parts.group_alive(group, 0.0)
    assert not answers(address)


def test_a_part_that_does_not_start_says_what_it_wrote() -> None:
    part = parts.Part("a server", lambda port: [sys.executable, "-c", "raise SystemExit('no java')"], answers)
    with pytest.raises(RuntimeError, match="no java"):
        part.start()


def test_a_missing_part_skips_with_its_reason_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "missing", {})
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no gcloud"):
        parts.need("an emulator", "no gcloud")
    assert parts.missing == {"an emulator": "no gcloud"}
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI=true"):
        parts.need("an emulator", "no gcloud")


def test_an_emulator_without_gcloud_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "missing", {})
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    for make in (parts.pubsub_emulator, parts.datastore_emulator, parts.firestore_emulator):
        with pytest.raises(pytest.skip.Exception, match="gcloud is not on PATH"):
            make()
    assert len(parts.missing) == 3


def test_an_emulator_that_is_shared_is_used_and_none_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for make in (parts.pubsub_emulator, parts.datastore_emulator, parts.firestore_emulator):
        monkeypatch.setenv(parts.SHARED[make.__name__], "127.0.0.1:1")
        assert list(parts.running(make)) == ["127.0.0.1:1"]
        assert emulator(make) == "127.0.0.1:1"


ENDLESS = """
import sys
from tests import parts, servers
def pubsub_emulator():
    return parts.Part("a server", lambda port: [sys.executable, "-c", sys.argv[1], str(port)], parts._accepts)
servers.main(pubsub_emulator)
"""


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_shared_emulator_ends_with_who_asked_for_it_or_by_signal(by_signal: bool) -> None:
    command = [sys.executable, "-c", ENDLESS, SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        variable, _, address = process.stdout.read().strip().partition("=")  # it lets go of its output
        assert variable == "TEST_PUBSUB_EMULATOR"
        assert answers(address)
        if by_signal:
            process.terminate()
        else:
            process.stdin.close()
        assert process.wait(60) == (143 if by_signal else 0)
    assert not answers(address)


SCRUBBED = """
import os
os.environ["PSQ_BROKER"] = "pubsub://x"
import pytest
pytest.main(["--collect-only", "-q", "tests/unit/test_parts.py"])
print("left", [name for name in os.environ if name.startswith("PSQ_")])
"""


def test_settings_of_psq_do_not_reach_tests() -> None:
    done = subprocess.run([sys.executable, "-c", SCRUBBED], capture_output=True, text=True, timeout=60, check=False)
    assert "left []" in done.stdout, done.stdout + done.stderr
