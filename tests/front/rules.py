"""Rules: which calls are answered otherwise, how, and how often."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Manners", "Rule", "Rules"]


@dataclass(slots=True)
class Manners:
    """How the front answers without a rule.

    Attributes:
        round_trip: Seconds.
        short: Most messages of a pull's answer.
        empty: Share of pulls that are answered with nothing although there may be something.
        staggered: A long poll is answered with nothing as if it had begun at any time before: after up to `HOLD`.
        strand: What an orphaned poll took is left to lapse instead of given back at once.
        enforce_limits: The services' limits hold.
        shortest_ack_deadline: Of a subscription, seconds; 10 on the service.
    """

    round_trip: float = 0.025
    short: int = 20
    empty: float = 0.1
    staggered: bool = False
    strand: bool = False
    enforce_limits: bool = True
    shortest_ack_deadline: int = 10


@dataclass(slots=True, kw_only=True)
class Rule:
    """One rule. Which calls: all that is given must fit. What happens: all that is given.

    Attributes:
        method: Last word of the method's path, ``Token`` for the token server, or ``*``.
        match: A part of the routing header or of the resource's name.
        account: The caller's email.
        share: By chance: 0 to 1.
        times: Only the next so many; None: all.
        for_seconds: Ends by itself; None: never.
        status: Answer with this status; with ``drop_answer`` after it took effect.
        details: The text beside it.
        delay: Seconds added before it takes effect.
        answer_delay: Seconds added after it took effect.
        drop_answer: Let it take effect, then answer UNAVAILABLE, or with `status`.
        deny: A permission that nobody has (or that `account` has not).
        max_messages: Instead of the manner's `short`.
        empty: Instead of the manner's.
    """

    method: str = "*"
    match: str = ""
    account: str = ""
    share: float = 1.0
    times: int | None = None
    for_seconds: float | None = None
    status: str = ""
    details: str = ""
    delay: float = 0.0
    answer_delay: float = 0.0
    drop_answer: bool = False
    deny: str = ""
    max_messages: int | None = None
    empty: float | None = None
    began: float = field(default_factory=time.monotonic, init=False)

    def fits(self, method: str, account: str, resource: str) -> bool:
        """True where it is about this call; does not count it."""
        if self.method not in ("*", method) or self.times == 0:
            return False
        if self.for_seconds is not None and time.monotonic() - self.began > self.for_seconds:
            return False
        if (self.account and self.account != account) or (self.match and self.match not in resource):
            return False
        return self.share >= 1.0 or random.random() < self.share


class Rules:
    """The rules in force, by number."""

    def __init__(self) -> None:
        self._rules: dict[int, Rule] = {}
        self._last = 0

    def add(self, what: dict[str, Any]) -> int:
        """Add a rule; its number.

        Raises:
            TypeError, ValueError: There is no such rule.
        """
        if not what.keys() - {"method", "match", "account", "share", "times", "for_seconds", "details"}:
            raise ValueError("a rule that does nothing: give status, delay, drop_answer, deny, max_messages or empty")
        self._last += 1
        self._rules[self._last] = Rule(**what)
        return self._last

    def remove(self, number: int) -> None:
        """Remove a rule; one that is not there is no error."""
        self._rules.pop(number, None)

    def clear(self) -> None:
        """Remove all."""
        self._rules.clear()

    def of(self, method: str, account: str, resource: str) -> list[Rule]:
        """The rules of a call, counted; permissions are not among them, see `denied`."""
        if not self._rules:
            return []
        found = [rule for rule in self._rules.values() if not rule.deny and rule.fits(method, account, resource)]
        for rule in found:
            if rule.times is not None:
                rule.times -= 1
        return found

    def denied(self, permission: str, account: str, resource: str) -> bool:
        """True where a rule takes this permission away."""
        for rule in self._rules.values():
            if rule.deny == permission and rule.fits(rule.method, account, resource):
                if rule.times is not None:
                    rule.times -= 1
                return True
        return False
