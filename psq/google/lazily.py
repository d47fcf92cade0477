"""Google's packages of generated messages, without the clients that their ``__init__`` loads first.

The messages take 0.1 s of CPU; the clients beside them, with requests and cryptography behind, 0.5 s and 20 MB.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["put_off"]


class _PutOff(ModuleType):
    """The real module, which runs when something of it is asked for: its submodules can be had before that."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(name)  # the import system looks for some that a module need not have
        if find_spec(f"{self.__name__}.{name}") is not None:
            # Without the lock: who holds it may wait for the import of a submodule, whose code asks for another.
            return import_module(f"{self.__name__}.{name}")
        with _running:
            if type(self) is _PutOff:
                if self in _begun:
                    raise AttributeError(name)  # it asks itself for what it does not have yet
                self._run()
        return getattr(self, name)

    def _run(self) -> None:
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        _begun.append(self)
        try:
            self.__spec__.loader.exec_module(self)
        finally:
            _begun.remove(self)
        self.__class__ = ModuleType  # type: ignore[assignment]


#: Held while a package's code runs: who asks meanwhile waits for it.
_running = threading.RLock()
_begun: list[ModuleType] = []


def put_off(package: str) -> None:
    """Let a package's own code wait until something of the package itself is asked for. Idempotent.

    Args:
        package: Its full name; nothing is done where it was imported already.

    Raises:
        ImportError: It is not installed.
    """
    if package in sys.modules:
        return
    spec = find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    module = _PutOff(package)
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    module.__path__ = list(spec.submodule_search_locations or ())
    module.__package__ = package
    if sys.modules.setdefault(package, module) is module:  # else another thread imports it right now
        parent, _, name = package.rpartition(".")
        setattr(sys.modules[parent], name, module)
