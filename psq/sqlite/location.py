"""Where a psq file may be: paths, URLs, and file systems that SQLite's WAL can't live on."""

from __future__ import annotations

import os
from urllib.parse import parse_qsl

from psq.errors import ConfigError

__all__ = ["check_path", "check_synchronous", "filesystem_of", "parse_url", "url_of"]

#: Where WAL's shared memory is not shared, so that two machines would corrupt the file.
NETWORK_FILESYSTEMS = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "9p", "afs", "coda", "ceph", "lustre", "beegfs"),
        *("gpfs", "glusterfs", "ocfs2", "gfs2", "davfs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph-fuse"),
        *("fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.davfs2", "fuse.juicefs", "fuse.smbnetfs", "fuse.goofys"),
    )
)
SYNCHRONOUS = ("FULL", "NORMAL")


def parse_url(url: str) -> tuple[str, str]:
    """Path and synchronous mode of ``sqlite:///PATH[?synchronous=normal]``.

    Raises:
        ConfigError: A relative path or an unknown option; the text has the right spelling.
    """
    from psq.connect import default_path, sqlite_path

    if not url.startswith("sqlite://"):
        raise ConfigError(f"not an SQLite URL: {url!r}; it looks like sqlite:///var/lib/psq/psq.db")
    synchronous = "FULL"
    for key, value in parse_qsl(url.partition("?")[2], keep_blank_values=True):
        if key != "synchronous" or value.upper() not in SYNCHRONOUS:
            raise ConfigError(f"{url!r}: {key}={value} is not known; the one option is synchronous=full or =normal")
        synchronous = value.upper()
    return sqlite_path(url, default_path()), synchronous


def url_of(path: str, synchronous: str) -> str:
    """The URL that `parse_url` takes apart."""
    return f"sqlite://{path}" + ("" if synchronous == "FULL" else f"?synchronous={synchronous.lower()}")


def check_synchronous(mode: str) -> str:
    """The mode, if it is one.

    Raises:
        ConfigError: It is not.
    """
    if mode not in SYNCHRONOUS:
        raise ConfigError(f"synchronous is {mode!r}; it can be FULL or NORMAL")
    return mode


def check_path(path: str) -> str:
    """The path as SQLite is given it: absolute, links followed.

    Raises:
        ConfigError: Relative, a folder, or on a network file system.
    """
    if not os.path.isabs(path):
        raise ConfigError(f"the path of an SQLite file must be absolute: {path!r}; write {os.path.abspath(path)!r}")
    path = os.path.realpath(path)
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder; name a file in it")
    kind = filesystem_of(path)
    if kind in NETWORK_FILESYSTEMS:
        raise ConfigError(
            f"{path} is on a network file system ({kind}), where SQLite loses data: "
            "use a local disk, or Pub/Sub where several machines share queues"
        )
    return path


def filesystem_of(path: str, mounts: str | None = None) -> str:
    """Type of the file system of a path that may not exist yet; "" where the system does not tell.

    Args:
        path: Absolute, without links.
        mounts: Text of ``/proc/self/mountinfo``; default: this process's.
    """
    if mounts is None:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                mounts = file.read()
        except OSError:
            return ""
    best, kind = -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 5 or not rest[0]:
            continue
        # spaces and the like stand as octal numbers
        point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # a later mount on the same point hides the earlier one
            best, kind = len(point), rest[0]
    return kind
