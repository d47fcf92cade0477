"""What a reload has to do: two configs -> the list of changes. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from psqd.config import Config
from psqd.config_queue import QueueConfig

__all__ = ["Plan", "plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The difference between two configs. All lists are sorted by name.

    Attributes:
        added: Queues that start.
        removed: Queues that drain.
        resized: Queues whose concurrency changes: (old, new). Nothing of theirs stops.
        changed: Keys of a queue that are taken at once, by queue.
        renewed: Keys of a queue that has to be served anew, by queue: its subscription or first lease changes.
            Their other changes are in here too.
        settings: Top-level keys that are taken at once.
        restart: Top-level keys that need a restart: the old value stays until then.
    """

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    resized: dict[str, tuple[int, int]] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)
    renewed: dict[str, list[str]] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    restart: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """False where nothing differs."""
        return self.applies or bool(self.restart)

    @property
    def applies(self) -> bool:
        """Something changes without a restart."""
        return bool(self.added or self.removed or self.resized or self.changed or self.renewed or self.settings)

    def summary(self, most: int = 10) -> str:
        """One line for the log.

        Args:
            most: Queues that are named of each kind; the others are counted.
        """
        parts = [
            _named("added", self.added, most),
            _named("removed", self.removed, most),
            _named("resized", [f"{name} {old}->{new}" for name, (old, new) in self.resized.items()], most),
            _named("changed", [f"{name} ({', '.join(keys)})" for name, keys in self.changed.items()], most),
            _named("served anew", [f"{name} ({', '.join(keys)})" for name, keys in self.renewed.items()], most),
            _named("settings", self.settings, most),
        ]
        return "; ".join(part for part in parts if part) or "nothing changed"


def _named(what: str, names: list[str], most: int) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{what} {', '.join(names[:most])}{more}"


def plan(old: Config, new: Config) -> Plan:
    """What leads from one config to the other.

    Args:
        old: What runs. After a reload that kept values for a restart: with those values, not the file's.
        new: What was read.
    """
    result = Plan(
        added=sorted(new.queues.keys() - old.queues.keys()),
        removed=sorted(old.queues.keys() - new.queues.keys()),
    )
    for name in sorted(old.queues.keys() & new.queues.keys()):
        _compare(name, old.queues[name], new.queues[name], result)
    for key in sorted(Config.model_fields):
        if key != "queues" and getattr(old, key) != getattr(new, key):
            (result.restart if reload_of(Config, key) == "restart" else result.settings).append(key)
    return result


def _compare(name: str, old: QueueConfig, new: QueueConfig, result: Plan) -> None:
    if old == new:
        return
    keys = [key for key in sorted(QueueConfig.model_fields) if getattr(old, key) != getattr(new, key)]
    if any(reload_of(QueueConfig, key) == "renew" for key in keys):
        result.renewed[name] = keys
        return
    if old.concurrency != new.concurrency:
        result.resized[name] = (old.concurrency, new.concurrency)
        keys.remove("concurrency")
    if keys:
        result.changed[name] = keys


def reload_of(model: type[BaseModel], key: str) -> str:
    """What a reload does with a key: ``live``, ``renew`` or ``restart`` (`psqd.config_rules.key`)."""
    extra: Any = model.model_fields[key].json_schema_extra
    return str(extra["reload"])
