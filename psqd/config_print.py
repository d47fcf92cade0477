"""A config as YAML, with secrets as ***."""

from __future__ import annotations

from typing import Any

import yaml

from psqd.config import Config, masked_url
from psqd.config_rules import plain

__all__ = ["as_yaml"]

HIDDEN = "***"
_LINE_ENDS = frozenset("\x85\u2028\u2029")


class _Dumper(yaml.SafeDumper):
    """Quotes what this project's reader would not take for text, and keeps `${` from being a variable."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors: the text is for people."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML writes Unicode's own line ends as they are, and they are read back as spaces
    bare = isinstance(plain(value), str) and _LINE_ENDS.isdisjoint(value)
    style = None if bare else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value.replace("${", "$${"), style=style)


def _number(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    if value.is_integer() and abs(value) < 1e15:
        return dumper.represent_int(int(value))
    digits, e, exponent = repr(value).partition("e")
    text = digits if "." in digits else f"{digits}.0"  # without a point YAML 1.1 takes 1e-9 for text
    return dumper.represent_scalar("tag:yaml.org,2002:float", text + e + exponent)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(float, _number)


def as_yaml(config: Config, *, secrets: bool = False) -> str:
    """The whole config: every key with its value, defaults merged; reading it gives the same config.

    Args:
        config: The config.
        secrets: Show tokens, keys and the passwords of URLs.
    """
    document = config.model_dump()
    if not secrets:
        for key in ("broker", "storage"):
            document[key] = masked_url(document[key])
        document["secret_key"] = [HIDDEN for _ in document["secret_key"]]
        if document["http"] and document["http"]["token"] is not None:
            document["http"]["token"] = HIDDEN
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
