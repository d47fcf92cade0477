"""Names of functions, refusals with the words that help, and what a worker may run."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psq.errors import ConfigError, FunctionRefused
from psq.functions import Allowed, FunctionMissing, class_of, name_of
from tests.unit import sample_tasks

MODULE = "tests.unit.sample_tasks"

# names


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (sample_tasks.adder, f"{MODULE}:adder"),
        (sample_tasks.decorated, f"{MODULE}:decorated"),
        (sample_tasks.wrapped, f"{MODULE}:wrapped"),
        (sample_tasks.wrapped_task, f"{MODULE}:wrapped_task"),
        (time.monotonic, "time:monotonic"),
        ("myapp.tasks:adder", "myapp.tasks:adder"),
        ("myapp.tasks.adder", "myapp.tasks:adder"),
        ("tasks.adder", "tasks:adder"),
        ("myapp._internal:adder", "myapp._internal:adder"),
        ("müll.aufgaben:zähle", "müll.aufgaben:zähle"),
    ],
)
def test_a_function_and_its_name_give_the_same_name(given: Any, name: str) -> None:
    assert name_of(given) == name
    assert name_of(given) == name  # from the cache


def nested() -> Any:
    def inner() -> None: ...

    return inner


def of_main() -> Any:
    def adder() -> None: ...

    adder.__module__, adder.__qualname__ = "__main__", "adder"
    return adder


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: 1, "a lambda has no name to import it by: write a function"),
        (nested(), "is nested in a function.*move it to the top of the module"),
        (sample_tasks.carelessly_wrapped, "functools.wraps"),
        (sample_tasks.Holder().method, "is a method, and its object can't be sent"),
        (sample_tasks.Holder.method, "is a method of a class"),
        (sample_tasks.Holder.static, "is a method of a class"),
        (sample_tasks.Holder.of_class, "is a method"),
        ([].append, "is a method"),
        (str.upper, "is no function"),
        (sample_tasks.Holder, "is a class: write a function that makes the object"),
        (functools.partial(sample_tasks.adder, 1), "give the arguments to enqueue"),
        (sample_tasks.cached, "is no function"),
        (sample_tasks._private, "begins with an underscore"),
        (sample_tasks.first_of_its_name, "is now of type int"),
        (sample_tasks.gone, "has no 'removed' by now"),
        (sample_tasks.asynchronous, "is an async function: write one"),
        (sample_tasks.generates, "is a generator"),
        (of_main(), "'adder' is defined in __main__.*move it to a module.*tasks.adder"),
        (5, "is no function"),
        (None, "is no function"),
        ("adder", "is no name of a function: write 'package.module:function'"),
        ("", "is no name"),
        (":adder", "is no name"),
        ("tasks:", "is no name"),
        ("my app:adder", "is not a module's name"),
        ("tasks:add er", "is not an identifier"),
        ("tasks:Holder.method", "names a method or an attribute"),
        ("tasks:adder.__globals__", "names a method or an attribute"),
        ("tasks.adder.__globals__", "private"),
        ("tasks:_private", "private"),
        ("tasks.__init__:adder", "private"),
        ("__main__:adder", "defined in __main__"),
        ("__main__.adder", "defined in __main__"),
        ("a" * 1000 + ":adder", "longer than 1000 bytes"),
        ("tasks:adder\n", "is not an identifier"),
    ],
)
def test_what_a_worker_could_not_run_is_refused_with_what_to_write(given: Any, words: str) -> None:
    with pytest.raises(FunctionRefused, match=words):
        name_of(given)


def test_a_name_is_checked_without_importing_anything() -> None:
    name_of("this:zen")
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (f"{MODULE}:Point", sample_tasks.Point),
        ("builtins:ValueError", ValueError),
        ("builtins:print", None),
        (f"{MODULE}:Holder.method", None),
        (f"{MODULE}:call", None),
        (f"{MODULE}:Any", None),
        (f"{MODULE}:", None),
        ("this:Zen", None),
        ("", None),
    ],
)
def test_a_class_is_found_only_where_it_was_defined_and_imported(name: str, found: Any) -> None:
    assert class_of(name) is found


# what may run


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "posix:system",
        "subprocess:call",
        f"{MODULE}:call",  # re-exported
        f"{MODULE}.call",
        f"{MODULE}.subprocess:call",
        f"{MODULE}.functools:reduce",
        f"{MODULE}:Point",
        f"{MODULE}:Holder",
        f"{MODULE}:Holder.static",
        f"{MODULE}:adder.__globals__",
        f"{MODULE}.adder.__globals__",
        f"{MODULE}:_private",
        f"{MODULE}:first_of_its_name",  # its own name is another
        f"{MODULE}:overwritten",
        f"{MODULE}:cached",
        f"{MODULE}:psq",
        "tests.unit:sample_tasks",
        "nonsense",
        "",
    ],
)
def test_what_the_operator_did_not_name_never_runs(name: str) -> None:
    with pytest.raises(FunctionRefused):
        Allowed([MODULE]).resolve(name)


def test_a_function_of_a_named_module_is_found_with_the_options_of_its_decorator() -> None:
    allowed = Allowed([MODULE])
    assert allowed.resolve(f"{MODULE}:adder") == (sample_tasks.adder, None)
    decorated = allowed.resolve(f"{MODULE}.decorated")
    assert decorated.options is not None
    assert decorated.options.retries == 3
    assert allowed.resolve(f"{MODULE}:wrapped_task").function(1) == ("wrapped", 1)
    assert allowed.resolve(f"{MODULE}:adder") is allowed.resolve(f"{MODULE}:adder")


def test_task_only_runs_only_what_is_decorated() -> None:
    allowed = Allowed([MODULE], task_only=True)
    assert allowed.resolve(f"{MODULE}:plain").function(3) == 3
    with pytest.raises(FunctionRefused, match=r"has no @psq\.task"):
        allowed.resolve(f"{MODULE}:adder")


def test_a_function_that_is_not_there_yet_is_missing_and_found_once_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = Allowed([MODULE])
    with pytest.raises(FunctionMissing, match="has no newcomer here, yet"):
        allowed.resolve(f"{MODULE}:newcomer")

    def newcomer() -> None: ...

    newcomer.__module__, newcomer.__qualname__ = MODULE, "newcomer"
    monkeypatch.setattr(sample_tasks, "newcomer", newcomer, raising=False)
    assert allowed.resolve(f"{MODULE}:newcomer").function is newcomer


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder first on sys.path, with modules of its own; nothing of it stays imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: Path, text: str = "def run():\n    return __name__\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_package_pattern_covers_the_package_and_what_is_below_and_no_more(site: Path) -> None:
    for name in ("shop/__init__.py", "shop/tasks.py", "shop/deep/__init__.py", "shop/deep/tasks.py", "shopping.py"):
        write(site / name)
    allowed = Allowed(["shop.*"])
    for module in ("shop", "shop.tasks", "shop.deep.tasks"):
        assert allowed.resolve(f"{module}:run").function() == module
    with pytest.raises(FunctionRefused, match="not allowed"):
        allowed.resolve("shopping:run")
    with pytest.raises(FunctionMissing, match="can't be imported"):
        allowed.resolve("shop.nobody:run")
    exact = Allowed(["shop.tasks"])
    for module in ("shop", "shop.tasks.deeper", "shop.deep.tasks"):
        with pytest.raises(FunctionRefused, match="not allowed"):
            exact.resolve(f"{module}:run")


def test_an_attribute_of_a_module_is_not_taken_for_a_module(site: Path) -> None:
    write(site / "shop" / "__init__.py")
    write(site / "shop" / "tasks.py", "import os\n")
    with pytest.raises(FunctionRefused, match=r"os is an attribute of the module shop\.tasks"):
        Allowed(["shop.*"]).resolve("shop.tasks.os:system")


def test_a_module_that_fails_to_import_is_missing_and_is_tried_again(site: Path) -> None:
    write(site / "flaky_module.py", "raise RuntimeError('not today')\n")
    allowed = Allowed(["flaky_module"])
    with pytest.raises(FunctionMissing, match=r"RuntimeError: not today \(.*flaky_module.py:1\)"):
        allowed.resolve("flaky_module:run")
    write(site / "flaky_module.py", "def run():\n    return 'a longer text than before'\n")
    assert allowed.resolve("flaky_module:run").function() == "a longer text than before"


def test_the_modules_dynamic_attributes_are_not_asked(site: Path) -> None:
    write(site / "dynamic.py", "def __getattr__(name):\n    raise SystemError(name)\n")
    with pytest.raises(FunctionMissing):
        Allowed(["dynamic"]).resolve("dynamic:run")


def test_all_imports_are_imported_at_once_and_the_error_names_the_module_and_the_line(site: Path) -> None:
    write(site / "good.py")
    write(site / "package" / "__init__.py")
    Allowed(["good", "package.*"]).import_all()
    assert {"good", "package"} <= set(sys.modules)
    write(site / "bad.py", "import os\n\nimport nobody_has_this\n")
    with pytest.raises(
        ConfigError, match=r"imports: bad can't be imported: ModuleNotFoundError.*nobody.*\(.*bad.py:3\)"
    ):
        Allowed(["bad"]).import_all()
    write(site / "leaves.py", "raise SystemExit(5)\n")
    with pytest.raises(ConfigError, match="leaves can't be imported: SystemExit: 5"):
        Allowed(["leaves"]).import_all()


@pytest.mark.parametrize("entry", ["", "*", "my-app", "a..b", "a.*.b", "a.", "a:b"])
def test_an_entry_of_imports_must_be_a_modules_name(entry: str) -> None:
    with pytest.raises(ConfigError, match="is no module's name"):
        Allowed([entry])


# by folder, as psqworker does


def test_what_is_under_the_folder_may_run(site: Path) -> None:
    write(site / "tasks.py")
    write(site / "shop" / "__init__.py")
    write(site / "shop" / "tasks.py")
    write(site / "space" / "tasks.py")  # a namespace package
    allowed = Allowed([], under=[str(site)])
    for module in ("tasks", "shop", "shop.tasks", "space.tasks"):
        assert allowed.resolve(f"{module}:run").function() == module
        assert allowed.allows(module)


@pytest.mark.parametrize(
    "folder", ["site-packages", "lib/site-packages", "dist-packages", ".hidden", "env/lib", "deep/.tox/x"]
)
def test_what_others_wrote_may_not_run_although_it_is_under_the_folder(
    site: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(site / folder / "foreign.py")
    write(site / "env" / "pyvenv.cfg", "")
    monkeypatch.syspath_prepend(str(site / folder))
    allowed = Allowed([], under=[str(site)])
    with pytest.raises(FunctionRefused, match="not allowed"):
        allowed.resolve("foreign:run")
    assert "foreign" not in sys.modules


def test_a_virtual_environment_inside_the_folder_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import gevent

    root = os.path.dirname(os.path.dirname(os.path.abspath(gevent.__file__)))
    allowed = Allowed([], under=[root, os.path.dirname(root), "/", sys.prefix])
    for name in ("gevent.subprocess:call", "subprocess:call", "os:system", "posix:system", "builtins:exec"):
        with pytest.raises(FunctionRefused, match="not allowed"):
            allowed.resolve(name)


def test_a_package_outside_is_not_imported_to_look_below_it(
    site: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside / "loud" / "__init__.py", "raise SystemError('imported')\n")
    write(outside / "loud" / "tasks.py")
    sys.path.insert(0, str(outside))
    try:
        with pytest.raises(FunctionRefused, match="not allowed"):
            Allowed([], under=[str(site)]).resolve("loud.tasks:run")
    finally:
        sys.path.remove(str(outside))


def test_a_link_that_leads_out_of_the_folder_opens_nothing(
    site: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside / "linked.py")
    (site / "linked.py").symlink_to(outside / "linked.py")
    with pytest.raises(FunctionRefused, match="not allowed"):
        Allowed([], under=[str(site)]).resolve("linked:run")


def test_the_folder_itself_may_be_a_link_or_hidden(tmp_path: Path, site: Path) -> None:
    real = tmp_path / ".releases" / "42"
    write(real / "current_tasks.py")
    (tmp_path / "current").symlink_to(real)
    sys.path.insert(0, str(tmp_path / "current"))
    try:
        allowed = Allowed([], under=[str(tmp_path / "current")])
        assert allowed.resolve("current_tasks:run").function() == "current_tasks"
    finally:
        sys.path.remove(str(tmp_path / "current"))


def test_import_names_more_than_the_folder(site: Path) -> None:
    write(site / "tasks.py")
    allowed = Allowed(["string"], under=[str(site)])
    assert allowed.resolve("string:capwords").function("a b") == "A B"
    assert allowed.resolve("tasks:run").function() == "tasks"
    with pytest.raises(FunctionRefused, match="allowed are: string, and what is under"):
        allowed.resolve("subprocess:call")


def test_sample_exports_what_the_attack_needs() -> None:
    assert sample_tasks.call is subprocess.call
