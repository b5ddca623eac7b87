"""The types that values of settings have, and what a type allows in words."""

from dataclasses import asdict
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, Field, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError


def _exact(value: int) -> int:
    if abs(value) >= 2**53:  # other readers of JSON do not have it exactly
        raise ValueError("below 2^53")
    return value


def _as_given(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    if not isinstance(value, int | float):  # pydantic would take whatever can become a float
        raise PydanticCustomError("float_type", "not a number")
    number = check(value)
    return value if type(value) is int else number  # 1 is saved as 1: hashes of what is saved name runs and stages


Whole = Annotated[int, AfterValidator(_exact)]
Count = Annotated[Whole, Field(ge=1)]
CountOrZero = Annotated[Whole, Field(ge=0)]
Widths = Annotated[tuple[Count, ...], Field(strict=False)]  # lists, too, as JSON has them
Real = Annotated[float, WrapValidator(_as_given)]
Positive = Annotated[Real, Field(gt=0)]
PositiveOrZero = Annotated[Real, Field(ge=0)]
Inner = Annotated[Real, Field(gt=0, lt=1)]
Share = Annotated[Real, Field(ge=0, lt=1)]
Precision = Literal["auto", "float32", "bfloat16"]

_KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "null"}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def options_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type that it is."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def allowed(hint: Any) -> str:
    """The values that a type allows, as in `at least 1 (a whole number) or null`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        rules = [asdict(rule).items() for part in inner[1:] for rule in getattr(part, "metadata", ())]
        bounds = [f"{_BOUNDS[name]} {value}" for rule in rules for name, value in rule if name in _BOUNDS]
        reasons = "".join(f": {part.description}" for part in inner[1:] if getattr(part, "description", None))
        return (f"{' and '.join(bounds)} ({allowed(inner[0])})" if bounds else allowed(inner[0])) + reasons
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple:
        return f"a list, each item {allowed(inner[0])}"
    options = options_of(hint)
    return " or ".join(map(allowed, options)) if len(options) > 1 else _KINDS.get(hint) or hint.__name__
