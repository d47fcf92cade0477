"""Values to tagged JSON and back, and what is refused, with the words that say why."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import string
import sys
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from psq.errors import SerializationError
from psq.serializers import MAX_DEPTH, dump, dump_bytes, dump_call, has_tags, load, load_bytes, load_call
from tests.unit.sample_tasks import Access, Colour, Point, Word


def anything(module: str) -> bool:
    return True


def nothing(module: str) -> bool:
    return False


def there_and_back(value: Any) -> Any:
    return load_bytes(dump_bytes(value, "it"), anything)


def same(left: Any, right: Any) -> bool:
    """Equal, and of equal types all the way down; NaN equals itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (float, Decimal)):
        return str(left) == str(right)  # tells NaN, 0.0 and -0.0 apart
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):  # in order: two keys of a dict may be NaN
        return len(left) == len(right) and all(map(same, left.items(), right.items()))
    if isinstance(left, Point):
        return same(dataclasses.astuple(left), dataclasses.astuple(right))
    if isinstance(left, (datetime, time)):
        return left.isoformat() == right.isoformat() and left.fold == right.fold
    return bool(left == right)


zones = st.one_of(
    st.none(),
    st.just(UTC),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata"]).map(ZoneInfo),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())
hashable = st.one_of(
    plain,
    st.floats(allow_nan=False),
    st.binary(),
    st.text(alphabet="$\ud800\udfffé\x00"),
    st.datetimes(timezones=zones, allow_imaginary=True),
    st.times(timezones=zones),
    st.dates(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.sampled_from([*Colour, *Word, Access.READ, Access.READ | Access.WRITE, Access(0)]),
    st.integers().map(lambda n: 2**5000 + n),  # bounds of so many digits make a repr that hypothesis warns of
    st.integers().map(lambda n: n - 2**15000),
)
hashables = st.recursive(
    hashable,
    lambda inner: st.one_of(
        st.tuples(inner, inner), st.frozensets(inner, max_size=3), st.builds(Point, st.integers(), inner)
    ),
    max_leaves=5,
)
values = st.recursive(
    st.one_of(hashables, st.just(float("nan")), st.just(Decimal("NaN"))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=3),
        st.sets(hashables, max_size=3),
        st.builds(Point, st.integers(), inner),
    ),
    max_leaves=12,
)


@given(values)
@example({"$": 1})
@example([{"$": "bytes", "v": "aGk="}])
@example({"a": {"$": {"$": None}}})
@example(datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1))
@example({1: "a", "1": "b", (1,): "c"})
def test_what_is_sent_comes_back_as_it_was(value: Any) -> None:
    assert same(there_and_back(value), value)


@given(st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))
def test_plain_values_travel_as_plain_json(value: Any) -> None:
    if not contains_mark(value):
        assert json.loads(dump_bytes(value, "it").decode("utf-8", "surrogatepass")) == value


def contains_mark(value: Any) -> bool:
    if isinstance(value, dict):
        return "$" in value or any(map(contains_mark, value.values()))
    return isinstance(value, list) and any(map(contains_mark, value))


@given(st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=2), inner), max_leaves=10))
def test_plain_values_are_not_copied(value: Any) -> None:
    assert dump(value, "it") is value
    assert load(value, nothing) is value


def test_only_what_holds_a_tagged_value_is_copied_and_nothing_is_changed_in_place() -> None:
    inner, other = [1, b"x"], [1, 2]
    value = {"inner": inner, "other": other}
    said = dump(value, "it")
    assert said == {"inner": [1, {"$": "bytes", "v": "eA=="}], "other": [1, 2]}
    assert said["other"] is other
    assert value == {"inner": [1, b"x"], "other": [1, 2]}
    before = json.dumps(said)
    loaded = load(said, nothing)
    assert loaded == value
    assert json.dumps(said) == before


def test_a_zone_keeps_its_name() -> None:
    moment = datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    back = there_and_back(moment)
    assert back.tzinfo is moment.tzinfo
    assert back + timedelta(days=150) == moment + timedelta(days=150)


def test_where_a_zone_is_not_known_its_offset_says_the_same_instant() -> None:
    said = {"$": "datetime", "v": "2026-07-01T12:00:00+02:00", "z": "Atlantis/Capital"}
    assert load(said, nothing) == datetime(2026, 7, 1, 10, tzinfo=UTC)


def test_a_time_in_a_zone_that_is_not_known_is_refused() -> None:
    with pytest.raises(SerializationError, match="Atlantis"):
        load({"$": "time", "v": "12:00:00", "z": "Atlantis/Capital"}, nothing)


