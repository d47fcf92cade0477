"""An entry of `schedule:`: a task that is enqueued at set times."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from psqd.config_queue import Section
from psqd.config_rules import Rule, choice, key, text
from psqd.problems import did_you_mean

__all__ = ["CRON_NAMES", "ScheduleConfig", "cron_fields"]

#: What Debian's cron has besides five fields.
CRON_NAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def cron_fields(value: str) -> str:
    """The five fields of a cron line, its names spelt out.

    Raises:
        ValueError: They are not valid; the text says which.
    """
    if value.startswith("@"):
        if value not in CRON_NAMES:
            raise ValueError(did_you_mean(value, CRON_NAMES))
        return CRON_NAMES[value]
    if len(value) > 1000:
        raise ValueError("; that is too long")
    if len(value.split()) != 5:
        raise ValueError(f"; it has {len(value.split())} fields")
    from cronsim import CronSim, CronSimError

    try:
        CronSim(value, dt.datetime.now(dt.UTC))
    except CronSimError as error:
        said = str(error)
        raise ValueError(f"; {said[:1].lower()}{said[1:]}") from None
    return value


def _check_cron(value: str) -> str:
    cron_fields(value)
    return value


def _check_zone(value: str) -> str:
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        zones = zoneinfo.available_timezones()
        near = did_you_mean(value, {zone.lower(): zone for zone in zones})
        if "did you mean" in near:
            word = near.split("`")[1]
            near = f"; did you mean `{next(zone for zone in zones if zone.lower() == word)}`?"
        else:
            near = ""
        raise ValueError(near) from None
    return value


def _check_task(value: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d_]\w*", value):
        raise ValueError
    return value


def _args(value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return list(value)


def _kwargs(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return dict(value)


class ScheduleConfig(Section):
    """A task that is enqueued at set times."""

    cron: Annotated[
        str, text(_check_cron, valid="five cron fields (minute hour day month weekday) or a name such as @daily")
    ] = key(..., "When: minute, hour, day of month, month, day of week; or @hourly, @daily and the like.")
    task: Annotated[str, text(_check_task, valid="a function, `module:name` or `module.name`")] = key(
        ..., "The function to enqueue."
    )
    queue: Annotated[str, text()] = key(..., "The queue to enqueue it to.")
    args: Annotated[list[Any], BeforeValidator(Rule("a list of arguments", _args, nullable=True, nothing=list))] = key(
        [], "Its positional arguments."
    )
    kwargs: Annotated[
        dict[str, Any], BeforeValidator(Rule("a section of arguments", _kwargs, nullable=True, nothing=dict))
    ] = key({}, "Its keyword arguments.")
    timezone: Annotated[str, text(_check_zone, valid="a time zone such as UTC or Europe/Berlin")] = key(
        "UTC", "The time zone of `cron`."
    )
    catch_up: Annotated[Literal["none", "last", "all"], choice("none", "last", "all")] = key(
        "last", "Which ticks that were missed are made up for."
    )
