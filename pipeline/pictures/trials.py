"""A sweep's trials as a study of Optuna, which its pictures are drawn from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
"""Optuna's state of a trial, by the way in which it ended here."""
_WIDE = 10.0


def sweep_study(
    trials: Sequence[Mapping[str, Any]],
    space: Mapping[str, BaseDistribution],
    metric: str,
    recipe: Mapping[str, Any] | None = None,
    histories: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Study:
    """Return a sweep's trials as a study of Optuna, in their order.

    A choice among numbers becomes a range, and any other choice a choice among words, so that all can be drawn.

    Args:
        trials: mappings with "id", "status" (a key of `STATES`), "settings" (dotted key -> value) and "score" (a number or
            None). The recipe's has no settings, or "recipe": True. One without a finite score counts as failed.
        space: dotted key -> the distribution that its values were drawn from; other settings are left out.
        metric: name of the score.
        recipe: the recipe's values, which stand in wherever a trial does not set a key.
        histories: trial's id -> rows with "step" and, where it was measured, the metric; the last row of a step counts.

    Raises:
        ValueError: without trials, on an unknown status, or a value outside of its distribution.
    """
    if not trials:
        raise ValueError("no trials to draw; a picture of a sweep needs at least one")
    for trial in trials:
        if (status := trial.get("status")) not in STATES:
            raise ValueError(f"trial {trial.get('id')!r} has status {status!r}; it is one of {', '.join(STATES)}")
    scores = [None if trial["status"] == "failed" else _finite(trial.get("score")) for trial in trials]
    lowest = min((score for score in scores if score is not None), default=None)
    best = None if lowest is None else scores.index(lowest)
    drawn = {key: _drawable(distribution) for key, distribution in space.items()}
    study = _new_study(metric)
    for number, (trial, score) in enumerate(zip(trials, scores, strict=True)):
        name, settings = str(trial.get("id", number)), trial.get("settings") or {}
        values = {key: value for key, value in {**(recipe or {}), **settings}.items() if key in space}
        curve = {row["step"]: _finite(row.get(metric)) for row in (histories or {}).get(name, ())}
        marks = {
            "name": name,
            "status": trial["status"],
            "recipe": bool(trial.get("recipe", not settings)),
            "best": number == best,
        }
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.FAIL if score is None else STATES[trial["status"]],
                value=score,
                params={k: str(v) if isinstance(drawn[k], CategoricalDistribution) else v for k, v in values.items()},
                distributions={key: drawn[key] for key in values},
                user_attrs=marks,
                intermediate_values={step: value for step, value in curve.items() if value is not None},
            )
        )
    return study


def scored_trials(study: Study) -> tuple[Study, list[FrozenTrial]]:
    """Return the study with all that have a score as complete, for Optuna draws no others, and those trials."""
    complete = _new_study(study.user_attrs["metric"])
    for trial in study.trials:
        if trial.value is not None:
            trial.state = TrialState.COMPLETE
        complete.add_trial(trial)
    return complete, [trial for trial in complete.trials if trial.value is not None]


def is_wide(values: Sequence[float]) -> bool:
    """Return True for values that belong on a log axis."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > _WIDE


@contextmanager
def silent_optuna() -> Iterator[None]:
    """Keep Optuna from announcing what it does; it speaks as before when the body is over."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _new_study(metric: str) -> Study:
    with silent_optuna():
        study = optuna.create_study()
    study.set_user_attr("metric", metric)
    return study


def _drawable(distribution: BaseDistribution) -> BaseDistribution:
    """Return a choice among numbers as a range, any other among their words, and what is a range as it is."""
    if not isinstance(distribution, CategoricalDistribution):
        return distribution
    numbers = [v for v in distribution.choices if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(distribution.choices):
        return CategoricalDistribution([str(value) for value in distribution.choices])
    return FloatDistribution(min(numbers), max(numbers), log=is_wide(numbers))


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
