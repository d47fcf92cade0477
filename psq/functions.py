"""Name of a function, function of a name, and what may be called.

A name is ``module:qualname`` of a function at the top of a module. What a
publisher sends decides nothing beyond that: the worker's operator names the
modules, and the object found there must be a function that was *defined*
there, under that name: no re-exports, no classes, no walking through attributes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from psq.errors import ConfigError, FunctionRefused, PsqError

if TYPE_CHECKING:
    from psq.options import TaskOptions

__all__ = ["OPTIONS_ATTRIBUTE", "Allowed", "FunctionMissing", "Resolved", "class_of", "name_of"]

#: Where `@psq.task` leaves its options on the function.
OPTIONS_ATTRIBUTE = "__psq_options__"
#: Most bytes of a name: a message's attribute takes 1,024 on Pub/Sub.
MAX_NAME_BYTES = 1000

_names: dict[Any, str] = {}  # checked before; functions at the top of modules live as long as the process
_MAX_NAMES = 10_000

_FOLDERS_OF_OTHERS = frozenset(("site-packages", "dist-packages"))
_CO_GENERATOR, _CO_COROUTINE, _CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200  # inspect's, without its import


class FunctionMissing(PsqError):
    """The module is allowed, but the function is not there *yet*: an older version runs here."""


class Resolved(NamedTuple):
    """What a name stands for in this process.

    Attributes:
        function: What to call.
        options: What its `@psq.task` says, or None.
    """

    function: Callable[..., Any]
    options: TaskOptions | None


# the client's side


def name_of(f: Callable[..., Any] | str) -> str:
    """``module:qualname`` of a function that a worker can import.

    Args:
        f: A function, or its name as ``pkg.mod:func`` or ``pkg.mod.func``; a name's
            form is checked and nothing is imported.

    Raises:
        FunctionRefused: A worker could not run it; the text says why and what to write.
    """
    try:
        known = _names.get(f)
    except TypeError:  # not hashable
        known = None
    if known is not None:
        return known
    if isinstance(f, str):
        name = _check_form(f)
    else:
        name = _check_function(f)
    if len(_names) < _MAX_NAMES:
        _names[f] = name
    return name


def _check_form(text: str) -> str:
    module, colon, function = text.partition(":")
    if not colon:
        module, _, function = text.rpartition(".")
    if not module or not function:
        raise FunctionRefused(f"{text!r} is no name of a function: write 'package.module:function'")
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        raise FunctionRefused(f"{text!r} is no name of a function: {module!r} is not a module's name")
    if "." in function:
        raise FunctionRefused(
            f"{text!r} names a method or an attribute of something: a worker runs only functions at the top of a module"
        )
    if not function.isidentifier():
        raise FunctionRefused(f"{text!r} is no name of a function: {function!r} is not an identifier")
    if module == "__main__":
        raise FunctionRefused(_in_main(function))
    if function.startswith("_") or any(part.startswith("__") for part in parts):
        raise FunctionRefused(f"{text!r} begins with an underscore, so it is private: give the function a public name")
    name = f"{module}:{function}"
    if len(name.encode()) > MAX_NAME_BYTES:
        raise FunctionRefused(f"the name {name[:60]!r}… is longer than {MAX_NAME_BYTES} bytes")
    return name


def _in_main(function: str) -> str:
    return (
        f"{function!r} is defined in __main__, the script that runs now, which a worker can't import: "
        f"move it to a module that both sides import, say tasks.py, and enqueue tasks.{function}"
    )


def _check_function(f: Any) -> str:
    name = getattr(f, "__qualname__", None) or getattr(f, "__name__", None)
    if isinstance(f, type):
        raise FunctionRefused(
            f"{f.__qualname__!r} is a class: write a function that makes the object, and enqueue that"
        )
    if isinstance(f, MethodType) or (isinstance(f, BuiltinFunctionType) and not _of_module(f)):
        raise FunctionRefused(
            f"{name!r} is a method, and its object can't be sent: write a function at the top of a module "
            "that gets or makes the object and calls the method"
        )
    if not isinstance(f, (FunctionType, BuiltinFunctionType)):
        if type(f).__name__ == "partial":
            raise FunctionRefused(
                "a functools.partial can't be sent: enqueue the function itself and give the arguments to enqueue"
            )
        raise FunctionRefused(
            f"{type(f).__name__!r} is no function: write a function (def) at the top of a module, and enqueue that"
        )
    assert isinstance(name, str)
    if name.rpartition(".")[2] == "<lambda>":
        raise FunctionRefused("a lambda has no name to import it by: write a function (def) at the top of a module")
    if "<locals>" in name:
        raise FunctionRefused(
            f"{name!r} is nested in a function, so a worker can't import it: move it to the top of the module "
            "(or, if a decorator made it, let the decorator use functools.wraps)"
        )
    if "." in name:
        raise FunctionRefused(
            f"{name!r} is a method of a class: write a function at the top of a module that calls it, and enqueue that"
        )
    module = f.__module__
    if not isinstance(module, str):
        raise FunctionRefused(f"{name!r} does not say which module it is in: write a function (def) in a module")
    if module == "__main__":
        raise FunctionRefused(_in_main(name))
    checked = _check_form(f"{module}:{name}")
    flags = getattr(getattr(f, "__code__", None), "co_flags", 0)
    if flags & _CO_COROUTINE:
        raise FunctionRefused(f"{checked!r} is an async function: write one (def) that calls asyncio.run({name}(…))")
    if flags & (_CO_GENERATOR | _CO_ASYNC_GENERATOR):
        raise FunctionRefused(f"{checked!r} is a generator, which a worker would not run: write a function that loops")
    loaded = sys.modules.get(module)
    found = None if loaded is None else vars(loaded).get(name)
    if loaded is not None and found is None:
        raise FunctionRefused(
            f"the module {module!r} has no {name!r} by now, so a worker would not find it: "
            "keep the function under its own name"
        )
    if found is not None and not is_function_of(found, module, name):
        raise FunctionRefused(
            f"{checked!r} is now of type {type(found).__name__}, which a worker does not run: "
            "keep the function under its own name (a decorator should return a function made with functools.wraps)"
        )
    return checked


def _of_module(f: BuiltinFunctionType) -> bool:
    return isinstance(f.__self__, ModuleType)


def is_function_of(found: object, module: str, name: str) -> bool:
    """True when the object is a function that was defined in the module under the name."""
    if not isinstance(found, FunctionType) and not (isinstance(found, BuiltinFunctionType) and _of_module(found)):
        return False
    return found.__module__ == module and found.__qualname__ == name


def class_of(name: str) -> type | None:
    """The class ``module:QualName`` in a module that is imported already, else None. Imports and runs nothing."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    if found is None:
        return None
    for part in qualname.split("."):
        try:
            found = vars(found).get(part)
        except TypeError:
            return None
        if not isinstance(found, type):
            return None
    assert isinstance(found, type)
    return found if found.__module__ == module and found.__qualname__ == qualname else None


