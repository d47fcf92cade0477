"""A program that was written for psq 0.8: Google's own client objects, storage and names, with no change."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import psq
from tests.integration import jobs
from tests.integration.daemons import Site, site


@pytest.fixture
def google_site(
    tmp_path: Path, pubsub_emulator: str, datastore_emulator: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """Pub/Sub and Datastore, a project of their own."""
    emulators = {"PUBSUB_EMULATOR_HOST": pubsub_emulator, "DATASTORE_EMULATOR_HOST": datastore_emulator}
    for name, address in emulators.items():
        monkeypatch.setenv(name, address)
    project = f"p-{uuid.uuid4().hex[:8]}"
    with site(tmp_path, f"pubsub://{project}", f"datastore://{project}", **emulators) as it:
        yield it


@pytest.fixture
def clients(google_site: Site) -> Iterator[tuple[Any, Any, str, Any]]:
    """Publisher, subscriber, project and Datastore's client, as psq 0.8's README made them."""
    from google.cloud import datastore, pubsub_v1

    project = google_site.broker.removeprefix("pubsub://")
    publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    store = datastore.Client(project=project)  # type: ignore[no-untyped-call]
    yield publisher, subscriber, project, store
    publisher.transport.close()
    subscriber.close()


def test_it_enqueues_and_reads_results_as_it_did(google_site: Site, clients: tuple[Any, Any, str, Any]) -> None:
    publisher, subscriber, project, store = clients
    storage = psq.DatastoreStorage(store)
    q = psq.Queue(publisher, subscriber, project, name="fast", storage=storage)
    first = q.enqueue(jobs.adder, 5, 6)
    failing = q.enqueue(jobs.fails, "why")
    daemon = google_site.daemon("a", {"queues": {"fast": {"concurrency": 5}}}).start()

    assert first.result(timeout=30) == 11
    assert psq.TaskResult(first.task_id, q).result() == 11
    with pytest.raises(ValueError, match="why"):
        failing.result(timeout=30)

    task = storage.get_task(first.task_id)
    assert task is not None
    assert (task.id, task.status, task.result) == (first.task_id, "finished", 11)
    failed = storage.get_task(failing.task_id)
    assert failed is not None
    assert isinstance(failed.result, ValueError)
    assert {one.id for one in storage.list_tasks()} == {first.task_id, failing.task_id}
    storage.delete_task(first.task_id)
    assert storage.get_task(first.task_id) is None
    assert daemon.stop() == 0


def test_without_a_storage_it_says_so_at_once(clients: tuple[Any, Any, str, Any]) -> None:
    publisher, subscriber, project, _ = clients
    result = psq.Queue(publisher, subscriber, project).enqueue(jobs.adder, 5, 6)
    with pytest.raises(psq.NoStorage):
        result.result()


def test_a_broadcast_queue_reaches_every_worker(google_site: Site, clients: tuple[Any, Any, str, Any]) -> None:
    publisher, subscriber, project, _ = clients
    settings = {"queues": {"broadcast": {"type": "broadcast"}}}
    daemons = [google_site.daemon(name, settings).start() for name in ("a", "b")]
    result = psq.BroadcastQueue(publisher, subscriber, project).enqueue(jobs.noted)
    google_site.wait_runs(result.id, 2, 30)
    assert [daemon.stop() for daemon in daemons] == [0, 0]
