"""Writes the tables of docs/configuration.md from the models: ``python scripts/config_docs.py``.

A test compares the page with them, so that it can't go stale.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from psqd.config import Config, HttpConfig, LoggingConfig, ScheduleConfig
from psqd.config_queue import QueueConfig, RetryConfig
from psqd.config_rules import rule_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
SECTIONS: dict[str, type[BaseModel]] = {
    "top": Config,
    "queue": QueueConfig,
    "retry": RetryConfig,
    "http": HttpConfig,
    "logging": LoggingConfig,
    "schedule": ScheduleConfig,
}
ON_HUP = {"live": "at once", "renew": "the queue is served anew", "restart": "needs a restart"}
#: Keys whose default is made of the environment; what the model has is for configs made in code.
DEFAULTS = {
    "broker": "`$PSQ_BROKER`, else `sqlite://`",
    "storage": "`$PSQ_STORAGE`, else see below",
    "queues": "needed",
    "imports": "needed",
}


def _default(name: str, field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if name in DEFAULTS:
        return DEFAULTS[name]
    if value is PydanticUndefined:
        return "needed"
    if value is None:
        return "empty"
    if isinstance(value, BaseModel) or value == {}:
        return "see below"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{', '.join(value)}]`"
    return f"`{value:,.10g}`".replace(",", "") if isinstance(value, (int, float)) else f"`{value}`"


def _takes(field: Any) -> str:
    rule = rule_of(field.metadata)
    if rule is None:
        return "a section"
    return rule.valid + (", or empty" if rule.nullable and "empty" not in rule.valid else "")


def table(model: type[BaseModel]) -> str:
    """The table of a section's keys."""
    lines = ["| key | what it does | takes | default | on SIGHUP |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        extra: Any = field.json_schema_extra
        unit = f" {extra['unit']}" if extra["unit"] and isinstance(field.default, (int, float)) else ""
        later = " *Not available yet.*" if extra["later"] else ""
        cells = [f"`{name}`", f"{field.description}{later}", _takes(field), _default(name, field) + unit]
        lines.append("| " + " | ".join([*cells, ON_HUP[extra["reload"]]]) + " |")
    return "\n".join(lines)


def filled(page: str) -> str:
    """The page with its tables made anew."""
    for name, model in SECTIONS.items():
        begin, end = f"<!-- {name} -->\n", "\n<!-- end -->"
        before, found, rest = page.partition(begin)
        if not found or end not in rest:
            raise ValueError(f"docs/configuration.md has no place for the keys of {name}")
        page = before + begin + table(model) + rest[rest.index(end) :]
    return page


def main() -> int:
    """Write the page; with ``--check``, say whether it is up to date."""
    text = PAGE.read_text("utf-8")
    new = filled(text)
    if "--check" in sys.argv[1:]:
        return 0 if new == text else 1
    PAGE.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
