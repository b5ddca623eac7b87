"""The pictures of a sweep's trials: Optuna's own, with the recipe and the best trial marked."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from pipeline.pictures.canvas import COLORS, broken, plain, save_figure
from pipeline.pictures.trials import STATES, is_wide, scored_trials, silent_optuna

Look = dict[str, Any]
_BEST, _RECIPE, _MUTED = COLORS[0], COLORS[1], "0.35"
_DOT: Look = {"marker": "o", "ms": 5.5, "mew": 1.2}
_HOLLOW: Look = _DOT | {"mfc": "white"}
_CROSS: Look = {"marker": "x", "ms": 6}
_MIN_TRIALS, _FEW_TRIALS = 4, 30  # of importances: to have any, to rely on them
_COLUMNS = 3  # of slices


def trial_pictures(
    study: Study, folder: str | Path, dataset: str, switch_step: int | None = None, importance: bool = True
) -> dict[str, Path]:
    """Write the pictures of a sweep's trials, each complete or not at all, and return name -> path.

    A picture is left out when there is too little to draw: no score, no setting that all have, no history.

    - parallel: a line per trial with a score, across an axis for it and one per setting; dotted when it was stopped early.
    - slices: the score against each setting. Trials that were stopped early are hollow dots, failed ones crosses at the top.
    - curves: the held-out score against the updates. A trial that was stopped early ends in a hollow dot, a failed one in a
      cross.
    - importance: the share of the score's variance that each setting explains in a random forest (Hutter, Hoos and
      Leyton-Brown 2014), for four trials with a score and more. Positive scores that span more than a decade enter by their
      logarithm: otherwise the few worst trials alone would be the variance. Scores of trials that were stopped early count
      as they are, although they come from fewer updates.

    Args:
        study: as `trials.sweep_study` gives it.
        folder: of the pictures; it is made.
        dataset: name of the data, drawn with each title.
        switch_step: update at which the adversarial phase begins; a vertical line in the curves.
        importance: False for trials whose settings changed in flight: they made no score alone.
    """
    drawn = {
        "parallel": ("All trials", lambda: _parallel(study)),
        "slices": ("Score against each setting", lambda: _slices(study)),
        "curves": ("Held-out score", lambda: _curves(study, switch_step)),
        "importance": ("Importance of each setting", lambda: _importance(study) if importance else None),
    }
    made = {}
    for name, (title, draw) in drawn.items():
        with _drawing():
            if figure := draw():
                made[name] = save_figure(figure, Path(folder) / f"{name}.png", title, dataset)
    return made


def _parallel(study: Study) -> Figure | None:
    study, scored = scored_trials(study)
    if not (keys := _keys(scored)):
        return None
    metric, log = study.user_attrs["metric"], is_wide([_score(trial) for trial in scored])
    axes = plots.plot_parallel_coordinate(study, keys, target=_log_score if log else _score, target_name=metric)
    figure = _resized(axes, max(7.5, 1.6 * (len(keys) + 1)), 5.8)
    lines: Any = axes.collections[0]
    lines.colorbar.remove()  # the score has the first axis
    styles = ["-" if trial.user_attrs["status"] == "finished" else ":" for trial in scored]
    lines.set(cmap="viridis", alpha=0.8, linewidth=1.4, linestyle=styles)
    for trial, points in zip(scored, lines.get_segments(), strict=True):
        if look := _look(trial):
            axes.plot(*np.asarray(points).T, **look, clip_on=False)
    if log:
        axes.yaxis.set_major_formatter(lambda value, _: f"{10**value:.3g}")
    for one, key in zip(figure.axes[1:], keys, strict=True):
        if one.get_yscale() == "log":
            _log_ticks(one.yaxis)
        tried = {trial.params.get(key) for trial in scored}
        if len(tried) == 1 and isinstance(value := tried.pop(), int | float):
            one.yaxis.set_major_locator(FixedLocator([value]))  # Optuna invents a range around it
        for label in one.get_yticklabels():  # lines cross here, and a value has to stay readable
            label.set(fontsize=8, bbox={"boxstyle": "square,pad=0.08", "fc": "white", "ec": "none", "alpha": 0.75})
    axes.set_xticks(range(len(keys) + 1), [metric, *(broken(key, 16) for key in keys)], rotation=0, fontsize=9)
    _legend(figure, study, {"finished": {}, "stopped": {"ls": ":"}})
    return figure


def _slices(study: Study) -> Figure | None:
    trials = study.trials
    study, scored = scored_trials(study)
    if not (keys := _keys(scored)):
        return None
    metric = study.user_attrs["metric"]
    panels: Any = plots.plot_slice(study, keys, target=_score, target_name=metric)
    panels = np.atleast_1d(panels)
    columns, rows = min(_COLUMNS, len(keys)), -(-len(keys) // _COLUMNS)
    figure = _resized(panels[0], max(3.5 * columns + 1.0, 7.5), 2.9 * rows + 1.4)
    grid = figure.add_gridspec(rows, columns)  # Optuna sets all in one row
    if is_wide([_score(trial) for trial in scored]):
        panels[0].set_yscale("log")  # which all share
        _log_ticks(panels[0].yaxis)
    for place, (axes, key) in enumerate(zip(panels, keys, strict=True)):
        axes.set_subplotspec(grid[divmod(place, columns)])
        axes.collections[0].set_cmap("viridis")
        _mark(axes, key, [trial for trial in trials if key in trial.params])
        axes.set_xlabel(broken(key, 34), fontsize=9)
        axes.set_ylabel(metric if place % columns == 0 else "", fontsize=10)
        _white(axes, label_size=8)
        axes.tick_params(axis="y", labelleft=place % columns == 0)
    order = figure.axes[-1]
    order.set_ylabel("trial, in order of their start", fontsize=9)
    order.tick_params(labelsize=8)
    order.yaxis.set_major_locator(MaxNLocator(integer=True))
    looks = {"finished": _DOT, "stopped": _HOLLOW, "failed": _CROSS}
    _legend(figure, study, {status: look | {"ls": "none"} for status, look in looks.items()})
    return figure


def _mark(axes: Axes, key: str, trials: Sequence[FrozenTrial]) -> None:
    """Mark in a slice of Optuna's the recipe, the best, and the trials that did not come to their end."""
    words = axes.xaxis.have_units()
    labels = [label.get_text() for label in axes.get_xticklabels()] if words else []
    written: dict[Any, str] = {label.strip("'"): label for label in labels}  # Optuna draws a word as its repr
    for trial in trials:
        place: Any = written.get(trial.params[key], trial.params[key])
        look: Look = {"color": _MUTED, "zorder": 3, "ls": "none"}
        if special := _look(trial):
            look |= {"color": special["color"], "zorder": special["zorder"]}
        size = 9 if trial.user_attrs["best"] else 6.5 if special else 5.5
        if trial.state == TrialState.FAIL:
            axes.plot(place, 1, **look | _CROSS, clip_on=False, transform=axes.get_xaxis_transform())
        elif trial.state == TrialState.PRUNED:
            axes.plot(place, _score(trial), **look | _HOLLOW | {"ms": size})
        elif special:
            axes.plot(place, _score(trial), **look | _DOT | {"ms": size})
        if trial.user_attrs["recipe"]:
            axes.axvline(place, color=_RECIPE, ls="--", lw=1.4, zorder=1)
    if words:
        axes.autoscale(axis="x")
        axes.margins(x=0.2)
        labels = [label.get_text().strip("'") for label in axes.get_xticklabels()]
        axes.set_xticks(axes.get_xticks(), [label if len(label) <= 18 else f"{label[:17]}…" for label in labels])
        return
    searched: Any = trials[0].distributions[key]  # Optuna's limits are those of the trials with a score
    log = axes.get_xscale() == "log"
    low, high = (math.log10(end) if log else end for end in (searched.low, searched.high))
    margin = 0.05 * (high - low) or 0.5
    axes.set_xlim(*(10**end if log else end for end in (low - margin, high + margin)))
    if log:
        _log_ticks(axes.xaxis)


