"""Which database is meant: URLs, arguments, Google's own client, the environment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import datastore

from psq.errors import ConfigError
from psq.storages.datastore import DatastoreStorage, from_url
from psq.storages.datastore_place import Place

NOTHING: dict[str, Any] = {
    "project": None,
    "database": None,
    "namespace": None,
    "endpoint": None,
    "credentials": None,
}


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("datastore://my-project", Place("my-project")),
        ("datastore://my-project/", Place("my-project")),
        ("datastore://my-project/(default)", Place("my-project")),
        ("datastore://my-project/orders", Place("my-project", "orders")),
        ("datastore://my-project/orders?namespace=Shop_1", Place("my-project", "orders", "Shop_1")),
        (
            "datastore://my-project?endpoint=eu-datastore.googleapis.com",
            Place("my-project", endpoint="eu-datastore.googleapis.com"),
        ),
        (
            "datastore://my-project?endpoint=http://127.0.0.1:8081",
            Place("my-project", endpoint="http://127.0.0.1:8081"),
        ),
        ("datastore://example.com:my-project", Place("example.com:my-project")),
        ("datastore://", Place()),
    ],
)
def test_a_url_says_which_database(url: str, place: Place) -> None:
    assert Place.of_url(url) == place
    if place.project:
        assert Place.of_url(place.url()) == place
        assert from_url(url).url == place.url()


@pytest.mark.parametrize(
    "url",
    [
        "pubsub://my-project",
        "datastore://my-project/a/b",
        "datastore://my-project/UPPER",
        "datastore://my-project?prefix=x",
        "datastore://my-project?namespace=a b",
        "datastore://user@my-project",
        "datastore://my_project",
        "datastore://my-project#there",
    ],
)
def test_a_wrong_url_is_refused_and_shown(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Place.of_url(url)
    assert any(piece in str(caught.value) for piece in (url, "UPPER", "a b", "my_project"))


def test_identity_is_the_database_however_it_is_reached() -> None:
    one = DatastoreStorage(project="my-project", namespace="n", endpoint="http://127.0.0.1:1")
    two = from_url("datastore://my-project?namespace=n")
    assert one.identity == two.identity == "datastore://my-project?namespace=n"
    assert one.url == "datastore://my-project?namespace=n&endpoint=http://127.0.0.1:1"
    assert from_url("datastore://my-project/orders").identity != two.identity


def test_googles_own_client_says_which_database(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
    client = datastore.Client(  # type: ignore[no-untyped-call]
        project="its-project",
        database="orders",
        namespace="shop",
        credentials=credentials,
        client_options={"api_endpoint": "https://eu-datastore.googleapis.com"},
    )
    storage = DatastoreStorage(client)
    assert storage.url == "datastore://its-project/orders?namespace=shop&endpoint=eu-datastore.googleapis.com"
    target = storage._place.target({})
    assert (target.address, target.secure) == ("eu-datastore.googleapis.com:443", True)
    assert target.credentials is credentials
    assert DatastoreStorage(client, project="other").identity == "datastore://other/orders?namespace=shop"


def test_googles_own_client_of_an_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASTORE_EMULATOR_HOST", "127.0.0.1:9999")
    client = datastore.Client(project="its-project")  # type: ignore[no-untyped-call]
    monkeypatch.delenv("DATASTORE_EMULATOR_HOST")
    target = DatastoreStorage(client)._place.target({})
    assert (target.address, target.secure, target.credentials) == ("127.0.0.1:9999", False, None)


@pytest.mark.parametrize("wrong", ["my-project", object(), SimpleNamespace(project="x")])
def test_what_is_no_client_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"google\.cloud\.datastore\.Client"):
        DatastoreStorage(wrong)


def test_the_service_is_reached_over_tls_with_its_own_audience() -> None:
    target = Place("my-project").target({})
    assert (target.address, target.secure, target.audience) == (
        "datastore.googleapis.com:443",
        True,
        "datastore.googleapis.com",
    )
    assert Place("my-project", endpoint="localhost:8443").target({}).address == "localhost:8443"


def test_the_emulator_of_the_environment_counts_unless_an_endpoint_is_given() -> None:
    environ = {"DATASTORE_EMULATOR_HOST": "127.0.0.1:8081"}
    assert Place("my-project").target(environ).address == "127.0.0.1:8081"
    assert not Place("my-project").target(environ).secure
    assert Place("my-project", endpoint="localhost:8443").target(environ).secure


def test_the_project_of_the_environment_is_used() -> None:
    environ = {"GOOGLE_CLOUD_PROJECT": "env-project", "DATASTORE_EMULATOR_HOST": "127.0.0.1:1"}
    assert Place().with_project(environ).project == "env-project"
    assert Place("given").with_project(environ).project == "given"
    assert Place().with_project({**environ, "DATASTORE_PROJECT_ID": "nearer"}).project == "nearer"


def test_no_project_at_all_is_an_error_that_says_what_to_write() -> None:
    with pytest.raises(ConfigError, match="GOOGLE_CLOUD_PROJECT"):
        Place().with_project({"DATASTORE_EMULATOR_HOST": "127.0.0.1:1"})


def test_store_on_status_is_as_in_psq_08() -> None:
    assert DatastoreStorage(project="my-project").store_on_status == ("finished", "failed", "cancelled")
    storage = DatastoreStorage(project="my-project", store_on_status=["failed"])
    assert storage.store_on_status == ("failed",)
    assert DatastoreStorage.store_on_status == ("finished", "failed", "cancelled")
