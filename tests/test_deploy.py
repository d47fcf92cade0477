"""deploy/supervisord.conf fits the daemon's own settings."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

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
