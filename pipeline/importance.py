"""How much of a sweep's scores each setting explains, by Optuna's fANOVA (Hutter, Hoos and Leyton-Brown 2014)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution

_MIN_TRIALS = 4
_WIDE = 10.0  # scores that span more than this are compared by their logarithms


def usable_trials(trials: Sequence[Mapping[str, Any]], distributions: Mapping[str, BaseDistribution]) -> int:
    """Return how many trials `setting_importances` rests on, or would."""
    return len(_usable(trials, distributions))


def setting_importances(
    trials: Sequence[Mapping[str, Any]], metric: str, distributions: Mapping[str, BaseDistribution], seed: int = 0
) -> dict[str, float]:
    """Return the share of the score's variance that each setting explains alone, largest first; the sum is 1.

    A random forest is fitted to the scores, and its variance over the searched space is split among the settings.
    Positive scores that span more than a decade enter by their logarithm: otherwise the few worst trials alone would
    be the variance. Scores of stopped trials count as they are, although they come from fewer updates.

    Args:
        trials: mappings with "settings" (dotted key -> value) and "score" (a number or None). Used are those with a
            finite score that set every key to a value within its distribution; so the recipe's own trial counts only
            when its values are written out and lie in the space.
        metric: name of the score, for error messages.
        distributions: dotted key -> the Optuna distribution that it was drawn from.
        seed: of the forest, >= 0.

    Returns:
        Empty with fewer than 4 such trials, when the score does not vary, or without a setting that could vary.

    Raises:
        ValueError: when a score is not a number.
    """
    try:
        usable = _usable(trials, distributions)
    except TypeError as error:
        raise ValueError(f"a score of {metric} is not a number: {error}") from error
    varying = [key for key, distribution in distributions.items() if not distribution.single()]
    if len(usable) < _MIN_TRIALS or not varying:
        return {}
    scores = np.array([score for _, score in usable])
    if scores.min() > 0 and scores.max() / scores.min() > _WIDE:
        scores = np.log(scores)
    if np.ptp(scores) <= 1e-12 * np.abs(scores).max():
        return {}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce the study, which no user asked for
    try:
        study = optuna.create_study()
        study.add_trials(
            optuna.trial.create_trial(params=settings, distributions=dict(distributions), value=float(score))
            for (settings, _), score in zip(usable, scores, strict=True)
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varying)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {key: float(share) for key, share in found.items()} if np.isfinite(list(found.values())).all() else {}


def _usable(
    trials: Sequence[Mapping[str, Any]], distributions: Mapping[str, BaseDistribution]
) -> list[tuple[dict[str, Any], float]]:
    found = []
    for trial in trials:
        score, settings = trial.get("score"), trial.get("settings") or {}
        if score is None or not np.isfinite(score) or not set(distributions) <= set(settings):
            continue
        chosen = {key: settings[key] for key in distributions}
        try:
            optuna.trial.create_trial(params=chosen, distributions=dict(distributions), value=float(score))
        except ValueError:
            continue  # a value outside its distribution
        found.append((chosen, float(score)))
    return found
