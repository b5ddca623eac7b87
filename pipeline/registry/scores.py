"""A model version's score as tags, and which of two versions is better: the rule of promotion, free of any server."""

import math
from collections.abc import Mapping
from typing import NamedTuple

_SAME = {"data_hash": "data", "score_name": "score", "score_rows": "number of rows"}
"""Tags that two versions must share for their scores to be comparable."""


class Promotion(NamedTuple):
    """The decision on a version: whether it is the champion now, and why or why not."""

    promoted: bool
    reason: str


def score_tags(
    data_hash: str, recipe: str, score_name: str, score: float, num_rows: int, spread: float | None
) -> dict[str, str]:
    """The tags that `compare_scores` reads; numbers are written so that they are read back exactly."""
    tags = {"data_hash": data_hash, "recipe": recipe, "score_name": score_name}
    tags |= {"score": repr(float(score)), "score_rows": str(num_rows)}
    return tags if spread is None else {**tags, "score_spread": repr(float(spread))}


def read_number(tags: Mapping[str, str], key: str) -> float | None:
    """The finite number of a tag, or None: tags can be edited by hand."""
    try:
        value = float(tags[key])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def larger_spread(a: Mapping[str, str], b: Mapping[str, str]) -> float | None:
    """The larger of the two versions' spreads, of those that are known."""
    known = [spread for tags in (a, b) if (spread := read_number(tags, "score_spread")) is not None]
    return max(known, default=None)


def not_comparable(new: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Why the scores of two versions are not comparable; empty when they are."""
    for key, what in _SAME.items():
        if new.get(key) != other.get(key):
            mine, its = (str(tags.get(key))[:12] for tags in (new, other))  # the start of a hash tells it apart
            return f"another {what} ({key} {mine}, its is {its})"
    return ""


def compare_scores(
    new: Mapping[str, str],
    champion: Mapping[str, str] | None,
    champion_version: str = "",
    *,
    beyond_spread: bool = False,
) -> Promotion:
    """Decide whether the version with tags `new` takes the place of the champion (None: there is none).

    It does when its score is finite and strictly smaller, on the same data hash, by the same score and number of rows; the
    reason says when the difference is within the larger of the two spreads. With `beyond_spread` it has to exceed that,
    and where neither spread is known it does not.
    """
    name, score = new.get("score_name", "score"), read_number(new, "score")
    if score is None:
        return Promotion(False, f"its {name} is {new.get('score', 'not known')}: not a finite number")
    if champion is None:
        return Promotion(True, f"there was no champion; {name} {score:.6g}")
    theirs = f"the champion (version {champion_version})" if champion_version else "the champion"
    if reason := not_comparable(new, champion):
        return Promotion(False, f"not comparable with {theirs}: {reason}")
    other = read_number(champion, "score")
    if other is None:
        return Promotion(True, f"{name} {score:.6g}; the {name} of {theirs} is no finite number")
    if score >= other:
        return Promotion(False, f"{name} {score:.6g} is not below {other:.6g} of {theirs}")
    below, spread = f"{name} {score:.6g} is below {other:.6g} of {theirs}", larger_spread(new, champion)
    if spread is None:
        return (
            Promotion(False, f"{below}, but no spread is known to compare with")
            if beyond_spread
            else Promotion(True, below)
        )
    if other - score <= spread:
        return Promotion(not beyond_spread, f"{below}; the difference is within the spread {spread:.3g}")
    return Promotion(True, below)
