"""Reading a config file: places, words, variables, aliases; whatever the text, never a traceback."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psq.errors import ConfigError
from psqd.config import Config
from psqd.config_print import as_yaml
from psqd.configfile import load, loads
from psqd.problems import ConfigProblems

FINE = "imports: [myapp.tasks]\nqueues:\n  default: {concurrency: 100}\n"


def told(text: str, environ: dict[str, str] | None = None) -> list[str]:
    """What is wrong with a text, without the file's name."""
    with pytest.raises(ConfigError) as failed:
        loads(text, "psqd.yaml", environ or {})
    lines = str(failed.value).splitlines()
    assert all(line.startswith("psqd.yaml:") for line in lines), lines
    return [line.removeprefix("psqd.yaml:") for line in lines]


def queue(keys: str) -> str:
    return f"imports: [myapp.tasks]\nqueues:\n  default: {{{keys}}}\n"


def top(line: str) -> str:
    return FINE + line + "\n"


# (what, text, what is told): the file of wrong configs. Each says file, line, column, key, what is valid.
WRONG = [
    (
        "a key that is spelt wrong",
        queue("concurency: 4"),
        ["3:13: unknown key `concurency` in queues.default; did you mean `concurrency`?"],
    ),
    (
        "a key with dashes",
        queue("time-limit: 4"),
        ["3:13: unknown key `time-limit` in queues.default; did you mean `time_limit`?"],
    ),
    (
        "a queue's key at the top",
        top("time_limit: 4"),
        ["4:1: unknown key `time_limit`; it belongs to a queue, or under `defaults:`"],
    ),
    (
        "a key of the top in a queue",
        queue("broker: sqlite://"),
        ["3:13: unknown key `broker` in queues.default; it belongs to the top level of the file"],
    ),
    (
        "a word that is no choice",
        queue("ack: erly"),
        ["3:18: `ack` in queues.default must be one of late, early, not 'erly'; did you mean `early`?"],
    ),
    (
        "text for a number",
        queue("concurrency: many"),
        ["3:26: `concurrency` in queues.default must be a whole number from 1 to 10,000, not 'many'"],
    ),
    (
        "no slots at all",
        queue("concurrency: 0"),
        ["3:26: `concurrency` in queues.default must be a whole number from 1 to 10,000, not 0"],
    ),
    (
        "a lease that Pub/Sub does not have",
        queue("lease: 601"),
        ["3:20: `lease` in queues.default must be a number of seconds from 10 to 600, not 601"],
    ),
    (
        "a first lease that is too short",
        queue("ack_deadline: 9.9"),
        ["3:27: `ack_deadline` in queues.default must be a number of seconds from 10 to 600, not 9.9"],
    ),
    (
        "a soft limit over the hard one",
        queue("time_limit: 60, soft_time_limit: 60"),
        ["3:46: `soft_time_limit` in queues.default must be less than `time_limit` (60), not 60"],
    ),
    (
        "a lease that ends before the task may",
        queue("time_limit: 600, max_lease: 300"),
        ["3:41: `max_lease` in queues.default must be at least `time_limit` (600), not 300"],
    ),
    (
        "pauses that begin over their limit",
        queue("retry: {first: 20, max: 10}"),
        ["3:28: `first` in queues.default.retry must be at most `max` (10), not 20"],
    ),
    (
        "an exception that there is not",
        queue("retry: {on: [ConectionError]}"),
        [
            (
                "3:26: item 1 of `on` in queues.default.retry must be the name of a builtin exception or "
                "`module:Class`, not 'ConectionError'; did you mean `ConnectionError`?"
            )
        ],
    ),
    (
        "a state that there is not",
        queue("store_on_status: [done]"),
        [
            (
                "3:31: item 1 of `store_on_status` in queues.default must be one of queued, scheduled, started, "
                "retrying, finished, failed, cancelled, not 'done'"
            )
        ],
    ),
    (
        "a context that is no name",
        queue('extra_context: "app.app_context()"'),
        [
            (
                "3:28: `extra_context` in queues.default must be `module:attribute`, such as `myapp:app.app_context`, "
                "not 'app.app_context()'"
            )
        ],
    ),
    (
        "a broadcast key on another queue",
        queue("scope: host"),
        ["3:20: `scope` in queues.default is for queues of `type: broadcast` only"],
    ),
    (
        "a queue's name that a topic of ours has",
        "imports: [m]\nqueues: {mail-dead: }\n",
        ["2:10: `mail-dead` in queues ends in -dead, which names of the broker's own topics and subscriptions end in"],
    ),
    (
        "a queue's name with a slash",
        "imports: [m]\nqueues: {a/b: , 'c d': }\n",
        [
            f"2:{column}: `{name}` in queues is no name for a queue: it must be 1 to 200 characters without spaces "
            "and slashes"
            for column, name in ((10, "a/b"), (17, "c d"))
        ],
    ),
    ("no queue", "imports: [m]\n", ["1:1: `queues` names no queue: a daemon needs at least one"]),
    ("nothing that may run", "queues: {a: }\nimports: []\n", ["2:1: `imports` names no module: no function could run"]),
    (
        "an empty file",
        "# nothing\n",
        [
            "1:1: `imports` names no module: no function could run",
            "1:1: `queues` names no queue: a daemon needs at least one",
        ],
    ),
    ("a file that is a list", "- a\n", ["1:1: the file must be a section of keys such as `queues:`, not a list"]),
    (
        "a module that is no name, and one twice",
        "imports: [a-b, m, m, '*']\nqueues: {a: }\n",
        [
            (
                "1:11: item 1 of `imports` must be a module such as `myapp.tasks`, or `myapp.*` for a package and what "
                "is below it, not 'a-b'"
            ),
            "1:19: item 3 of `imports` is there twice: 'm'",
            (
                "1:22: item 4 of `imports` must be a module such as `myapp.tasks`, or `myapp.*` for a package and what "
                "is below it, not '*'"
            ),
        ],
    ),
    (
        "a module where a list belongs",
        "imports: myapp.tasks\nqueues: {a: }\n",
        ["1:10: `imports` must be a list of modules, not 'myapp.tasks'; write [myapp.tasks]"],
    ),
    (
        "a broker that there is not",
        top("broker: pubsubs://project"),
        ["4:9: `broker` must be pubsub://PROJECT or sqlite:///PATH; did you mean `pubsub`?"],
    ),
    (
        "a broker without its project",
        top("broker: 'pubsub://'"),
        ["4:9: `broker` must be pubsub://PROJECT or sqlite:///PATH; name the project: pubsub://my-project"],
    ),
    (
        "a relative file",
        top("broker: sqlite://psq.db"),
        [
            (
                "4:9: `broker` must be pubsub://PROJECT or sqlite:///PATH; the path must be absolute: "
                "sqlite:///psq.db or the like"
            )
        ],
    ),
    (
        "a key twice",
        top("task_only: true\ntask_only: false"),
        ["5:1: duplicate key 'task_only'; it stands in line 4 already"],
    ),
    ("a queue twice", "imports: [m]\nqueues:\n  a:\n  a:\n", ["4:3: duplicate key 'a'; it stands in line 3 already"]),
    ("a flag of YAML 1.1", top("task_only: yes"), ["4:12: `task_only` must be true or false, not 'yes'"]),
    (
        "an octal number of YAML 1.1",
        queue("retries: 017"),
        ["3:22: `retries` in queues.default must be a whole number from 0 to 1,000,000, not '017'"],
    ),
    (
        "a time of YAML 1.1",
        top("shutdown_timeout: 1:30"),
        ["4:19: `shutdown_timeout` must be a number of seconds from 0 to 31,622,400, not '1:30'"],
    ),
    (
        "no number at all",
        top("shutdown_timeout: .nan"),
        ["4:19: `shutdown_timeout` must be a number of seconds from 0 to 31,622,400, not '.nan'"],
    ),
    (
        "an empty value",
        top("shutdown_timeout:"),
        [
            (
                "4:18: `shutdown_timeout` is empty: it must be a number of seconds from 0 to 31,622,400, "
                "or leave the key out"
            )
        ],
    ),
    (
        "an http section without an address",
        top("http: {token: abc}"),
        ["4:7: `bind` in http is missing"],
    ),
    (
        "an address without a host",
        top("http: {bind: ':9191'}"),
        [
            (
                "4:14: `bind` in http must be `host:port`, such as 127.0.0.1:9191, not ':9191'; "
                "for all addresses write 0.0.0.0:9191"
            )
        ],
    ),
    (
        "a port alone",
        top("http: {bind: 9191}"),
        ["4:14: `bind` in http must be `host:port`, such as 127.0.0.1:9191, not 9191; put it in quotes"],
    ),
    (
        "a port that is too large",
        top("http: {bind: 'localhost:99999'}"),
        ["4:14: `bind` in http must be `host:port`, such as 127.0.0.1:9191, not 'localhost:99999'"],
    ),
    (
        "an IPv6 address without brackets",
        top("http: {bind: '::1:80'}"),
        [
            (
                "4:14: `bind` in http must be `host:port`, such as 127.0.0.1:9191, not '::1:80'; "
                "put an IPv6 address in brackets: [::1]:9191"
            )
        ],
    ),
    (
        "a level in capitals",
        top("logging: {level: INFO}"),
        ["4:18: `level` in logging must be one of debug, info, warning, error, not 'INFO'; did you mean `info`?"],
    ),
    ("a section that is none", top("logging: json"), ["4:10: `logging` must be a section of keys, not 'json'"]),
    (
        "a variable that is not set",
        top("broker: ${BROKER}"),
        ["4:9: the environment variable BROKER is not set; ${BROKER:-…} would give a default"],
    ),
    (
        "a variable that is none",
        top("broker: ${1X}"),
        ["4:9: `${` begins no variable in '${1X}': write ${NAME} or ${NAME:-default}"],
    ),
    (
        "a variable in a key",
        "imports: [m]\nqueues: {a: , '${X}': }\n",
        ["2:15: variables stand in values, not in keys: '${X}'"],
    ),
    (
        "an alias that contains itself",
        "imports: [m]\nqueues: &q\n  a: *q\n",
        ["2:9: this alias contains itself"],
    ),
    (
        "a key that is a number",
        "imports: [m]\nqueues: {1: }\n",
        [
            "2:10: a key must be text, not 1; put it in quotes",
            "2:1: `queues` names no queue: a daemon needs at least one",
        ],
    ),
    (
        "a key that is a list",
        "imports: [m]\nqueues: {a: }\n? [x]\n: 1\n",
        ["3:3: a key must be text, not a list or a section"],
    ),
    (
        "a tag",
        top("path: !!python/object/apply:os.system ['true']"),
        ["4:7: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not known"],
    ),
    ("no YAML", top("logging: {level: info"), None),
    (
        "a tab",
        "imports: [m]\nqueues:\n\ta: 1\n",
        [
            (
                "3:1: is not YAML: while scanning for the next token found character that cannot start any token; "
                "indent with spaces, not with tabs"
            )
        ],
    ),
    (
        "a variable in braces, without quotes",
        "imports: [m]\nqueues: {a: {concurrency: ${COUNT}}}\n",
        [
            (
                "2:28: is not YAML: while parsing a flow mapping did not find expected ',' or '}'; "
                "inside {…} and […], put ${…} in quotes"
            )
        ],
    ),
    (
        "a cron line with six fields",
        top('schedule: {nightly: {cron: "0 0 3 * * *", task: m.f, queue: default}}'),
        [
            (
                "4:28: `cron` in schedule.nightly must be five cron fields (minute hour day month weekday) or a name "
                "such as @daily, not '0 0 3 * * *'; it has 6 fields"
            )
        ],
    ),
    (
        "an hour that there is not",
        top('schedule: {nightly: {cron: "0 24 * * *", task: m.f, queue: default}}'),
        [
            (
                "4:28: `cron` in schedule.nightly must be five cron fields (minute hour day month weekday) or a name "
                "such as @daily, not '0 24 * * *'; bad hour"
            )
        ],
    ),
    (
        "a time zone that there is not",
        top('schedule: {a: {cron: "@daily", task: m.f, queue: default, timezone: Europe/Berln}}'),
        [
            (
                "4:69: `timezone` in schedule.a must be a time zone such as UTC or Europe/Berlin, not 'Europe/Berln'; "
                "did you mean `Europe/Berlin`?"
            )
        ],
    ),
    (
        "a schedule's queue that there is not",
        top('schedule: {a: {cron: "@daily", task: m.f, queue: defualt}}'),
        [
            "4:12: `a` in schedule is not available yet: leave it out",
            "4:50: `queue` in schedule.a names no queue of this file: 'defualt'; did you mean `default`?",
        ],
    ),
]


