"""The decorator that makes a class of settings, and the one error that its users see."""

import dataclasses
import difflib
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform, get_args, get_type_hints

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.config.values import allowed

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class ConfigError(ValueError):
    """A setting that cannot be: its key, its value and what is allowed."""


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raise ConfigError unless `ok`. In a `__post_init__` the key is relative to the class's place."""
    if not ok:
        raise ConfigError(f"{key} = {reprlib.repr(value)}: must be {allowed}")


def unknown(key: str, known: Iterable[str]) -> ConfigError:
    """The error of a key that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return ConfigError(f"unknown setting {key!r}; the nearest is {near[0]!r}")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(place: str) -> Callable[[type[T]], type[T]]:
    """Make a frozen dataclass whose values are checked, strictly, however it is made.

    Args:
        place: the dotted key of the class and a dot, which stands before names of its fields in errors.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Any = dataclass(cls, config=STRICT, frozen=True)
        made._check = made.__init__
        made.__init__ = lambda self, *args, **values: fill(self, place, args, values)
        return made

    return decorate


def fill(config: Any, place: str, args: tuple[Any, ...], values: dict[str, Any]) -> None:
    """Check the values of a new object's fields and set them. Raises ConfigError, whose keys begin with `place`."""
    cls = type(config)
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise unknown(place + key, [place + name for name in names])
    try:
        cls._check(config, *args, **values)
    except ValidationError as error:
        raise ConfigError(_said(error, cls, place)) from None


def _said(error: ValidationError, cls: Any, place: str) -> str:
    """The first fault of an object in one line: the key, the value, what is allowed."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # of a rule about several fields
        return f"{place}{cause}"
    name, *inside = first["loc"]
    if first["type"] == "unexpected_positional_argument":
        return f"{cls.__name__}: takes at most {name} values by position"
    if isinstance(name, int):
        name = [f.name for f in dataclasses.fields(cls) if not f.kw_only][name]
    if first["type"] == "missing":
        return f"{place}{name} = None: must be set: it has no default"
    hint = get_type_hints(cls, include_extras=True)[name]
    if inside and isinstance(inside[0], int):  # an item of a list
        name, hint = f"{name}[{inside[0]}]", get_args(get_args(hint)[0])[0]
    return f"{place}{name} = {reprlib.repr(first['input'])}: must be {cause or allowed(hint)}"
