"""Messages that were written once stay readable: the samples are never changed, only added to."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from psq.message import Message, decode, encode
from psq.serializers import load_call

SAMPLES = Path(__file__).parent / "wire_samples"

MEANT = {
    "v1-plain": Message(
        "713313098b46907825d294c408522dff", "myapp.tasks:adder", [5, 6], {"c": None}, enqueued_at=1795561389.579195
    ),
    "v1-everything": Message(
        "invoice-42",
        "myapp.tasks:send",
        [b"hi", (1, Decimal("1.10")), {1: "a"}],
        {"when": datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")), "big": 2**70},
        queue="slow",
        enqueued_at=1795561389.579195,
        due_at=1795564989.5,
        attempt=3,
        run=2,
        retries=5,
        retry={"first": 5.0, "on": ["builtins:ConnectionError"]},
        time_limit=60,
        soft_time_limit=50.5,
        reply="sqlite:/var/lib/psq/psq.db",
        strikes=[{"signal": "SIGKILL", "host": "web-1", "at": 1795561400.0}],
    ),
    "v1-foreign": Message("from-go-1", "myapp.tasks:greet", ["café", 1000.0], {}, enqueued_at=1795561389),
}


@pytest.mark.parametrize("sample", sorted(path.stem for path in SAMPLES.iterdir()))
def test_a_message_that_was_written_once_is_read_as_it_was_meant(sample: str) -> None:
    message = decode((SAMPLES / f"{sample}.json").read_bytes())
    message.args, message.kwargs = load_call(message.args, message.kwargs, lambda module: False)
    assert message == MEANT[sample]


def test_what_is_written_today_is_what_the_sample_shows() -> None:
    for sample in ("v1-plain", "v1-everything"):
        data = (SAMPLES / f"{sample}.json").read_bytes().strip()
        assert encode(decode(data)) == data
