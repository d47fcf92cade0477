"""Rules for config values: what a key takes, in words and in code.

A rule is declared once beside its key and serves the check, the error and
docs/configuration.md. Rules run before pydantic's own strict check, which
stays behind them as a net.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from psqd.problems import did_you_mean, shown

__all__ = [
    "FromEnvironment",
    "Rule",
    "choice",
    "flag",
    "key",
    "number",
    "plain",
    "problems_error",
    "refuse",
    "text",
    "texts",
    "whole",
]

#: What SIGHUP does with a change of a key: takes it at once, serves the queue anew, or only names it in the log.
Reload = Literal["live", "renew", "restart"]
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_NOTHING = frozenset(("", "~", "null", "Null", "NULL"))
_FLAGS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def plain(scalar: str) -> Any:
    """The value of an unquoted YAML scalar, by YAML 1.2's rules.

    YAML 1.1 would read `on` as true, `1:30` as 90 and `017` as 15: here they stay text.
    """
    if scalar in _NOTHING:
        return None
    if scalar in _FLAGS:
        return _FLAGS[scalar]
    if len(scalar) <= 300:  # int() refuses more than 4,300 digits
        if _WHOLE.fullmatch(scalar):
            return int(scalar)
        if _NUMBER.fullmatch(scalar):
            return float(scalar)
    return scalar


class FromEnvironment(str):
    """A value that came out of ``${NAME}``: its key decides what type it has, quoted or not."""

    __slots__ = ()


def problems_error(problems: Sequence[tuple[Sequence[str | int], str]]) -> PydanticCustomError:
    """An error of one or several problems: (place below here, predicate)."""
    said = "; ".join(" ".join((*(f"{part}:" for part in at), said)) for at, said in problems)
    return PydanticCustomError("psqd", "{said}", {"said": said, "problems": list(problems)})


def refuse(said: str, *at: str | int) -> NoReturn:
    """Say what is wrong with a value; the sentence begins with its key's name."""
    raise problems_error([(at, said)])


class Rule:
    """What a key takes.

    Attributes:
        valid: In words: "must be …".
        convert: Gives the value, or raises ValueError; its text, if any, ends the sentence.
        nullable: An empty value is `nothing`.
        secret: Values are not shown.
        later: Values that are valid and not available yet.
        nothing: Makes what an empty value stands for.
    """

    __slots__ = ("convert", "later", "nothing", "nullable", "secret", "valid")

    def __init__(
        self,
        valid: str,
        convert: Callable[[Any], Any],
        *,
        nullable: bool = False,
        secret: bool = False,
        later: Callable[[Any], bool] | None = None,
        nothing: Callable[[], Any] = lambda: None,
    ) -> None:
        self.valid, self.convert, self.nullable, self.secret, self.later = valid, convert, nullable, secret, later
        self.nothing = nothing

    def __call__(self, value: Any) -> Any:
        """The value as it is kept; raises PydanticCustomError with the place and the words."""
        if value is None or (self.nullable and isinstance(value, FromEnvironment) and value == ""):
            if self.nullable:
                return self.nothing()
            refuse(f"is empty: it must be {self.valid}, or leave the key out")
        try:
            value = self.convert(value)
        except ValueError as error:
            if isinstance(error, PydanticCustomError):
                raise
            hint = str(error)
            refuse(f"must be {self.valid}" + ("" if self.secret else f", not {shown(value)}") + hint)
        if self.later is not None and self.later(value):
            what = "" if self.secret or not isinstance(value, str) else f" as `{value.partition(':')[0]}`"
            refuse(f"is not available yet{what}: leave it out")
        return value


def rule_of(metadata: Iterable[Any]) -> Rule | None:
    """The rule among a field's metadata."""
    for item in metadata:
        if isinstance(item, BeforeValidator) and isinstance(item.func, Rule):
            return item.func
    return None


def key(default: Any, description: str, *, unit: str = "", reload: Reload = "live", later: bool = False) -> Any:
    """A key of the file.

    Args:
        default: Its value where the file does not name it; `...` where it must.
        description: What it does, for docs/configuration.md.
        unit: Unit of the value.
        reload: What SIGHUP does with a change.
        later: The key's feature is not built yet.
    """
    extra: dict[str, Any] = {"unit": unit, "reload": reload, "later": later}
    if isinstance(default, BaseModel):  # frozen: one for all, not a deep copy for each of a thousand queues
        return Field(default_factory=lambda: default, description=description, json_schema_extra=extra)
    return Field(default, description=description, json_schema_extra=extra)


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:,} to {most:,}"
    return f" of at least {least:,}" if least is not None else ""


