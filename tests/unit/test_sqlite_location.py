from __future__ import annotations

from pathlib import Path

import pytest

from psq.errors import ConfigError
from psq.sqlite.location import check_path, check_synchronous, filesystem_of, parse_url, url_of

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /run rw,nosuid - tmpfs tmpfs rw
31 22 0:50 / /mnt/office rw - nfs4 server:/export rw
32 22 0:51 / /mnt/office/local rw - ext4 /dev/vdb rw
33 22 0:52 / /mnt/with\\040space rw - cifs //server/share rw
34 22 0:53 / /mnt/twice rw - ext4 /dev/vdc rw
35 22 0:54 / /mnt/twice rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/psq/psq.db", "ext4"),
        ("/run/psq.db", "tmpfs"),
        ("/running/psq.db", "ext4"),
        ("/mnt/office/psq.db", "nfs4"),
        ("/mnt/office/local/psq.db", "ext4"),
        ("/mnt/with space/psq.db", "cifs"),
        ("/mnt/twice/psq.db", "fuse.sshfs"),
    ],
)
def test_the_innermost_and_latest_mount_tells_the_file_system(path: str, kind: str) -> None:
    assert filesystem_of(path, MOUNTS) == kind


def test_a_system_that_does_not_tell_is_trusted() -> None:
    assert filesystem_of("/x", "") == ""
    assert filesystem_of("/x", "not a line of mountinfo\n") == ""


def test_a_network_file_system_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psq.sqlite.location.filesystem_of", lambda path: "nfs4")
    with pytest.raises(ConfigError, match=r"network file system \(nfs4\).*local disk"):
        check_path("/mnt/office/psq.db")


def test_a_relative_path_is_refused_with_the_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"{tmp_path}/psq.db"):
        check_path("psq.db")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        check_path(str(tmp_path))


def test_links_are_followed_so_that_one_file_has_one_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    assert check_path(f"{tmp_path}/link/psq.db") == f"{tmp_path}/real/psq.db"


@pytest.mark.parametrize(
    ("url", "path", "synchronous"),
    [
        ("sqlite:///var/lib/psq/psq.db", "/var/lib/psq/psq.db", "FULL"),
        ("sqlite:////var//lib/psq.db", "/var//lib/psq.db", "FULL"),
        ("sqlite:///x.db?synchronous=normal", "/x.db", "NORMAL"),
        ("sqlite:///x.db?synchronous=FULL", "/x.db", "FULL"),
    ],
)
def test_a_url_gives_path_and_mode(url: str, path: str, synchronous: str) -> None:
    assert parse_url(url) == (path, synchronous)


def test_a_url_without_a_path_means_the_default_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert parse_url("sqlite://") == ("/state/psq/psq.db", "FULL")


@pytest.mark.parametrize(
    "url", ["sqlite://relative.db", "mysql:///x", "sqlite:///x?mode=ro", "sqlite:///x?synchronous=off"]
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        parse_url(url)


@pytest.mark.parametrize("mode", ["FULL", "NORMAL"])
def test_a_url_is_what_it_was_made_of(mode: str) -> None:
    assert parse_url(url_of("/var/x.db", mode)) == ("/var/x.db", mode)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="FULL or NORMAL"):
        check_synchronous("OFF")
