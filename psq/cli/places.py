"""Where a command looks: broker, storage and dead letters, from options, environment or the embedded default."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import click

from psq.brokers.base import Broker, DeadLetters
from psq.client import DEFAULT, Client
from psq.connect import default_path
from psq.dead import dead_letters
from psq.errors import BrokerError, ConfigError, MissingDependency, NoStorage, PsqError, StorageError
from psq.storages.base import Storage

__all__ = ["Places", "with_places"]

P = ParamSpec("P")

#: Exit codes.
NOT_DONE, BAD_ARGUMENTS, UNAVAILABLE = 1, 2, 3


class Places:
    """Broker and storage of one command; each is made when it is first asked for.

    Args:
        client: Has the broker and, by default, the storage.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def broker(self) -> Broker:
        """The broker."""
        return self._client.broker

    @property
    def storage(self) -> Storage:
        """The storage.

        Raises:
            NoStorage: None was given.
        """
        storage = self._client.storage
        if storage is None:
            raise NoStorage(f"{self._client.url} has no storage: give --storage URL, or set PSQ_STORAGE")
        return storage

    @property
    def dead(self) -> DeadLetters:
        """Where the dead letters are."""
        return dead_letters(self.broker, self._client.storage)

    @property
    def where(self) -> str:
        """For messages: where was looked."""
        storage = self._client.storage
        return f"broker {self._client.url}, storage {storage.url if storage is not None else 'none'}"

    def close(self) -> None:
        """Send what waits and let go."""
        self._client.close()


def with_places(command: Callable[Concatenate[Places, P], None]) -> Callable[P, None]:
    """A command that gets `Places` first, the options --broker and --storage, and readable errors.

    A test hands its own `Places` over as click's ``obj``.
    """

    @click.option(
        "--broker",
        envvar="PSQ_BROKER",
        metavar="URL",
        help="pubsub://PROJECT or sqlite:///PATH; by default PSQ_BROKER, else the embedded one.",
    )
    @click.option(
        "--storage",
        envvar="PSQ_STORAGE",
        metavar="URL",
        help="datastore://PROJECT, sqlite:///PATH or none; by default PSQ_STORAGE, else what goes with the broker.",
    )
    @click.pass_context
    @functools.wraps(command)
    def run(context: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> None:
        broker, storage = kwargs.pop("broker"), kwargs.pop("storage")
        try:
            places = context.obj
            if places is None:
                url = str(broker or f"sqlite://{default_path()}")
                places = Places(Client(url, storage=str(storage) if storage else DEFAULT))
            try:
                command(places, *args, **kwargs)
            finally:
                places.close()
        except PsqError as error:
            click.echo(f"psq: {error}", err=True)
            if isinstance(error, (ConfigError, MissingDependency, NoStorage)):
                sys.exit(BAD_ARGUMENTS)
            sys.exit(UNAVAILABLE if isinstance(error, (BrokerError, StorageError)) else NOT_DONE)

    return run
