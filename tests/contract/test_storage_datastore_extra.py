"""Promises of the Datastore storage beyond the seam's, on both real emulators."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from psq.concurrency import Waiter, is_patched
from psq.errors import StorageRefused
from psq.storages.base import FINISHED, Scheduled
from psq.storages.datastore import DatastoreStorage
from psq.storages.datastore_heads import Part
from tests import parts
from tests.contract.backend_datastore import DatastorePlace
from tests.contract.helpers import Answer
from tests.contract.running import emulator
from tests.contract.test_storage import put, record

EMULATORS = {"datastore": parts.datastore_emulator, "firestore": parts.firestore_emulator}


@pytest.fixture(params=list(EMULATORS))
def spot(request: pytest.FixtureRequest) -> Iterator[DatastorePlace]:
    """An empty project in an emulator."""
    place = DatastorePlace(f"http://{emulator(EMULATORS[request.param])}")
    yield place
    place.close()


def opened(place: DatastorePlace) -> DatastoreStorage:
    storage = place.open()
    assert isinstance(storage, DatastoreStorage)
    return storage


def parts_in(storage: DatastoreStorage) -> list[str]:
    return storage._open().api.names_between("psq-part", "0", "z", "looking for parts")


def test_of_32_who_claim_at_once_one_wins(spot: DatastorePlace) -> None:
    storages = [opened(spot) for _ in range(4)]
    won: list[str] = []

    def claim(number: int) -> None:
        if storages[number % 4].claim("schedule:0", f"owner-{number}", 60):
            won.append(f"owner-{number}")

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storages[0].claim("schedule:0", won[0], 60)


def test_a_record_that_the_server_refuses_fails_alone(spot: DatastorePlace) -> None:
    storage = opened(spot)
    commits = storage._open().commits
    answers = [Answer() for _ in range(60)]
    for number, answer in enumerate(answers):
        if number == 31:
            commits.add(Part("x" * 2000, b"", None), answer)  # a key name takes 1,500 bytes
        else:
            storage.put(record(f"t{number}"), answer)
    errors = {number: error for number, answer in enumerate(answers) if (error := answer.error()) is not None}
    assert list(errors) == [31]
    assert isinstance(errors[31], StorageRefused)
    assert len(storage.get([f"t{number}" for number in range(60)])) == 59


def test_three_megabytes_that_do_not_compress_are_kept_in_parts_and_deleted_with_them(spot: DatastorePlace) -> None:
    storage = opened(spot)
    result = os.urandom(3_000_000)
    put(storage, record("t1", result=result), record("t2", result=result))
    assert opened(spot).get(["t1"])["t1"].result == result
    assert len(parts_in(storage)) == 8
    storage.delete(["t1"])
    assert len(parts_in(storage)) == 4
    assert storage.get(["t2"])["t2"].result == result
    storage.delete(["t2"])
    assert parts_in(storage) == []


def test_a_large_scheduled_message_goes_with_its_parts_whoever_deletes_it(spot: DatastorePlace) -> None:
    storage = opened(spot)
    for id in ("one:1", "two:1"):
        answer = Answer()
        storage.schedule(Scheduled(id, 5.0, "work", os.urandom(2_000_000)), answer)
        answer.get()
    items = {item.id: item for shard in range(4) for item in storage.due(shard, 6.0, 10)}
    storage.unschedule([items["one:1"].key])
    assert len(parts_in(storage)) == 3
    opened(spot).unschedule([items["two:1"].key])  # it has not read it itself
    assert parts_in(storage) == []


def test_many_writers_of_the_same_tasks_keep_the_first_of_each(spot: DatastorePlace) -> None:
    storages = [opened(spot) for _ in range(3)]
    answers: list[Answer] = []
    for number in range(100):
        for index, storage in enumerate(storages):
            answers.append(Answer())
            storage.put(record(f"t{number}", worker=f"w{index}", result=b"%d" % index), answers[-1])
    for answer in answers:
        answer.get()
    read = storages[0].get([f"t{number}" for number in range(100)])
    assert len(read) == 100
    assert all(one.worker == f"w{one.result.decode()}" for one in read.values() if one.result)
    again = storages[1].get(list(read))
    assert again == read


def test_namespaces_and_databases_are_apart(spot: DatastorePlace) -> None:
    endpoint = spot.endpoint
    storages = [
        DatastoreStorage(project=spot.project, endpoint=endpoint, database=database, namespace=namespace)
        for database in ("", "orders")
        for namespace in ("", "shop")
    ]
    for number, storage in enumerate(storages):
        put(storage, record("t1", result=b"%d" % number))
    for number, storage in enumerate(storages):
        assert storage.get(["t1"])["t1"].result == b"%d" % number
        assert [one.result for one in storage.find()] == [b"%d" % number]
        storage.close()


def test_googles_own_client_gives_the_place_and_reads_what_we_write(
    spot: DatastorePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.cloud import datastore

    untyped: Any = datastore
    monkeypatch.setenv("DATASTORE_EMULATOR_HOST", spot.endpoint.removeprefix("http://"))
    client = untyped.Client(project=spot.project, namespace="shop")
    monkeypatch.delenv("DATASTORE_EMULATOR_HOST")
    storage = DatastoreStorage(client)
    put(storage, record("t1"))
    if not is_patched():  # its blocking call; ours never are
        entity = client.get(client.key("psq-task", "t1"))
        assert (entity["state"], entity["queue"], entity["result"]) == (FINISHED, "work", b"11")
        assert set(entity) - entity.exclude_from_indexes == {"ix"}
        old = untyped.Entity(key=client.key("psq-task", "old"), exclude_from_indexes=("data",))  # as psq 0.8 did
        old["data"] = b"pickled"
        client.put(old)
    assert set(storage.get(["t1", "old"])) == {"t1"}
    storage.close()


def test_a_storage_without_arguments_is_the_emulators_of_the_environment(
    spot: DatastorePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASTORE_EMULATOR_HOST", spot.endpoint.removeprefix("http://"))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", spot.project)
    storage = DatastoreStorage()
    put(storage, record("t1"))
    storage.close()
    assert set(opened(spot).get(["t1"])) == {"t1"}


def test_a_record_whose_predecessor_has_expired_is_written(spot: DatastorePlace) -> None:
    storage = opened(spot)
    put(storage, record("t1", expires_at=1.0, worker="old"))
    put(storage, record("t1", worker="new"))
    assert storage.get(["t1"])["t1"].worker == "new"


def test_listings_of_a_view_with_more_than_a_page_are_newest_first(spot: DatastorePlace) -> None:
    storage = opened(spot)
    put(storage, *(record(f"t{number}", finished_at=1000.0 + number) for number in range(250)))
    expected = [f"t{number}" for number in reversed(range(250))]
    assert [one.id for one in storage.find(state=FINISHED, limit=30)] == expected[:30]
    assert [one.id for one in storage.find(queue="work", limit=101)] == expected[:101]
    assert [one.id for one in storage.find()] == expected


@pytest.mark.unpatched
def test_a_forked_child_makes_its_own_connection(spot: DatastorePlace) -> None:
    storage = opened(spot)
    put(storage, record("parent"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            put(storage, record("child"))
            code = 0 if set(storage.get(["parent", "child"])) == {"parent", "child"} else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert set(storage.get(["parent", "child"])) == {"parent", "child"}


@pytest.mark.skipif(not is_patched(), reason="about gevent's hub")
def test_the_hub_itself_may_write_on_a_connection_that_was_idle(spot: DatastorePlace) -> None:
    from gevent import get_hub

    storage = opened(spot)
    put(storage, record("t1"))  # now nothing is under way
    answer, large = Answer(), Answer()
    result = os.urandom(2_000_000)

    def callback() -> None:
        storage.put(record("t2"), answer)
        storage.put(record("t3", result=result), large)

    get_hub().loop.run_callback(callback)
    answer.get()
    large.get()
    assert set(storage.get(["t1", "t2", "t3"])) == {"t1", "t2", "t3"}


@pytest.mark.parametrize(
    "make", [parts.datastore_emulator, pytest.param(parts.firestore_emulator, marks=pytest.mark.slow)]
)
def test_what_is_written_while_the_server_is_away_arrives_when_it_is_back(make: Callable[[], parts.Part]) -> None:
    server = make()
    storage = DatastoreStorage(project=f"t-{uuid.uuid4().hex[:12]}", endpoint=f"http://{server.start()}")
    try:
        put(storage, record("before"))
        address = server.address
        server.stop()
        answers = [Answer() for _ in range(20)]
        for number, answer in enumerate(answers):
            storage.put(record(f"t{number}"), answer)
        assert storage.pending_bytes() > 0
        waiter = Waiter()
        assert not waiter.wait(2.0)
        assert [answer.count for answer in answers] == [0] * 20
        server.start(again_at=address)
        for answer in answers:
            answer.get(60)
        assert len(storage.get([f"t{number}" for number in range(20)])) == 20
        assert [answer.count for answer in answers] == [1] * 20
    finally:
        storage.close()
        server.stop()
