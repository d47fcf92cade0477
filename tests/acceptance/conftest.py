"""The places of the integration tests, for the acceptance tests too."""

from tests.integration.conftest import front_site, place, pubsub_site, sqlite_site

__all__ = ["front_site", "place", "pubsub_site", "sqlite_site"]
