"""Dead letters as messages: a line of JSON, and the payload."""

from __future__ import annotations

import json
import random

import pytest

from psq.brokers.base import DeadLetter
from psq.brokers.pubsub_dead import dump, load
from psq.errors import MessageTooLarge


def letter(payload: bytes = b'{"v":1}', **fields: object) -> DeadLetter:
    given = {"error": "ValueError: nö", "traceback": "Traceback…\n", "enqueued_at": 5.0, "died_at": 9.5} | fields
    return DeadLetter("t1", 3, "work", "m:f", "out of retries", payload, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("payload", [b"", b"\n\n", b"\x00\xff\n{}", b"x" * 100_000])
def test_a_letter_is_read_back_as_it_was(payload: bytes) -> None:
    original = letter(payload, deaths=[{"signal": "SIGKILL", "host": "h", "at": 1.0}])
    assert load(dump(original), "work") == original


def test_its_first_line_is_for_people() -> None:
    line, _, payload = dump(letter(b"raw")).partition(b"\n")
    assert json.loads(line)["reason"] == "out of retries"
    assert payload == b"raw"


def test_a_letter_near_the_limit_is_compressed_and_its_traceback_cut_at_the_front() -> None:
    original = letter(b"x" * 9_990_000, traceback="a" * 100_000 + "the end")
    data = dump(original)
    assert len(data) < 10_000_000
    found = load(data, "work")
    assert found.payload == original.payload
    assert found.traceback.endswith("the end")
    assert len(found.traceback) < 100_000


def test_a_letter_that_can_not_fit_is_an_error_with_its_size() -> None:
    noise = random.Random(1).randbytes(9_999_990)
    with pytest.raises(MessageTooLarge) as caught:
        dump(letter(noise))
    assert caught.value.size > caught.value.limit


@pytest.mark.parametrize("data", [b"", b"foreign", b"{}", b"[1]\nx", b'{"id":1}\n', b"\xff\n"])
def test_what_somebody_else_put_there_is_shown_as_undecodable(data: bytes) -> None:
    found = load(data, "work")
    assert (found.reason, found.payload, found.queue) == ("undecodable", data, "work")
