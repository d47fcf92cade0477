"""Reading a config file: YAML, lines, variables, `defaults:`, and every problem at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from psqd.config import Config, default_storage
from psqd.config_queue import BROADCAST_KEYS, QueueConfig, QueueDefaults, RetryConfig, queue_name_problem
from psqd.problems import ConfigProblems, Problem, did_you_mean, shown, subject
from psqd.yamltree import Broken, Keys, locate, parse

__all__ = ["load", "loads", "validated"]


def load(path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> Config:
    """Read a config file.

    Args:
        path: The file.
        environ: The variables that ``${NAME}`` may name; None: os.environ.

    Raises:
        ConfigError: With everything that is wrong, a line each: ``conf/psqd.yaml:6:13: …``.
    """
    file = os.fspath(path)
    try:
        with open(file, "rb") as stream:
            data = stream.read(40_000_000)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise ConfigProblems(file, [Problem(0, 0, f"can't be read: {said}")]) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise ConfigProblems(file, [Problem(line, column, "is not UTF-8 text")]) from None
    return loads(text, file, environ)


def loads(text: str, file: str = "<text>", environ: Mapping[str, str] | None = None) -> Config:
    """Read a config from text; see `load`."""
    environ = os.environ if environ is None else environ
    tree, problems = parse(text, file, environ)
    if tree is None:
        tree = Keys((1, 1))
    if not isinstance(tree, Keys):
        said = f"the file must be a section of keys such as `queues:`, not {shown(tree)}"
        raise ConfigProblems(file, problems or [Problem(1, 1, said)])
    raw = dict(tree)
    if raw.get("broker") in (None, ""):
        raw["broker"] = environ.get("PSQ_BROKER") or "sqlite://"
    if raw.get("storage") in (None, ""):
        raw["storage"] = environ.get("PSQ_STORAGE") or default_storage(str(raw["broker"]))
    for needed, said in (
        ("queues", "`queues` names no queue: a daemon needs at least one"),
        ("imports", "`imports` names no module: no function could run"),
    ):
        if not raw.get(needed):
            problems.append(Problem(*locate(tree, (needed,), of_key=True), said))
    return validated(raw, file, tree, problems)


def validated(raw: Mapping[str, Any], file: str, tree: Keys | None = None, problems: Sequence[Problem] = ()) -> Config:
    """A Config of raw values.

    Args:
        raw: The file's keys; `defaults` is merged into the queues here.
        file: For errors.
        tree: Where the values stand; None: nowhere.
        problems: What is wrong already.

    Raises:
        ConfigError: With everything that is wrong.
    """
    checker = _Checker(tree, problems)
    settings = dict(raw)
    defaults = settings.pop("defaults", None)
    if defaults is not None and not isinstance(defaults, Broken):
        checker.check(QueueDefaults, defaults, ("defaults",))
    queues = settings.get("queues")
    if isinstance(queues, dict):
        shared = defaults if isinstance(defaults, dict) else {}
        settings["queues"] = {name: _with_defaults(queue, shared) for name, queue in queues.items()}
        checker.queues = settings["queues"]
        for name in queues:
            if said := queue_name_problem(name):
                checker.tell(("queues", name), said, of_key=True)
    config: Config | None = checker.check(Config, settings, ())
    if checker.problems or config is None:
        raise ConfigProblems(file, checker.problems)
    return config


def _with_defaults(queue: Any, shared: Mapping[str, Any]) -> Any:
    """A queue's keys over the shared ones; `retry` key by key."""
    own = {} if queue is None else queue
    if not isinstance(own, dict):
        return own
    merged = Keys(getattr(own, "mark", (0, 0)))
    kind = own.get("type", shared.get("type", "shared"))
    for source in (shared, own):
        for name, value in source.items():
            if source is shared and name in BROADCAST_KEYS and kind != "broadcast":
                continue
            if name == "retry" and source is own and isinstance(value, dict) and isinstance(merged.get(name), dict):
                value = _over(merged[name], value)
            merged[name] = value
            if isinstance(source, Keys):
                merged.marks[name] = source.marks[name]
    return merged


def _over(shared: Mapping[str, Any], own: Mapping[str, Any]) -> Keys:
    merged = Keys(getattr(own, "mark", (0, 0)))
    for source in (shared, own):
        merged.update(source)
        merged.marks.update(getattr(source, "marks", {}))
    return merged


