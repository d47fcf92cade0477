"""Compressing and splitting content."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psq.concurrency import Waiter
from psq.errors import StorageError, StorageRefused
from psq.storages.datastore_packing import (
    INLINE_BYTES,
    PART_BYTES,
    Packed,
    check_size,
    off_hub,
    on_native_thread,
    pack,
    unpack,
)


@settings(deadline=None)
@given(st.lists(st.none() | st.binary(), max_size=5))
def test_fields_are_unpacked_as_they_were_packed(fields: list[bytes | None]) -> None:
    packed = pack(fields)
    assert unpack(packed.data, packed.size) == fields


def test_what_compresses_well_stays_in_the_head() -> None:
    packed = pack([b"x" * 5_000_000])
    assert packed.parts == 0
    assert len(packed.data) < INLINE_BYTES


@pytest.mark.parametrize("length", [INLINE_BYTES + 1, 2 * PART_BYTES, 2 * PART_BYTES + 1])
def test_parts_joined_are_the_whole(length: int) -> None:
    packed = Packed(os.urandom(length), 0, "token")
    parts = [packed.part(number) for number in range(packed.parts)]
    assert b"".join(parts) == packed.data
    assert all(0 < len(part) <= PART_BYTES for part in parts)
    assert packed.part(packed.parts) == b""


def test_a_token_names_the_content() -> None:
    assert pack([b"a"]).token == pack([b"a"]).token != pack([b"b"]).token


def test_broken_content_is_an_error_of_the_storage() -> None:
    packed = pack([b"abc" * 100])
    with pytest.raises(StorageError, match="decompressed"):
        unpack(b"rubbish", packed.size)
    with pytest.raises(StorageError, match="308 bytes"):
        unpack(packed.data[:-8], packed.size)
    with pytest.raises(StorageError, match="100 bytes"):
        unpack(packed.data, 100)


def test_what_is_too_large_is_refused_with_size_and_limit() -> None:
    check_size(10, 10, "x")
    with pytest.raises(StorageRefused, match=r"psq-task 't1' has 2,000,001 bytes, .* 2,000,000"):
        check_size(2_000_001, 2_000_000, "psq-task 't1'")


def test_work_off_the_hub_gives_its_result_or_its_error() -> None:
    for work, expected in ((lambda: 42, (42, None)), (lambda: 1 // 0, (None, ZeroDivisionError))):
        waiter = Waiter()
        off_hub(work, lambda result, error, waiter=waiter: waiter.set((result, error)))  # type: ignore[misc]
        assert waiter.wait(10)
        result, error = waiter.value
        assert (result, error if error is None else type(error)) == expected
    assert on_native_thread(lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        on_native_thread(lambda: 1 // 0)


def test_many_threads_may_work_off_the_hub_at_once() -> None:
    results: list[int] = []
    threads = [threading.Thread(target=lambda n=n: results.append(on_native_thread(lambda: n * n))) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [n * n for n in range(10)]