# the worker's side


class Allowed:
    """The modules whose functions a worker may run, and the functions found there.

    Args:
        imports: Exact names; ``myapp.*`` is a package and what is below it.
        task_only: Only functions with `@psq.task`.
        under: Folders; modules whose file is under one of them are allowed too, unless it is
            under site-packages, dist-packages, a virtual environment, a hidden folder, or
            Python's own library.

    Raises:
        ConfigError: An entry of `imports` is no module's name.
    """

    def __init__(self, imports: Sequence[str], *, task_only: bool = False, under: Sequence[str] = ()) -> None:
        self.imports = tuple(imports)
        self.task_only = task_only
        self._exact: set[str] = set()
        self._packages: list[str] = []
        for entry in self.imports:
            base = entry.removesuffix(".*")
            if not all(part.isidentifier() for part in base.split(".")):
                raise ConfigError(f"imports: {entry!r} is no module's name: write package.module, or package.*")
            self._exact.add(base)
            if base != entry:
                self._packages.append(base + ".")
        self._under = tuple(os.path.realpath(folder) for folder in under)
        self._library = os.path.dirname(os.path.realpath(os.__file__))
        self._judged: dict[str, bool] = {}
        self._resolved: dict[str, Resolved] = {}

    def import_all(self) -> None:
        """Import every module of `imports` (of ``myapp.*``, the package itself). Idempotent.

        Raises:
            ConfigError: One can't be imported; the text has its name and the error.
        """
        for entry in self.imports:
            module = entry.removesuffix(".*")
            try:
                import_module(module)
            except (Exception, SystemExit) as error:
                raise ConfigError(
                    f"imports: {module} can't be imported: {type(error).__name__}: {error}{_where(error)}"
                ) from error

    def allows(self, module: str) -> bool:
        """True when the module's functions may be run and its classes made."""
        if module in self._exact or any(module.startswith(package) for package in self._packages):
            return True
        if not self._under:
            return False
        known = self._judged.get(module)
        if known is None:
            known = self._is_under(module)
            if known:  # names that are refused come from anybody and are endless
                self._judged[module] = True
        return known

    def resolve(self, name: str) -> Resolved:
        """The function of a name. Imports its module, where that is allowed. Cached.

        Raises:
            FunctionRefused: It may not be run, and never will be.
            FunctionMissing: The module is allowed, but can't be imported or has no such function yet.
        """
        resolved = self._resolved.get(name)
        if resolved is None:
            resolved = self._resolve(_check_form(name))
            self._resolved[name] = resolved
        return resolved

    def _resolve(self, name: str) -> Resolved:
        module_name, _, function_name = name.partition(":")
        if not self.allows(module_name):
            raise FunctionRefused(
                f"{name}: the module {module_name} is not allowed; allowed are: {', '.join(self.imports) or 'none'}"
                + (f", and what is under {', '.join(self._under)}" if self._under else "")
            )
        module = _import(name, module_name)
        found = vars(module).get(function_name)
        if found is None:
            raise FunctionMissing(f"{name}: the module {module_name} has no {function_name} here, yet")
        if not is_function_of(found, module_name, function_name):
            own = f"{getattr(found, '__module__', '?')}:{getattr(found, '__qualname__', '?')}"
            raise FunctionRefused(
                f"{name} is not a function defined there under that name, but a {type(found).__name__} ({own})"
            )
        options: TaskOptions | None = getattr(found, OPTIONS_ATTRIBUTE, None)
        if self.task_only and options is None:
            raise FunctionRefused(f"{name} has no @psq.task, and task_only is set")
        return Resolved(found, options)

    def _is_under(self, module: str) -> bool:
        """Judge a module by its file, from the top down: no package outside is ever imported for it."""
        from importlib.util import find_spec

        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            try:
                spec = find_spec(".".join(parts[:end]))  # imports what is above it, which was judged before
            except (Exception, SystemExit):
                return False
            if spec is None:
                return False
            if spec.has_location and spec.origin:
                places = [spec.origin]
            else:  # a namespace package; built-in and frozen modules have no place
                places = list(spec.submodule_search_locations or ())
            if not places or not all(self._place_is_under(place) for place in places):
                return False
        return True

    def _place_is_under(self, place: str) -> bool:
        place = os.path.realpath(place)
        if place.startswith(self._library + os.sep) or not _FOLDERS_OF_OTHERS.isdisjoint(place.split(os.sep)):
            return False
        return any(_is_own(place, folder) for folder in self._under)


