"""The wire format: what is written, what is read, and that nothing else than our two errors leaves `decode`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from psq.errors import ConfigError, MessageInvalid, MessageTooNew
from psq.message import WIRE_VERSION, Message, add_strike, attributes, check_id, decode, encode, new_id
from psq.serializers import load

ids = st.text(alphabet=[chr(code) for code in range(0x21, 0x7F) if chr(code) not in ":/"], min_size=1, max_size=200)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
seconds = st.floats(0, 1e11) | st.integers(0, 10**11)
counts = st.integers(1, 2**31 - 1)
messages = st.builds(
    Message,
    ids.filter(lambda id: not (id.startswith("__") and id.endswith("__"))),
    st.text(min_size=1),
    st.lists(json_values, max_size=3),
    st.dictionaries(st.text(max_size=5), json_values, max_size=3),
    queue=st.text(min_size=1, max_size=10),
    enqueued_at=seconds,
    due_at=st.none() | seconds,
    attempt=counts,
    run=counts,
    retries=st.none() | st.integers(0, 100),
    retry=st.none() | st.dictionaries(st.sampled_from(["first", "max"]), st.floats(0, 10), min_size=1),
    time_limit=st.none() | seconds,
    soft_time_limit=st.none() | seconds,
    reply=st.text(max_size=10),
    strikes=st.lists(st.fixed_dictionaries({"signal": st.text(), "host": st.text(), "at": seconds}), max_size=2),
)


@given(messages)
def test_a_message_is_read_as_it_was_written(message: Message) -> None:
    read = decode(encode(message))
    read.strikes, message.strikes = list(read.strikes), list(message.strikes)
    assert read == message


def test_a_common_message_is_small() -> None:
    message = Message("abc", "m:f", [5, 6], {}, enqueued_at=1.5)
    assert json.loads(encode(message)) == {
        "v": 1,
        "id": "abc",
        "function": "m:f",
        "args": [5, 6],
        "kwargs": {},
        "queue": "default",
        "enqueued_at": 1.5,
    }
    assert attributes(message) == {"psq-v": "1", "psq-id": "abc", "psq-function": "m:f"}


def document(**changes: Any) -> bytes:
    base: dict[str, Any] = json.loads(encode(Message("abc", "m:f", [1], {}, enqueued_at=1.0)))
    base.update(changes)
    return json.dumps({key: value for key, value in base.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a JSON document"),
        (b"\x80\x04\x95", "not a JSON document"),
        (b"[" * 100_000, "not a JSON document"),
        (b'{"v": 1, "id": NaN}', "not a JSON document"),
        (b"[1]", "a JSON list, not an object"),
        (b"{}", "no wire version"),
        (document(v=0), "no wire version"),
        (document(v=True), "no wire version"),
        (document(v="1"), "no wire version"),
        (document(v=1.0), "no wire version"),
        (document(id=...), "'id' is missing"),
        (document(function=...), "'function' is missing"),
        (document(queue=...), "'queue' is missing"),
        (document(id=""), "no task id"),
        (document(id="a/b"), "no task id"),
        (document(id="a:1"), "no task id"),
        (document(id="a b"), "no task id"),
        (document(id="é"), "no task id"),
        (document(id="x" * 201), "no task id"),
        (document(id="__x__"), "no task id"),
        (document(id="abc\n"), "no task id"),
        (document(id=5), "no task id"),
        (document(function=5), "not of its type"),
        (document(args={}), "not of its type"),
        (document(kwargs=[]), "not of its type"),
        (document(queue=None), "not of its type"),
        (document(enqueued_at="now"), "not of its type"),
        (document(enqueued_at=True), "not of its type"),
        (document(enqueued_at=-1), "not of its type"),
        (document(due_at="soon"), "'due_at'"),
        (document(attempt=0), "'attempt'"),
        (document(attempt=True), "'attempt'"),
        (document(attempt=1.5), "'attempt'"),
        (document(attempt=2**31), "'attempt'"),
        (document(run=-1), "'run'"),
        (document(retries=-1), "'retries'"),
        (document(retry=[]), "'retry'"),
        (document(retry={"frist": 1}), "'retry'"),
        (document(retry={"first": -1}), "'retry'"),
        (document(time_limit=-1), "'time_limit'"),
        (document(soft_time_limit="x"), "'soft_time_limit'"),
        (document(reply=5), "'reply'"),
        (document(strikes={}), "'strikes'"),
        (document(strikes=[5]), "'strikes'"),
        (document(due_at=0).replace(b'"due_at": 0', b'"due_at": 1e999'), "'due_at'"),
    ],
)
def test_what_is_not_ours_is_invalid_and_says_why(data: bytes, words: str) -> None:
    with pytest.raises(MessageInvalid, match=words):
        decode(data)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_reading_anything_gives_a_message_or_message_invalid(data: bytes) -> None:
    try:
        decode(data)
    except MessageInvalid:
        pass


@example({"strikes": []})
@given(st.dictionaries(st.sampled_from([*json.loads(document()), "due_at", "attempt", "strikes"]), json_values))
def test_a_document_with_anything_in_its_keys_is_read_or_invalid(changes: dict[str, Any]) -> None:
    try:
        message = decode(document(**changes))
    except MessageInvalid:
        return
    assert decode(encode(message)) == message


def test_a_newer_version_is_told_apart_and_its_other_keys_are_not_looked_at() -> None:
    with pytest.raises(MessageTooNew, match="wire version 2 is newer than 1") as caught:
        decode(b'{"v": 2, "anything": "else"}')
    assert caught.value.task_id == ""
    with pytest.raises(MessageTooNew) as caught:  # the id stands there in all versions
        decode(b'{"v": 2, "id": "of-tomorrow", "anything": "else"}')
    assert caught.value.task_id == "of-tomorrow"
    assert WIRE_VERSION == 1


def test_unknown_keys_are_ignored_and_null_is_absent() -> None:
    message = decode(document(colour="red", due_at=None, retries=None))
    assert message.due_at is None
    assert message.retries is None


def test_an_infinite_number_of_a_foreign_document_can_be_written_again() -> None:
    data = document().replace(b'"args": [1]', b'"args": [1, [1e999, -1e999], {"k": 1e999}]')
    message = decode(data)
    message.attempt = 2
    again = decode(encode(message))
    assert load(again.args, lambda module: False) == [1, [float("inf"), float("-inf")], {"k": float("inf")}]


def test_lone_surrogates_survive() -> None:
    message = decode(encode(Message("abc", "m:f", ["\ud800"], {"\udfff": 1})))
    assert message.args == ["\ud800"]
    assert message.kwargs == {"\udfff": 1}


def test_a_strike_is_added_to_those_that_are_there() -> None:
    data = encode(Message("abc", "m:f", [b"".decode()], {}, enqueued_at=1.0, attempt=2))
    once = add_strike(data, signal="SIGKILL", host="a", at=5.0)
    twice = add_strike(once, signal="exit 1", host="b", at=6.0, last=True)
    assert decode(twice).strikes == [
        {"signal": "SIGKILL", "host": "a", "at": 5.0},
        {"signal": "exit 1", "host": "b", "at": 6.0, "last": True},
    ]
    assert decode(twice).attempt == 2
    with pytest.raises(MessageInvalid):
        add_strike(b"x", signal="SIGKILL", host="a", at=5.0)


@pytest.mark.parametrize("id", ["a", "x" * 200, "invoice-42", "a.b_c~d", "!#$%&'()*+,-.;<=>?@[]^_`{|}~", "__x", "__"])
def test_ids_that_are_taken(id: str) -> None:
    assert check_id(id) == id


@pytest.mark.parametrize("id", ["", "x" * 201, "a b", "a:b", "a/b", "é", "a\n", "\x7f", "__a__", "____", 5, None, b"a"])
def test_ids_that_are_refused(id: Any) -> None:
    with pytest.raises(ConfigError, match="is no task id: write 1 to 200"):
        check_id(id)


def test_new_ids_are_valid_and_differ() -> None:
    made = {new_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(check_id(id) == id for id in made)