def _curves(study: Study, switch_step: int | None) -> Figure | None:
    values = [value for trial in study.trials for value in trial.intermediate_values.values()]
    if not values:
        return None
    axes = plots.plot_intermediate_values(study)
    figure = _resized(axes, 9.0, 5.8)
    if legend := axes.get_legend():
        legend.remove()
    lines = {int(str(line.get_label()).removeprefix("Trial")): line for line in axes.lines}
    for trial in study.trials:
        if not (curve := sorted(trial.intermediate_values.items())):
            continue
        line = lines.get(trial.number) or axes.plot(*zip(*curve))[0]  # Optuna leaves failed ones out
        line.set(color="0.6", lw=1.1, alpha=1, marker="o" if len(curve) == 1 else "", ms=3)
        line.set(**_look(trial))
        if trial.state != TrialState.COMPLETE:
            end = _CROSS if trial.state == TrialState.FAIL else _HOLLOW
            axes.plot(*curve[-1], color=_MUTED, zorder=7, **end)
    if is_wide(values):
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
    if switch_step is not None:
        axes.axvline(switch_step, color=_MUTED, ls=(0, (2, 2)), lw=1.2, zorder=0.5)
        axes.annotate(
            f"adversary on (update {switch_step:,})", (switch_step, 1), (4, -4), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=9, color=_MUTED,
        )  # fmt: skip
    axes.set_xlabel("update")
    axes.set_ylabel(f"{study.user_attrs['metric']}, held out")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _white(axes)
    silent = sum(not trial.intermediate_values for trial in study.trials)
    note = f"without any score: {silent}" if silent else ""
    _legend(figure, study, {"finished": {}, "stopped": _HOLLOW, "failed": _CROSS}, note)
    return figure