def _is_own(place: str, folder: str) -> bool:
    if not place.startswith(folder.rstrip(os.sep) + os.sep):
        return False
    parts = os.path.relpath(place, folder).split(os.sep)
    for end, part in enumerate(parts, 1):
        if part.startswith(".") or os.path.exists(os.path.join(folder, *parts[:end], "pyvenv.cfg")):
            return False
    return True


def _import(name: str, module_name: str) -> ModuleType:
    module = sys.modules.get(module_name)
    if module is not None:
        return module
    parent_name, _, last = module_name.rpartition(".")
    if parent_name:
        parent = _import(name, parent_name)
        if not hasattr(parent, "__path__") and last in vars(parent):
            raise FunctionRefused(f"{name}: {last} is an attribute of the module {parent_name}, not a module")
    try:
        return import_module(module_name)
    except (Exception, SystemExit) as error:
        raise FunctionMissing(
            f"{name}: {module_name} can't be imported here: {type(error).__name__}: {error}{_where(error)}"
        ) from error


def _where(error: BaseException) -> str:
    """`` (file:line)`` of the innermost frame outside of the import machinery."""
    where, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<") and f"{os.sep}importlib{os.sep}" not in file and file != __file__:
            where = f" ({file}:{trace.tb_lineno})"
        trace = trace.tb_next
    return where
