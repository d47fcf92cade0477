"""Records as entities and back, exactly; what is indexed; names that Datastore does not take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psq.brokers.base import DeadLetter
from psq.storages.base import FINISHED, Scheduled, TaskRecord
from psq.storages.datastore_api import pb
from psq.storages.datastore_entities import Claim, DeadHead, EtaHead, dead_name, dead_of, eta_name, eta_of
from psq.storages.datastore_packing import pack
from psq.storages.datastore_records import TaskHead, task_of
from psq.storages.datastore_values import ix_name, key_name, milliseconds
from psq.storages.datastore_wire import varint

TEXTS = st.text(max_size=30) | st.sampled_from(["__x__", "", "a:b", "\ud800", "ä" * 600, "x" * 2000, "%3A"])
NUMBERS = st.floats(min_value=0, max_value=4e9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def entity_of(head: Any, *, packed: bool = False) -> Any:
    """The entity as the server gives it back."""
    entity = pb().Entity()
    entity.key.path.add(kind=head.kind, name=head.name)
    if packed:
        head.packed = pack(head.content)
    head.fill(entity)
    return pb().Entity.FromString(entity.SerializeToString())


def encoded(head: TaskHead) -> Any:
    """The entity of the bytes that are sent, or None where they are made otherwise."""
    key = pb().Key()
    key.path.add(kind=head.kind)
    data = head.encode(key.SerializeToString())
    return None if data is None else pb().Entity.FromString(data)


def indexed(value: Any) -> bool:
    """True where a value, or one inside it, goes into an index."""
    if value.WhichOneof("value_type") == "array_value":
        return any(indexed(one) for one in value.array_value.values)
    return not value.exclude_from_indexes


@settings(max_examples=settings().max_examples * 3 // 2, deadline=None)
@given(
    record=st.builds(
        TaskRecord,
        id=TEXTS,
        state=st.sampled_from(["queued", "started", "finished", "failed"]),
        queue=TEXTS,
        function=TEXTS,
        attempt=st.integers(1, 10**6),
        run=st.integers(1, 10**6),
        enqueued_at=NUMBERS,
        started_at=st.none() | NUMBERS,
        finished_at=st.none() | NUMBERS,
        result=st.none() | st.binary(),
        error=st.none() | st.dictionaries(TEXTS, JSON, max_size=4),
        worker=TEXTS,
        expires_at=st.none() | NUMBERS,
    ),
    packed=st.booleans(),
)
def test_a_record_is_read_back_exactly(record: TaskRecord, packed: bool) -> None:
    entity = entity_of(TaskHead(record), packed=packed)
    quick = encoded(TaskHead(record))
    assert quick is None or packed or quick == entity
    assert task_of(entity) == record
    assert len(entity.key.path[0].name.encode()) <= 1500
    assert all(len(value.string_value.encode()) <= 1500 for value in entity.properties["ix"].array_value.values)
    assert [name for name, value in entity.properties.items() if indexed(value)] == ["ix"]


@pytest.mark.parametrize("id", ["0f8fad5bd9cb469fa16570867728950e", "t9", "x" * 200])
@pytest.mark.parametrize("result", [None, b"", b"11", b"x" * 127, b"x" * 128, b"x" * 100_000])
@pytest.mark.parametrize("times", [(None, None, None), (5.0, None, 1_800_000_000.5), (5.0, 6.0, 2.0**34)])
def test_the_usual_record_goes_the_quick_way_with_the_same_entity(
    id: str, result: bytes | None, times: tuple[float | None, float | None, float | None]
) -> None:
    started, finished, expires = times
    error = None if result else {"type": "m:E", "message": "ä", "traceback": "…"}
    record = TaskRecord(id, FINISHED, "w", "m:f", 3, 2, 4.0, started, finished, result, error, "host:1", expires)
    for _ in range(2):  # the second time from the same template
        entity = encoded(TaskHead(record))
        assert entity is not None
        assert entity == entity_of(TaskHead(record))
        assert task_of(entity) == record


def test_a_time_that_takes_other_than_five_bytes_goes_the_slow_way() -> None:
    for expires in (0.0, 1000.0, 2.0**35 + 1):
        assert encoded(TaskHead(TaskRecord("t1", FINISHED, expires_at=expires))) is None
    assert encoded(TaskHead(TaskRecord("t1", FINISHED, expires_at=2.0**28))) is not None


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_numbers_are_written_as_protobuf_does(number: int) -> None:
    value = pb().Entity().properties["x"]
    value.integer_value = number - 2**63
    assert value.SerializeToString().endswith(varint((number - 2**63) % 2**64))


@settings(deadline=None)
@given(
    letter=st.builds(
        DeadLetter,
        id=TEXTS,
        attempt=st.integers(0, 1000),
        queue=TEXTS,
        function=TEXTS,
        reason=TEXTS,
        payload=st.binary(),
        error=TEXTS,
        traceback=TEXTS,
        enqueued_at=NUMBERS,
        died_at=NUMBERS,
        deaths=st.lists(st.dictionaries(TEXTS, JSON, max_size=3), max_size=3),
    ),
    packed=st.booleans(),
)
def test_a_dead_letter_is_read_back_exactly(letter: DeadLetter, packed: bool) -> None:
    entity = entity_of(DeadHead(letter), packed=packed)
    assert dead_of(entity) == letter
    assert entity.key.path[0].name == dead_name(letter.key)
    assert [name for name, value in entity.properties.items() if indexed(value)] == ["ix"]


@settings(deadline=None)
@given(
    item=st.builds(
        Scheduled,
        id=TEXTS,
        due_at=NUMBERS,
        queue=TEXTS,
        data=st.binary(),
        attributes=st.dictionaries(TEXTS, TEXTS, max_size=3),
    ),
    packed=st.booleans(),
)
def test_a_scheduled_message_is_read_back_exactly(item: Scheduled, packed: bool) -> None:
    entity = entity_of(EtaHead(item, 4), packed=packed)
    read = eta_of(entity)
    assert read is not None
    assert read.key == entity.key.path[0].name == eta_name(item, 4)
    read.key = ""
    assert read == item
    assert [name for name, value in entity.properties.items() if indexed(value)] == []


def test_a_claim_has_nothing_indexed_and_says_when_it_may_go() -> None:
    entity = entity_of(Claim("schedule:0", "me", 30))
    assert [name for name, value in entity.properties.items() if indexed(value)] == []
    assert entity.properties["expires"].WhichOneof("value_type") == "timestamp_value"
    assert entity.properties["token"].integer_value == 1


def test_expires_is_a_timestamp_that_is_never_too_early() -> None:
    entity = entity_of(TaskHead(TaskRecord("t1", FINISHED, expires_at=1000.25)))
    assert entity.properties["expires"].timestamp_value.seconds == 1001
    assert entity.properties["expires"].timestamp_value.nanos == 0
    assert "expires" not in entity_of(TaskHead(TaskRecord("t1", FINISHED))).properties


@pytest.mark.parametrize("at", [-1.0, 1e300, 253_402_300_800.0])
def test_times_beyond_what_datastore_can_say_are_cut_and_kept(at: float) -> None:
    record = TaskRecord("t1", FINISHED, finished_at=at, expires_at=at)
    entity = entity_of(TaskHead(record))
    assert task_of(entity) == record
    assert 0 <= entity.properties["expires"].timestamp_value.seconds <= 253_402_300_799
    assert all(len(value.string_value.rpartition(":")[2]) == 13 for value in entity.properties["ix"].array_value.values)


def test_ix_says_view_shard_and_time() -> None:
    record = TaskRecord("t1", FINISHED, "slow", "my.tasks:f", finished_at=1_800_000_000.125)
    entity = entity_of(TaskHead(record))
    assert [value.string_value for value in entity.properties["ix"].array_value.values] == [
        "s:finished:7:1800000000125",
        "q:slow:finished:7:1800000000125",
        "f:my.tasks%3Af:finished:7:1800000000125",
    ]


def test_records_of_one_function_do_not_share_what_differs() -> None:
    one = TaskRecord(
        "t1", FINISHED, "q", "m:f", enqueued_at=1.0, started_at=2.0, finished_at=3.0, result=b"1", expires_at=9.0
    )
    two = TaskRecord("t2", FINISHED, "q", "m:f", enqueued_at=4.0, started_at=5.0, finished_at=6.0, expires_at=10.0)
    entities = [entity_of(TaskHead(record)) for record in (one, two, one)]
    assert [task_of(entity) for entity in entities] == [one, two, one]


def test_an_entity_of_psq_08_is_none_of_ours() -> None:
    entity = pb().Entity()
    entity.key.path.add(kind="psq-task", name="t1")
    entity.properties["data"].blob_value = b"\x80\x04pickled"
    entity.properties["timestamp"].timestamp_value.seconds = 1
    assert task_of(entity) is None
    assert dead_of(entity) is None
    assert eta_of(entity) is None


@settings(deadline=None)
@given(st.lists(TEXTS, unique=True, max_size=30))
def test_key_names_are_taken_by_datastore_and_differ_where_ids_do(ids: list[str]) -> None:
    names = [key_name(id) for id in ids]
    assert len(set(names)) == len(ids)
    assert all(name and len(name.encode()) <= 450 and not name.startswith("__") for name in names)


def test_the_usual_id_is_its_own_key_name() -> None:
    assert key_name("0f8fad5bd9cb469fa16570867728950e") == "0f8fad5bd9cb469fa16570867728950e"


@settings(deadline=None)
@given(st.lists(TEXTS.filter(lambda text: text.isprintable()), unique=True, max_size=30))
def test_names_in_ix_have_no_colon_are_short_and_differ(names: list[str]) -> None:
    values = [ix_name(name) for name in names]
    assert len(set(values)) == len(names)
    assert all(":" not in value and len(value.encode()) <= 400 for value in values)


def test_names_that_begin_alike_are_told_apart_when_they_are_cut() -> None:
    assert ix_name("x" * 1000 + "a") != ix_name("x" * 1000 + "b")


def test_keys_of_the_schedule_are_in_the_order_of_time_within_a_shard() -> None:
    items = [Scheduled("same", at, "q", b"") for at in (1.0, 1.001, 2.0, 1_800_000_000.0, 9e9)]
    names = [eta_name(item, 4) for item in items]
    assert names == sorted(names)
    assert {name.split(":")[0] for name in names} <= set("0123")
    assert milliseconds(1.0019) == 1001
