"""Packages whose own code waits until something of the package is asked for."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from psq.google.lazily import put_off
from tests.acceptance.processes import ROOT

INIT = """
import threading
from put_off_parent.sample.leaf import LEAF
from put_off_parent import events
events.begun.set()
assert events.go.wait(30)
from put_off_parent.sample import leaf as again
events.runs.append(threading.get_ident())
VALUE = LEAF + again.LEAF
__all__ = ["VALUE"]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that is put off: its code waits for `events.go`."""
    folder = tmp_path / "put_off_parent"
    (folder / "sample").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "events.py").write_text("import threading\nbegun, go, runs = threading.Event(), threading.Event(), []\n")
    (folder / "sample" / "__init__.py").write_text(INIT)
    (folder / "sample" / "leaf.py").write_text("LEAF = 21\n")
    monkeypatch.syspath_prepend(tmp_path)
    put_off("put_off_parent.sample")
    yield "put_off_parent.sample"
    for name in [name for name in sys.modules if name.startswith("put_off_parent")]:
        del sys.modules[name]


def test_submodules_can_be_had_without_the_code_of_the_package(package: str) -> None:
    import put_off_parent.events as events  # type: ignore[import-not-found]
    from put_off_parent.sample import leaf  # type: ignore[import-not-found]
    from put_off_parent.sample.leaf import LEAF  # type: ignore[import-not-found]

    assert (leaf.LEAF, LEAF) == (21, 21)
    assert not events.begun.is_set()


def test_its_code_runs_once_when_something_of_it_is_asked_for_and_who_asks_meanwhile_waits(package: str) -> None:
    import put_off_parent.events as events
    import put_off_parent.sample as sample  # type: ignore[import-not-found]

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(sample.VALUE)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert events.begun.wait(30)
    assert found == []
    events.go.set()
    for thread in threads:
        thread.join(30)
    assert found == [42] * 4
    assert len(events.runs) == 1
    with pytest.raises(AttributeError, match="NOTHING"):
        _ = sample.NOTHING


def test_what_is_not_installed_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="no_such_package_of_ours"):
        put_off("no_such_package_of_ours")


def test_a_package_that_was_imported_already_is_left_alone() -> None:
    import json.decoder

    put_off("json.decoder")
    assert sys.modules["json.decoder"] is json.decoder


def test_googles_clients_are_not_loaded_for_their_messages_and_work_all_the_same() -> None:
    script = """
        import sys
        import psq.brokers.pubsub_wire
        from psq.storages.datastore_api import pb
        pb()
        assert "google.api_core.gapic_v1" not in sys.modules
        import google.pubsub_v1
        assert google.pubsub_v1.types.PullRequest
        assert "google.api_core.gapic_v1" not in sys.modules
        from google.cloud import datastore, pubsub_v1
        assert google.pubsub_v1.PublisherClient is sys.modules["google.pubsub_v1"].PublisherClient
        assert pubsub_v1.PublisherClient and datastore.Client
        import google.cloud.datastore_v1
        assert google.cloud.datastore_v1.DatastoreClient
        assert type(google.pubsub_v1) is type(sys)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
