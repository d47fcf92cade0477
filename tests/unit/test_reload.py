"""The plan of a reload: pure, complete, and the same whatever the order of the files."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psqd.config import Config
from psqd.config_queue import QueueConfig
from psqd.worker.reload import Plan, plan, reload_of


def config(queues: dict[str, dict[str, Any]] | None = None, **more: Any) -> Config:
    return Config.model_validate({"imports": ["m"], "queues": queues if queues is not None else {"a": {}}, **more})


def test_equal_configs_need_nothing() -> None:
    nothing = plan(config(), config())
    assert nothing == Plan()
    assert not nothing
    assert nothing.summary() == "nothing changed"


def test_queues_that_are_new_start_and_those_that_are_gone_drain() -> None:
    got = plan(config({"a": {}, "b": {}, "c": {}}), config({"b": {}, "e": {}, "d": {}}))
    assert got == Plan(added=["d", "e"], removed=["a", "c"])
    assert got.applies
    assert got.summary() == "added d, e; removed a, c"


def test_a_changed_concurrency_is_a_resize_and_nothing_else() -> None:
    assert plan(config({"a": {}}), config({"a": {"concurrency": 7}})) == Plan(resized={"a": (100, 7)})


def test_settings_of_a_queue_are_taken_at_once_beside_a_resize() -> None:
    got = plan(
        config({"a": {"retries": 1}, "b": {}}),
        config({"a": {"retries": 2, "retry": {"first": 3}, "time_limit": 5, "concurrency": 1}, "b": {"ack": "early"}}),
    )
    assert got == Plan(resized={"a": (100, 1)}, changed={"a": ["retries", "retry", "time_limit"], "b": ["ack"]})
    assert got.summary() == "resized a 100->1; changed a (retries, retry, time_limit), b (ack)"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ({}, {"type": "broadcast"}, "type"),
        ({"type": "broadcast"}, {"type": "broadcast", "scope": "host"}, "scope"),
        ({"type": "broadcast"}, {"type": "broadcast", "on_drain": "delete"}, "on_drain"),
        ({}, {"ack_deadline": 20}, "ack_deadline"),
    ],
)
def test_a_queue_whose_subscription_changes_is_served_anew_with_all_its_changes(
    old: dict[str, Any], new: dict[str, Any], key: str
) -> None:
    got = plan(config({"a": old}), config({"a": {**new, "concurrency": 3, "retries": 5}}))
    assert got == Plan(renewed={"a": sorted(["concurrency", "retries", key])})
    assert got.applies


def test_a_queue_is_served_anew_exactly_when_its_spec_differs() -> None:
    """The worker makes a new consumer when the spec differs; the plan must say the same."""
    values: dict[str, Any] = {"type": "broadcast", "scope": "host", "on_drain": "delete", "ack_deadline": 20.0}
    values |= {"concurrency": 1, "ack": "early", "lease": 20.0, "max_lease": 1e5, "retries": 1, "time_limit": 9.0}
    values |= {"soft_time_limit": 1.0, "store_on_status": [], "result_ttl": 5.0, "extra_context": "m:a"}
    broadcast = QueueConfig(type="broadcast")
    for key, value in values.items():
        old = broadcast if key in ("scope", "on_drain") else QueueConfig()
        new = old.model_copy(update={key: value})
        specs = [queue.spec("a", queue.scope if queue.broadcast else "") for queue in (old, new)]
        assert (specs[0] != specs[1]) == (reload_of(QueueConfig, key) == "renew"), key


@pytest.mark.parametrize(
    ("key", "value"),
    [("broker", "pubsub://p"), ("storage", "datastore://p"), ("path", ["/x"])],
)
def test_what_needs_a_restart_is_named_and_not_applied(key: str, value: Any) -> None:
    got = plan(config(), config(**{key: value}))
    assert got == Plan(restart=[key])
    assert got
    assert not got.applies


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("imports", ["m", "n"]),
        ("shutdown_timeout", 5),
        ("hub_stall_limit", 60),
        ("max_prefetch_bytes", 2_000_000),
        ("max_strikes", 0),
        ("unknown_function_grace", 0),
        ("task_only", True),
        ("http", {"bind": "h:1"}),
        ("logging", {"level": "debug"}),
    ],
)
def test_settings_of_the_daemon_are_taken_at_once(key: str, value: Any) -> None:
    assert plan(config(), config(**{key: value})) == Plan(settings=[key])


def test_what_waits_for_a_restart_is_named_again_at_the_next_reload() -> None:
    old, new = config(), config(broker="pubsub://p", max_strikes=1)
    kept = new.model_copy(update={"broker": old.broker})
    assert plan(kept, new) == Plan(restart=["broker"])
    assert plan(kept, old) == Plan(settings=["max_strikes"])


def test_a_queue_that_is_removed_and_added_again_is_in_both_plans() -> None:
    with_it, without = config({"a": {}, "b": {}}), config({"a": {}})
    assert plan(with_it, without).removed == ["b"] == plan(without, with_it).added


def test_a_long_summary_is_cut_and_counts_the_rest() -> None:
    got = plan(config({}), config({f"q{n:03}": {} for n in range(1000)}))
    assert got.summary(most=2) == "added q000, q001 and 998 more"


_values: dict[str, list[Any]] = {
    "concurrency": [1, 2, 100],
    "type": ["shared", "broadcast"],
    "retries": [0, 1],
    "lease": [10.0, 30.0],
    "ack_deadline": [10.0, 20.0],
    "time_limit": [None, 5.0],
}
_queue = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in _values.items()})
_configs = st.builds(
    config,
    st.dictionaries(st.sampled_from("abcd"), _queue),
    max_strikes=st.sampled_from([0, 3]),
    broker=st.sampled_from(["sqlite://", "pubsub://p"]),
    task_only=st.booleans(),
)


@settings(max_examples=settings().max_examples * 3, deadline=None)
@given(_configs, _configs)
def test_applying_the_plan_leads_from_one_config_to_the_other(old: Config, new: Config) -> None:
    got = plan(old, new)
    queues = {name: queue for name, queue in old.queues.items() if name not in got.removed}
    queues |= {name: new.queues[name] for name in got.added}
    for name, (before, after) in got.resized.items():
        assert queues[name].concurrency == before
        queues[name] = queues[name].model_copy(update={"concurrency": after})
    for name, keys in [*got.changed.items(), *got.renewed.items()]:
        queues[name] = queues[name].model_copy(update={key: getattr(new.queues[name], key) for key in keys})
    keys = [*got.settings, *got.restart]
    reached = old.model_copy(update={"queues": queues, **{key: getattr(new, key) for key in keys}})
    assert reached == new
    assert bool(got) == (old != new)
    assert not got.renewed.keys() & (got.changed.keys() | got.resized.keys()), "a queue is changed in one way"


@settings(deadline=None)
@given(_configs, _configs)
def test_the_plan_back_undoes_the_plan(old: Config, new: Config) -> None:
    there, back = plan(old, new), plan(new, old)
    assert (there.added, there.removed) == (back.removed, back.added)
    assert there.resized == {name: (after, before) for name, (before, after) in back.resized.items()}
    assert (there.changed, there.renewed, there.settings, there.restart) == (
        back.changed,
        back.renewed,
        back.settings,
        back.restart,
    )
