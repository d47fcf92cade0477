"""The contexts that `extra_context` names in the config."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from psq.errors import ConfigError

if TYPE_CHECKING:
    from psqd.config import Config

__all__ = ["check_contexts", "context_of"]


def context_of(path: str) -> Callable[[], Any]:
    """The callable that ``module:attribute.path`` of `extra_context` names.

    Raises:
        ConfigError: The module can't be imported (it may even call `sys.exit`), or has no such callable.
    """
    module, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{path} is not callable: it must give a context manager")
    return found  # type: ignore[no-any-return]


def check_contexts(config: Config) -> None:
    """Find the contexts of all queues.

    Raises:
        ConfigError: One is not there; the text has its queue.
    """
    for name, queue in config.queues.items():
        if queue.extra_context:
            try:
                context_of(queue.extra_context)
            except ConfigError as error:
                raise ConfigError(f"queues.{name}.extra_context: {error}") from error