class Text(str):
    pass


class Plain:
    pass


@dataclasses.dataclass
class Unset:
    field: int = dataclasses.field(init=False)


def local_class() -> Any:
    @dataclasses.dataclass
    class Local:
        x: int = 1

    return Local()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Plain(), "send plain values, a dataclass, or an id"),
        (Text("x"), "would come back as a plain str"),
        (collections.OrderedDict(a=1), "would come back as a plain dict: pass dict"),
        (collections.namedtuple("Pair", "a b")(1, 2), "would come back as a plain tuple"),
        (bytearray(b"x"), "pass bytes"),
        (memoryview(b"x"), "pass bytes"),
        (1j, "complex"),
        (Plain, "send its name"),
        (len, "send its name"),
        (lambda: 1, "send its name"),
        (functools.partial(len), "send its name"),
        (iter([]), "list_iterator"),
        (local_class(), "can't be found"),
        (Unset(), "'field' is not set"),
    ],
)
def test_what_json_with_tags_cannot_say_is_refused_with_a_hint(value: Any, words: str) -> None:
    with pytest.raises(SerializationError, match=words):
        dump(value, "it")


def test_a_class_of_the_main_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Point, "__module__", "__main__")
    with pytest.raises(SerializationError, match="of __main__, which a worker can't import"):
        dump(Point(1), "it")


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((1, Plain()), {}, "argument 2 of m:f is a "),
        ((Plain(),), {}, "argument 1 of m:f is a "),
        ((), {"who": Plain()}, "argument 'who' of m:f is a "),
        (([1, {"a": (2, Plain())}],), {}, r"argument 1 of m:f, at \[1\]\['a'\]\[1\], is a "),
        (({1: Plain()},), {}, r"argument 1 of m:f, at \[1\], is a "),
        (({Plain(): 1},), {}, r"argument 1 of m:f, at \[<.*\], is a "),
        (({"$": Plain()},), {}, r"argument 1 of m:f, at \['\$'\], is a "),
        ((Point(1, Plain()),), {}, r"argument 1 of m:f, at \.y, is a "),
        (({frozenset({Text("t")}): 1},), {}, r"argument 1 of m:f, at "),
    ],
)
def test_the_error_names_the_argument_and_the_place(args: Any, kwargs: Any, words: str) -> None:
    with pytest.raises(SerializationError, match=words):
        dump_call(args, kwargs, "m:f")


def test_a_value_whose_repr_fails_is_still_named() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(SerializationError, match="argument 1 of m:f"):
        dump_call(({Broken(): 1},), {}, "m:f")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_the_deepest_value_that_is_taken_comes_back() -> None:
    assert there_and_back(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = (value,)
    assert there_and_back(value) == value


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 100_000])
def test_what_is_nested_too_deeply_is_refused(depth: int) -> None:
    with pytest.raises(SerializationError, match="nested more than 100 levels") as caught:
        dump(nested(depth), "argument 1 of m:f")
    assert len(str(caught.value)) < 300


def test_what_refers_to_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(SerializationError, match="refers to itself"):
        dump_bytes(value, "it")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"\xff\xff",
        b"[NaN]",
        b"[Infinity]",
        b"[" * 100_000,
        b"9" * 5000,
        b'{"$": 1}',
        b'{"$": "nobody"}',
        b'{"$": "bytes"}',
        b'{"$": "bytes", "v": "???"}',
        b'{"$": "bytes", "v": 5}',
        b'{"$": "int", "v": "zz"}',
        b'{"$": "float", "v": "1.5"}',
        b'{"$": "float", "v": []}',
        b'{"$": "set", "v": [[]]}',
        b'{"$": "set", "v": 3}',
        b'{"$": "dict", "v": [[1]]}',
        b'{"$": "dict", "v": [[[], 1]]}',
        b'{"$": "datetime", "v": "yesterday"}',
        b'{"$": "datetime", "v": "2026-01-01", "z": "../../etc/passwd"}',
        b'{"$": "date", "v": null}',
        b'{"$": "timedelta", "v": [1e300]}',
        b'{"$": "timedelta", "v": {}}',
        b'{"$": "decimal", "v": "x"}',
        b'{"$": "uuid", "v": "x"}',
        b'{"$": "enum"}',
        b'{"$": "enum", "c": 5, "v": "RED"}',
        b'{"$": "tuple", "v": {"a": 1}, "x": 1, "$$": {"$": "q"}, "v2": {}, "v": [{"$": "q"}]}',
    ],
)
def test_what_is_not_ours_is_a_serialization_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(SerializationError):
        load_bytes(data, anything)