def _importance(study: Study) -> Figure | None:
    study, scored = scored_trials(study)
    scores = [_score(trial) for trial in scored]
    keys = [key for key in _keys(scored) if not scored[0].distributions[key].single()]
    if len(scores) < _MIN_TRIALS or not keys or np.ptp(scores) <= 1e-12 * np.abs(scores).max():
        return None
    log = is_wide(scores)
    metric = f"{'log ' if log else ''}{study.user_attrs['metric']}"
    forest = optuna.importance.FanovaImportanceEvaluator(seed=0)
    axes: Any = plots.plot_param_importances(
        study, forest, keys, target=_log_score if log else _score, target_name=metric
    )
    figure = _resized(axes, 8.0, 1.9 + 0.36 * max(len(keys), 2))
    axes.get_legend().remove()
    hint = ": a hint, not a measurement" if len(scores) < _FEW_TRIALS else ""
    axes.set_xlabel(f"share of the variance of {metric} (fANOVA)\nrests on {len(scores)} trials with a score{hint}")
    axes.set_ylabel("")
    axes.set_yticks(axes.get_yticks(), [broken(label.get_text(), 42) for label in axes.get_yticklabels()])
    _white(axes)
    axes.grid(axis="y", visible=False)
    return figure


def _look(trial: FrozenTrial) -> Look:
    """Return how the recipe and the best are drawn, on top of the others; empty for any other trial."""
    best, recipe = trial.user_attrs["best"], trial.user_attrs["recipe"]
    if not best and not recipe:
        return {}
    color, style = (_RECIPE, "--") if recipe else (_BEST, "-")
    return {"color": color, "ls": style, "lw": 3.4 if best else 2.2, "zorder": 6 if best else 5}


def _legend(figure: Figure, study: Study, looks: Mapping[str, Look], note: str = "") -> None:
    """Name the best and the recipe with their scores, and count the trials by their status, below the picture."""
    entries = []
    for trial in study.trials:
        if look := _look(trial):
            best, recipe = trial.user_attrs["best"], trial.user_attrs["recipe"]
            name = (
                "best: the recipe" if best and recipe else "recipe" if recipe else f"best: {trial.user_attrs['name']}"
            )
            score = trial.user_attrs["status"] if trial.value is None else f"{trial.value:.4g}"
            entries.append(Line2D([], [], **look, label=f"{name}, {score}"))
    for status in STATES:
        if number := sum(trial.user_attrs["status"] == status for trial in study.trials):
            drawn, word = status in looks, "stopped early" if status == "stopped" else status
            look = {"color": "0.4"} | looks[status] if drawn else {"ls": "none"}
            entries.append(Line2D([], [], **look, label=f"{word}{'' if drawn else ', not drawn'}: {number}"))
    if note:
        entries.append(Line2D([], [], ls="none", label=note))
    columns = min(len(entries), int(figure.get_figwidth() / 1.85))
    figure.legend(handles=entries, loc="outside lower left", ncols=columns, frameon=False, fontsize=9, handlelength=3.2)


def _keys(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return the settings that all the trials have, in Optuna's order."""
    return sorted(set.intersection(*(set(trial.params) for trial in trials))) if trials else []


def _score(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _log_score(trial: FrozenTrial) -> float:
    return math.log10(_score(trial))


@contextmanager
def _drawing() -> Iterator[None]:
    """Keep Optuna's style and figures from outliving the picture, and what it warns of from being seen."""
    figures = set(pyplot.get_fignums())
    style = matplotlib.rc_context({"figure.dpi": 110, "figure.constrained_layout.use": True})
    try:
        with style, silent_optuna(), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "Attempting to set identical")  # a setting with a single value
            yield
    finally:
        for number in set(pyplot.get_fignums()) - figures:
            pyplot.close(number)


def _resized(axes: Axes, width: float, height: float) -> Figure:
    """Return Optuna's figure in inches of our own and without its titles."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    axes.set_title("")
    axes.set_title("", loc="left")
    figure.suptitle("")
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    return figure


def _white(axes: Axes, label_size: float = 10) -> None:
    """Give axes that Optuna drew in gray the look of our others."""
    axes.set_facecolor("white")
    axes.spines[["left", "bottom"]].set_color("black")
    axes.tick_params(colors="black")
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color("black")
    plain(axes, label_size=label_size)


def _log_ticks(axis: Axis) -> None:
    """Label a log axis by plain numbers, as many as there is room for."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 30 else (1.0, 3.0) if high / low < 1e3 else (1.0,))
    )
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
