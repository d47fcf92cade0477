"""The web app is deployed before the workers: what they do not know yet waits, loudly, and runs when they do."""

from __future__ import annotations

import re
from urllib.request import urlopen

import pytest

import psq
from psq.brokers.base import Outgoing
from psq.concurrency import Waiter
from psq.message import Message, attributes, encode
from tests.acceptance.processes import wait_until
from tests.integration.daemons import Psqd, Site

TODAY = """
import tests.integration.jobs as jobs

def known():
    jobs.journal("run")
    return "old"
"""
TOMORROW = (
    TODAY
    + """
def fresh():
    jobs.journal("run")
    return "new"
"""
)


@pytest.fixture(params=["sqlite", "front"])
def place(request: pytest.FixtureRequest) -> Site:
    """The bare emulator shows nothing here that the front does not."""
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found


def held_back(daemon: Psqd) -> float:
    """What the metrics say of deliveries that wait for a deploy."""
    port = daemon.wait_line(r"http on 127\.0\.0\.1:(\d+)")[1]
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        found = re.search(
            r'^psqd_unknown_functions_total\{queue="default"\} (\S+)$', answer.read().decode(), re.MULTILINE
        )
    return float(found[1]) if found else 0.0


def send_of_tomorrow(q: psq.Queue) -> psq.TaskResult:
    """A message of the next wire version, with a key that this one does not know."""
    message = Message("of-tomorrow", "tests.integration.tomorrow:arrived")
    data = encode(message).replace(b'"v":1', b'"v":2,"news":{"a":1}')
    waiter = Waiter()
    out = Outgoing(q.spec, data, attributes(message) | {"psq-v": "2"}, None, message.id)
    q.client.broker.publish(out, lambda _, error: waiter.set(error))
    assert waiter.wait(20)
    assert waiter.value is None
    return psq.TaskResult(message.id, q)


def test_a_new_function_and_a_newer_version_wait_loudly_and_run_when_the_workers_know_them(place: Site) -> None:
    module = place.folder / "shop.py"
    module.write_text(TODAY)
    config = {
        "path": [str(place.folder)],
        "imports": ["shop"],
        "unknown_function_grace": 60,  # it waits three seconds at a time
        "http": {"bind": "127.0.0.1:0"},
    }
    old = place.daemon("old", {**config, "queues": {"default": {}}}).start()
    q = psq.Queue(psq.connect(place.broker), storage=place.storage)
    fresh, newer, known = q.enqueue("shop:fresh"), send_of_tomorrow(q), q.enqueue("shop:known")
    assert known.result(timeout=20) == "old"
    old.wait_line(rf"WARNING .*task {fresh.id} of queue default waits: .*fresh")
    old.wait_line(rf"WARNING .*task {newer.id} of queue default waits: .*version 2 is newer than 1")
    wait_until(lambda: held_back(old) >= 2, 10, old.log)

    module.write_text(TOMORROW)
    place.daemon(
        "new", {**config, "queues": {"default": {}}, "imports": ["shop", "tests.integration.tomorrow"]}
    ).start()
    assert old.stop() == 0
    assert fresh.result(timeout=30) == "new"
    assert newer.result(timeout=30) == "read"
    assert place.runs() == {fresh.id: 1, newer.id: 1, known.id: 1}