@given(st.recursive(plain, lambda i: st.lists(i) | st.dictionaries(st.sampled_from("$vczf"), i), max_leaves=8))
def test_reading_anything_gives_a_value_or_a_serialization_error(tagged: Any) -> None:
    try:
        load(tagged, anything)
    except SerializationError:
        pass


MODULE = "tests.unit.sample_tasks"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"$": "enum", "c": f"{MODULE}:Colour", "v": "BLUE"}, "has no 'BLUE' here"),
        ({"$": "enum", "c": f"{MODULE}:Point", "v": "RED"}, "is no enum"),
        ({"$": "enum", "c": f"{MODULE}:Access", "v": ["READ"]}, "can't be read"),
        ({"$": "flag", "c": f"{MODULE}:Colour", "v": 1}, "is no flag"),
        ({"$": "flag", "c": f"{MODULE}:Access", "v": 64}, "can't be read"),
        ({"$": "dataclass", "c": f"{MODULE}:Colour", "v": {}}, "is no dataclass"),
        ({"$": "dataclass", "c": f"{MODULE}:adder", "v": {}}, "there is no class"),
        ({"$": "dataclass", "c": f"{MODULE}:dataclasses.Field", "v": {}}, "there is no class"),
        ({"$": "dataclass", "c": f"{MODULE}:Nobody", "v": {}}, "there is no class"),
        ({"$": "dataclass", "c": f"{MODULE}:Point", "v": {"x": 1, "w": 2}}, "has no field 'w'"),
        ({"$": "dataclass", "c": f"{MODULE}:Point", "v": {}}, "needs a field 'x'"),
        ({"$": "dataclass", "c": f"{MODULE}:Point.__class__", "v": {}}, "there is no class"),
    ],
)
def test_a_class_is_made_only_of_what_it_is(said: Any, words: str) -> None:
    with pytest.raises(SerializationError, match=words):
        load(said, anything)


def test_a_class_of_a_module_that_is_not_allowed_is_never_made_nor_its_module_imported() -> None:
    with pytest.raises(SerializationError, match="may not be made"):
        load(dump(Point(1), "it"), nothing)
    said = {"$": "dataclass", "c": "this:Zen", "v": {}}
    with pytest.raises(SerializationError, match="may not be made"):
        load(said, lambda module: module in sys.modules)
    assert "this" not in sys.modules


def test_an_allowed_module_is_imported_where_it_is_not_there() -> None:
    sys.modules.pop("tests.unit.sample_late", None)
    loaded = load({"$": "dataclass", "c": "tests.unit.sample_late:Late", "v": {"x": 1, "doubled": 2}}, anything)
    assert type(loaded) is sys.modules["tests.unit.sample_late"].Late


def test_a_dataclass_is_made_without_running_its_code() -> None:
    from tests.unit import sample_late

    made = sample_late.Late(1)
    sample_late.ran.clear()
    back = there_and_back(made)
    assert (back.x, back.doubled) == (1, 2)
    assert sample_late.ran == []


def test_a_field_that_was_added_since_takes_its_default() -> None:
    said = {"$": "dataclass", "c": f"{MODULE}:Point", "v": {"x": 1}}
    assert load(said, anything) == Point(1)
    from tests.unit import sample_late

    said = {"$": "dataclass", "c": "tests.unit.sample_late:Late", "v": {"x": 1, "doubled": 2}}
    assert load(said, anything).items == []
    assert sample_late.Late is type(load(said, anything))


def test_has_tags_never_misses_one() -> None:
    assert not has_tags(dump_bytes([1, "a", {"b": None, "$x": 1}], "it"))
    for value in ({"$": 1}, b"x", [(1,)], math.inf, {1: 2}, uuid.uuid4(), Decimal(1), date(2026, 1, 1)):
        assert has_tags(dump_bytes(value, "it"))
    assert has_tags(json.dumps({"$": "bytes", "v": ""}).encode())


def test_arguments_come_back_by_position_and_name() -> None:
    args, kwargs = dump_call((1, b"x"), {"when": date(2026, 1, 2), "self": {3}}, "m:f")
    assert load_call(args, kwargs, nothing) == ([1, b"x"], {"when": date(2026, 1, 2), "self": {3}})


def test_an_argument_may_be_named_like_the_tag() -> None:
    args, kwargs = dump_call((), dict.fromkeys(["$"], 1), "m:f")
    assert load_call(args, kwargs, nothing)[1] == {"$": 1}


def test_every_printable_character_survives() -> None:
    text = string.printable + "\u2028\u2029é漢\U0001f600\ud83d"
    assert there_and_back({text: text}) == {text: text}
