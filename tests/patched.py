"""``pytest -p tests.patched``: the same tests in a process that gevent has patched, as the daemon's worker is."""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from gevent import monkey

monkey.patch_all()

import contextlib  # noqa: E402

with contextlib.suppress(ImportError):
    from grpc.experimental import gevent as grpc_gevent

    grpc_gevent.init_gevent()

import pytest  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what makes no sense here."""
    for item in items:
        if item.get_closest_marker("unpatched"):
            item.add_marker(pytest.mark.skip(reason="makes no sense in a process that gevent has patched"))
