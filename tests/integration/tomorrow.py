"""Stands for the next release of psq: a daemon that imports it reads messages of the next wire version, too."""

from __future__ import annotations

from typing import Any

from psq import message
from tests.integration.jobs import journal

_module: Any = message
_today = _module.decode_json


def _tomorrow(text: str) -> Any:
    document = _today(text)
    if isinstance(document, dict) and document.get("v") == 2:
        document["v"] = 1
    return document


_module.decode_json = _tomorrow


def arrived() -> str:
    """A task of tomorrow."""
    journal("run")
    return "read"
