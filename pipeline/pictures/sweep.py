"""The pictures of a hyperparameter sweep: what was tried, what it scored, and how sure that is.

A trial is a mapping with "id", "status" (finished, stopped or failed), "settings" (dotted key -> value, where it departs
from the recipe) and "score" (a number, or None); a smaller score is better. The best trial is the one, not failed, with the
smallest finite score. The recipe's trial has no settings of its own, or "recipe": True. As in `pictures`, each function
writes one PNG, complete or not at all, returns its path, and draws the name of the data: pass `dataset`.
"""

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from pipeline.pictures.grids import _COLORS, _labeled, _write
from pipeline.sweep_trials import (
    WIDE,
    Trial,
    best_trial,
    curve_of,
    drawing_order,
    is_wide,
    name_of_unscored,
    read_trials,
    setting_keys,
)

_BEST, _RECIPE, _FAILED, _OTHER = _COLORS[0], _COLORS[1], "0.35", "0.6"
_FEW_TRIALS = 30
_FAILED_AT = 1.09  # where a failed trial meets the score axis, whose values lie in [0, 1]


class _Scale(NamedTuple):
    """One setting, or the score, as positions in [0, 1]."""

    categories: tuple[str, ...]  # empty when it is a number
    low: float
    high: float
    log: bool
    ticks: Mapping[float, str]

    def place(self, value: Any) -> float:
        if self.categories:
            return _category_place(self.categories.index(str(value)), len(self.categories))
        return _share(float(value), self.low, self.high, self.log)


