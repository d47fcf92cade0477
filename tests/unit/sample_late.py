"""A module that nothing imports before a message names it."""

from __future__ import annotations

import dataclasses

ran: list[str] = []


@dataclasses.dataclass
class Late:
    x: int
    doubled: int = dataclasses.field(init=False)
    items: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        ran.append("__post_init__")
        self.doubled = 2 * self.x
