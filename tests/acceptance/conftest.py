"""The places of the integration tests, for the acceptance tests too."""

from tests.integration.conftest import place, pubsub_site, sqlite_site

__all__ = ["place", "pubsub_site", "sqlite_site"]
