"""Every test of the suites runs over every backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.backends import BROKERS, STORAGES, BrokerPlace, StoragePlace


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        metafunc.parametrize("place", list(BROKERS), indirect=True)
    if "storages" in metafunc.fixturenames:
        metafunc.parametrize("storages", list(STORAGES), indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[BrokerPlace]:
    """An empty place where the brokers of one test meet."""
    with BROKERS[request.param]() as place:
        yield place


@pytest.fixture
def storages(request: pytest.FixtureRequest) -> Iterator[StoragePlace]:
    """An empty place where the storages of one test meet."""
    with STORAGES[request.param]() as place:
        yield place
