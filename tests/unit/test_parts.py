"""The tests' own servers: started, found missing, ended with all their processes."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests import parts

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
