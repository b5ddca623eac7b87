"""A model version's score as tags, and which of two versions is better: the rule of promotion, free of any server."""

import math
from collections.abc import Mapping
from typing import NamedTuple

_SAME = {"data_hash": "data", "score_name": "score", "score_rows": "number of rows"}
"""Tags that two versions must share for their scores to be comparable."""


class Promotion(NamedTuple):
    """Whether a version is the champion now, and why or why not."""

    promoted: bool
    reason: str


def score_tags(
    data_hash: str, recipe: str, score_name: str, score: float, num_rows: int, spread: float | None
) -> dict[str, str]:
    """The tags that `compare_scores` reads; numbers are written so that they are read back exactly."""
    tags = {"data_hash": data_hash, "recipe": recipe, "score_name": score_name}
    tags |= {"score": repr(float(score)), "score_rows": str(num_rows)}
    return tags if spread is None else {**tags, "score_spread": repr(float(spread))}


def compare_scores(new: Mapping[str, str], champion: Mapping[str, str] | None, champion_version: str = "") -> Promotion:
    """Whether the version with tags `new` takes the place of the champion (None: there is none).

    It does when its score is finite and strictly smaller, on the same data hash, by the same score and number of rows; the
    reason says when the difference is within the larger of the two spreads.
    """
    name, score = new.get("score_name", "score"), float(new.get("score", "nan"))
    if not math.isfinite(score):
        return Promotion(False, f"its {name} is {score}: not a finite number")
    if champion is None:
        return Promotion(True, f"there was no champion; {name} {score:.6g}")
    theirs = f"the champion (version {champion_version})"
    for key, what in _SAME.items():
        if new.get(key) != champion.get(key):
            values = f"{key} {new.get(key)}, its is {champion.get(key)}"
            return Promotion(False, f"not comparable with {theirs}: another {what} ({values})")
    other = float(champion.get("score", "nan"))
    if score >= other:
        return Promotion(False, f"{name} {score:.6g} is not below {other:.6g} of {theirs}")
    spread = max(float(tags.get("score_spread", "0")) for tags in (new, champion))
    note = f"; the difference is within the spread {spread:.3g}" if other - score <= spread else ""
    return Promotion(True, f"{name} {score:.6g} is below {other:.6g} of {theirs}{note}")