@pytest.mark.parametrize(("what", "text", "lines"), WRONG, ids=[what for what, _, _ in WRONG])
def test_a_wrong_config_is_told_with_its_place_and_what_is_valid(what: str, text: str, lines: list[str] | None) -> None:
    found = told(text)
    if lines is None:
        assert len(found) == 1
        assert re.match(r"\d+:\d+: is not YAML: ", found[0])
    else:
        assert sorted(found) == sorted(lines)


LATER = [
    ("deduplicate: true", "`deduplicate` in queues.default is not available yet: leave it out"),
    ("receive: stream", "`receive` in queues.default is not available yet as `stream`: leave it out"),
    ("serializer: pickle", "`serializer` in queues.default is not available yet as `pickle`: leave it out"),
]
LATER_AT_TOP = [
    ("dead_ttl: 3600", "`dead_ttl` is not available yet: leave it out"),
    ("secret_key: s3cret", "`secret_key` is not available yet: leave it out"),
    ("secret_key: [new, old]", "`secret_key` is not available yet: leave it out"),
    ("storage: redis://h", "`storage` as redis:// is not available yet: use datastore://, sqlite:// or none"),
    ("storage: memcached://h", "`storage` as memcached:// is not available yet: use datastore://, sqlite:// or none"),
    (
        'schedule: {a: {cron: "@daily", task: m.f, queue: default}}',
        "`a` in schedule is not available yet: leave it out",
    ),
]


