"""The `psq` command, through click's runner."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from psq.cli.main import cli
from psq.cli.output import age, payload_text, printable
from psq.cli.places import Places
from psq.errors import BrokerUnavailable, PublishUnknown, StorageUnavailable
from psq.storages.base import FAILED, FINISHED, TaskRecord
from tests.unit.dead_fakes import FakeBroker, FakeClient, FakeStorage, letter


class Bench:
    """A fake broker and storage, and the command over them."""

    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.storage: FakeStorage | None = FakeStorage(self.broker.events)
        self.client: FakeClient | None = None

    def put(self, *letters: Any) -> None:
        assert self.storage is not None
        for one in letters:
            self.storage.letters[one.key] = one

    def run(self, *args: str) -> Result:
        self.client = FakeClient(self.broker, self.storage)
        result = CliRunner().invoke(cli, args, obj=Places(self.client))  # type: ignore[arg-type]
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_list_shows_the_newest_first_in_columns(bench: Bench) -> None:
    bench.put(letter("aa"), letter("bb", queue="slow", reason="not found", died_at=1_795_560_060.0))
    result = bench.run("dead", "list")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "ID    DIED                  QUEUE    FUNCTION           REASON          ERROR",
        "bb:3  2026-11-24 22:41:00Z  slow     myapp.tasks:adder  not found       ValueError: no",
        "aa:3  2026-11-24 22:40:00Z  default  myapp.tasks:adder  out of retries  ValueError: no",
    ]
    assert bench.client is not None
    assert bench.client.closed == 1


def test_list_can_be_narrowed_and_says_when_there_is_more(bench: Bench) -> None:
    bench.put(*(letter(f"t{n}", queue="slow" if n % 2 else "default", died_at=float(n)) for n in range(6)))
    result = bench.run("dead", "list", "--queue", "slow", "--limit", "2")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ID", "t5:3", "t3:3"]
    assert result.stderr == "there are more than 2: --limit shows them\n"
    bench.put(letter("x", reason="not found"))
    assert [one["id"] for one in json.loads(bench.run("dead", "list", "--reason", "not found", "--json").stdout)] == [
        "x:3"
    ]


def test_an_empty_list_says_where_it_looked(bench: Bench) -> None:
    result = bench.run("dead", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "no dead letters (broker fake://broker, storage fake://storage)\n"


def test_list_in_json_has_no_payloads(bench: Bench) -> None:
    bench.put(letter())
    (document,) = json.loads(bench.run("dead", "list", "--json").stdout)
    assert document["id"] == "4f1d2c:3"
    assert document["task_id"] == "4f1d2c"
    assert document["died_at"] == "2026-11-24T22:40:00.000+00:00"
    assert document["payload_bytes"] > 100
    assert not {"payload", "traceback"} & set(document)


def test_show_has_payload_traceback_and_deaths(bench: Bench) -> None:
    deaths = [{"signal": "SIGSEGV", "host": "web-1", "at": 1_795_560_000.0}]
    bench.put(letter(reason="worker died", deaths=deaths))
    for id in ("4f1d2c", "4f1d2c:3"):
        text = bench.run("dead", "show", id).stdout
        assert text.startswith("4f1d2c:3\n  queue     default\n")
        assert "  reason    worker died\n" in text
        assert "  death     SIGSEGV on web-1 2026-11-24 22:40:00Z\n" in text
        assert '      "args": [\n        5,\n        "é"\n      ],' in text
        assert "  traceback\n    Traceback …\n    ValueError: no\n" in text


def test_show_in_json_has_the_payload_as_text_or_base64(bench: Bench) -> None:
    bench.put(letter("aa"), letter("bad-1", 1, payload=b"\xff\x00"))
    good, bad = json.loads(bench.run("dead", "show", "aa", "bad-1", "--json").stdout)
    assert json.loads(good["payload"])["args"] == [5, "é"]
    assert bad["payload_base64"] == "/wA="


def test_an_undecodable_payload_is_shown_and_can_drive_no_terminal(bench: Bench) -> None:
    bench.put(
        letter("bad-1", 1, payload=b"\xff\x00\x1b[2J", function="", reason="undecodable"),
        letter("bad-2", 1, payload=b"plain \x1b[2J text", function="evil\x1b]0;x\x07\n", reason="undecodable"),
    )
    binary = bench.run("dead", "show", "bad-1").stdout
    assert "    ff001b5b 324a\n" in binary
    assert "not a JSON document" in binary
    text = bench.run("dead", "show", "bad-2").stdout
    assert "    plain \\x1b[2J text\n" in text
    assert "\x1b" not in text + bench.run("dead", "list").stdout


def test_raw_gives_the_payload_byte_for_byte(bench: Bench) -> None:
    bench.put(letter("bad-1", 1, payload=b"\xff\x00\n"), letter("aa", 1), letter("aa", 2))
    assert bench.run("dead", "show", "bad-1", "--raw").stdout_bytes == b"\xff\x00\n"
    result = bench.run("dead", "show", "aa", "--raw")
    assert result.exit_code == 2
    assert "2 were found" in result.stderr


def test_unknown_ids_are_told_and_the_exit_code_is_1(bench: Bench) -> None:
    bench.put(letter())
    result = bench.run("dead", "show", "4f1d2c", "nope")
    assert result.exit_code == 1
    assert "4f1d2c:3" in result.stdout
    assert result.stderr == "no dead letter nope\n"
    assert bench.run("dead", "requeue", "nope").exit_code == 1


def test_requeue_by_id_publishes_first_and_deletes_second(bench: Bench) -> None:
    bench.put(letter("aa"), letter("bb"))
    result = bench.run("dead", "requeue", "aa")
    assert result.exit_code == 0
    assert result.stdout == "aa:3 to default: requeued\n1 requeued\n"
    assert bench.broker.events == ["published aa", "deleted aa:3"]
    assert [(m.id, m.run, m.attempt, list(m.strikes)) for m in bench.broker.sent()] == [("aa", 2, 1, [])]


def test_requeue_of_a_queue_takes_all_of_it_and_nothing_else(bench: Bench) -> None:
    bench.put(letter("aa", queue="slow"), letter("bb", queue="slow", reason="not found"), letter("cc"))
    result = bench.run("dead", "requeue", "--queue", "slow", "--reason", "not found")
    assert result.stdout.splitlines()[-1] == "1 requeued"
    result = bench.run("dead", "requeue", "--queue", "slow")
    assert [m.id for m in bench.broker.sent()] == ["bb", "aa"]
    assert list(bench.storage.letters) == ["cc:3"]  # type: ignore[union-attr]
    assert bench.run("dead", "requeue", "--all").stdout.splitlines()[-1] == "1 requeued"


def test_requeue_of_ids_in_another_queue_is_refused(bench: Bench) -> None:
    bench.put(letter("aa", queue="slow"))
    result = bench.run("dead", "requeue", "--queue", "default", "aa")
    assert (result.exit_code, result.stderr) == (1, "no dead letter aa\n")
    assert bench.broker.events == []


def test_requeue_of_a_task_with_several_dead_attempts_takes_the_newest(bench: Bench) -> None:
    bench.put(letter("aa", 1, died_at=1.0), letter("aa", 2, died_at=5.0), letter("aa", 4, died_at=3.0))
    result = bench.run("dead", "requeue", "aa")
    assert result.stderr == "aa: aa:2 is the newest; aa:4, aa:1 stay as they are\n"
    assert bench.broker.events == ["published aa", "deleted aa:2"]
    assert bench.run("dead", "requeue", "aa:4").exit_code == 0


def test_requeue_asks_which(bench: Bench) -> None:
    bench.put(letter())
    for args in ((), ("--reason", "x"), ("--all", "4f1d2c")):
        assert bench.run("dead", "requeue", *args).exit_code == 2
    assert bench.broker.events == []


def test_what_dies_again_meanwhile_is_not_requeued_for_ever(bench: Bench) -> None:
    bench.put(letter("aa"))
    publish = bench.broker.publish

    def dies_again(message: Any, done: Any, *, timeout: float = 10.0) -> None:
        publish(message, done, timeout=timeout)
        bench.put(letter("aa", 1))

    bench.broker.publish = dies_again  # type: ignore[method-assign]
    assert bench.run("dead", "requeue", "--queue", "default").stdout.splitlines()[-1] == "1 requeued"
    assert list(bench.storage.letters) == ["aa:1"]  # type: ignore[union-attr]


def test_what_was_not_requeued_is_kept_told_and_the_exit_code_is_1(bench: Bench) -> None:
    bench.put(letter("aa"), letter("bb"), letter("cc"))
    bench.broker.errors = {"aa": BrokerUnavailable("away"), "bb": PublishUnknown("no answer")}
    result = bench.run("dead", "requeue", "aa", "bb", "cc")
    assert result.exit_code == 1
    assert result.stdout == "cc:3 to default: requeued\n1 requeued, 2 not\n"
    assert result.stderr == (
        "aa:3 to default: kept, not requeued: away\nbb:3 to default: kept; it may have been requeued: no answer\n"
    )
    assert set(bench.storage.letters) == {"aa:3", "bb:3"}  # type: ignore[union-attr]


def test_a_crash_between_publish_and_delete_keeps_the_letter(bench: Bench) -> None:
    bench.put(letter("aa"))
    bench.storage.delete_error = KeyboardInterrupt()  # type: ignore[union-attr,assignment]
    assert bench.run("dead", "requeue", "aa").exit_code == 1
    assert [m.id for m in bench.broker.sent()] == ["aa"]
    assert set(bench.storage.letters) == {"aa:3"}  # type: ignore[union-attr]


def test_requeue_in_json_tells_each(bench: Bench) -> None:
    bench.put(letter("aa"), letter("bb", queue="fleet"))
    bench.broker.errors = {"bb": BrokerUnavailable("away")}
    result = bench.run("dead", "requeue", "aa", "bb", "--json", "--broadcast")
    assert json.loads(result.stdout) == [
        {"id": "aa:3", "queue": "default", "published": True, "error": None},
        {"id": "bb:3", "queue": "fleet", "published": False, "error": "away"},
    ]
    assert bench.broker.published[0].queue.broadcast


def test_without_a_storage_the_brokers_own_place_is_used(bench: Bench) -> None:
    bench.storage = None
    bench.broker.place.letters["aa:3"] = letter("aa")
    assert "aa:3" in bench.run("dead", "list").stdout
    assert bench.run("dead", "requeue", "aa").exit_code == 0
    assert bench.broker.events == ["published aa", "deleted aa:3"]


def record(id: str, state: str = FINISHED, **values: Any) -> TaskRecord:
    defaults: dict[str, Any] = {
        "queue": "default",
        "function": "myapp.tasks:adder",
        "enqueued_at": 1_795_560_000.0,
        "started_at": 1_795_560_001.0,
        "finished_at": 1_795_560_001.25,
        "worker": "web-1:4711",
    }
    return TaskRecord(id, state, **{**defaults, **values})


@pytest.fixture
def tasks(bench: Bench) -> Bench:
    error = {"type": "builtins:ValueError", "message": "no\x1b[2J", "traceback": "Traceback …\n"}
    assert bench.storage is not None
    bench.storage.records = {
        "aa": record("aa", result=b'{"sum":11}'),
        "bb": record("bb", FAILED, error=error, attempt=3, run=2, queue="slow", finished_at=1_795_569_000.0),
    }
    return bench


def test_tasks_are_listed_in_columns(tasks: Bench) -> None:
    head, first, second = tasks.run("tasks", "list").stdout.splitlines()
    assert head.split() == ["ID", "STATE", "QUEUE", "FUNCTION", "ATTEMPT", "ENQUEUED", "RAN", "ERROR"]
    assert first.split("  ")[0] == "aa"
    assert "0.250 s" in first
    assert "3 (run 2)" in second
    assert "2.5 h" in second
    assert second.endswith("builtins:ValueError: no\\x1b[2J")


def test_tasks_can_be_narrowed(tasks: Bench) -> None:
    for args in (("--state", "failed"), ("--queue", "slow")):
        assert [t["id"] for t in json.loads(tasks.run("tasks", "list", "--json", *args).stdout)] == ["bb"]
    assert json.loads(tasks.run("tasks", "list", "--json", "--function", "x:y").stdout) == []
    assert tasks.run("tasks", "list", "--limit", "1").stderr.startswith("there are more than 1")
    assert tasks.run("tasks", "list", "--state", "nonsense").exit_code == 2


def test_a_task_is_shown_with_result_or_error(tasks: Bench) -> None:
    result = tasks.run("tasks", "show", "aa", "bb", "nope")
    assert result.exit_code == 1
    assert result.stderr.startswith("no task nope: ")
    assert '  result\n    {\n      "sum": 11\n    }\n' in result.stdout
    assert "  error     builtins:ValueError: no\\x1b[2J\n" in result.stdout
    assert "  traceback\n    Traceback …\n" in result.stdout
    good, bad = json.loads(tasks.run("tasks", "show", "aa", "bb", "--json").stdout)
    assert good["result"] == {"sum": 11}
    assert bad["error"]["type"] == "builtins:ValueError"
    assert good["finished_at"] == "2026-11-24T22:40:01.250+00:00"


def test_tasks_without_a_storage_say_what_to_give(bench: Bench) -> None:
    bench.storage = None
    result = bench.run("tasks", "list")
    assert result.exit_code == 2
    assert result.stderr == "psq: fake://broker has no storage: give --storage URL, or set PSQ_STORAGE\n"


def test_a_storage_that_cannot_list_says_what_works(bench: Bench) -> None:
    assert bench.storage is not None
    bench.storage.can_list = False
    result = bench.run("tasks", "list")
    assert result.exit_code == 2
    assert "psq tasks show ID" in result.stderr


def test_a_storage_that_is_away_is_exit_code_3(tasks: Bench) -> None:
    def get(ids: Any) -> Any:
        raise StorageUnavailable("away")

    tasks.storage.get = get  # type: ignore[union-attr,method-assign]
    result = tasks.run("tasks", "show", "aa")
    assert (result.exit_code, result.stderr) == (3, "psq: away\n")


def test_a_bad_url_is_exit_code_2_and_says_what_is_valid() -> None:
    result = CliRunner().invoke(cli, ["dead", "list", "--broker", "kafka://x"])
    assert result.exit_code == 2
    assert "pubsub://PROJECT" in result.stderr


def test_on_a_terminal_rich_draws_and_what_looks_like_markup_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from psq.cli.output import table

    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    table(("ID", "ERROR"), [("x" * 40, "[red]no[/red] :smile: " + "y" * 100)])
    text = capsys.readouterr().out
    assert "x" * 40 in text
    assert "[red]" in text
    assert "y" * 100 not in text


def test_help_names_the_commands() -> None:
    text = CliRunner().invoke(cli, ["-h"]).stdout
    assert "dead" in text
    assert "tasks" in text
    assert CliRunner().invoke(cli, ["--version"]).stdout == "psq, version 1.0.0\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.0123, "0.012 s"), (59.6, "60 s"), (200, "3.3 min"), (9000, "2.5 h"), (250_000, "2.9 d"), (-1, "")],
)
def test_ages_are_for_people(seconds: float | None, text: str) -> None:
    assert age(seconds) == text


def test_binary_payloads_are_cut_and_surrogates_do_no_harm() -> None:
    assert payload_text(b"\xff" * 10_000).endswith("… 10000 bytes in all")
    assert printable("a\ud800b\u2028") == "a\\ud800b\\u2028"
