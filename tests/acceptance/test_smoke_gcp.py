"""scripts/smoke-gcp.sh, which a person runs against the real service: here behind the front."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.acceptance.processes import ROOT, family, wait_until
from tests.front.client import Front


def command(project: str, front: Front, *options: str) -> list[str]:
    at = [f"--endpoint={front.endpoint}", f"--datastore-endpoint={front.endpoint}"]
    return [sys.executable, str(ROOT / "scripts" / "smoke_gcp.py"), project, *at, *options]


def left_over(project: str, pubsub: str, datastore: str, namespace: str) -> list[str]:
    """Topics, subscriptions and entities, as the emulators themselves tell."""
    from google.cloud import datastore as google_datastore
    from google.cloud import pubsub_v1

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", pubsub)
        patch.setenv("DATASTORE_EMULATOR_HOST", datastore)
        publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
        found = [topic.name for topic in publisher.list_topics(project=f"projects/{project}")]
        found += [sub.name for sub in subscriber.list_subscriptions(project=f"projects/{project}")]
        client = google_datastore.Client(project=project, namespace=namespace)
        for kind in ("psq-task", "psq-part", "psq-dead", "psq-eta", "psq-claim"):
            found += [str(entity.key) for entity in client.query(kind=kind).fetch(limit=3)]
        subscriber.close()
        client.close()
    return found


def figure(said: str, what: str) -> str:
    found = re.search(rf"^ +{re.escape(what)} +(.+)$", said, re.MULTILINE)
    assert found, f"no figure {what!r} in\n{said}"
    return found[1]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_it_tells_what_works_and_how_fast_and_leaves_nothing_behind(
    front: Front, pubsub_emulator: str, datastore_emulator: str
) -> None:
    project = f"p-{uuid.uuid4().hex[:8]}"
    done = subprocess.run(
        command(project, front, "--tasks=500", "--hog=11"),
        env=os.environ | front.environment(),
        capture_output=True,
        text=True,
        timeout=230,
    )
    said = done.stdout
    print(said)
    assert done.returncode == 0, said + done.stderr
    assert "All as promised" in said
    for what in (
        "round trip of enqueue: median, worst",
        "enqueue_many",
        "tasks run",
        "messages a pull that brought any",
        "until its result is read: median, worst",
        "leases lost",
        "started again, in a new worker, after",
    ):
        figure(said, what)
    assert float(figure(said, "messages a pull that brought any")) > 1
    namespace = re.search(r"namespace=(psq-smoke-\w+)", said)
    assert namespace
    assert left_over(project, pubsub_emulator, datastore_emulator, namespace[1]) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_interrupted_it_cleans_up_too(
    front: Front, pubsub_emulator: str, datastore_emulator: str, tmp_path: Path
) -> None:
    project = f"p-{uuid.uuid4().hex[:8]}"
    out = tmp_path / "out"
    with family() as members, out.open("wb") as stream:
        process = members.start(
            command(project, front, "--tasks=50"),
            env=members.environment(**front.environment()),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        wait_until(lambda: "messages a pull" in out.read_text(), 90, out.read_text)
        namespace = re.search(r"namespace=(psq-smoke-\w+)", out.read_text())
        assert namespace
        made = " ".join(left_over(project, pubsub_emulator, datastore_emulator, namespace[1]))
        assert all(what in made for what in ("topics/", "subscriptions/", "psq-task")), made
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1
        said = out.read_text()
        assert "Cleaned up." in said, said
        wait_until(lambda: not members.alive(), 10, members.describe)
    assert left_over(project, pubsub_emulator, datastore_emulator, namespace[1]) == []


@pytest.mark.slow
def test_a_person_without_rights_is_told_what_is_missing(front: Front) -> None:
    environment = front.environment() | {"GOOGLE_APPLICATION_CREDENTIALS": front.account("nobody", permissions=[])}
    done = subprocess.run(
        command("p-none", front), env=os.environ | environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert "pubsub." in done.stdout, done.stdout
    assert "permission" in done.stdout.lower(), done.stdout
    assert "Traceback" not in done.stdout + done.stderr
