"""A program that was written for psq 0.8: Google's own client objects, storage and names, with no change."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import psq
from tests.front.client import Front
from tests.integration import jobs
from tests.integration.daemons import Site, site


class Google(NamedTuple):
    """Google's own clients, and where daemons run that meet them."""

    site: Site
    publisher: Any
    subscriber: Any
    project: str
    store: Any


@pytest.fixture(params=["emulators", "front"])
def google(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    """Pub/Sub and Datastore, a project of their own, and clients as psq 0.8's README made them."""
    from google.cloud import datastore, pubsub_v1

    project = f"p-{uuid.uuid4().hex[:8]}"
    if request.param == "front":
        front: Front = request.getfixturevalue("front")
        environment, options = front.environment(), {"api_endpoint": front.endpoint}
        query = f"?endpoint={front.endpoint}"
    else:
        environment = {
            "PUBSUB_EMULATOR_HOST": request.getfixturevalue("pubsub_emulator"),
            "DATASTORE_EMULATOR_HOST": request.getfixturevalue("datastore_emulator"),
        }
        options, query = None, ""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    publisher = pubsub_v1.PublisherClient(client_options=options)
    subscriber = pubsub_v1.SubscriberClient(client_options=options)
    store = datastore.Client(project=project, client_options=options)  # type: ignore[no-untyped-call]
    with site(tmp_path, f"pubsub://{project}{query}", f"datastore://{project}{query}", **environment) as it:
        yield Google(it, publisher, subscriber, project, store)
    publisher.transport.close()
    subscriber.close()


def test_it_enqueues_and_reads_results_as_it_did(google: Google) -> None:
    google_site, publisher, subscriber, project, store = google
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


def test_without_a_storage_it_says_so_at_once(google: Google) -> None:
    _, publisher, subscriber, project, _ = google
    result = psq.Queue(publisher, subscriber, project).enqueue(jobs.adder, 5, 6)
    with pytest.raises(psq.NoStorage):
        result.result()


def test_a_broadcast_queue_reaches_every_worker(google: Google) -> None:
    google_site, publisher, subscriber, project, _ = google
    settings = {"queues": {"broadcast": {"type": "broadcast"}}}
    daemons = [google_site.daemon(name, settings).start() for name in ("a", "b")]
    result = psq.BroadcastQueue(publisher, subscriber, project).enqueue(jobs.noted)
    google_site.wait_runs(result.id, 2, 30)
    assert [daemon.stop() for daemon in daemons] == [0, 0]
