"""A task with a large argument."""

from __future__ import annotations

from tests.integration.jobs import journal


def measured(text: str) -> int:
    """Leaves the size of its argument in the journal."""
    journal("run", len(text))
    return len(text)