def parallel_coordinates(
    trials: Sequence[Mapping[str, Any]],
    metric: str,
    log_keys: Collection[str],
    path: str | Path,
    title: str | None = None,
    dataset: str | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """Write one line per trial across an axis per setting and one for the score, and return the path.

    Args:
        trials: as in the module's text. Their settings are numbers or categories (text).
        metric: name of the score.
        log_keys: settings on a log axis; the score's is log when it is positive and spans more than a decade.
        path: PNG to write.
        title: drawn above.
        dataset: drawn with the title.
        recipe: the recipe's values of the searched settings; stand in wherever a trial does not set a key. Without
            them such a line has a gap.

    Raises:
        ValueError: without trials, on an unknown status, or when the path is not a PNG's.
    """
    read = read_trials(trials, recipe)
    keys = setting_keys(read)
    scales = [_scale([trial.values[key] for trial in read if key in trial.values], key in log_keys) for key in keys]
    scores = [trial.score for trial in read if trial.score is not None]
    scale = _scale(scores, is_wide(scores))
    figure = _figure(max(7.0, 1.5 * (len(keys) + 1) + 1.0), 5.6)
    axes = figure.add_subplot()
    best = best_trial(read)
    colors = matplotlib.colormaps["viridis"]
    for trial in sorted(read, key=lambda trial: drawing_order(trial, best)):
        heights = [scales[i].place(trial.values[key]) if key in trial.values else np.nan for i, key in enumerate(keys)]
        end = _FAILED_AT if trial.score is None else scale.place(trial.score)
        look: dict[str, Any] = {"color": colors(0.88 * min(end, 1.0)), "lw": 1.5, "alpha": 0.85}
        if trial.score is None or trial.status == "failed":
            look |= {"color": _FAILED, "lw": 1.0, "ls": ":", "alpha": 0.7}
            end = _FAILED_AT
        elif trial.status == "stopped":
            look |= {"lw": 0.7, "alpha": 0.6}
        if trial.is_recipe:
            look |= {"color": _RECIPE, "lw": 2.2, "ls": "--", "alpha": 1.0}
        if trial is best:
            look |= {"lw": 3.6, "alpha": 1.0} | ({} if trial.is_recipe else {"color": _BEST})
        axes.plot(range(len(keys) + 1), [*heights, end], marker="o", ms=3 if keys else 8, mew=0, **look)
        if end == _FAILED_AT:
            axes.plot(len(keys), end, "x", color=look["color"], ms=7, mew=1.5, clip_on=False)
    for place, (key, one) in enumerate(zip([*keys, metric], [*scales, scale], strict=True)):
        axes.plot([place, place], [0, 1], color="0.25", lw=1.0, zorder=0.5)
        for height, text in one.ticks.items():
            axes.plot(place, height, "_", color="0.25", ms=7)
            # White behind the text: lines cross here, and a value has to stay readable.
            axes.annotate(
                text, (place, height), (5, 0), textcoords="offset points", va="center", fontsize=8,
                bbox={"boxstyle": "square,pad=0.08", "fc": "white", "ec": "none", "alpha": 0.75}, zorder=5,
            )  # fmt: skip
        weight = "bold" if place == len(keys) else "normal"
        axes.text(place, -0.06, _broken(key, 16), ha="center", va="top", fontsize=9, weight=weight)
    axes.text(len(keys) + 0.09, _FAILED_AT, name_of_unscored(read), va="center", fontsize=8)
    axes.set_xlim(-0.35, len(keys) + 0.65)
    axes.set_ylim(-0.02, _FAILED_AT + 0.04)
    axes.set_axis_off()
    _legend(figure, read, best)
    return _finish(figure, path, title, dataset)


def importance_bars(
    importances: Mapping[str, float],
    num_trials: int,
    metric: str,
    path: str | Path,
    title: str | None = None,
    dataset: str | None = None,
) -> Path:
    """Write the share of the score's variance that each setting explains, as bars, and return the path.

    Args:
        importances: setting -> share in [0, 1], as `importance.setting_importances` gives them; none is drawn as that.
        num_trials: trials that they rest on; below 30 the picture calls itself a hint.
        metric: name of the score.
        path: PNG to write.
        title: drawn above.
        dataset: drawn with the title.

    Raises:
        ValueError: when the path is not a PNG's.
    """
    ordered = sorted(importances.items(), key=lambda item: item[1])
    figure = _figure(8.0, 1.7 + 0.36 * max(len(ordered), 2))
    axes = figure.add_subplot()
    rests_on = f"rests on {num_trials} {'trial' if num_trials == 1 else 'trials'} with a score"
    if num_trials < _FEW_TRIALS:
        rests_on += ": a hint, not a measurement"
    if ordered:
        bars = axes.barh([_broken(key, 42) for key, _ in ordered], [value for _, value in ordered], color=_BEST)
        axes.bar_label(bars, [f"{value:.2f}" for _, value in ordered], padding=4, fontsize=9)
        axes.set_xlim(0, 1.12 * max(max(value for _, value in ordered), 1e-3))
        axes.set_xlabel(f"share of the variance of {metric} (fANOVA)\n{rests_on}")
        axes.grid(axis="x", color="0.9")
    else:
        axes.set_xlabel(rests_on)
        _note(axes, f"no importances: too few trials with a score, or {metric} did not vary")
    _plain(axes)
    return _finish(figure, path, title, dataset)


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    trials: Sequence[Mapping[str, Any]],
    metric: str,
    path: str | Path,
    title: str | None = None,
    dataset: str | None = None,
    switch_step: int | None = None,
) -> Path:
    """Write the held-out metric of every trial against its updates, and return the path.

    Args:
        histories: trial's id -> rows of its metrics.jsonl, with "step"; the last row of a step counts, rows without a
            finite value of the metric are left out. A trial may have no rows.
        trials: as in the module's text. A stopped one ends in a dot, a failed one in a cross.
        metric: drawn on a log axis when its values are positive and span more than a decade.
        path: PNG to write.
        title: drawn above.
        dataset: drawn with the title.
        switch_step: update at which the adversarial phase begins; a vertical line.

    Raises:
        ValueError: without trials, on an unknown status, or when the path is not a PNG's.
    """
    read = read_trials(trials)
    best = best_trial(read)
    figure = _figure(9.0, 5.6)
    axes = figure.add_subplot()
    curves = {trial.name: curve_of(histories.get(trial.name, ()), metric) for trial in read}
    for trial in sorted(read, key=lambda trial: drawing_order(trial, best)):
        if not (curve := curves[trial.name]):
            continue
        steps, values = list(curve), list(curve.values())
        look: dict[str, Any] = {"color": _OTHER, "lw": 1.1 if trial.status == "finished" else 0.8, "alpha": 0.9}
        if trial.is_recipe:
            look = {"color": _RECIPE, "lw": 2.2, "ls": "--"}
        if trial is best:
            look |= {"lw": 3.2, "alpha": 1.0} | ({} if trial.is_recipe else {"color": _BEST})
        axes.plot(steps, values, marker="o" if len(steps) == 1 else None, ms=3, **look)
        if trial.status != "finished":
            mark: dict[str, Any] = (
                {"marker": "x", "ms": 7, "mew": 1.6}
                if trial.status == "failed"
                else {"marker": "o", "ms": 5, "mfc": "white"}
            )
            axes.plot(steps[-1], values[-1], color=_FAILED, **mark)
    found = [value for curve in curves.values() for value in curve.values()]
    if not found:
        _note(axes, f"no trial reached a finite value of {metric}")
    elif is_wide(found):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: _number(value))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if switch_step is not None:
        axes.axvline(switch_step, color="0.35", ls=(0, (2, 2)), lw=1.2, zorder=0.5)
        axes.annotate(
            f"adversary on (update {switch_step:,})", (switch_step, 1), (4, -4), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=9, color="0.35",
        )  # fmt: skip
    axes.set_xlabel("update")
    axes.set_ylabel(f"{metric}, held out")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _plain(axes)
    silent = sum(not curve for curve in curves.values())
    _legend(figure, read, best, f"without any score: {silent}" if silent and found else None)
    return _finish(figure, path, title, dataset)


