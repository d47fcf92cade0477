"""The worker's log: formats, the native writer, and the lines of one task's life (golden)."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path

import pytest

from psq.concurrency import original
from psq.context import TaskContext, running
from psq.errors import ConfigError
from psq.message import Message
from psqd.worker.logformat import MAX_MESSAGE, MAX_TRACEBACK, JSONLines, TextLines, redact
from psqd.worker.logs import LogHandle, TaskLog, setup
from psqd.worker.logwriter import LogWriter

GOLDEN = Path(__file__).parent.parent / "golden"
ROOT = Path(__file__).parent.parent.parent
WAIT = 20.0  # seconds; a bound, not a pause


@dataclass(frozen=True)
class Settings:
    format: str = "text"
    level: str = "info"
    file: str | None = None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "psqd.log"


@pytest.fixture
def opened() -> Iterator[list[LogHandle]]:
    """Handles that a test made, closed at its end."""
    handles: list[LogHandle] = []
    yield handles
    for handle in handles:
        handle.close(WAIT)


def record(
    text: str, *args: object, name: str = "myapp", level: int = logging.INFO, **extra: object
) -> logging.LogRecord:
    made = logging.LogRecord(name, level, "tasks.py", 1, text, args, None)
    made.created = 1_795_560_001.1239
    made.__dict__.update(extra)
    return made


def say_from_inside(message: Message, at: float) -> None:
    """What the task's own code logs while it runs."""

    def task() -> None:
        running(TaskContext(message.id, message.function, message.queue, attempt=message.attempt), None)
        made = record("adding %d", 5)
        made.created = at
        logging.getLogger("myapp").handle(made)

    copy_context().run(task)


def life_of_a_task(log: TaskLog) -> None:
    """Enqueued, failed once, tried again, finished; another ends as a dead letter."""
    secret = {"url": "redis://bob:hunter2@cache/0"}
    message = Message("4f1d2c", "myapp.tasks:adder", ["card 4111"], secret, "default", enqueued_at=100.0)
    log.started(message, "default", 0.0123)
    error = "ConnectionError: redis://bob:hunter2@cache/0 is away"
    trace = f'Traceback (most recent call last):\n  File "tasks.py", line 3, in adder\n{error}\n'
    log.ended(message, "default", "retrying", 0.0123, 1.5, f"{error}; again in 1 s", trace, logging.WARNING)
    message.attempt = 2
    log.started(message, "default", 0.004)
    say_from_inside(message, 1_795_560_000.6)
    log.ended(message, "default", "finished", 0.004, 0.25)
    forged = Message(
        "77aa", "evil:f\n2026-11-24T22:40:01.123Z INFO  psqd.task[1] all is well\x1b[2J", [], {}, "default", 100.0
    )
    log.ended(forged, "default", "dead", 0.0, 0.0, "not allowed", "", logging.ERROR)
    again = Message("77ab", "myapp.tasks:adder", [], {}, "slow", 100.0, run=2)
    log.started(again, "slow", 3661.5)
    log.ended(again, "slow", "interrupted", 3661.5, 12.0, "the worker stops")


@pytest.mark.parametrize(("format", "name"), [("text", "task_life.txt"), ("json", "task_life.jsonl")])
def test_the_lines_of_a_tasks_life_are_as_in_the_golden_file(
    format: str, name: str, file: Path, opened: list[LogHandle]
) -> None:
    times = iter(1_795_560_000.0 + step * 0.25 for step in range(100))
    handle = setup(Settings(format, file=str(file)), "host:4711", pid=4711)
    opened.append(handle)
    life_of_a_task(TaskLog(clock=lambda: next(times)))
    handle.close(WAIT)
    written = file.read_text()
    assert "hunter2" not in written
    assert "4111" not in written
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(written)
    assert written == (GOLDEN / name).read_text()


def test_with_failures_only_the_lines_of_good_tasks_are_left_out(file: Path, opened: list[LogHandle]) -> None:
    handle = setup(Settings(file=str(file)))
    opened.append(handle)
    life_of_a_task(TaskLog(all=False))
    handle.close(WAIT)
    lines = [line for line in file.read_text().splitlines() if "psqd.task[" in line[:60]]
    assert [line.split()[5] for line in lines if "evil" not in line] == ["retrying", "interrupted"]


