"""From a URL to a client, broker or storage, each imported when it is first asked for.

The module itself is callable, so that ``psq.connect(url)`` works although this file is named so.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, MutableMapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from psq.client import Client
from psq.errors import ConfigError, MissingDependency

if TYPE_CHECKING:
    from psq.brokers.base import Broker
    from psq.storages.base import Storage

__all__ = [
    "backend",
    "be_default",
    "broker_of",
    "checked",
    "connect",
    "default_client",
    "default_path",
    "sqlite_path",
    "storage_of",
]

_BROKERS = {"pubsub": "psq.brokers.pubsub", "sqlite": "psq.brokers.sqlite"}
_STORAGES = {"datastore": "psq.storages.datastore", "sqlite": "psq.storages.sqlite"}
_LATER = ("redis", "memcached")
_BROKER_FORMS = "pubsub://PROJECT[?endpoint=…&prefix=…&declare=…] or sqlite:///PATH"
_STORAGE_FORMS = "datastore://PROJECT[/DATABASE], sqlite:///PATH or none"


def connect(url: str, *, storage: Storage | str | None = None) -> Client:
    """A client for a URL. Connects nothing yet.

    Args:
        url: ``pubsub://PROJECT[?endpoint=…&prefix=…&declare=…]``: the real service with the application default
            credentials, or the emulator that PUBSUB_EMULATOR_HOST names. ``sqlite:///PATH``: embedded, durable,
            for several processes of one machine.
        storage: What its queues use that name none: an object or a URL. Default: with SQLite
            the broker's own file, with Pub/Sub none.

    Raises:
        ConfigError: The URL is not valid; the text says what is.
    """
    return Client(url) if storage is None else Client(url, storage=storage)


def default_client(environ: Mapping[str, str] | None = None) -> Client:
    """The client that PSQ_BROKER and PSQ_STORAGE name, else the embedded default; one for each value in a process."""
    environ = os.environ if environ is None else environ
    broker = environ.get("PSQ_BROKER") or f"sqlite://{default_path(environ)}"
    storage = environ.get("PSQ_STORAGE") or ""
    with _lock:
        client = _clients.get((broker, storage))
        if client is None:
            client = Client(broker, storage=storage) if storage else Client(broker)
            _clients[broker, storage] = client
        return client


def be_default(
    broker: Broker, storage: Storage | None, broker_url: str, storage_url: str, environ: MutableMapping[str, str]
) -> None:
    """Let `Queue()` without a client use this broker and storage, and in subprocesses ones of the same URLs.

    For psqd: a task's module says ``q = psq.Queue()`` and means the daemon's. An environment that names
    another broker, or another storage, is left as it is.

    Args:
        broker: A broker.
        storage: Where results are, or None.
        broker_url: Its URL, as PSQ_BROKER has it.
        storage_url: The storage's URL, or ``none``.
        environ: The environment; PSQ_BROKER and PSQ_STORAGE are set in it where they are not.
    """
    said = environ.get("PSQ_BROKER") or ""
    if said and said != broker_url:
        return
    environ["PSQ_BROKER"] = broker_url
    if not environ.get("PSQ_STORAGE"):
        environ["PSQ_STORAGE"] = storage_url
    if environ["PSQ_STORAGE"] == storage_url:
        with _lock:
            _clients[broker_url, storage_url] = Client(broker=broker, storage=storage)


_clients: dict[tuple[str, str], Client] = {}
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def default_path(environ: Mapping[str, str] | None = None) -> str:
    """The embedded default's file: ``$XDG_STATE_HOME/psq/psq.db``, by default under ``~/.local/state``."""
    environ = os.environ if environ is None else environ
    state = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # XDG: a relative one is to be ignored
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "psq", "psq.db")


