"""Topics and subscriptions that others make, change and delete, before and under a real daemon."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import psq
from psq.brokers.base import QueueSpec
from psq.brokers.pubsub import from_url
from psq.message import decode
from tests.acceptance.processes import ROOT, wait_until
from tests.contract.helpers import ack, outgoing, publish, receiving
from tests.front.client import Front
from tests.integration import jobs
from tests.integration.daemons import Psqd, Site
from tests.integration.operator import Operator
from tests.integration.test_ops import get, port_of, until_ready

QUICK = {"imports": ["tests.integration.jobs", "tests.integration.quick_looks"], "http": {"bind": "127.0.0.1:0"}}

#: What operators make: name -> fields of the subscription, and what psqd says about it.
UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "push": (
        {"push_config": {"push_endpoint": "https://example.com/hook"}},
        "it pushes to an endpoint, and psqd pulls",
    ),
    "ordering": ({"enable_message_ordering": True}, "message ordering is on, which psqd does not support yet"),
    "exactly": (
        {"enable_exactly_once_delivery": True},
        "exactly-once delivery is on, which psqd does not support yet",
    ),
}
DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "dead": (
        {
            "dead_letter_policy": {
                "dead_letter_topic": "projects/{project}/topics/psq-other",
                "max_delivery_attempts": 7,
            }
        },
        "it has a dead-letter policy: after 7 deliveries Pub/Sub itself moves a task to .*psq-other",
    ),
    "retry": (
        {"retry_policy": {"minimum_backoff": {"seconds": 20}, "maximum_backoff": {"seconds": 60}}},
        "it has a retry policy: what a worker gives back comes again after 20 s, not at once",
    ),
    "deadline": (
        {"ack_deadline_seconds": 45},
        "its ack deadline is 45 s, not 10 s: 45 s is used for the first lease",
    ),
}


@pytest.fixture
def operator(front_site: Site) -> Iterator[Operator]:
    broker = from_url(front_site.broker)
    operator = Operator(broker)
    yield operator
    operator.close()


def make(operator: Operator, table: dict[str, tuple[dict[str, Any], str]]) -> dict[str, Any]:
    """The queues of a config, each with its row's subscription."""
    operator.make_topic("other")
    for name, (fields, _) in table.items():
        policy = fields.get("dead_letter_policy")
        if policy:
            fields = {"dead_letter_policy": policy | {"dead_letter_topic": operator.topic("other")}}
        days = {"message_retention_duration": {"seconds": 7 * 86400}, "expiration_policy": {}}
        operator.make_subscription(name, **days | fields)
    return {name: {} for name in table}


def check(daemon: Psqd) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*daemon.command(), "--check"],
        cwd=ROOT,
        env=daemon.site.environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_subscriptions_that_can_not_be_used_end_the_start_and_are_all_named(
    front_site: Site, operator: Operator
) -> None:
    daemon = front_site.daemon("a", {"queues": make(operator, UNUSABLE)})
    daemon.start(wait=False)
    done = check(daemon)
    assert done.returncode == 2
    assert daemon.wait() == 3
    for name, (_, says) in UNUSABLE.items():
        assert re.search(rf"queues\.{name}: .*psq-{name}-shared can't be used: {says}", done.stderr), done.stderr
        assert re.search(rf"queue {name} can't be had: .*psq-{name}-shared can't be used: {says}", daemon.log)


def test_subscriptions_that_work_differently_are_served_with_a_warning_each(
    front_site: Site, operator: Operator
) -> None:
    queues = make(operator, DIFFERENT)
    daemon = front_site.daemon("a", {"queues": {**queues, "plain": {}}}).start()
    done = check(daemon)
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(line.startswith("warning: ") for line in done.stdout.splitlines()) == len(DIFFERENT)
    assert len([line for line in daemon.lines if re.search(" WARN.* queue ", line)]) == len(DIFFERENT)
    for name, (_, says) in DIFFERENT.items():
        assert re.search(rf"warning: .*queues\.{name}: {says}", done.stdout), done.stdout
        assert re.search(rf"WARN.* queue {name}: {says}", daemon.log), daemon.log
    client = psq.connect(front_site.broker, storage=front_site.storage)
    results = [psq.Queue(client, name).enqueue(jobs.adder, 1, 2) for name in queues]
    assert [result.result(timeout=30) for result in results] == [3, 3, 3]
    client.close()
    assert daemon.stop() == 0


# deaths


def remake(operator: Operator, name: str = "work") -> None:
    """Another topic of the same name, as somebody does who sees that it is gone."""
    operator.delete_topic(name)
    operator.make_topic(name)


DEATHS: list[tuple[str, Callable[[Operator], None]]] = [
    ("topic deleted", lambda operator: operator.delete_topic()),
    ("topic deleted and made again", remake),
    ("subscription deleted", lambda operator: operator.delete_subscription()),
]


