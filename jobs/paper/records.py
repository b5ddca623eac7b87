"""Reading the experiments' records: units by kind, measurements by step, values with their spread."""

from collections.abc import Sequence
from typing import Any

from jobs.paper.training import mean_and_spread

Records = dict[str, dict[str, Any]]
"""Experiment -> its record."""


def units_of(record: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Figures of the units `kind-0`, `kind-1`, ... in order of the seed."""
    names = [name for name in record["units"] if name.rpartition("-")[0] == kind]
    return [record["units"][name] for name in sorted(names, key=lambda name: int(name.rpartition("-")[2]))]


def measured_near(run: dict[str, Any], step: float, protocol: str, metric: str) -> float:
    """A metric of the measurement nearest to `step` updates."""
    row = min((row for row in run["measured"] if protocol in row), key=lambda row: abs(row["step"] - step))
    return row[protocol][metric]


def late_mean(run: dict[str, Any], protocol: str, metric: str, count: int = 3) -> float:
    """Mean of a metric over the last `count` measurements."""
    rows = [row[protocol][metric] for row in run["measured"] if protocol in row][-count:]
    return sum(rows) / len(rows)


def spread_text(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds, in words."""
    mean, spread = mean_and_spread(values)
    return f"{mean:.{digits}g}" + (f" +- {spread:.2g}" if len(values) > 1 else "")


def pairs_of(record: dict[str, Any], first: str, second: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Units of two kinds, seed by seed."""
    return list(zip(units_of(record, first), units_of(record, second)))


def above(differences: Sequence[float], least: float = 0.0) -> bool:
    """True when all seeds, at least two, differ in one direction, upward, and their mean by more than their standard error
    and than `least`. With two or three seeds this is a word, not a proof: by chance alone it comes out in one of 4 or 8.
    """
    mean, spread = mean_and_spread(differences)
    beyond = mean > max(spread / len(differences) ** 0.5, least)
    return len(differences) > 1 and min(differences) > 0 and beyond


def below(differences: Sequence[float], least: float = 0.0) -> bool:
    """`above` of the negative."""
    return above([-d for d in differences], least)


def no_higher(differences: Sequence[float], slight: float) -> bool:
    """True when the mean over seeds does not exceed 0 by more than its standard error, or `slight` where that is more."""
    mean, spread = mean_and_spread(differences)
    return mean <= max(spread / len(differences) ** 0.5, slight)


def protocol_of(kind: str, model: str) -> str:
    """The protocol by which a model of a mixture is looked at: the law that it was trained under, from a wide start."""
    if model.endswith("GAN"):
        return "generator"
    return "hot" if kind == "literal" and model != "RBM" else "fresh"
