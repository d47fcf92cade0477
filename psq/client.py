"""`Client`: a broker, and the storage that its queues use unless they are told otherwise. Made when first needed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from psq.errors import ConfigError
from psq.fork import reset_after_fork
from psq.storages.base import Storage

if TYPE_CHECKING:
    from types import TracebackType

    from psq.brokers.base import Broker

__all__ = ["DEFAULT", "Client", "Default"]

log = logging.getLogger("psq")


class Default:
    """Stands for what was not said, where None says something."""

    def __repr__(self) -> str:
        return "the default"


#: A storage that was not said: SQLite keeps results in the broker's own file; Pub/Sub keeps none.
DEFAULT: Final = Default()


class Client:
    """Where tasks are sent to. Safe from any thread and greenlet, and after a fork.

    Making one connects nothing and loads no client library: that happens when it is first used.

    Args:
        url: As for `psq.connect`.
        project: (Pub/Sub) the Google Cloud project.
        endpoint: (Pub/Sub) ``host[:port]`` of another endpoint than the global one.
        prefix: (Pub/Sub) put before the names of topics and subscriptions.
        declare: (Pub/Sub) ``auto``: the first enqueue to a queue makes its topic and subscription where they are
            missing. ``check``: it looks for them. ``never``: it takes them for made.
        credentials: (Pub/Sub) google-auth credentials; default: the application default credentials.
        broker: A broker that was made already.
        storage: What queues use that name no storage: an object, a URL, or None.

    Raises:
        ConfigError: Not exactly one of url, project and broker, or a URL that is not valid.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        project: str | None = None,
        endpoint: str | None = None,
        prefix: str = "",
        declare: str = "auto",
        credentials: Any = None,
        broker: Broker | None = None,
        storage: Storage | str | Default | None = DEFAULT,
    ) -> None:
        if sum(given is not None for given in (url, project, broker)) != 1:
            raise ConfigError("give a client one of: a URL, project=… (Pub/Sub), broker=…")
        self._given_storage = storage
        self._broker, self._closes = broker, broker is None
        self._lock = threading.RLock()
        self._storages: dict[str, Storage] = {}
        self._told = False
        if url is not None:
            from psq.connect import checked

            self._url = url = checked(url)
            self._make = lambda: _from_url(url)
        elif project is not None:
            self._url = f"pubsub://{project}"
            self._make = lambda: _pubsub(project, endpoint, prefix, declare, credentials)
        else:
            self._url = ""
        if broker is not None:
            reset_after_fork(broker)
        if isinstance(storage, Storage):
            reset_after_fork(storage)
        reset_after_fork(self)

    _make: Callable[[], Broker]

    @property
    def url(self) -> str:
        """The broker's URL; no secrets. Connects nothing."""
        return self._broker.url if self._broker is not None else self._url

    @property
    def broker(self) -> Broker:
        """The broker; made, and its library loaded, at first use.

        Raises:
            MissingDependency: Its library is not installed.
            BrokerError: It can't be had: no credentials, a folder that may not be written.
        """
        if self._broker is None:
            with self._lock:
                if self._broker is None:
                    self._broker = reset_after_fork(self._make())
        return self._broker

    @property
    def storage(self) -> Storage | None:
        """What queues use that name no storage of their own; None: results are off."""
        return self.storage_for(self._given_storage)

    def storage_for(self, storage: Storage | str | Default | None) -> Storage | None:
        """A storage by object or URL; equal URLs give one object.

        Raises:
            ConfigError: Neither an object nor a URL that is valid.
        """
        if storage is None or isinstance(storage, Storage):
            return storage
        if isinstance(storage, Default):
            if not self.url.startswith("sqlite:"):
                return None
            storage = "sqlite://"
        if not isinstance(storage, str):
            raise ConfigError(
                f"storage takes a storage object such as psq.DatastoreStorage(), a URL, or None; not {storage!r}"
            )
        found = self._storages.get(storage)
        if found is not None or storage == "none":
            return found
        from psq.connect import storage_of

        with self._lock:
            if storage not in self._storages:
                made = storage_of(storage, self.url)
                if made is None:
                    return None
                self._storages[storage] = reset_after_fork(made)
            return self._storages[storage]

    def tell(self, storage: Storage | None) -> None:
        """Say once, in the log, where tasks go and where results are read, and what looks wrong about it."""
        if not self._told:
            self._told = True
            from psq.notices import notices

            where = "nowhere" if storage is None else storage.url
            log.info("tasks go to %s, results are read from %s", self.broker.url, where)
            for notice in notices(self.broker):
                log.warning("%s", notice)

    def reset_after_fork(self) -> None:
        """In a forked child: the lock may have been held. Broker and storages are reset by themselves."""
        self._lock = threading.RLock()

    def close(self) -> None:
        """Send what waits and let go of the connections. Idempotent; the next use makes them anew."""
        with self._lock:
            for storage in self._storages.values():
                storage.close()
            self._storages.clear()
            if self._broker is not None and self._closes:  # a broker that was handed in is its maker's
                self._broker.close()
                self._broker = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<psq.Client {self.url}>"


def _from_url(url: str) -> Broker:
    from psq.connect import broker_of

    return broker_of(url)


def _pubsub(project: str, endpoint: str | None, prefix: str, declare: str, credentials: Any) -> Broker:
    from psq.connect import backend

    broker: Broker = backend("psq.brokers.pubsub", "pubsub").PubSubBroker(
        project, endpoint=endpoint, prefix=prefix, declare=declare, credentials=credentials
    )
    return broker
