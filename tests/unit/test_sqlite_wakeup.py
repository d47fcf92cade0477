from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from psq.sqlite.wakeup import Bell, Ringer, wake_folder


@pytest.fixture(params=["short", "long"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A file whose sockets have paths that fit, and one whose paths are too long for a socket's address."""
    folder = tmp_path if request.param == "short" else tmp_path / ("deep" * 30) / ("deeper" * 20)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "psq.db").write_bytes(b"")
    return str(folder / "psq.db")


@pytest.fixture
def bell(path: str) -> Iterator[Bell]:
    bell = Bell(path)
    bell.bind()
    yield bell
    bell.close()


@pytest.fixture
def ringer(path: str) -> Iterator[Ringer]:
    ringer = Ringer(path)
    yield ringer
    ringer.close()


def test_a_commit_of_another_process_is_heard_with_its_queues(bell: Bell, ringer: Ringer) -> None:
    ringer.ring({"work": 5.0, "later": 99.5})
    assert bell.wait(5) == {"work": 5.0, "later": 99.5}
    assert bell.wait(0) == {}


def test_several_commits_are_heard_as_one(bell: Bell, ringer: Ringer) -> None:
    ringer.ring({"work": 5.0})
    ringer.ring({"work": 3.0, "other": 1.0})
    assert bell.wait(5) == {"work": 3.0, "other": 1.0}


def test_too_much_news_means_look_at_everything(bell: Bell, ringer: Ringer) -> None:
    ringer.ring({f"queue-{n}" * 20: 1.0 for n in range(500)})
    assert bell.wait(5) is None


def test_nonsense_means_look_at_everything(bell: Bell, ringer: Ringer) -> None:
    ringer.ring({"work": 1.0})
    assert bell.wait(5) == {"work": 1.0}
    for nonsense in (b"{", b"[1]", b'{"a": "b"}', b"\xff"):
        assert ringer._socket is not None
        ringer._socket.sendto(nonsense, ringer._folder.address(bell.name))
        assert bell.wait(5) is None


def test_a_process_wakes_itself_without_news(bell: Bell) -> None:
    bell.ring()
    assert bell.wait(5) == {}


def test_a_bell_works_within_its_process_before_it_is_bound(path: str) -> None:
    bell = Bell(path + ".not-there")
    bell.bind()
    bell.ring()
    assert bell.wait(5) == {}
    bell.close()


def test_a_full_socket_does_not_block_the_sender(bell: Bell, ringer: Ringer) -> None:
    for n in range(2000):
        ringer.ring({f"queue-{n}": 1.0})
    assert bell.wait(5)


def test_a_ringer_does_not_ring_its_own_bell(bell: Bell, ringer: Ringer) -> None:
    ringer.own = bell.name
    ringer.ring({"work": 1.0})
    assert ringer.sent == 0


def test_the_socket_of_a_killed_process_is_removed(path: str, ringer: Ringer) -> None:
    killed = Bell(path)
    killed.bind()
    for one in (killed._mine, killed._other, killed._bound):  # as the kernel does
        one.close()
    assert os.listdir(wake_folder(path)) == [killed.name]
    ringer.ring({"work": 1.0})
    assert os.listdir(wake_folder(path)) == []


def test_a_closed_bell_leaves_no_socket(path: str) -> None:
    bell = Bell(path)
    bell.bind()
    bell.close()
    assert os.listdir(wake_folder(path)) == []


def test_a_new_listener_is_found(bell: Bell, ringer: Ringer, path: str) -> None:
    ringer.ring({"work": 1.0})
    second = Bell(path)
    second.bind()
    ringer._looked_at = 0.0  # as a fifth of a second later
    ringer.ring({"work": 2.0})
    assert second.wait(5) == {"work": 2.0}
    second.close()


def test_who_may_write_the_file_may_wake_and_nobody_else(path: str) -> None:
    os.chmod(path, 0o660)
    bell = Bell(path)
    bell.bind()
    assert os.stat(wake_folder(path)).st_mode & 0o777 == 0o770
    assert os.stat(os.path.join(wake_folder(path), bell.name)).st_mode & 0o777 == 0o660
    bell.close()


def test_ringing_where_nobody_listens_is_nothing(tmp_path: Path) -> None:
    ringer = Ringer(str(tmp_path / "psq.db"))
    ringer.ring({"work": 1.0})
    assert ringer.sent == 0
    ringer.close()