def _inside(value: Any, least: float | None, most: float | None) -> Any:
    if (least is not None and value < least) or (most is not None and value > most):
        raise ValueError
    return value


def _typed(value: Any) -> Any:
    return plain(value.strip()) if isinstance(value, FromEnvironment) else value


def whole(
    least: int | None = None,
    most: int | None = None,
    *,
    nullable: bool = False,
    none_is: str = "",
) -> BeforeValidator:
    """A whole number."""

    def convert(value: Any) -> int:
        value = _typed(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if type(value) is not int:
            raise ValueError
        return int(_inside(value, least, most))

    valid = "a whole number" + _range(least, most) + none_is
    return BeforeValidator(Rule(valid, convert, nullable=nullable))


def number(
    least: float | None = None,
    most: float | None = None,
    *,
    of: str = "seconds",
    above: float | None = None,
    nullable: bool = False,
    none_is: str = "",
    later: bool = False,
) -> BeforeValidator:
    """A number, by default of seconds."""

    def convert(value: Any) -> float:
        value = _typed(value)
        if type(value) not in (int, float) or abs(value) > 1e18 or not math.isfinite(value):
            raise ValueError
        if above is not None and value <= above:
            raise ValueError
        return float(_inside(value, least, most))

    over = f" above {above:,}" if above is not None else ""
    over += f" and at most {most:,}" if above is not None and most is not None else ""
    valid = "a number" + (f" of {of}" if of else "") + (over or _range(least, most)) + none_is
    return BeforeValidator(Rule(valid, convert, nullable=nullable, later=(lambda _: True) if later else None))


def flag(*, later: bool = False) -> BeforeValidator:
    """True or false; `yes`, `on` and the like are text in YAML 1.2, and asking is safer than guessing."""

    def convert(value: Any) -> bool:
        value = _typed(value)
        if type(value) is not bool:
            raise ValueError
        return value

    return BeforeValidator(Rule("true or false", convert, later=bool if later else None))


def choice(*words: str, later: Sequence[str] = ()) -> BeforeValidator:
    """One of some words."""

    def convert(value: Any) -> str:
        if isinstance(value, str) and str(value) in words:
            return str(value)
        near = did_you_mean(value, words) if isinstance(value, str) else ""
        raise ValueError(near if "did you mean" in near else "")

    return BeforeValidator(Rule("one of " + ", ".join(words), convert, later=later.__contains__ if later else None))


def text(
    check: Callable[[str], str] | None = None,
    *,
    valid: str = "text",
    nullable: bool = False,
    secret: bool = False,
) -> BeforeValidator:
    """Text.

    Args:
        check: Gives the text as it is kept; raises ValueError whose text ends the sentence.
        valid: In words.
        nullable: May be empty.
        secret: Is not shown.
    """

    def convert(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("; put it in quotes" if type(value) in (int, float, bool) else "")
        value = str(value)
        if not value or "\0" in value:
            raise ValueError
        return check(value) if check else value

    return BeforeValidator(Rule(valid, convert, nullable=nullable, secret=secret))


def texts(check: Callable[[str], str] | None, *, valid: str, example: str, each: str) -> BeforeValidator:
    """A list of texts, none twice.

    Args:
        check: Of each, as in `text`.
        valid: The list, in words.
        example: What to write where it is no list.
        each: An item, in words.
    """

    def convert(value: Any) -> list[str]:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"; write [{value if isinstance(value, str) and value else example}]")
        problems: list[tuple[Sequence[str | int], str]] = []
        kept: list[str] = []
        for index, item in enumerate(value):
            try:
                if not isinstance(item, str) or not item or "\0" in item:
                    raise ValueError
                good = check(str(item)) if check else str(item)
            except ValueError as error:
                problems.append(((index,), f"must be {each}, not {shown(item)}{error}"))
                continue
            if good in kept:
                problems.append(((index,), f"is there twice: {shown(good)}"))
            kept.append(good)
        if problems:
            raise problems_error(problems)
        return kept

    return BeforeValidator(Rule(valid, convert, nullable=True, nothing=list))
