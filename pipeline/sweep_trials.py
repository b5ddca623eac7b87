"""The trials of a sweep as its pictures read them: which is the best, which is the recipe's, in what order to draw."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

STATUSES = ("finished", "stopped", "failed")
WIDE = 10.0
"""Positive values whose largest is more than this times the smallest are drawn on a log axis."""


class Trial(NamedTuple):
    """One trial of a sweep."""

    name: str
    status: str
    values: Mapping[str, Any]
    """Of the searched settings by dotted key, the recipe's where the trial sets none and they are known."""
    score: float | None
    """Finite; the smaller, the better."""
    is_recipe: bool


def read_trials(trials: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any] | None = None) -> list[Trial]:
    """Return the trials of mappings as `sweep_pictures` describes them.

    Raises:
        ValueError: without trials, or on an unknown status.
    """
    if not trials:
        raise ValueError("no trials to draw; a picture of a sweep needs at least one")
    read: list[Trial] = []
    for trial in trials:
        if (status := trial.get("status")) not in STATUSES:
            raise ValueError(f"trial {trial.get('id')!r} has status {status!r}; it is one of {', '.join(STATUSES)}")
        score, settings = trial.get("score"), trial.get("settings") or {}
        finite = float(score) if score is not None and np.isfinite(score) else None
        is_recipe = bool(trial.get("recipe", not settings))
        read.append(Trial(str(trial.get("id", len(read))), status, {**(recipe or {}), **settings}, finite, is_recipe))
    return read


def setting_keys(trials: Sequence[Trial]) -> list[str]:
    """Return the keys that any trial has a value of, in order of appearance."""
    return list(dict.fromkeys(key for trial in trials for key in trial.values))


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the smallest score, cut ones included, if any has one: a sweep trains it to its end."""
    scored = [trial for trial in trials if trial.status != "failed" and trial.score is not None]
    return min(scored, key=lambda trial: trial.score or 0.0, default=None)


def name_of_unscored(trials: Sequence[Trial]) -> str:
    """Return what the place above the score axis holds; nothing when every trial has its place on the axis."""
    above = [trial for trial in trials if trial.score is None or trial.status == "failed"]
    return "" if not above else "failed" if all(trial.status == "failed" for trial in above) else "no score"


def drawing_order(trial: Trial, best: Trial | None) -> tuple[bool, bool, int, float]:
    """Return a key to sort by: failed, stopped, finished from worst to best, the recipe, and the best on top."""
    order = {"failed": 0, "stopped": 1, "finished": 2}[trial.status]
    return trial is best, trial.is_recipe, order, -trial.score if trial.score is not None else -np.inf


def curve_of(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """Return update -> finite value of the metric; of several rows for one update the last counts."""
    found = {row["step"]: row[metric] for row in rows if row.get(metric) is not None and np.isfinite(row[metric])}
    return dict(sorted(found.items()))


def is_wide(values: Sequence[float]) -> bool:
    """Return whether the values belong on a log axis."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > WIDE
