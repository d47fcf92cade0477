"""A YAML text as plain values that know where they stand.

`yaml.compose` gives nodes; the walker here turns them into dicts, lists and
scalars, with what YAML lets pass told as problems: duplicate keys, keys that
are no text, tags, recursive and exploding aliases, unset variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from psqd.config_rules import FromEnvironment, plain
from psqd.problems import ConfigProblems, Problem, shown

__all__ = ["Broken", "Items", "Keys", "Mark", "locate", "parse"]

#: Most characters of a file, most values it may stand for once aliases are followed, and how deep they may nest.
MAX_CHARACTERS, MAX_VALUES, MAX_DEPTH = 8_000_000, 500_000, 50

#: Line and column, from 1.
Mark = tuple[int, int]

_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\$\{")
_PLAIN_TAGS = frozenset("tag:yaml.org,2002:" + name for name in ("null", "bool", "int", "float", "timestamp", "value"))
_STR, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_SEQ, _MAP = "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"


class Keys(dict[str, Any]):
    """A mapping of the file.

    Attributes:
        mark: Where it begins.
        marks: Where each key and its value stand.
    """

    __slots__ = ("mark", "marks")

    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self.mark = mark
        self.marks: dict[str, tuple[Mark, Mark]] = {}


class Items(list[Any]):
    """A list of the file.

    Attributes:
        mark: Where it begins.
        marks: Where each item stands.
    """

    __slots__ = ("mark", "marks")

    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self.mark = mark
        self.marks: list[Mark] = []


class Broken:
    """Stands for a value whose problem was told already."""


BROKEN = Broken()


def locate(tree: Any, loc: Sequence[str | int], *, of_key: bool = False) -> Mark:
    """Where a value stands; of what is not there, where the section that lacks it begins.

    Args:
        tree: What `parse` gave.
        loc: The way to the value.
        of_key: Where its key stands instead.
    """
    mark = getattr(tree, "mark", (1, 1))
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(tree, Keys) and part in tree.marks:
            mark = tree.marks[str(part)][0 if last and of_key else 1]
            tree = tree[str(part)]
        elif isinstance(tree, Items) and isinstance(part, int) and part < len(tree):
            mark, tree = tree.marks[part], tree[part]
        else:
            break
        mark_of = getattr(tree, "mark", None)
        if mark_of is not None and not (last and of_key):
            mark = mark_of
    return mark


def parse(text: str, file: str, environ: Mapping[str, str]) -> tuple[Any, list[Problem]]:
    """Read a YAML document.

    Args:
        text: The document.
        file: Its name, for errors.
        environ: The variables that ``${NAME}`` may name.

    Returns:
        The value (None for an empty document) and what is wrong with it; a value with a problem is `BROKEN`.

    Raises:
        ConfigProblems: It is no YAML at all.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigProblems(file, [Problem(0, 0, f"has {len(text):,} characters; at most {MAX_CHARACTERS:,}")])
    try:
        loader = yaml.CSafeLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ConfigProblems(file, [_syntax(error, text)]) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position] if isinstance(error.position, int) else ""
        problem = Problem(before.count("\n") + 1, len(before) - before.rfind("\n"), _not_text(error))
        raise ConfigProblems(file, [problem]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigProblems(file, [Problem(1, 1, f"is not YAML: {_one_line(error)}")]) from None
    walker = _Walker(environ)
    value = walker.value(root, 0)[0] if root is not None else None
    return value, walker.problems


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _not_text(error: yaml.reader.ReaderError) -> str:
    code = error.character
    return f"is not YAML: the character {code if not isinstance(code, int) else f'U+{code:04X}'} is not allowed"


def _syntax(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    said = _one_line(" ".join(part for part in (error.context, error.problem) if part))
    if mark is None:
        return Problem(1, 1, f"is not YAML: {said}")
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if line[mark.column : mark.column + 1] == "\t":
        said += "; indent with spaces, not with tabs"
    elif "flow" in said and "${" in line:
        said += "; inside {…} and […], put ${…} in quotes"
    return Problem(mark.line + 1, mark.column + 1, f"is not YAML: {said}")


class _Walker:
    """Turns nodes into values, once each; `values` counts what they stand for with every alias followed."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[Problem] = []
        self.done: dict[int, tuple[Any, int]] = {}
        self.open: set[int] = set()
        self.exploded = False

    def tell(self, node: Any, said: str) -> Broken:
        self.problems.append(Problem(*_mark(node), said))
        return BROKEN

    def value(self, node: Any, depth: int) -> tuple[Any, int]:
        """The value of a node and how many values it stands for."""
        found = self.done.get(id(node))
        if found is not None:
            return found
        if id(node) in self.open:
            return self.tell(node, "this alias contains itself"), 1
        if depth > MAX_DEPTH:
            return self.tell(node, f"is nested deeper than {MAX_DEPTH} levels"), 1
        if isinstance(node, yaml.ScalarNode):
            result: tuple[Any, int] = (self.scalar(node), 1)
        else:
            self.open.add(id(node))
            result = self.mapping(node, depth) if isinstance(node, yaml.MappingNode) else self.sequence(node, depth)
            self.open.discard(id(node))
        if result[1] > MAX_VALUES:
            if not self.exploded:
                self.exploded = True
                self.tell(node, f"stands for more than {MAX_VALUES:,} values, with its aliases followed")
            result = (BROKEN, 1)
        self.done[id(node)] = result
        return result

    def sequence(self, node: Any, depth: int) -> tuple[Any, int]:
        if node.tag != _SEQ:
            return self.tell(node, f"the tag {shown(node.tag)} is not known"), 1
        items, size = Items(_mark(node)), 1
        for child in node.value:
            value, count = self.value(child, depth + 1)
            items.append(value)
            items.marks.append(_mark(child))
            size += count
        return items, size

    def mapping(self, node: Any, depth: int) -> tuple[Any, int]:
        if node.tag != _MAP:
            return self.tell(node, f"the tag {shown(node.tag)} is not known"), 1
        keys, size = Keys(_mark(node)), 1
        merged: list[tuple[Any, Keys]] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE and isinstance(key_node, yaml.ScalarNode):
                size += self.merge(value_node, depth, merged)
                continue
            name = self.name(key_node)
            value, count = self.value(value_node, depth + 1)
            size += count
            if name is None:
                continue
            if name in keys:
                first = keys.marks[name][0][0]
                self.tell(key_node, f"duplicate key {shown(name)}; it stands in line {first} already")
                continue
            keys[name] = value
            keys.marks[name] = (_mark(key_node), _mark(value_node))
        for _, other in merged:  # the mapping's own keys win, then the first that is merged
            for name, value in other.items():
                if name not in keys:
                    keys[name] = value
                    keys.marks[name] = other.marks[name]
        return keys, size

    def name(self, node: Any) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self.tell(node, "a key must be text, not a list or a section")
            return None
        if (not node.style and not isinstance(plain(node.value), str)) or node.tag not in _PLAIN_TAGS | {_STR}:
            self.tell(node, f"a key must be text, not {shown(plain(node.value))}; put it in quotes")
            return None
        if "${" in node.value:
            self.tell(node, f"variables stand in values, not in keys: {shown(node.value)}")
            return None
        return str(node.value)

    def merge(self, node: Any, depth: int, merged: list[tuple[Any, Keys]]) -> int:
        value, size = self.value(node, depth + 1)
        for other in value if isinstance(value, Items) else [value]:
            if isinstance(other, Keys):
                merged.append((node, other))
            elif not isinstance(other, Broken):
                self.tell(node, f"`<<` takes a section of keys or a list of such, not {shown(other)}")
        return size

    def scalar(self, node: Any) -> Any:
        text: str = node.value
        if node.tag != _STR and (node.style or node.tag not in _PLAIN_TAGS | {_MERGE}):
            return self.tell(node, f"the tag {shown(node.tag)} is not known")
        if "${" in text:
            return self.expand(node, text)
        # A plain scalar that YAML 1.1 calls text can still be a number by 1.2 (1e3).
        return text if node.style else plain(text)

    def expand(self, node: Any, text: str) -> Any:
        broken = False

        def replace(match: re.Match[str]) -> str:
            nonlocal broken
            if match[0] == "$${":
                return "${"
            name, default = match[1], match[2]
            if name is None:
                self.tell(node, f"`${{` begins no variable in {shown(text)}: write ${{NAME}} or ${{NAME:-default}}")
                broken = True
                return ""
            value = self.environ.get(name, "")
            if value or (name in self.environ and default is None):
                return value
            if default is None:
                self.tell(node, f"the environment variable {name} is not set; ${{{name}:-…}} would give a default")
                broken = True
                return ""
            return str(default)

        expanded = _VARIABLE.sub(replace, text)
        return BROKEN if broken else FromEnvironment(expanded)


def _mark(node: Any) -> Mark:
    return node.start_mark.line + 1, node.start_mark.column + 1