def objective_slices(
    trials: Sequence[Mapping[str, Any]],
    metric: str,
    log_keys: Collection[str],
    path: str | Path,
    title: str | None = None,
    dataset: str | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """Write the score against each setting in a panel of its own, and return the path.

    Args:
        trials: as in the module's text. Stopped ones are hollow dots; failed ones, and those without a score, crosses
            at the top.
        metric: name of the score; its axis is shared by all panels, and log as in `parallel_coordinates`.
        log_keys: settings on a log axis.
        path: PNG to write.
        title: drawn above.
        dataset: drawn with the title.
        recipe: the recipe's values of the searched settings: a dashed vertical line.

    Raises:
        ValueError: without trials, on an unknown status, or when the path is not a PNG's.
    """
    read = read_trials(trials, recipe)
    keys, best = setting_keys(read), best_trial(read)
    known = {**next((trial.values for trial in read if trial.is_recipe), {}), **(recipe or {})}
    columns = min(3, max(len(keys), 1))
    rows = -(-max(len(keys), 1) // columns)
    figure = _figure(max(3.5 * columns, 6.5), 2.9 * rows + 1.3)
    scores = [trial.score for trial in read if trial.score is not None]
    score_scale = _scale(scores, is_wide(scores))
    first: Axes | None = None
    for place, key in enumerate(keys or [""], start=1):
        axes = figure.add_subplot(rows, columns, place, sharey=first)
        first = first or axes
        if not keys:
            _note(axes, "no setting was changed")
            continue
        scale = _scale(
            [*(trial.values[key] for trial in read if key in trial.values), *_known(known, key)], key in log_keys
        )
        for trial in sorted(read, key=lambda trial: drawing_order(trial, best)):
            if key not in trial.values:
                continue
            failed = trial.status == "failed" or trial.score is None
            height = _FAILED_AT if trial.score is None or failed else score_scale.place(trial.score)
            color = _RECIPE if trial.is_recipe else _BEST if trial is best else _FAILED if failed else "0.45"
            look: dict[str, Any] = {"marker": "x", "mew": 1.5} if failed else {"marker": "o", "mew": 1.2}
            fill = "white" if trial.status == "stopped" else color
            axes.plot(
                scale.place(trial.values[key]), height, color=color, mfc=fill, ms=9 if trial is best else 5.5,
                ls="none", zorder=3, clip_on=False, **look,
            )  # fmt: skip
        for value in _known(known, key):
            axes.axvline(scale.place(value), color=_RECIPE, ls="--", lw=1.4, zorder=1)
        crowded = len("   ".join(scale.ticks.values())) > 44
        axes.set_xticks(list(scale.ticks), list(scale.ticks.values()), fontsize=8, rotation=35 if crowded else 0)
        axes.set_xlim(-0.06, 1.06)
        axes.set_xlabel(_broken(key, 34), fontsize=9)
        _plain(axes)
        axes.tick_params(axis="y", labelleft=(place - 1) % columns == 0, labelsize=8)
        if (place - 1) % columns == 0:
            axes.set_ylabel(metric)
    assert first is not None
    heights = dict(score_scale.ticks) if keys else {}
    if label := name_of_unscored(read):
        heights[_FAILED_AT] = label
    first.set_yticks(list(heights), list(heights.values()), fontsize=8)
    first.set_ylim(-0.05, _FAILED_AT + 0.05)
    _legend(figure, read, best)
    return _finish(figure, path, title, dataset)


def final_comparison(
    variants: Mapping[str, Sequence[float | None]],
    metric: str,
    path: str | Path,
    title: str | None = None,
    dataset: str | None = None,
) -> Path:
    """Write a dot per training seed, the mean and the spread for each variant, and return the path.

    Args:
        variants: name -> the score of each training seed, None or not finite where a run gave none.
        metric: name of the score.
        path: PNG to write.
        title: drawn above.
        dataset: drawn with the title.

    Raises:
        ValueError: without variants, or when the path is not a PNG's.
    """
    if not variants:
        raise ValueError("no variants to compare; give at least one name with its values")
    figure = _figure(max(5.6, 2.4 * len(variants)), 4.8)
    axes = figure.add_subplot()
    names = []
    for place, (name, given) in enumerate(variants.items()):
        values = [float(value) for value in given if value is not None and np.isfinite(value)]
        color = _RECIPE if name == "recipe" else _BEST if name == "winner" else _COLORS[(place + 2) % len(_COLORS)]
        seeds = f"{len(values)} {'seed' if len(values) == 1 else 'seeds'}"
        missing = f"\n{len(given) - len(values)} without a score" if len(given) > len(values) else ""
        names.append(f"{_broken(name, 22)}\n{seeds}{missing}")
        if not values:
            continue
        # Dots side by side, so that equal scores of two seeds are seen as two.
        offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        axes.plot(place + np.asarray(offsets), values, "o", color=color, ms=6, alpha=0.8)
        mean = float(np.mean(values))
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        axes.plot([place - 0.24, place + 0.24], [mean, mean], color=color, lw=2.5)
        if spread:
            axes.errorbar(place + 0.24, mean, spread, color=color, lw=1.5, capsize=5)
        text = f"{mean:.4g}" + (f" ± {spread:.2g}" if len(values) > 1 else "")
        axes.annotate(text, (place + 0.24, mean), (9, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5 + 0.35)
    axes.set_ylabel(metric)
    axes.set_xlabel("bar: mean; whisker: standard deviation over training seeds", fontsize=9)
    axes.margins(y=0.15)
    if not axes.lines:
        _note(axes, "no run gave a score")
    _plain(axes)
    axes.grid(axis="x", visible=False)
    return _finish(figure, path, title, dataset)


def _known(values: Mapping[str, Any], key: str) -> list[Any]:
    return [values[key]] if key in values else []


def _scale(values: Sequence[Any], log: bool) -> _Scale:
    """Positions and ticks for these values; the ends are always labeled, with the values they have."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        categories = tuple(sorted({str(value) for value in values}))
        ticks = {_category_place(i, len(categories)): _shortened(name) for i, name in enumerate(categories)}
        return _Scale(categories, 0.0, 1.0, False, ticks)
    if not numbers:
        return _Scale((), 0.0, 1.0, False, {})
    low, high = float(min(numbers)), float(max(numbers))
    log = log and low > 0
    inner = sorted(set(map(float, numbers)))
    whole = all(number.is_integer() for number in inner)
    if len(inner) > 5:
        inner = list(
            (
                LogLocator(subs=(1.0,) if high / low > WIDE else (1.0, 2.0, 5.0))
                if log
                else MaxNLocator(4, integer=whole)
            ).tick_values(low, high)
        )
    ticks = {}
    for value in (low, high, *inner):
        place = _share(value, low, high, log)
        if 0 <= place <= 1 and all(abs(place - other) > 0.12 for other in ticks):
            ticks[place] = _number(value)
    return _Scale((), low, high, log, ticks)


def _share(value: float, low: float, high: float, log: bool) -> float:
    if log:
        value, low, high = np.log(value), np.log(low), np.log(high)
    return 0.5 if high == low else float((value - low) / (high - low))


def _category_place(index: int, count: int) -> float:
    return 0.5 if count == 1 else 0.06 + 0.88 * index / (count - 1)


def _number(value: float) -> str:
    text = f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e5 else f"{value:.3g}"
    return re.sub(r"e([+-])0*(\d)", lambda match: f"e{match[1].replace('+', '')}{match[2]}", text)


def _shortened(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}…"


def _broken(key: str, width: int) -> str:
    """Break a long key after its dots and underscores, where they are, into lines of about `width` characters."""
    lines = textwrap.wrap(re.sub(r"([._])", "\\1\0 ", key), width + 4, break_long_words=True)
    return "\n".join(line.replace("\0 ", "").replace("\0", "") for line in lines)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="0.35", wrap=True)
    axes.set_xticks([])
    axes.set_yticks([])


def _legend(figure: Figure, trials: Sequence[Trial], best: Trial | None, note: str | None = None) -> None:
    """Name the best and the recipe with their scores, and count the others, below the picture."""
    entries = []
    recipe = next((trial for trial in trials if trial.is_recipe), None)
    if best is not None:
        name = "best: the recipe" if best.is_recipe else f"best: {best.name}"
        color, style = (_RECIPE, "--") if best.is_recipe else (_BEST, "-")
        entries.append(Line2D([], [], color=color, ls=style, lw=3.4, label=f"{name}, {best.score:.4g}"))
    if recipe is not None and recipe is not best:
        score = recipe.status if recipe.score is None else f"{recipe.score:.4g}"
        entries.append(Line2D([], [], color=_RECIPE, ls="--", lw=2.2, label=f"recipe, {score}"))
    looks: dict[str, dict[str, Any]] = {
        "finished": {"lw": 1.5},
        "stopped": {"lw": 0.8, "marker": "o", "ms": 4, "mfc": "white"},
        "failed": {"lw": 1.0, "ls": ":", "marker": "x", "ms": 6, "mew": 1.5},
    }
    for status, look in looks.items():
        if number := sum(trial.status == status for trial in trials):
            entries.append(Line2D([], [], color="0.4", label=f"{status}: {number}", **look))
    if note:
        entries.append(Line2D([], [], ls="none", label=note))
    figure.legend(
        handles=entries, loc="outside lower left", ncols=max(1, min(len(entries), int(figure.get_figwidth() / 1.65))),
        frameon=False, fontsize=9, handlelength=3.2,
    )  # fmt: skip


def _finish(figure: Figure, path: str | Path, title: str | None, dataset: str | None) -> Path:
    if text := _labeled(title, dataset):
        figure.suptitle(text, fontsize=13, wrap=True)
    return _write(path, lambda target: figure.savefig(target, format="png", metadata={"Software": None}))
