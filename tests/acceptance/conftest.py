"""The places of the integration tests, for the acceptance tests too."""

import pytest

from tests.integration.conftest import front_site, place, pubsub_site, sqlite_site
from tests.integration.daemons import Site

__all__ = ["front_site", "place", "pubsub_site", "sqlite_site", "strict_place"]


@pytest.fixture(params=["sqlite", "front"])
def strict_place(request: pytest.FixtureRequest) -> Site:
    """Each broker in turn, Pub/Sub behind the front alone: for what takes long."""
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found
