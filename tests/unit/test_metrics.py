"""The metrics over stand-ins, read back by Prometheus's own parsers."""

from __future__ import annotations

import pytest
from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from psqd.worker.metrics import families, figures
from tests.unit.daemon_standins import Daemon, daemon


class Registry:
    def __init__(self, made: Daemon) -> None:
        self._figures = figures(made)

    def collect(self):  # type: ignore[no-untyped-def]
        return families(self._figures)


def scrape(made: Daemon) -> dict[str, Metric]:
    text = generate_latest(Registry(made)).decode()  # type: ignore[arg-type]
    return {family.name: family for family in parse_text(text)}


def value(found: dict[str, Metric], family: str, suffix: str = "", **labels: str) -> float:
    (sample,) = (s for s in found[family].samples if s.name == family + suffix and s.labels == labels)
    return sample.value


@pytest.fixture(scope="module")
def found() -> dict[str, Metric]:
    return scrape(daemon("default", "slow", busy=True))


def test_tasks_are_counted_by_queue_and_outcome(found: dict[str, Metric]) -> None:
    assert found["psqd_tasks"].type == "counter"
    assert value(found, "psqd_tasks", "_total", queue="default", outcome="finished") == 40
    assert value(found, "psqd_tasks", "_total", queue="slow", outcome="failed") == 2
    assert value(found, "psqd_dead_letters", "_total", queue="slow", reason="not allowed") == 1


def test_times_are_histograms_with_cumulative_buckets(found: dict[str, Metric]) -> None:
    for name in ("psqd_task_wait_seconds", "psqd_task_run_seconds", "psqd_task_total_seconds"):
        assert found[name].type == "histogram"
        buckets = [s for s in found[name].samples if s.name == name + "_bucket" and s.labels["queue"] == "default"]
        counts = {s.labels["le"]: s.value for s in buckets}
        assert (counts["0.001"], counts["0.01"], counts["0.025"], counts["3600.0"], counts["+Inf"]) == (1, 1, 3, 3, 4)
        assert list(counts.values()) == sorted(counts.values())
        assert value(found, name, "_count", queue="default") == 4
        assert value(found, name, "_sum", queue="default") == pytest.approx(4000.0405)


def test_leases_pulls_and_acks_are_there(found: dict[str, Metric]) -> None:
    expected = {
        "psqd_leases_held": 3,
        "psqd_running": 2,
        "psqd_prefetched": 1,
        "psqd_concurrency": 10,
        "psqd_receives_in_flight": 1,
        "psqd_queue_ready": 1,
    }
    for name, number in expected.items():
        assert found[name].type == "gauge"
        assert value(found, name, queue="slow") == number
    counters = {
        "psqd_received": 50,
        "psqd_acks": 42,
        "psqd_leases_lost": 1,
        "psqd_given_back": 0,
        "psqd_parked": 0,
        "psqd_unknown_functions": 0,
        "psqd_receives": 9,
        "psqd_receives_empty": 4,
        "psqd_receive_errors": 1,
    }
    for name, number in counters.items():
        assert found[name].type == "counter"
        assert value(found, name, "_total", queue="slow") == number


def test_the_hub_reloads_services_logs_and_the_process_are_there(found: dict[str, Metric]) -> None:
    assert value(found, "psqd_hub_blocked_seconds", "_total") == 1.5
    assert value(found, "psqd_hub_threads") == 7
    assert value(found, "psqd_hub_threads_most") == 26
    assert value(found, "psqd_reloads", "_total", result="ok") == 3
    assert value(found, "psqd_reloads", "_total", result="failed") == 1
    assert value(found, "psqd_service_restarts", "_total", service="scheduler") == 2
    assert value(found, "psqd_log_lines_dropped", "_total") == 5
    assert value(found, "psqd_up") == 1
    assert value(found, "psqd_ready") == 1
    assert value(found, "psqd_keeper_alive") == 1
    assert value(found, "psqd_broker", figure="connections") == 2
    assert value(found, "process_resident_memory_bytes") > 1_000_000
    assert value(found, "process_cpu_seconds", "_total") > 0


def test_readiness_shows_in_the_metrics() -> None:
    made = daemon("default", "slow")
    made.consumers["slow"].problem = "refused"
    found = scrape(made)
    assert value(found, "psqd_ready") == 0
    assert value(found, "psqd_queue_ready", queue="slow") == 0
    assert value(found, "psqd_queue_ready", queue="default") == 1


def test_queue_names_are_escaped() -> None:
    found = scrape(daemon('we"ird\\na\nme'))
    assert value(found, "psqd_running", queue='we"ird\\na\nme') == 2


def test_a_queue_without_observations_has_no_buckets() -> None:
    assert scrape(daemon())["psqd_task_run_seconds"].samples == []


def test_openmetrics_is_valid() -> None:
    made = daemon("default", "slow", busy=True)
    made.storage = None
    text = generate_openmetrics(Registry(made)).decode()  # type: ignore[arg-type]
    names = {family.name for family in parse_openmetrics(text)}  # the parser is strict
    assert "psqd_tasks" in names


def test_what_was_copied_does_not_change_any_more() -> None:
    made = daemon(busy=True)
    copied = figures(made)
    counters = made.consumers["default"].counters
    counters.outcomes["finished"] = 999
    counters.run.observe(1.0)
    made.consumers.clear()
    samples = {family.name: list(family.samples) for family in families(copied)}
    assert [s.value for s in samples["psqd_tasks"] if s.labels["outcome"] == "finished"] == [40]
    assert samples["psqd_task_run_seconds"][-1].value == 4


def test_between_many_queues_others_may_run() -> None:
    pauses: list[int] = []
    copied = figures(daemon(*(f"q{n}" for n in range(100))), lambda: pauses.append(1))
    assert len(pauses) == 5
    pauses.clear()
    for family in families(copied, lambda: pauses.append(1)):
        list(family.samples)
    assert len(pauses) > 50