def test_a_daemon_mends_what_is_deleted_below_it_and_the_next_task_runs(front_site: Site, operator: Operator) -> None:
    daemon = front_site.daemon("a", {**QUICK, "queues": {"work": {}}}).start()
    port = port_of(daemon)
    client = psq.connect(front_site.broker, storage=front_site.storage)
    q = psq.Queue(client, "work")
    assert q.enqueue(jobs.adder, 1, 1).result(timeout=30) == 2
    for what, kill in DEATHS:
        mark = daemon.mark()
        kill(operator)
        daemon.wait_line("psq-work-shared is there again", 30, since=mark)
        until_ready(daemon, port)
        # neither the web app, nor one that starts later, has to know
        assert q.enqueue(jobs.adder, 1, 2).result(timeout=30) == 3, what
        with psq.connect(front_site.broker, storage=front_site.storage) as another:
            assert psq.Queue(another, "work").enqueue(jobs.adder, 1, 3).result(timeout=30) == 4, what
        assert operator.found().topic == operator.topic(), what
    client.close()
    assert daemon.stop() == 0


def test_what_a_deleted_topic_held_is_moved_by_several_at_a_time_and_none_is_lost(
    front_site: Site, operator: Operator
) -> None:
    queue, count = QueueSpec("work"), 200
    brokers = [from_url(front_site.broker) for _ in range(3)]
    brokers[0].declare(queue)
    publish(brokers[0], *(outgoing(queue, f"t{number}") for number in range(count)))
    operator.delete_topic()
    with ThreadPoolExecutor(len(brokers)) as pool:
        list(pool.map(lambda broker: broker.declare(queue), brokers))
    with receiving(brokers[0], queue) as (inbox, receiver):
        seen: set[str] = set()
        while len(seen) < count:
            deliveries = inbox.take(20, 1.0)
            ack(brokers[0], *deliveries)
            seen |= {decode(one.data).id for one in deliveries}
            receiver.ask(100)
    for broker in brokers:
        broker.close()


def test_a_daemon_that_makes_nothing_is_not_ready_until_somebody_has_mended_it(
    front_site: Site, operator: Operator
) -> None:
    daemons: dict[str, tuple[Psqd, int]] = {}
    client = psq.connect(front_site.broker, storage=front_site.storage)
    for name in ("check", "never"):
        operator.make_subscription(name)
        daemon = front_site.daemon(name, {**QUICK, "queues": {name: {}}, "declare": name}).start()
        daemons[name] = daemon, port_of(daemon)
    for name in daemons:  # so that receives were answered
        assert psq.Queue(client, name).enqueue(jobs.adder, 1, 1).result(timeout=30) == 2
        remake(operator, name)

    def says(name: str, *words: str) -> None:
        daemon, port = daemons[name]
        wait_until(lambda: all(word in get(port, "/readyz")[1] for word in words), 45, lambda: daemon.log)
        assert get(port, "/readyz")[0] == 503

    for name in daemons:
        says(name, "the topic of projects/", f"gcloud pubsub subscriptions delete psq-{name}-shared")
        operator.delete_subscription(f"{name}-shared")
    for name in daemons:
        says(name, "does not exist", f"gcloud pubsub subscriptions create psq-{name}-shared")
        operator.delete_topic(name)
        operator.make_subscription(name)
    for name, (daemon, port) in daemons.items():
        until_ready(daemon, port)
        assert psq.Queue(client, name).enqueue(jobs.adder, 1, 2).result(timeout=30) == 3
        assert daemon.stop() == 0
    client.close()


@pytest.mark.slow
def test_a_topic_that_is_deleted_and_made_again_is_noticed_within_a_minute_by_a_daemon_with_many_queues(
    front_site: Site, operator: Operator
) -> None:
    """As it is configured, with the list in place of a look at each."""
    queues: dict[str, Any] = {"work": {}, **{f"q{number}": {} for number in range(199)}}
    daemon = front_site.daemon("a", {"queues": queues}).start()
    mark = daemon.mark()
    remake(operator)
    daemon.wait_line("psq-work-shared is there again", 60, since=mark)
    with psq.connect(front_site.broker, storage=front_site.storage) as client:
        assert psq.Queue(client, "work").enqueue(jobs.adder, 1, 2).result(timeout=30) == 3
    assert daemon.stop() == 0


def test_a_daemon_that_may_neither_look_nor_make_does_not_hammer_at_a_subscription_that_is_gone(
    front: Front, front_site: Site, operator: Operator
) -> None:
    operator.make_subscription()
    may = ["pubsub.topics.publish", "pubsub.subscriptions.consume"]
    account = front.account("blind", permissions=may)
    config = {"imports": ["tests.integration.short_polls"], "http": {"bind": "127.0.0.1:0"}, "storage": "none"}
    config["queues"] = {"work": {}}
    daemon = front_site.daemon("a", config, GOOGLE_APPLICATION_CREDENTIALS=account).start()
    port = port_of(daemon)
    operator.delete_subscription()
    wait_until(lambda: get(port, "/readyz")[0] == 503, 30, lambda: daemon.log)
    began, before = time.monotonic(), front.stats()["calls"]["CreateSubscription"]
    wait_until(lambda: front.stats()["calls"]["CreateSubscription"] >= before + 3, 30, lambda: daemon.log)
    assert time.monotonic() - began > 1.0  # the pauses grow
    assert get(port, "/readyz")[0] == 503
    operator.delete_topic()
    operator.make_subscription()
    until_ready(daemon, port)
    assert daemon.stop() == 0
