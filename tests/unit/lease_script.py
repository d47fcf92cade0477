"""A lease client that does what the test says, and a clock that stands still until it is moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psq.brokers.base import LeaseClient


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Call:
    """A request: answer it with `done`, or never."""

    verb: str
    source: str
    keys: list[str]
    done: Callable[..., None]
    at: float
    seconds: float = 0.0
    timeout: float = 0.0
    documents: list[bytes] = field(default_factory=list)
    record: Mapping[str, Any] | None = None


class ScriptedClient(LeaseClient):
    """Keeps all calls in `calls`; answers at once with `answer`, or not at all while that is None."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.calls: list[Call] = []
        self.answer: tuple[Sequence[str], Exception | None] | None = ((), None)
        self.raises: Exception | None = None

    def connect(self) -> None: ...

    def _call(self, call: Call) -> None:
        self.calls.append(call)
        if self.raises is not None:
            raise self.raises
        if self.answer is not None:
            call.done(*self.answer)

    def extend(
        self, source: str, keys: Sequence[str], seconds: float, timeout: float, done: Callable[..., None]
    ) -> None:
        assert 0 < len(keys) <= self.max_keys
        self._call(Call("extend", source, list(keys), done, self.clock(), seconds, timeout))

    def give_back(self, source: str, keys: Sequence[str], timeout: float, done: Callable[..., None]) -> None:
        assert 0 < len(keys) <= self.max_keys
        self._call(Call("give_back", source, list(keys), done, self.clock(), timeout=timeout))

    def strike(
        self, source: str, items: Sequence[tuple[str, bytes]], record: Mapping[str, Any], done: Callable[..., None]
    ) -> None:
        keys, documents = [key for key, _ in items], [data for _, data in items]
        self._call(Call("strike", source, keys, done, self.clock(), documents=documents, record=record))

    def close(self) -> None: ...

    def taken(self) -> list[Call]:
        """The calls since the last look."""
        calls, self.calls = self.calls, []
        return calls