@pytest.mark.parametrize(
    ("text", "said"),
    [(queue(keys), said) for keys, said in LATER] + [(top(line), said) for line, said in LATER_AT_TOP],
    ids=[keys for keys, _ in LATER + LATER_AT_TOP],
)
def test_what_is_planned_and_not_built_is_refused_instead_of_ignored(text: str, said: str) -> None:
    (line,) = told(text)
    assert line.partition(": ")[2] == said
    assert "s3cret" not in line


def test_what_is_not_built_is_checked_all_the_same() -> None:
    assert told(queue("deduplicate: maybe")) == [
        "3:26: `deduplicate` in queues.default must be true or false, not 'maybe'"
    ]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
imports: [m, a-b]
broker: nosql://x
queues:
  a: {concurency: 4, ack: soon}
  b: {lease: 5, time_limit: 10, soft_time_limit: 11}
  c: 5
colour: red
task_only: ${NONE}
http: {bind: nowhere}
"""
    places = [line.partition(": ")[0] for line in told(text)]
    assert places == ["1:14", "2:9", "4:7", "4:27", "5:14", "5:50", "6:6", "7:1", "8:12", "9:14"]


def test_a_mistake_under_defaults_is_told_once_and_where_it_stands() -> None:
    text = "imports: [m]\ndefaults: {lease: 5, colour: red}\nqueues: {a: , b: , c: {lease: 20}}\n"
    assert [line.partition(": ")[0] for line in told(text)] == ["2:19", "2:22"]


def test_a_clash_of_a_queue_with_the_defaults_is_told_at_the_queue() -> None:
    text = "imports: [m]\ndefaults: {time_limit: 60}\nqueues:\n  a: {soft_time_limit: 90}\n  b: {soft_time_limit: 30}\n"
    assert told(text) == ["4:24: `soft_time_limit` in queues.a must be less than `time_limit` (60), not 90"]


def test_secrets_are_not_shown_in_what_is_told() -> None:
    text = top("broker: amqp://user:s3cret@host\nhttp: {bind: 'h:1', token: [s3cret]}\nsecret_key: {a: s3cret}")
    lines = told(text)
    assert len(lines) == 3
    assert "s3cret" not in "".join(lines)


# defaults


def test_defaults_are_merged_into_each_queue_and_its_own_keys_win() -> None:
    config = loads(
        "imports: [m]\n"
        "defaults: {concurrency: 7, retries: 2, retry: {first: 5, max: 50}, time_limit: 60, scope: host}\n"
        "queues:\n"
        "  a:\n"
        "  b: {concurrency: 3, retry: {first: 1}, time_limit: }\n"
        "  c: {type: broadcast}\n",
        environ={},
    )
    a, b, c = config.queues["a"], config.queues["b"], config.queues["c"]
    assert (a.concurrency, a.retries, a.retry.first, a.retry.max, a.time_limit) == (7, 2, 5.0, 50.0, 60.0)
    assert (b.concurrency, b.retries, b.retry.first, b.retry.max, b.time_limit) == (3, 2, 1.0, 50.0, None)
    assert (a.scope, b.scope, c.scope) == ("process", "process", "host"), "only broadcast queues have a scope"


def test_a_queue_without_keys_has_every_default() -> None:
    assert (
        loads("imports: [m]\nqueues: {a: }\n", environ={}).queues["a"]
        == Config.model_validate({"queues": {"a": {}}}).queues["a"]
    )


@pytest.mark.parametrize(
    ("environ", "line", "expected"),
    [
        ({}, "", ("sqlite://", "sqlite://")),
        ({"PSQ_BROKER": "sqlite:////srv/psq.db"}, "", ("sqlite:////srv/psq.db", "sqlite://")),
        ({"PSQ_BROKER": "pubsub://p"}, "", ("pubsub://p", "none")),
        ({"PSQ_BROKER": "pubsub://p", "PSQ_STORAGE": "datastore://p"}, "", ("pubsub://p", "datastore://p")),
        ({"PSQ_BROKER": "pubsub://p"}, "broker: sqlite://", ("sqlite://", "sqlite://")),
        ({}, "storage: none", ("sqlite://", "none")),
        ({}, "storage: ${PSQ_STORAGE:-}\nbroker:", ("sqlite://", "sqlite://")),
    ],
)
def test_broker_and_storage_come_from_the_file_then_the_environment_then_the_embedded_default(
    environ: dict[str, str], line: str, expected: tuple[str, str]
) -> None:
    config = loads(top(line), environ=environ)
    assert (config.broker, config.storage) == expected


def test_a_wrong_broker_in_the_environment_is_told_with_the_variable() -> None:
    assert told(FINE, {"PSQ_BROKER": "amqp://x"}) == [
        (
            "1:1: `broker` must be pubsub://PROJECT or sqlite:///PATH; valid: pubsub, sqlite "
            "(from the environment variable PSQ_BROKER)"
        )
    ]


# variables


@pytest.mark.parametrize(
    ("written", "environ", "expected"),
    [
        ("${A}", {"A": "/x"}, "/x"),
        ("${A:-/y}", {}, "/y"),
        ("${A:-/y}", {"A": ""}, "/y"),
        ("${A:-/y}", {"A": "/x"}, "/x"),
        ('"/a${A}b"', {"A": "x"}, "/axb"),
        ("${A}${B}", {"A": "/x", "B": "/y"}, "/x/y"),
        ("$${A}", {}, "${A}"),
        ("$A", {"A": "x"}, "$A"),
        ("${A}", {"A": "${B}"}, "${B}"),
        ("${A}", {"A": "true"}, "true"),
        ("${A}", {"A": "12"}, "12"),
        ("${A}", {"A": "a: [b"}, "a: [b"),
    ],
)
def test_variables_are_filled_in(written: str, environ: dict[str, str], expected: str) -> None:
    assert loads(top(f"logging:\n  file: {written}"), environ=environ).logging.file == expected


def test_a_variable_becomes_what_its_key_takes_quoted_or_not() -> None:
    text = 'imports: [m]\ntask_only: "${FLAG}"\nqueues: {a: {concurrency: "${N:-10}", time_limit: "${LIMIT:-}"}}\n'
    config = loads(text, environ={"FLAG": "true", "N": "12"})
    assert (config.task_only, config.queues["a"].concurrency, config.queues["a"].time_limit) == (True, 12, None)
    assert told(text, {"FLAG": "true", "N": "twelve"}) == [
        "3:27: `concurrency` in queues.a must be a whole number from 1 to 10,000, not 'twelve'"
    ]


# aliases


def test_aliases_and_merge_keys_work_and_own_keys_win() -> None:
    config = loads(
        "imports: [m]\n"
        "queues:\n"
        "  a: &base {concurrency: 3, retries: 2}\n"
        "  b: {<<: *base, retries: 5}\n"
        "  c: {<<: [{lease: 20}, *base, {concurrency: 9}]}\n"
        "  d: *base\n",
        environ={},
    )
    shown = {name: (queue.concurrency, queue.retries, queue.lease) for name, queue in config.queues.items()}
    assert shown == {"a": (3, 2, 30.0), "b": (3, 5, 30.0), "c": (3, 2, 20.0), "d": (3, 2, 30.0)}


def test_a_mistake_behind_an_alias_is_told_where_it_is_written() -> None:
    text = "imports: [m]\nqueues:\n  a: &base {lease: 5}\n  b: {<<: *base}\n"
    assert {line.partition(": ")[0] for line in told(text)} == {"3:20"}


def test_aliases_that_explode_are_refused_in_no_time() -> None:
    lines = ["imports: [m]", "queues: {a: }", "l0: &l0 [" + ", ".join(["lol"] * 10) + "]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 30)]
    found = told("\n".join(lines))
    assert any("stands for more than 500,000 values" in line for line in found)


def test_merge_keys_that_explode_are_refused_in_no_time() -> None:
    lines = ["imports: [m]", "queues: {a: }", "l0: &l0 {a: 1, b: 2}"]
    lines += [f"l{n}: &l{n} {{{', '.join(f'k{i}: *l{n - 1}' for i in range(10))}}}" for n in range(1, 30)]
    lines.append("schedule: {<<: *l29}")
    assert any("stands for more than 500,000 values" in line for line in told("\n".join(lines)))


@pytest.mark.parametrize(
    "text", ["[" * 900 + "]" * 900, "a: " + "{a: " * 900 + "1" + "}" * 900, "[" * 100_000, "- " * 5000 + "a"]
)
def test_deep_nesting_is_refused(text: str) -> None:
    assert any("nest" in line for line in told(text))


# bytes


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"imports: [m]\nqueues: {\xff: }\n", "psqd.yaml:2:10: is not UTF-8 text"),
        (b"imports: [m]\nqueues: {a\x00: }\n", "psqd.yaml:2:11: is not YAML: the character U+0000 is not allowed"),
    ],
)
def test_bytes_that_are_no_text_are_told_with_their_place(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "psqd.yaml"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as failed:
        load(file, {})
    assert str(failed.value) == f"{tmp_path}/{said}"


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "psqd.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + FINE.encode())
    assert list(load(file, {}).queues) == ["default"]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: can't be read: No such file or directory"):
        load(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path, {})


def test_a_very_long_list_of_mistakes_is_cut() -> None:
    lines = told("imports: [m]\nqueues:\n" + "".join(f"  q{n}: {{lease: 1}}\n" for n in range(150)))
    assert len(lines) == 101
    assert lines[-1] == " and 50 more"


# size


def test_a_thousand_queues_are_read_and_told_how_fast(capsys: pytest.CaptureFixture[str]) -> None:
    text = "imports: [m]\nqueues:\n" + "".join(f"  q{n}: {{concurrency: {n + 1}, lease: 60}}\n" for n in range(1000))
    began = time.perf_counter()
    config = loads(text, environ={})
    took = time.perf_counter() - began
    assert sum(queue.concurrency for queue in config.queues.values()) == 500_500
    with capsys.disabled():
        print(f"\n1,000 queues in {took * 1000:.0f} ms")


# whatever the text

WORDS = [*Config.model_fields, "defaults", "default", "concurrency", "retry", "type", "broadcast", "time_limit", "bind"]
WORDS += ["cron", "task", "sqlite://", "pubsub://p", "@daily", "0 3 * * *", "host:1", "true", "1e3", "0x1F", "-1", "~"]
WORDS += ["${A}", "${A:-b}", "${", "$${A}", "*x", "&x", "<<", "!!int", "!x", "|", ">", "---", "...", "%YAML 1.1", "#"]
PUNCTUATION = [
    ": ",
    ":\n  ",
    "\n",
    "\n  ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "- ",
    "? ",
    "'",
    '"',
    "\t",
    "\\",
    "\u2028",
    "\x07",
]


def survives(text: str) -> None:
    """Either a config that prints and reads back, or problems with lines."""
    try:
        config = loads(text, "psqd.yaml", {"A": "1"})
    except ConfigProblems as error:
        failed = error
    else:
        assert loads(as_yaml(config, secrets=True), environ={}) == config
        return
    assert failed.problems
    assert all(problem.line >= 1 for problem in failed.problems)
    assert all(problem.column >= 1 for problem in failed.problems)
    for line in str(failed).splitlines():
        assert re.match(r"psqd\.yaml:(\d+:\d+:| and )", line), line


@settings(max_examples=settings().max_examples * 4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(WORDS + PUNCTUATION), max_size=40).map("".join))
def test_no_mixture_of_our_words_ends_in_a_traceback(text: str) -> None:
    survives(text)


@settings(max_examples=settings().max_examples * 2, deadline=None)
@given(st.text(max_size=80))
def test_no_text_ends_in_a_traceback(text: str) -> None:
    survives(text)


def _yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value))


_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([word for word in WORDS if "\n" not in word]),
    st.text(max_size=10),
)
_keys = st.sampled_from(WORDS) | st.text(max_size=6)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4), max_leaves=12
)


@settings(max_examples=settings().max_examples * 4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {"imports": st.just(["m"]), "queues": st.dictionaries(_keys, _values, max_size=3) | _values},
        optional={key: _values for key in [*Config.model_fields, "defaults"] if key not in ("imports", "queues")},
    )
)
def test_no_values_in_their_places_end_in_a_traceback(document: dict[str, Any]) -> None:
    survives(_yaml(document))


@settings(max_examples=settings().max_examples * 2, deadline=None)
@given(st.data())
def test_no_mutation_of_the_shipped_file_ends_in_a_traceback(data: st.DataObject) -> None:
    text = (Path(__file__).parents[2] / "conf" / "psqd.yaml").read_text("utf-8")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(st.sampled_from(WORDS + PUNCTUATION)) + text[at + cut :]
    survives(text)
