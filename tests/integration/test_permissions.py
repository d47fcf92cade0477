"""Who may do less than everything: publishers, daemons and deployers behind the front, each with an account."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.oauth2 import service_account

import psq
from psq.brokers.base import QueueSpec
from psq.brokers.pubsub import PubSubBroker
from psq.errors import BrokerRefused
from psqd.worker.members import host_label
from tests.acceptance.processes import ROOT, wait_until
from tests.contract.helpers import Answer, ack, outgoing, publish, receiving
from tests.front.client import Front
from tests.integration import jobs
from tests.integration.daemons import Psqd, Site
from tests.integration.operator import Operator
from tests.integration.test_ops import get, port_of

QUEUE = QueueSpec("work")
PUBLISH, CONSUME, LOOK = "pubsub.topics.publish", "pubsub.subscriptions.consume", "pubsub.subscriptions.get"

Brokers = Callable[..., PubSubBroker]


@pytest.fixture
def brokers(front: Front) -> Iterator[Brokers]:
    """Makes brokers of one project, each for an account with some permissions."""
    project, made = f"p-{uuid.uuid4().hex[:8]}", list[PubSubBroker]()

    def make(*permissions: str, **options: Any) -> PubSubBroker:
        file = front.account(f"a{len(made)}", permissions=permissions or None)
        credentials = service_account.Credentials.from_service_account_file(file)  # type: ignore[no-untyped-call]
        broker = PubSubBroker(project, endpoint=front.endpoint, credentials=credentials, **options)
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.close()


# publishers


@pytest.mark.parametrize(
    ("declare", "permissions"),
    [("auto", (PUBLISH,)), ("check", (PUBLISH,)), ("never", (PUBLISH,)), ("auto", (PUBLISH, LOOK))],
)
def test_a_publisher_that_may_only_publish_does(
    brokers: Brokers, caplog: pytest.LogCaptureFixture, declare: str, permissions: tuple[str, ...]
) -> None:
    deployer = brokers()
    deployer.declare(QUEUE)
    web = brokers(*permissions, declare=declare)
    publish(web, outgoing(QUEUE, "t1"))
    publish(web, outgoing(QUEUE, "t2"))
    blind = LOOK not in permissions and declare != "never"
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == blind
    with receiving(deployer, QUEUE) as (inbox, _):
        ack(deployer, *inbox.take(2))


@pytest.mark.parametrize("declare", ["auto", "check", "never"])
def test_a_publisher_that_may_make_nothing_is_told_at_once_what_makes_the_topic(brokers: Brokers, declare: str) -> None:
    web = brokers(PUBLISH, declare=declare)
    answer = Answer()
    web.publish(outgoing(QUEUE), answer, timeout=30.0)
    error = answer.error(10.0)
    assert isinstance(error, BrokerRefused)
    assert f"gcloud pubsub topics create psq-work --project={web.project}" in str(error)
    brokers().declare(QUEUE)
    publish(web, outgoing(QUEUE))  # it is noticed


def test_a_publisher_that_may_look_does_not_publish_to_a_topic_that_would_swallow_it(brokers: Brokers) -> None:
    Operator(brokers()).make_topic()
    web = brokers(PUBLISH, LOOK)
    answer = Answer()
    web.publish(outgoing(QUEUE), answer, timeout=30.0)
    assert "psq-work-shared does not exist, and we may not make it: gcloud" in str(answer.error(10.0))


def test_a_publisher_that_may_not_publish_is_told_the_role_and_its_own_name(brokers: Brokers, front: Front) -> None:
    brokers().declare(QUEUE)
    reader = brokers(LOOK)
    answer = Answer()
    reader.publish(outgoing(QUEUE), answer, timeout=30.0)
    error = answer.error(10.0)
    assert isinstance(error, BrokerRefused)
    assert str(error).endswith(
        f"the permission {PUBLISH} is missing: gcloud projects add-iam-policy-binding {reader.project} "
        f"--member=serviceAccount:{front.email('a1')} --role=roles/pubsub.publisher"
    )


# daemons


class Deployment:
    """A site behind the front whose daemon may do less than the one who deploys it."""

    def __init__(self, front: Front, site: Site) -> None:
        self.front, self.site = front, site

    def daemon(self, *permissions: str, **config: Any) -> Psqd:
        config = {"queues": {"work": {}}, "http": {"bind": "127.0.0.1:0"}, **config}
        file = self.front.account("daemon", permissions=[*permissions, *STORAGE])
        return self.site.daemon(f"d{len(self.site.daemons)}", config, GOOGLE_APPLICATION_CREDENTIALS=file)

    def declare(self, daemon: Psqd) -> str:
        """As the deployer, who may everything."""
        done = self.run("from psqd.mixture import psq; psq()", "declare", "-c", str(daemon.config_path))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def check(self, daemon: Psqd) -> subprocess.CompletedProcess[str]:
        """As the daemon."""
        run = "from psqd.cli import psqd; psqd()"
        return self.run(run, "-c", str(daemon.config_path), "--check", **daemon._environment)

    def run(self, code: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            cwd=ROOT,
            env=self.site.environment(**environment),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


STORAGE = [f"datastore.entities.{what}" for what in ("get", "list", "create", "update", "delete")]


@pytest.fixture
def deployment(front: Front, front_site: Site) -> Deployment:
    return Deployment(front, front_site)


def test_where_a_deployer_declares_daemon_and_web_app_need_no_right_to(deployment: Deployment) -> None:
    here = host_label(socket.gethostname())
    fleet = {"type": "broadcast", "hosts": ["elsewhere", here]}
    daemon = deployment.daemon(
        PUBLISH, CONSUME, declare="never", storage="none", queues={"work": {"retries": 0}, "fleet": fleet}
    )
    *things, end = deployment.declare(daemon).splitlines()
    assert {f"fleet of {here}-0: there", "work: there", "work, dead letters: there"} < set(things)
    assert "2 queues on pubsub://" in end
    daemon.start()
    web = deployment.front.account("web", permissions=[PUBLISH])
    credentials = service_account.Credentials.from_service_account_file(web)  # type: ignore[no-untyped-call]
    project = deployment.site.broker.partition("://")[2].partition("?")[0]
    client = psq.Client(project=project, endpoint=deployment.front.endpoint, credentials=credentials, declare="never")
    q = psq.Queue(client, "work")
    q.enqueue(jobs.noted)
    psq.BroadcastQueue(client, "fleet").enqueue(jobs.noted)
    deployment.site.wait_journal("run", 2, 20)
    q.enqueue("os:system", "true")  # what can't be run is kept where the deployer made a place for it
    daemon.wait_line("os:system dead queue=work")
    client.close()
    operator = Operator(psq.connect(deployment.site.broker).broker)
    member = operator.found("fleet-elsewhere-0")
    assert (member.expiration_policy.ttl.seconds, member.message_retention_duration.seconds) == (0, 86400)
    wait_until(lambda: held(operator, "work-dead"), 20, "no dead letter arrived")
    assert daemon.stop() == 0
    operator.close()
    denied = {name for name in deployment.front.stats()["errors"] if name.endswith("PERMISSION_DENIED")}
    assert denied <= {"GetSubscription:PERMISSION_DENIED"}  # the looks for a deleted topic, while it runs


def held(operator: Operator, name: str) -> int:
    from psq.brokers import pubsub_wire as wire

    request = wire.PullRequest(subscription=operator.subscription(name), max_messages=1, return_immediately=True)
    return len(operator.call(wire.PULL, request).received_messages)


def test_a_daemon_that_may_not_create_what_is_missing_says_what_to_type_and_ends_with_3(
    deployment: Deployment,
) -> None:
    daemons = [deployment.daemon(PUBLISH, CONSUME, LOOK, declare=declare) for declare in ("auto", "check")]
    for daemon in daemons:
        daemon.start(wait=False)
    checked = deployment.check(daemons[0])
    assert checked.returncode == 2
    assert "queues.work: " in checked.stderr
    assert "psq-work-shared does not exist, and " in checked.stderr
    for daemon in daemons:
        assert daemon.wait() == 3
        assert "gcloud pubsub topics create psq-work" in daemon.log
    deployment.declare(daemons[0])
    checked = deployment.check(daemons[0])
    assert (checked.returncode, checked.stderr) == (0, "")
    assert len(checked.stdout.splitlines()) == 1  # no warning either


def test_a_daemon_that_may_not_look_serves_its_queues_with_one_warning(deployment: Deployment) -> None:
    queues: dict[str, Any] = {"work": {}, "other": {}}
    daemon = deployment.daemon(PUBLISH, CONSUME, queues=queues)
    deployment.declare(daemon)
    daemon.start()
    q = psq.Queue(psq.connect(deployment.site.broker), "work", storage=deployment.site.storage)
    assert q.enqueue(jobs.adder, 2, 3).result(timeout=30) == 5
    q.client.close()
    (warning,) = [line for line in daemon.lines if "can't be looked at" in line]
    assert warning.endswith("--role=roles/pubsub.viewer")
    assert daemon.stop() == 0


def test_a_daemon_that_may_not_receive_is_not_ready_and_says_which_role_it_needs(deployment: Deployment) -> None:
    daemon = deployment.daemon(LOOK)
    deployment.declare(daemon)
    checked = deployment.check(daemon)
    assert checked.returncode == 2
    publish, consume = checked.stderr.splitlines()
    account = f"--member=serviceAccount:{deployment.front.email('daemon')}"
    assert f"the permission {PUBLISH} is missing: gcloud projects add-iam-policy-binding" in publish
    assert publish.endswith(f"{account} --role=roles/pubsub.publisher")
    assert f"the permission {CONSUME} is missing" in consume
    assert consume.endswith(f"{account} --role=roles/pubsub.subscriber")
    daemon.start()
    line = daemon.wait_line("nothing is received from .*psq-work-shared")[0]
    code, body = get(port_of(daemon), "/readyz")
    assert code == 503
    assert CONSUME in body, line
    assert daemon.stop() == 0


def test_a_daemon_that_may_not_write_results_is_told_by_the_check(deployment: Deployment) -> None:
    daemon = deployment.daemon(PUBLISH, CONSUME, LOOK)
    daemon._environment["GOOGLE_APPLICATION_CREDENTIALS"] = deployment.front.account(
        "daemon", permissions=[PUBLISH, CONSUME, LOOK, "datastore.entities.get", "datastore.entities.list"]
    )
    deployment.declare(daemon)
    checked = deployment.check(daemon)
    assert checked.returncode == 2
    assert "storage: " in checked.stderr
    assert "roles/datastore.user" in checked.stderr


def test_a_daemon_whose_copy_of_a_broadcast_queue_nobody_made_is_told_by_the_check(deployment: Deployment) -> None:
    here = host_label(socket.gethostname())
    queues = {"fleet": {"type": "broadcast", "hosts": ["elsewhere"]}}
    daemon = deployment.daemon(PUBLISH, CONSUME, LOOK, queues=queues, declare="check")
    deployment.declare(daemon)
    checked = deployment.check(daemon)
    assert checked.returncode == 2
    assert f"gcloud pubsub subscriptions create psq-fleet-{here}-0 --topic=psq-fleet" in checked.stderr


def test_a_server_that_can_not_tell_what_we_may_is_a_warning_of_the_check(pubsub_site: Site) -> None:
    daemon = pubsub_site.daemon("a", {"queues": {"work": {}, "other": {}}})
    done = subprocess.run(
        [*daemon.command(), "--check"],
        cwd=ROOT,
        env=pubsub_site.environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    warning, fine = done.stdout.splitlines()
    assert warning.endswith("can't tell what we may do there")
    assert fine.endswith("nothing is wrong")
