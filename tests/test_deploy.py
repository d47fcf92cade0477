"""What is in deploy/ fits the daemon's own settings."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import dockerfile
from tests.parts import need

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "deploy" / "supervisord.conf"


def parsed(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(" ;",), strict=True)
    parser.read_string(text)
    return parser


def with_psqworker() -> str:
    """The file with its commented psqworker section taken in."""
    head, mark, tail = CONF.read_text().partition(";[program:psqworker]")
    assert mark, "the psqworker section is gone"
    # options that are commented inside the section too stay what they are
    return head + "[program:psqworker]" + re.sub(r"^;", "", tail, flags=re.MULTILINE)


@pytest.mark.parametrize("section", ["program:psqd", "program:psqworker"])
def test_supervisord_waits_longer_than_the_drain(section: str) -> None:
    from psqd.config import Config

    program = parsed(with_psqworker())[section]
    assert program.getint("stopwaitsecs") >= Config.model_fields["shutdown_timeout"].default + 5
    assert program["stopsignal"] == "TERM"


@pytest.mark.parametrize("section", ["program:psqd", "program:psqworker"])
def test_supervisord_restarts_after_a_crash_but_not_after_a_refusal(section: str) -> None:
    program = parsed(with_psqworker())[section]
    assert program["autorestart"] == "unexpected"
    assert program["exitcodes"] == "0,2,3"


@pytest.mark.parametrize("section", ["program:psqd", "program:psqworker"])
def test_no_shell_stands_between_supervisord_and_the_daemon(section: str) -> None:
    command = parsed(with_psqworker())[section]["command"]
    assert re.match(r"/\S+/bin/psq(d|worker) ", command)
    assert not re.search(r"[;&|<>$`]", command)


def test_each_of_the_three_daemons_has_an_http_port_of_its_own() -> None:
    program = parsed(CONF.read_text())["program:psqd"]
    assert program.getint("numprocs") == 3
    assert "%(process_num)d" in program["process_name"]
    assert 'PSQD_HTTP_PORT="919%(process_num)d"' in program["environment"]
    last = program.getint("numprocs_start") + program.getint("numprocs") - 1
    assert last <= 9, "919 and one digit"


def test_the_shipped_configuration_is_valid_and_stops_in_time() -> None:
    from psqd.configfile import load

    config = load(str(ROOT / "conf" / "psqd.yaml"), environ={})
    assert config.queues
    assert parsed(CONF.read_text())["program:psqd"].getint("stopwaitsecs") >= config.shutdown_timeout + 5


# systemd

UNIT = ROOT / "deploy" / "psqd.service"


def unit() -> dict[str, list[str]]:
    """The settings of [Service]; some stand more than once."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_systemd_waits_longer_than_the_drain() -> None:
    from psqd.config import Config

    [seconds] = unit()["TimeoutStopSec"]
    assert int(seconds) >= Config.model_fields["shutdown_timeout"].default + 5


def test_systemd_restarts_after_a_crash_but_not_after_a_refusal() -> None:
    service = unit()
    assert service["Restart"] == ["on-failure"]
    assert service["RestartPreventExitStatus"] == ["2 3"]


def test_systemd_leaves_the_worker_to_its_keeper() -> None:
    service = unit()
    assert service["KillMode"] == ["control-group"], "mixed kills a worker that gives back what it holds"
    assert service["ExecStop"][0].split()[-2:] == ["-TERM", "$MAINPID"], "TERM goes to psqd alone at first"
    assert "${MAINPID}" in service["ExecStop"][1], "and is waited for"
    assert service["OOMPolicy"] == ["continue"]
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_no_shell_stands_between_systemd_and_the_daemon() -> None:
    [command] = unit()["ExecStart"]
    assert re.fullmatch(r"/\S+/bin/psqd -c /\S+", command)


@pytest.mark.parametrize("name", ["psqd.service", "psqd@.service"])
def test_systemd_finds_no_mistake_in_the_unit(tmp_path: Path, name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        need("systemd-analyze", "it comes with systemd")
    text = UNIT.read_text().replace("/srv/shop/.venv/bin/psqd", "/bin/true")
    if "@" in name:  # as its first lines tell
        text = text.replace("PSQD_HTTP_PORT=9191", "PSQD_HTTP_PORT=919%i")
    (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / name.replace("@", "@1")], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_supervisord_and_systemd_start_the_same() -> None:
    program = parsed(CONF.read_text())["program:psqd"]
    [command] = unit()["ExecStart"]
    assert program["command"] == command
    assert [program["directory"]] == unit()["WorkingDirectory"]
    broker = next(value for value in unit()["Environment"] if value.startswith("PSQ_BROKER="))
    assert 'PSQ_BROKER="{}"'.format(broker.partition("=")[2]) in program["environment"]


# Docker

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def test_the_image_has_all_that_the_repository_has_for_it() -> None:
    copied = [
        word
        for instruction in dockerfile.read(DOCKERFILE)
        if instruction.name == "COPY" and "--from" not in instruction.rest
        for word in instruction.words()[:-1]
    ]
    assert {"psq", "psqd", "requirements.txt", "pyproject.toml", "conf", "examples"} <= set(copied)
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists(), f"there is no {name} to copy"
        assert f"!{name}" in ignored, f"docker build does not see {name}"


def test_the_image_runs_psqd_as_first_process_and_not_as_root() -> None:
    last = dockerfile.stages(dockerfile.read(DOCKERFILE))[-1]
    by_name = {instruction.name: instruction for instruction in last}
    assert by_name["ENTRYPOINT"].rest == '["psqd"]', "no shell: the signals must reach psqd"
    assert by_name["CMD"].rest.startswith("[")
    assert by_name["STOPSIGNAL"].words() == ["SIGTERM"]
    assert by_name["USER"].words() == ["psqd"]
    names = [instruction.name for instruction in last]
    assert names.index("USER") > max(at for at, name in enumerate(names) if name in ("RUN", "COPY"))


def test_the_image_has_a_python_that_is_tested() -> None:
    [default] = [instruction.words() for instruction in dockerfile.read(DOCKERFILE) if instruction.name == "ARG"]
    assert f"tested={default[0].partition('=')[2]}\n" in (ROOT / "scripts" / "venv.sh").read_text()


def test_the_images_health_check_asks_the_port_of_its_config() -> None:
    from psqd.configfile import load

    last = dockerfile.stages(dockerfile.read(DOCKERFILE))[-1]
    by_name = {instruction.name: instruction for instruction in last}
    config = load(str(ROOT / by_name["CMD"].words()[-1]), environ={})
    assert config.http is not None
    port = config.http.bind.rpartition(":")[2]
    assert f":{port}/healthz" in by_name["HEALTHCHECK"].rest
    assert by_name["EXPOSE"].words() == [port]
