"""The lease clients: made of what the worker says of its broker, kept over its death."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from psq.brokers.base import LeaseClient
from psq.errors import ConfigError

__all__ = ["Clients", "client_from"]

_MODULES = {"sqlite": "psq.brokers.sqlite_leases", "pubsub": "psq.brokers.pubsub_leases"}


def client_from(lease_spec: Mapping[str, Any]) -> LeaseClient:
    """Make the lease client that a worker's broker names; its module is imported now.

    Args:
        lease_spec: `Broker.lease_spec()`.

    Raises:
        ConfigError: There is no such kind.
        MissingDependency: What it needs is not installed.
    """
    module = _MODULES.get(str(lease_spec.get("kind")))
    if module is None:
        raise ConfigError(f"no lease client of kind {lease_spec.get('kind')!r}; there are {', '.join(_MODULES)}")
    client: LeaseClient = importlib.import_module(module).from_spec(lease_spec)
    return client


class Clients:
    """One client at a time, and those before it as long as something is given back through them.

    Args:
        make: Makes one of a lease spec.
    """

    def __init__(self, make: Callable[[Mapping[str, Any]], LeaseClient] = client_from) -> None:
        self._make = make
        self._spec: Mapping[str, Any] = {}
        self._client: LeaseClient | None = None
        self._old: list[LeaseClient] = []

    def of(self, spec: Mapping[str, Any]) -> LeaseClient:
        """The client of this spec, connected: the one that is there, where the spec is the same.

        Raises:
            ConfigError: See `client_from`.
            MissingDependency: See `client_from`.
        """
        if self._client is None or spec != self._spec:
            client = self._make(spec)
            if self._client is not None:
                self._old.append(self._client)
            self._client, self._spec = client, spec
            client.connect()
        return self._client

    def close_old(self) -> None:
        """Nothing is given back through them any more."""
        old, self._old = self._old, []
        for client in old:
            client.close()

    def close(self) -> None:
        """Close all. Idempotent."""
        self.close_old()
        client, self._client = self._client, None
        if client is not None:
            client.close()
