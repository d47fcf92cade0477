from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from psq.brokers.base import QueueSpec
from psq.brokers.sqlite import SQLiteBroker
from psq.errors import BrokerRefused, StorageRefused
from psq.sqlite.opening import STORAGE, connect, reader, translate
from psq.sqlite.schema import VERSION, is_ours, prepare
from psq.storages.sqlite import SQLiteStorage
from tests.contract.helpers import outgoing, publish

QUEUE = QueueSpec("work")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "psq.db"


@pytest.fixture
def broker(path: Path) -> Iterator[SQLiteBroker]:
    broker = SQLiteBroker(str(path))
    yield broker
    broker.close()


def refusal(broker: SQLiteBroker) -> str:
    """Why a broker can't use its file: the same for declare and publish."""
    with pytest.raises(BrokerRefused) as caught:
        broker.declare(QUEUE)
    with pytest.raises(BrokerRefused):
        publish(broker, outgoing(QUEUE))
    assert broker.path in str(caught.value)
    return str(caught.value)


def test_a_new_file_is_made_with_its_folders_in_wal_mode(tmp_path: Path) -> None:
    with closing(connect(str(tmp_path / "a" / "b" / "psq.db"), "FULL")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    with closing(connect(str(tmp_path / "a" / "b" / "psq.db"), "NORMAL")) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 1
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, broker: SQLiteBroker) -> None:
    path.write_text("These are my notes, and not a database at all.\n" * 100)
    assert "not an SQLite database" in refusal(broker)
    assert path.read_text().startswith("These are my notes")


def test_a_damaged_file_is_refused_and_the_text_says_what_to_do(path: Path) -> None:
    healthy = SQLiteBroker(str(path))
    publish(healthy, *(outgoing(QUEUE, f"t{n}", "x" * 500) for n in range(200)))
    healthy.close()
    data = bytearray(path.read_bytes())
    data[100:4096] = b"\x5a" * 3996  # the root page, behind the file's header
    path.write_bytes(data)
    damaged = SQLiteBroker(str(path))
    try:
        assert "damaged" in refusal(damaged)
    finally:
        damaged.close()


def test_another_programs_database_is_refused(path: Path, broker: SQLiteBroker) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE customer (name)")
    assert "another program's database (tables: customer)" in refusal(broker)


def test_a_file_of_a_newer_psq_is_refused(path: Path, broker: SQLiteBroker) -> None:
    with closing(connect(str(path), "FULL")) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    assert "upgrade psq" in refusal(broker)


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broker = SQLiteBroker(f"{tmp_path}/file/psq.db")
    try:
        assert "folder can't be made" in refusal(broker)
    finally:
        broker.close()


def test_a_storage_refuses_the_same_with_its_own_error(path: Path) -> None:
    path.write_text("not a database, but long enough to look like something" * 10)
    storage = SQLiteStorage(str(path))
    with pytest.raises(StorageRefused, match="not an SQLite database"):
        storage.get(["t1"])
    storage.close()


def test_it_works_again_once_the_file_was_moved_away(path: Path, broker: SQLiteBroker) -> None:
    path.write_text("not a database, but long enough to look like something" * 10)
    refusal(broker)
    path.unlink()
    publish(broker, outgoing(QUEUE))
    assert broker.daemon_seen() is None
    broker.declare(QUEUE)
    assert broker.daemon_seen() is not None


def test_a_reader_makes_no_file(path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        reader(str(path))
    assert not path.exists()


def test_what_is_wrong_with_the_file_is_no_fault_of_the_record() -> None:
    def refused(code: int) -> StorageRefused:
        error = sqlite3.OperationalError("no")
        error.sqlite_errorcode = code
        ours = translate(error, STORAGE, "/x")
        assert isinstance(ours, StorageRefused)
        return ours

    assert refused(sqlite3.SQLITE_READONLY).everything
    assert refused(sqlite3.SQLITE_CORRUPT).everything
    assert not refused(sqlite3.SQLITE_TOOBIG).everything


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_file_that_another_process_makes_while_it_is_looked_at_is_ours(path: Path, moment: int) -> None:
    statements = []

    def runs(statement: str) -> None:
        statements.append(statement)
        if len(statements) == moment:
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                prepare(other)

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.set_trace_callback(runs)
        prepare(connection)
        connection.set_trace_callback(None)
        assert is_ours(connection)
    assert len(statements) >= moment