def test_a_text_line_has_time_level_logger_and_pid() -> None:
    line = TextLines(pid=7).format(record("hello %s", "you"))
    assert line == "2026-11-24T22:40:01.123Z INFO  myapp[7] hello you"


def test_a_level_below_the_set_one_is_not_written(file: Path, opened: list[LogHandle]) -> None:
    handle = setup(Settings(level="warning", file=str(file)))
    opened.append(handle)
    logging.getLogger("myapp").info("quiet")
    logging.getLogger("myapp").warning("loud")
    TaskLog().started(Message("1", "a:b"), "default", 0.0)
    handle.close(WAIT)
    assert [line.split()[-1] for line in file.read_text().splitlines()] == ["loud"]


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("redis://u:p@h:1/0", "redis://***@h:1/0"),
        ("at redis://u:p@ss@h, then", "at redis://***@h, then"),
        ("https://tok@h/x?a=b", "https://***@h/x?a=b"),
        ("https://h/x?access_token=abc&y=1", "https://h/x?access_token=***&y=1"),
        ("https://h/a@b", "https://h/a@b"),
        ("mail me@example.com", "mail me@example.com"),
    ],
)
def test_secrets_in_urls_are_hidden(text: str, hidden: str) -> None:
    assert redact(text) == hidden


@pytest.mark.parametrize("formatter", [TextLines(pid=7), JSONLines(pid=7)])
def test_a_secret_in_a_url_is_hidden_wherever_it_stands(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("sqlite at pubsub://me:hunter2@host")
    except ValueError:
        made = record("from %s", "redis://a:hunter2@b")
        made.exc_info = sys.exc_info()
    made.url = "https://a:hunter2@c/"
    line = formatter.format(made)
    assert "hunter2" not in line
    assert line.count("***@") >= 2


def test_a_message_cannot_forge_a_line_or_drive_a_terminal() -> None:
    line = TextLines(pid=7).format(record("a\n2026-11-24T22:40:01.123Z INFO  psqd[1] forged\r\x1b[2J\x9b1m\u2028b"))
    first, second = line.split("\n")
    assert first.endswith("myapp[7] a")
    assert second.startswith("    2026")
    assert second.endswith("forged\\x0d\\x1b[2J\\x9b1m\\u2028b")


def test_a_traceback_keeps_its_end_when_it_is_too_long() -> None:
    made = record("it failed", exc_text="first\n" + "x" * 100_000 + "\nValueError: the end")
    for formatter in (TextLines(pid=7), JSONLines(pid=7)):
        line = formatter.format(made)
        assert "ValueError: the end" in line
        assert "characters left out" in line
        assert len(line) < MAX_MESSAGE + MAX_TRACEBACK + 1_000


def test_a_dump_that_asks_for_it_is_written_whole() -> None:
    made = record("stacks:\n%s", "frame\n" * 20_000, psqd_whole=True)
    assert TextLines(pid=7).format(made).count("frame") == 20_000
    assert json.loads(JSONLines(pid=7).format(made))["message"].count("frame") == 20_000


def test_json_lines_carry_what_the_logger_was_given() -> None:
    line = JSONLines(pid=7, worker="host:7").format(record("hello %s", "you", customer=5, time="not yours"))
    assert json.loads(line) == {
        "time": "2026-11-24T22:40:01.123Z",
        "level": "INFO",
        "logger": "myapp",
        "pid": 7,
        "worker": "host:7",
        "message": "hello you",
        "customer": 5,
    }


def test_json_lines_survive_what_json_cannot_say() -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no")

    circle: list[object] = []
    circle.append(circle)
    for odd in (circle, {1j: 2}, Bad(), b"\xff", "\ud800"):
        line = JSONLines(pid=7).format(record("odd", odd=odd))
        assert "\n" not in line
        assert json.loads(line)["message"] == "odd"


def test_json_lines_stay_json_when_an_extra_is_huge() -> None:
    line = JSONLines(pid=7).format(record("big", blob="y" * 1_000_000))
    assert json.loads(line)["message"] == "big"
    assert len(line) < 100_000


def test_a_log_call_with_wrong_arguments_is_told_and_raises_nothing(
    file: Path, opened: list[LogHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own raises
    handle = setup(Settings(file=str(file)))
    opened.append(handle)
    logging.getLogger("myapp").info("%d apples", "three")
    handle.close(WAIT)
    text = file.read_text()
    assert "ERROR psqd.log[" in text
    assert "'%d apples'" in text
    assert "test_logs.py:" in text


def test_after_a_rename_reopen_writes_to_a_new_file_and_no_line_is_lost(file: Path, opened: list[LogHandle]) -> None:
    handle = setup(Settings(file=str(file)))
    opened.append(handle)
    log = logging.getLogger("myapp")
    log.info("one")
    assert handle.flush(WAIT)
    old = file.rename(file.with_suffix(".1"))
    log.info("two")  # still to the renamed file
    handle.reopen()
    log.info("three")
    handle.close(WAIT)
    assert [line.split()[-1] for line in old.read_text().splitlines()] == ["one", "two"]
    assert [line.split()[-1] for line in file.read_text().splitlines()] == ["three"]


def test_reopening_that_fails_is_told_and_the_old_file_goes_on(tmp_path: Path, opened: list[LogHandle]) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    handle = setup(Settings(file=str(folder / "psqd.log")))
    opened.append(handle)
    moved = folder.rename(tmp_path / "moved")
    handle.reopen()
    logging.getLogger("myapp").info("still here")
    handle.close(WAIT)
    first, second = (moved / "psqd.log").read_text().splitlines()
    assert "WARNING psqd.log[" in first
    assert "No such file" in first
    assert second.endswith("still here")


def test_a_file_that_cannot_be_opened_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logging.file: .*No such file"):
        setup(Settings(file=str(tmp_path / "no" / "psqd.log")))


def test_reconfigure_changes_level_format_and_file(tmp_path: Path, opened: list[LogHandle]) -> None:
    handle = setup(Settings(file=str(tmp_path / "a")))
    opened.append(handle)
    logging.getLogger("myapp").debug("unseen")
    handle.reconfigure(Settings("json", "debug", str(tmp_path / "b")))
    logging.getLogger("myapp").debug("seen")
    handle.close(WAIT)
    assert (tmp_path / "a").read_text() == ""
    assert json.loads((tmp_path / "b").read_text())["message"] == "seen"


def test_close_takes_the_handler_away_and_is_idempotent(file: Path) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    handle = setup(Settings(file=str(file)))
    logging.getLogger("myapp").info("last words")
    assert handle.close(WAIT) == 0
    assert handle.close(WAIT) == 0
    assert root.handlers == before
    assert root.level == level
    assert file.read_text().endswith("last words\n")


class Pipe:
    """A pipe that nobody reads until `drain`, as the writer's file."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / "pipe"
        os.mkfifo(self.path)
        self.reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def hang_up(self) -> None:
        original("os", "close")(self.reader)  # gevent's own may do it later

    def drain(self, until: str) -> str:
        text, deadline = "", time.monotonic() + WAIT
        while until not in text:
            assert time.monotonic() < deadline, text[-500:]
            try:
                text += os.read(self.reader, 1 << 16).decode()
            except BlockingIOError:
                time.sleep(0.01)
        return text


def test_lines_that_find_no_room_are_dropped_counted_and_told(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path)
    writer = LogWriter(str(pipe.path), lambda text: f"REPORT {text}\n", max_lines=100)
    taken = sum(writer.put(f"{n} " + "x" * 1_000 + "\n") for n in range(2_000))
    assert taken < 2_000
    assert writer.dropped == 2_000 - taken
    text = pipe.drain("REPORT")
    assert f"REPORT {2_000 - taken} log lines were lost: the reader is too slow\n" in text
    assert writer.close(WAIT) == 0
    rest = text.count("x\n")
    assert rest == taken
    pipe.hang_up()


def test_bytes_that_wait_are_bounded(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path)
    writer = LogWriter(str(pipe.path), str, max_bytes=500_000)
    taken = sum(writer.put("x" * 100_000 + "\n") for _ in range(50))
    assert 4 <= taken < 8
    pipe.hang_up()  # ends the write that blocks
    writer.close(WAIT)


def test_closing_does_not_wait_for_a_reader_that_never_reads(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path)
    writer = LogWriter(str(pipe.path), str)
    for _ in range(500):
        writer.put("x" * 1_000 + "\n")
    assert writer.close(0.05) > 0
    assert not writer.put("too late\n")
    pipe.hang_up()


def test_lines_lost_to_a_reader_that_went_away_are_counted(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path)
    writer = LogWriter(str(pipe.path), str)
    pipe.hang_up()
    writer.put("lost\n")
    writer.close(WAIT)
    assert writer.dropped == 1
    assert "Broken pipe" in writer.error


def run_patched(script: str, **kwargs: object) -> subprocess.Popen[str]:
    head = "from gevent import monkey; monkey.patch_all()\n"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", head + script], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs,  # type: ignore[call-overload]
    )  # fmt: skip


SCRIPT = """
import gevent, logging, sys
from types import SimpleNamespace
from psqd.worker.logs import setup
handle = setup(SimpleNamespace(format="text", level="info", file=None))
log = logging.getLogger("myapp")
"""


def test_under_gevent_a_full_stderr_does_not_stop_the_hub() -> None:
    child = run_patched(
        SCRIPT
        + """
turns = []
def turn():
    while True:
        turns.append(1)
        gevent.sleep(0)
gevent.spawn(turn)
for n in range(30_000):
    log.info("line %d %s", n, "x" * 200)
    if n % 1_000 == 0:
        gevent.sleep(0)
print(len(turns), handle.dropped > 0, flush=True)
sys.stdin.readline()
print(handle.close(20), handle.dropped)
"""
    )
    assert child.stdout is not None
    turns, dropped = child.stdout.readline().split()  # nobody has read stderr so far
    assert int(turns) >= 29
    assert dropped == "True"
    out, err = child.communicate("go on\n", timeout=WAIT)
    unwritten, lost = (int(word) for word in out.split())
    assert unwritten == 0
    assert err.count("myapp[") == 30_000 - lost
    assert f"{lost} log lines were lost" in err


def test_under_gevent_the_error_of_a_greenlet_is_one_record() -> None:
    child = run_patched(
        SCRIPT
        + """
def boom():
    raise ValueError("redis://u:hunter2@h")
gevent.spawn(boom).join()
handle.close(20)
"""
    )
    _, err = child.communicate(timeout=WAIT)
    assert err.splitlines()[0].split("Z ")[1].startswith("ERROR psqd.hub[")
    assert "    ValueError: redis://***@h" in err
    assert "hunter2" not in err.replace('raise ValueError("redis://u:hunter2@h")', "")
    assert err.count("Traceback") == 1


def test_under_gevent_flush_lets_other_greenlets_run_and_native_threads_may_log() -> None:
    child = run_patched(
        SCRIPT
        + """
from psq.concurrency import native_thread, Waiter
done = Waiter()
def native():
    for n in range(100):
        log.info("native %d", n)
    done.set()
native_thread(native)
for n in range(100):
    log.info("green %d", n)
    gevent.sleep(0)
assert done.wait(10)
assert handle.flush(10)
print(handle.waiting)
handle.close(20)
"""
    )
    out, err = child.communicate(timeout=WAIT)
    assert out == "0\n", err
    assert err.count("green") == err.count("native") == 100


def test_a_forked_child_of_a_task_can_log() -> None:
    child = run_patched(
        SCRIPT
        + """
import os
log.info("parent")
handle.flush(10)
pid = os.fork()
if pid == 0:
    log.info("child")
    os._exit(0)
os.waitpid(pid, 0)
log.info("parent again")
handle.close(20)
print(os.getpid(), pid)
"""
    )
    out, err = child.communicate(timeout=WAIT)
    parent, forked = out.split()
    assert [line.split()[2:] for line in err.splitlines()] == [
        [f"myapp[{parent}]", "parent"],
        [f"myapp[{forked}]", "child"],
        [f"myapp[{parent}]", "parent", "again"],
    ]
