"""Damage as Hypothesis draws it: bytes of a valid file changed, and values of a JSON document replaced."""

import copy
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_PROFILES = {"default": 25, "long": 600}
EXAMPLES = _PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "default")]
"""Examples per test; `HYPOTHESIS_PROFILE=long` for many, and other ones at each run."""

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == _PROFILES["default"],
    deadline=None,
    database=None,  # nothing is written beside the tests
    suppress_health_check=list(HealthCheck),
)

STRANGE: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 10**30, 10**400, 1e308, float("nan"), float("inf"), "", "../../x", "/etc/passwd",
    "\x00", "\ud800", "é ü", "x" * 5000, [], {}, [[]], {"": None}, [1, "a", None], {"kind": "RunConfig"},
]  # fmt: skip
"""Values of other types, beyond every range, and texts that are tricks elsewhere."""


def deep(depth: int) -> bytes:
    """JSON nested `depth` times: beyond a reader's recursion."""
    return b"[" * depth + b"]" * depth


NOT_JSON = (b"", b"\xff\xfe{}", b"{", b"null", b"[]", b'"x"', b"1" * 5000, deep(100_000), b'{"a":' * 50_000, b"NaN")
"""Documents that are no object, no JSON, no UTF-8, or more than the parser takes."""


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` with bits flipped, cut short, with bytes put in or written over, or other bytes altogether."""
    data = bytearray(valid)
    how = draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "random", "twice"]))
    if how == "flip":
        for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
            data[place] ^= 1 << draw(st.integers(0, 7))
    elif how == "cut":
        del data[draw(st.integers(0, len(data) - 1)) :]
    elif how == "random":
        return draw(st.binary(max_size=600))
    elif how == "twice":
        return bytes(data) * 2
    else:
        place, new = draw(st.integers(0, len(data))), draw(st.binary(min_size=1, max_size=12))
        data[place : place + (len(new) if how == "overwrite" else 0)] = new
    return bytes(data)


def _places(value: Any) -> list[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [pair for key, inner in items for pair in ((value, key), *_places(inner))]


@st.composite
def altered(draw: st.DrawFn, valid: Any) -> Any:
    """`valid` with one or two of its values replaced, removed, or with a key that nobody knows beside them."""
    document = copy.deepcopy(valid)
    strange = st.sampled_from(STRANGE).map(copy.deepcopy)  # never one of them inside itself
    for _ in range(draw(st.integers(1, 2))):
        if not (places := _places(document)):
            break
        holder, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if how == "replace":
            holder[key] = draw(strange | st.integers() | st.floats() | st.text(max_size=8))
        elif how == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = draw(strange)
        else:
            holder.append(draw(strange))
    return document
