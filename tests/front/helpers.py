"""What the front's own tests wait with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.contract.helpers import PATIENCE

__all__ = ["Client", "code_of", "eventually"]

#: Makes a naive client.
Client = Callable[..., Any]


def code_of(call: Callable[[], Any]) -> str:
    """The status that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return str(caught.value.code().name)


def eventually(true: Callable[[], object]) -> None:
    """Wait for something that happens elsewhere."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s"
        time.sleep(0.02)