class _Checker:
    """Runs models over raw values and tells their errors with places, each place once."""

    def __init__(self, tree: Keys | None, problems: Sequence[Problem]) -> None:
        self.tree = tree
        self.queues: Mapping[str, Any] = {}
        self.problems = list(problems)
        self.places = {(problem.line, problem.column) for problem in problems}

    def check(self, model: type[Any], raw: Any, above: tuple[str, ...]) -> Any:
        """The model of the raw values, or None with problems told."""
        told_before = set(self.places)
        try:
            return model.model_validate(raw)
        except ValidationError as failed:
            wrong: dict[str, set[Any]] = {}
            for error in failed.errors(include_url=False):
                loc = [part for part in (*above, *error["loc"]) if part != "[key]"]
                self.tell_error(error, loc, told_before)
                if len(loc) > 2 and loc[0] == "queues":
                    wrong.setdefault(str(loc[1]), set()).add(loc[2])
            self.check_what_is_left(wrong)
        return None

    def check_what_is_left(self, wrong: Mapping[str, set[Any]]) -> None:
        """Checks that compare keys did not run on a queue with a wrong key: run them without it."""
        for name, keys in wrong.items():
            told_before = set(self.places)
            try:
                QueueConfig.model_validate({key: value for key, value in self.queues[name].items() if key not in keys})
            except ValidationError as failed:
                for error in failed.errors(include_url=False):
                    self.tell_error(error, ["queues", name, *error["loc"]], told_before)

    def tell_error(self, error: Any, loc: list[Any], told_before: set[Any]) -> None:
        kind, value = error["type"], error.get("input")
        if isinstance(value, Broken):
            return
        if kind == "psqd":
            for at, said in error["ctx"]["problems"]:
                place = [*loc, *at]
                named = len(place) == 2 and place[0] in ("queues", "schedule")  # what is told is its name
                self.tell(place, said, of_key=named, told_before=told_before)
        elif kind == "extra_forbidden":
            said = f"unknown key {subject(loc)}{_nearest(str(loc[-1]), loc)}"
            self.tell(loc, said, whole=True, of_key=True, told_before=told_before)
        elif kind == "missing":
            self.tell(loc, "is missing", of_key=True, told_before=told_before)
        elif kind in ("model_type", "dict_type", "model_attributes_type"):
            self.tell(loc, f"must be a section of keys, not {shown(value)}", told_before=told_before)
        else:
            self.tell(loc, f"is not valid: {error['msg']}", told_before=told_before)

    def tell(
        self,
        loc: Sequence[Any],
        said: str,
        *,
        whole: bool = False,
        of_key: bool = False,
        told_before: set[Any] | None = None,
    ) -> None:
        """Add a problem, unless its place has one from an earlier check."""
        text = said if whole else f"{subject(loc)} {said}"
        if len(loc) == 1 and self.tree is not None and loc[0] in _VARIABLES and not self.tree.get(loc[0]):
            text += f" (from the environment variable {_VARIABLES[loc[0]]})"
        if self.tree is None:
            self.problems.append(Problem(0, 0, text))
            return
        mark = self.place(loc, of_key)
        if told_before is not None and mark in told_before:
            return
        self.places.add(mark)
        self.problems.append(Problem(*mark, text))

    def place(self, loc: Sequence[Any], of_key: bool) -> tuple[int, int]:
        assert self.tree is not None
        if len(loc) > 2 and loc[0] == "queues" and isinstance(self.queues.get(loc[1]), Keys):
            queue = self.queues[loc[1]]
            if loc[2] in queue.marks:  # its own key, or one that it has from defaults
                return locate(queue, loc[2:], of_key=of_key)
            return locate(self.tree, loc[:2], of_key=True)
        return locate(self.tree, loc, of_key=of_key)


#: Where a key's value comes from when the file does not name it.
_VARIABLES = {"broker": "PSQ_BROKER", "storage": "PSQ_STORAGE"}

#: The keys of a section, by the way to it; None stands for a name.
_SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): Config,
    ("defaults",): QueueConfig,
    ("queues",): QueueConfig,
    ("defaults", "retry"): RetryConfig,
    ("queues", "retry"): RetryConfig,
}


def _nearest(name: str, loc: Sequence[Any]) -> str:
    """What the writer of an unknown key may have meant."""
    keys = [part for index, part in enumerate(loc[:-1]) if not (index == 1 and loc[0] in ("queues", "schedule"))]
    model = _model_at(keys)
    valid = [*model.model_fields, "defaults"] if model is Config else list(model.model_fields)
    near = did_you_mean(name, valid)
    if "did you mean" not in near:
        if name in QueueConfig.model_fields and model is Config:
            return "; it belongs to a queue, or under `defaults:`"
        if name in Config.model_fields and model is not Config:
            return "; it belongs to the top level of the file"
    return near


def _model_at(keys: Sequence[Any]) -> type[BaseModel]:
    from psqd.config import HttpConfig, LoggingConfig, ScheduleConfig

    sections: dict[tuple[str, ...], type[BaseModel]]
    sections = {**_SECTIONS, ("http",): HttpConfig, ("logging",): LoggingConfig, ("schedule",): ScheduleConfig}
    return sections.get(tuple(str(part) for part in keys), Config)
