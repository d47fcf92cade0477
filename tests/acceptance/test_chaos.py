"""All faults at once: what the service, networks and machines do to a fleet, for a while; then everything is there."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
import uuid
from collections import Counter

import pytest

import psq
from psq.errors import BrokerUnavailable, PublishUnknown
from psq.storages.base import TaskRecord
from tests.acceptance.processes import wait_until
from tests.front.client import Front
from tests.integration import jobs
from tests.integration.daemons import Site

TASKS, SENDERS, SLOTS = 300, 30, 20
CONFIG = {"queues": {"default": {"concurrency": SLOTS, "lease": 10}}, "logging": {"tasks": "failures"}}


def make_trouble(front: Front) -> None:
    """Faults of every kind on every method, tokens that are fetched anew after 15 s, answers that get lost."""
    front.manners(empty=0.3, short=7, strand=True, token_seconds=240.0)
    front.rule(status="UNAVAILABLE", share=0.05)
    front.rule(status="INTERNAL", share=0.02)
    front.rule("Pull", status="RESOURCE_EXHAUSTED", share=0.1)
    front.rule("ModifyAckDeadline", status="CANCELLED", share=0.1)
    front.rule("Token", status="UNAVAILABLE", share=0.3)
    for method in ("Publish", "Acknowledge", "ModifyAckDeadline", "Commit"):
        front.rule(method, drop_answer=True, share=0.1)
        front.rule(method, answer_delay=1.5, share=0.05)
    front.refuse_streams(10)


def enqueue(q: psq.Queue, seconds: float) -> psq.TaskResult:
    """As a careful caller does: again with the same id, until the broker has it."""
    again = q.options(task_id=uuid.uuid4().hex)
    for _ in range(20):
        try:
            return again.enqueue(jobs.nap, seconds)
        except (BrokerUnavailable, PublishUnknown):
            continue
    raise AssertionError("twenty times in vain")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_under_all_faults_at_once_no_task_is_lost_and_each_ends_well(front_site: Site, front: Front) -> None:
    daemons = [front_site.daemon(name, CONFIG) for name in "ab"]
    for daemon in daemons:
        daemon.start(wait=False)
    for daemon in daemons:
        daemon.wait_line(r"ready: \d+ queues", 60)
    q = psq.Queue(psq.connect(front_site.broker), storage=front_site.storage)
    make_trouble(front)
    sent: list[psq.TaskResult] = []
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(SENDERS) as senders:
        sending = [senders.submit(enqueue, q, 0.1) for _ in range(TASKS)]
        for number, future in enumerate(concurrent.futures.as_completed(sending)):
            sent.append(future.result())
            if number % 50 == 25:
                front.cut()
            if number % 100 == 60:
                front.revoke_tokens()
            if number == TASKS // 3:
                os.kill(daemons[0].worker_pid(), signal.SIGKILL)
            if number == TASKS // 2:
                front.swallow(1.0)
    print(f"\n{TASKS} tasks were sent in {time.monotonic() - began:.1f} s")
    front.reset()
    quiet_at = time.monotonic()
    ids = {result.id for result in sent}
    wait_until(
        lambda: ids <= front_site.runs("end").keys(),
        60,
        lambda: f"{len(ids - front_site.runs('end').keys())} never ended\n{front_site.logs()}",
    )
    assert q.storage is not None
    records: dict[str, TaskRecord] = {}
    while len(records) < TASKS and time.monotonic() - quiet_at < 60:
        records = q.storage.get(list(ids))
    assert Counter(record.status for record in records.values()) == {"finished": TASKS}
    recovered = time.monotonic() - quiet_at
    runs = front_site.runs("start").total()
    assert [daemon.stop() for daemon in daemons] == [0, 0]
    stopped = time.monotonic() - quiet_at - recovered
    front_site.nothing_left()
    print(f"{recovered:.1f} s after the trouble all were done, with {runs} runs; stopped {stopped:.1f} s later")