def sqlite_path(url: str, default: str) -> str:
    """The file of a ``sqlite://`` URL: what follows is an absolute path; nothing means `default`.

    Raises:
        ConfigError: A relative path; the text has the right spelling.
    """
    path, _, query = url.partition("://")[2].partition("?")
    if not path:
        path = default
    if not path.startswith("/"):
        absolute = os.path.abspath(os.path.expanduser(path))
        raise ConfigError(f"{url!r}: the path must be absolute: write sqlite://{absolute}{'?' * bool(query)}{query}")
    path = "/" + path.lstrip("/")
    if path == "/" or path.endswith("/"):
        raise ConfigError(f"{url!r} names a folder: write the file's path, as in sqlite://{path}psq.db")
    return path


def checked(url: str) -> str:
    """A broker's URL, in its one spelling, if it is one. Imports nothing.

    Raises:
        ConfigError: It is not; the text says what is valid.
    """
    scheme = _scheme(url, _BROKERS, "broker", _BROKER_FORMS)
    if scheme == "sqlite":
        query = url.partition("?")[2]
        return f"sqlite://{sqlite_path(url, default_path())}{'?' * bool(query)}{query}"
    if not url.partition("://")[2].partition("?")[0].strip("/"):
        raise ConfigError(f"{url!r} names no project: write {_BROKER_FORMS}")
    return url


def broker_of(url: str, declare: str = "") -> Broker:
    """The broker of a URL; see `connect`.

    Args:
        url: The URL.
        declare: (Pub/Sub) ``auto``, ``check`` or ``never``, whatever the URL says; "": as that says.

    Raises:
        ConfigError: The URL is not valid.
        MissingDependency: Its client library is not installed.
    """
    url = checked(url)
    scheme = _scheme(url, _BROKERS, "broker", _BROKER_FORMS)
    module = backend(_BROKERS[scheme], scheme)
    broker: Broker = module.from_url(url, declare) if scheme == "pubsub" else module.from_url(url)
    return broker


def storage_of(url: str, broker_url: str = "") -> Storage | None:
    """The storage of a URL; None for ``none``.

    Args:
        url: ``datastore://PROJECT[/DATABASE]``, ``sqlite:///PATH``, or ``none``. ``sqlite://`` alone
            is the broker's own file, where that is SQLite, else the embedded default.
        broker_url: Of the broker beside it.

    Raises:
        ConfigError: The URL is not valid.
        MissingDependency: Its client library is not installed.
    """
    if url == "none":
        return None
    scheme = _scheme(url, _STORAGES, "storage", _STORAGE_FORMS)
    if scheme == "sqlite":
        default = sqlite_path(broker_url, default_path()) if broker_url.startswith("sqlite://") else default_path()
        query = url.partition("?")[2]
        url = f"sqlite://{sqlite_path(url, default)}{'?' * bool(query)}{query}"
    storage: Storage = backend(_STORAGES[scheme], scheme).from_url(url)
    return storage


def _scheme(url: object, known: Mapping[str, str], what: str, forms: str) -> str:
    if not isinstance(url, str):
        raise ConfigError(f"a {what}'s URL is a text like {forms}, not {url!r}")
    scheme, separator, _ = url.partition("://")
    if separator and scheme in known:
        return scheme
    if separator and scheme in _LATER and what == "storage":
        raise ConfigError(f"{scheme}:// storages are not available yet; there are {forms}")
    if not separator and scheme.partition(":")[0] in known:
        raise ConfigError(f"{url!r} is no URL of a {what}: the scheme ends in '://'; write {forms}")
    import difflib

    near = difflib.get_close_matches(scheme, [*known, "none"] if what == "storage" else known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"{url!r} is no URL of a {what}: {hint}write {forms}")


def backend(module: str, scheme: str) -> Any:
    """A broker's or storage's module.

    Raises:
        MissingDependency: What it imports is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("psq", "psqd"):
            raise
        raise MissingDependency(f"{scheme}:// needs the module {error.name}: pip install psqd") from error


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Client:
        return connect(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
