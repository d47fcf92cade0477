"""What the worker and its process for suspects say to each other."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import psutil
import pytest
from gevent import subprocess

from psqd.worker.outcome import Failed, Finished, Outcome, Retried
from psqd.worker.trial import outcome_of, reply_of
from psqd.worker.trial_process import Frames, TrialFailed, TrialProcess, _kill
from tests.acceptance.processes import wait_until

ERROR = {"type": "builtins:ValueError", "message": "oh", "traceback": "Traceback…"}


def over_the_link(value: Any, size: int) -> list[Any]:
    """What comes out of a link that brings so many bytes at a time."""
    data, frames = Frames.frame(value) + Frames.frame("next"), Frames()
    parts = [data[n : n + size] for n in range(0, len(data), size)]
    return [found for part in parts for found in frames.feed(part)]


@pytest.mark.parametrize("size", [1, 3, 7, 1 << 20])
def test_frames_come_whole_however_they_were_cut(size: int) -> None:
    value = {"number": 7, "data": bytes(range(256)), "keep": True, "redelivered": None}
    assert over_the_link(value, size) == [value, "next"]


@pytest.mark.parametrize(
    ("outcome", "arrives"),
    [
        (Finished([1, "ü"]), Finished(None, dumped='[1,"ü"]'.encode())),
        (Failed(ERROR), Failed(ERROR)),
        (Failed(ERROR, out_of_retries=True), Failed(ERROR, out_of_retries=True)),
        (Retried(2.5, ERROR), Retried(2.5, ERROR)),
    ],
)
def test_an_outcome_arrives_as_it_was(outcome: Outcome, arrives: Outcome) -> None:
    [reply, _] = over_the_link(reply_of(outcome, "the result of f"), 1 << 20)
    assert outcome_of(reply) == arrives


def test_a_result_that_can_not_be_said_is_a_failure_unless_nobody_keeps_it() -> None:
    failed = outcome_of(reply_of(Finished(object()), "the result of f"))
    assert isinstance(failed, Failed)
    assert "the result of f" in failed.error["message"]
    assert outcome_of(reply_of(Finished(object()), "")) == Finished(None)


def test_a_process_that_can_not_start_says_so_and_is_told_to_have_ended() -> None:
    told: list[tuple[int, bool]] = []
    process = TrialProcess(["--config", "/no/such/file"], lambda *what: told.append(what), lambda: 60.0)
    with pytest.raises(TrialFailed, match="ended with 2 before it was ready"):
        process.start()
    (started, runs), (ended, still_runs) = told
    assert (runs, still_runs, ended) == (True, False, started)
    process.interrupt("nothing runs")
    process.stop()


def test_what_a_process_has_started_ends_with_it_even_if_it_was_reaped_already() -> None:
    script = "sleep 600 >/dev/null & echo $!"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, preexec_fn=os.setpgrp)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    process.stdout.close()
    assert process.wait(10) == 0
    _kill(process)
    with contextlib.suppress(psutil.NoSuchProcess):
        wait_until(lambda: child.status() == psutil.STATUS_ZOMBIE or not child.is_running(), 10, "it lives")
    _kill(process)
