"""One key space: settings as nested plain values, as JSON has them, by dotted key, and back."""

import dataclasses
import json
import re
import sys
from typing import Any, get_type_hints

from pipeline.config.critic import CriticConfig
from pipeline.config.learning import OptimizerConfig
from pipeline.config.validation import ConfigError, fill, require, unknown
from pipeline.config.values import options_of

UNNAMED_KINDS: tuple[type, ...] = (CriticConfig, OptimizerConfig)
"""Kinds that are written without `kind`, and taken where there is none: each was once the only one of
its field, and hashes of settings name the folders and stages of runs."""


def as_tree(config: Any) -> dict[str, Any]:
    """The values of a config by name; where a field may hold several dataclasses, `kind` names the one."""
    hints = get_type_hints(type(config))
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            named = len(_kinds(hints[f.name])) > 1 and type(value) not in UNNAMED_KINDS
            out[f.name] = {**({"kind": type(value).__name__} if named else {}), **as_tree(value)}
        else:
            out[f.name] = list(value) if isinstance(value, tuple) else value
    return out


def from_tree(cls: type, values: dict[str, Any], place: str = "") -> Any:
    """The config of a class that `as_tree` gave. Raises ConfigError, whose keys begin with `place`."""
    hints = get_type_hints(cls)
    config: Any = object.__new__(cls)
    fill(config, place, (), {key: _value(hints.get(key), value, place + key) for key, value in values.items()})
    return config


def chosen_settings(config: Any) -> dict[str, Any]:
    """The settings that differ from their defaults, nested; `kind` names each part's class.

    A run is known by it: a setting that comes up later, at its default, does not make another run of
    an old one.
    """
    out: dict[str, Any] = {"kind": type(config).__name__}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            out[f.name] = chosen_settings(value)
        elif value != (f.default if f.default_factory is dataclasses.MISSING else f.default_factory()):
            out[f.name] = value
    return out


def _kinds(hint: Any) -> dict[str, type]:
    return {option.__name__: option for option in options_of(hint) if hasattr(option, "__dataclass_fields__")}


def _value(hint: Any, value: Any, key: str) -> Any:
    """The config of a part, numbers as the field has them; all else as it is."""
    if type(value) is int and float in options_of(hint) and abs(value) <= sys.float_info.max:
        return float(value)
    kinds = _kinds(hint)
    if not kinds or not isinstance(value, dict):
        return value
    unnamed = next((kind for kind in kinds if len(kinds) == 1 or kinds[kind] in UNNAMED_KINDS), None)
    kind: Any = value.get("kind", unnamed)
    require(kind in list(kinds), f"{key}.kind", kind, " or ".join(kinds))
    return from_tree(kinds[kind], {name: value[name] for name in value if name != "kind"}, f"{key}.")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested dict by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return leaves


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the leaf at a dotted key, or a whole part to a dict; text is read as JSON first.

    Raises ConfigError where the tree has no such key.
    """
    *parts, last = key.split(".")
    node: Any = tree
    for part in parts:
        node = node.get(part) if isinstance(node, dict) else None
    new = _parse(value) if isinstance(value, str) else value
    known = isinstance(node, dict) and last in node
    if not known or (isinstance(node[last], dict) and not isinstance(new, dict)):
        raise ConfigError(f"{unknown(key, flatten(tree))} (see `--show` for all of them)")
    node[last] = new


def parse_settings(items: list[str]) -> dict[str, str]:
    """`["a.b=1"]` -> `{"a.b": "1"}`. Raises ConfigError on an item without `=`."""
    settings = {}
    for item in items:
        key, sep, value = item.partition("=")
        require(bool(sep), "--set", item, "KEY=VALUE, for instance critic.num_neighbors=10")
        settings[key.strip()] = value.strip()
    return settings


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or nested beyond reason
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):  # .5 and 1. are numbers to people
            return float(text)
        return {"None": None, "True": True, "False": False}.get(text, text)
