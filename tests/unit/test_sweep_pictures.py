"""Pictures of sweeps are whole for any sweep, name their data, mark the right trials, and leave no trace in Optuna."""

import math
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import optuna
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from PIL import Image

from pipeline.pictures import sweep
from pipeline.pictures.comparison import final_comparison
from pipeline.pictures.sweep import trial_pictures
from pipeline.pictures.trials import sweep_study

METRIC = "frechet_latent"
SPACE = {
    "optimizer.learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "critic.num_neighbors": IntDistribution(1, 20),
    "critic.memory": CategoricalDistribution([5000, 1000, 2000]),
    "schedules.adversarial.gamma": FloatDistribution(0.0, 0.5),
    "critic.kind": CategoricalDistribution(["nearest", "distance_weighted"]),
}
RECIPE = {
    "optimizer.learning_rate": 5e-4,
    "critic.num_neighbors": 5,
    "critic.memory": 2000,
    "schedules.adversarial.gamma": 0.1,
    "critic.kind": "distance_weighted",
}
Trials = list[dict[str, Any]]


def invented_sweep(number: int = 24, seed: int = 0) -> Trials:
    """Trials in which the learning rate decides nearly everything; some stopped, some failed, the recipe first."""
    rng = np.random.default_rng(seed)
    trials: Trials = [{"id": "t00-recipe", "status": "finished", "settings": {}, "score": 61.4}]
    for index in range(1, number):
        rate = float(10 ** rng.uniform(-5, -2))
        settings = {
            "optimizer.learning_rate": rate,
            "critic.num_neighbors": int(rng.integers(1, 21)),
            "critic.memory": int(rng.choice([1000, 2000, 5000])),
            "schedules.adversarial.gamma": float(rng.uniform(0, 0.5)),
            "critic.kind": str(rng.choice(["nearest", "distance_weighted"])),
        }
        score = 45 * math.exp(0.9 * (math.log10(rate) + 3.5) ** 2) * rng.uniform(0.95, 1.1)
        score += 20 * settings["schedules.adversarial.gamma"]
        status = "failed" if rate > 6e-3 else "stopped" if score > 130 else "finished"
        name = f"t{index:02d}-{rng.integers(16**6):06x}"
        trials.append(
            {"id": name, "status": status, "settings": settings, "score": None if status == "failed" else score}
        )
    return trials


def histories_of(trials: Trials, seed: int = 1) -> dict[str, list[dict]]:
    rng = np.random.default_rng(seed)
    found = {}
    for trial in trials:
        end = {"finished": 4000, "stopped": 1500, "failed": 1000}[trial["status"]]
        last = trial["score"] or 400.0
        found[trial["id"]] = [
            {"step": step, METRIC: last + 900 * math.exp(-step / 500) * rng.uniform(0.9, 1.1)}
            for step in range(0, end + 1, 500)
        ] + [{"step": end + 1, "beta_mean": 1.0}]
    return found


@pytest.fixture
def figures(monkeypatch) -> dict[str, Figure]:
    """Name of each picture -> its figure, filled as they are written."""
    found: dict[str, Figure] = {}
    save = sweep.save_figure

    def keep(figure, path, *rest):
        found[path.stem] = figure
        return save(figure, path, *rest)

    monkeypatch.setattr(sweep, "save_figure", keep)
    return found


def drawn(draw, *args) -> Figure:
    """One picture's figure, not written."""
    with sweep._drawing():
        return draw(*args)


def check_picture(path) -> None:
    """A whole PNG of a size that one looks at, with ink in it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert all(250 <= side <= 4000 for side in pixels.shape), pixels.shape
    assert 0.001 < (pixels < 160).mean() < 0.5


def check_texts(figure: Figure) -> None:
    """No label of an axis runs into its neighbor, nor out of the picture; titles and legend neither."""
    width, height = figure.get_size_inches() * figure.dpi
    texts = [*([figure._suptitle] if figure._suptitle else []), *(t for one in figure.legends for t in one.get_texts())]
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = sorted(
                (label.get_window_extent() for label in labels if label.get_visible() and label.get_text()),
                key=lambda box: (box.x0, box.y0),
            )
            assert not any(box.overlaps(other) for box, other in pairwise(boxes)), labels
    for box in [text.get_window_extent() for text in texts]:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


@pytest.mark.parametrize("number", [4, 12, 40])
def test_all_pictures_of_a_plausible_sweep(tmp_path, figures, number):
    trials = invented_sweep(number)
    study = sweep_study(trials, SPACE, METRIC, RECIPE, histories_of(trials))
    made = trial_pictures(study, tmp_path / "new", "synthetic-faces", 3000)
    with_score = sum(trial["score"] is not None for trial in trials)
    assert set(made) == {"parallel", "slices", "curves", *(["importance"] if with_score > 3 else [])}
    for name, path in made.items():
        assert path == tmp_path / "new" / f"{name}.png"
        check_picture(path)
        check_texts(figures[name])
        assert figures[name].get_suptitle().endswith("\ndata: synthetic-faces")
    shown = [axes.get_xlabel().replace("\n", "") for axes in figures["slices"].axes[: len(SPACE)]]
    across = [label.get_text().replace("\n", "") for label in figures["parallel"].axes[0].get_xticklabels()]
    assert sorted(SPACE) == shown == across[1:]
    assert len(list((tmp_path / "new").iterdir())) == len(made)  # and no half a picture


LONG = "optimizer.second_moment_estimate.exponential_decay_rate_of_the_variances"
MANY = {f"part{i}.some_setting_{i}": 10.0**-i for i in range(10)}
ALL = {"parallel", "slices", "curves"}
DEGENERATE: dict[str, tuple[set[str], Trials]] = {
    "one trial, the recipe": ({"curves"}, [{"id": "a", "status": "finished", "settings": {}, "score": 3.0}]),
    "one trial": (ALL, [{"id": "a", "status": "finished", "settings": {"a.b": 1.0}, "score": 3.0}]),
    "all failed": (
        {"curves"},
        [{"id": str(i), "status": "failed", "settings": {"a.b": 1.0 * i}, "score": None} for i in range(3)],
    ),
    "one value": (
        ALL,
        [{"id": str(i), "status": "finished", "settings": {"a.b": 2.0}, "score": 1.0 + i} for i in range(5)],
    ),
    "equal scores": (
        ALL,
        [{"id": str(i), "status": "finished", "settings": {"a.b": i}, "score": 5.0} for i in range(5)],
    ),
    "not finite": (
        ALL,
        [
            {"id": str(i), "status": "finished", "settings": {"a.b": 0.1 * i}, "score": score}
            for i, score in enumerate([math.nan, math.inf, -1.0, 2.0])
        ],
    ),
    "stopped over decades": (
        ALL | {"importance"},
        [{"id": str(i), "status": "stopped", "settings": {"a.b": 1e-3 * 3**i}, "score": 10.0**i} for i in range(4)],
    ),
    "numbers and words": (
        ALL | {"importance"},
        [
            {"id": str(i), "status": "finished", "settings": {"a.b": value}, "score": 1.0 + i}
            for i, value in enumerate([1, "auto", True, None, "a_very_long_category_of_many_letters"])
        ],
    ),
    "a word that only a failed trial has": (
        ALL,
        [
            {"id": "a", "status": "finished", "settings": {"a.b": "x"}, "score": 1.0},
            {"id": "b", "status": "finished", "settings": {"a.b": "y"}, "score": 2.0},
            {"id": "c", "status": "failed", "settings": {"a.b": "z"}, "score": None},
        ],
    ),
    "ten keys": (
        ALL | {"importance"},
        [
            {
                "id": f"t{i}",
                "status": "finished",
                "settings": {k: v * (1 + i) for k, v in MANY.items()},
                "score": 40.0 + i,
            }
            for i in range(12)
        ],
    ),
    "a long key": (
        ALL | {"importance"},
        [
            {"id": f"t{i}", "status": "finished", "settings": {LONG: 0.9 + i / 100, "a": i}, "score": 40.0 + i}
            for i in range(6)
        ],
    ),
    "a key that some do not set": (
        ALL,
        [
            {"id": "a", "status": "finished", "settings": {"a.b": 1.0}, "score": 4.0},
            {"id": "b", "status": "finished", "settings": {"c.d": "x", "a.b": 2.0}, "score": 3.0},
        ],
    ),
}


def space_around(trials: Trials) -> dict[str, BaseDistribution]:
    """The narrowest space that holds all values; positive ones on a log scale."""
    space: dict[str, BaseDistribution] = {}
    for key in dict.fromkeys(key for trial in trials for key in trial["settings"]):
        values = [trial["settings"][key] for trial in trials if key in trial["settings"]]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            space[key] = FloatDistribution(min(values), max(values), log=min(values) > 0)
        else:
            space[key] = CategoricalDistribution(values)
    return space


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DEGENERATE)
def test_all_pictures_of_a_degenerate_sweep(tmp_path, figures, name):
    expected, trials = DEGENERATE[name]
    study = sweep_study(trials, space_around(trials), METRIC, histories=histories_of(trials))
    made = trial_pictures(study, tmp_path, "synthetic-faces")
    assert set(made) == expected
    for picture, path in made.items():
        check_picture(path)
        check_texts(figures[picture])


def test_a_trial_is_what_it_was():
    trials = [
        {"id": "a", "status": "stopped", "settings": {"k": 1}, "score": 1.0},
        {"id": "b", "status": "finished", "settings": {"k": 2}, "score": 3.0, "recipe": True},
        {"id": "c", "status": "finished", "settings": {"other": 3}, "score": 2.0},
        {"id": "d", "status": "failed", "settings": {"k": 3}, "score": 0.0},
        {"id": "e", "status": "finished", "settings": {"k": 3}, "score": math.nan},
    ]
    histories = {"a": [{"step": 1, "m": 9.0}, {"step": 1, "m": 8.0}, {"step": 2, "m": math.inf}, {"step": 3}]}
    study = sweep_study(trials, {"k": IntDistribution(1, 3)}, "m", {"k": 2, "z": 0}, histories)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.PRUNED, TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert [trial.value for trial in study.trials] == [1.0, 3.0, 2.0, None, None]
    assert [trial.params for trial in study.trials] == [{"k": k} for k in (1, 2, 2, 3, 3)]  # the third has the recipe's
    assert [trial.user_attrs["best"] for trial in study.trials] == [True, False, False, False, False]
    assert [trial.user_attrs["recipe"] for trial in study.trials] == [False, True, False, False, False]
    assert study.trials[0].intermediate_values == {1: 8.0}


def test_the_marked_lines_are_those_of_the_recipe_and_the_best():
    """Optuna sorts trials by choices among numbers; the lines have to stay those of their trials."""
    trials = invented_sweep(40)
    figure = drawn(sweep._parallel, sweep_study(trials, SPACE, METRIC, RECIPE))
    axes, *others = figure.axes
    best = min((trial for trial in trials if trial["score"] is not None), key=lambda trial: trial["score"])
    marked = {line.get_color(): line.get_ydata() for line in axes.lines}
    assert set(marked) == {sweep._RECIPE, sweep._BEST}
    for color, score, values in ((sweep._RECIPE, 61.4, RECIPE), (sweep._BEST, best["score"], best["settings"])):
        ends = [axes.transLimits.transform((0, y))[1] for y in marked[color]]
        assert marked[color][0] == pytest.approx(score)
        for end, one, key in zip(ends[1:], others, sorted(SPACE), strict=True):
            value = values[key]
            if isinstance(value, str):
                value = [label.get_text() for label in one.get_yticklabels()].index(value)
            assert end == pytest.approx((one.transScale + one.transLimits).transform((0, value))[1], abs=1e-6)
    dotted = sum(gaps is not None for _, gaps in axes.collections[0].get_linestyle())
    assert dotted == sum(trial["status"] == "stopped" for trial in trials) > 0
    failed = sum(trial["status"] == "failed" for trial in trials)
    assert f"failed, not drawn: {failed}" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_slices_show_every_trial_by_its_ending():
    trials = invented_sweep(40)
    figure = drawn(sweep._slices, sweep_study(trials, SPACE, METRIC, RECIPE))
    count = {status: sum(trial["status"] == status for trial in trials) for status in ("stopped", "failed")}
    assert min(count.values()) > 0
    for axes, key in zip(figure.axes, sorted(SPACE)):
        assert len(axes.collections[0].get_offsets()) == len(trials) - count["failed"]
        hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
        crosses = [line for line in axes.lines if line.get_marker() == "x"]
        assert (len(hollow), len(crosses)) == (count["stopped"], count["failed"])
        if key == "optimizer.learning_rate":
            failed = [trial["settings"][key] for trial in trials if trial["status"] == "failed"]
            assert [line.get_xdata()[0] for line in crosses] == failed
            low, high = axes.get_xlim()
            assert low < 1e-5 and high > 1e-2  # all that was searched
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"stopped early: {count['stopped']}" in legend and f"failed: {count['failed']}" in legend


def test_curves_end_where_their_trials_did():
    trials = invented_sweep(40)
    histories = histories_of(trials)
    del histories[trials[-1]["id"]]
    figure = drawn(sweep._curves, sweep_study(trials, SPACE, METRIC, RECIPE, histories), 3000)
    (axes,) = figure.axes
    for marker, status, end in (("o", "stopped", 1500), ("x", "failed", 1000)):
        ends = [line.get_xdata() for line in axes.lines if line.get_marker() == marker]
        assert [list(xs) for xs in ends] == [[end]] * sum(t["status"] == status for t in trials[:-1])
    curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert len(curves) == len(histories)
    (recipe,) = [line for line in curves if line.get_color() == sweep._RECIPE]
    assert list(recipe.get_ydata()) == [row[METRIC] for row in histories["t00-recipe"] if METRIC in row]
    assert axes.get_yscale() == "log"
    assert any("update 3,000" in text.get_text() for text in axes.texts)
    assert "without any score: 1" in [text.get_text() for text in figure.legends[0].get_texts()]


def bars_of(trials: Trials, space, recipe=None) -> tuple[dict[str, float], str]:
    """The shares that the bars show, the largest first, and the label below; nothing without the picture."""
    figure = drawn(sweep._importance, sweep_study(trials, space, METRIC, recipe))
    if figure is None:
        return {}, ""
    (axes,) = figure.axes
    names = [label.get_text().replace("\n", "") for label in axes.get_yticklabels()]
    shares = dict(reversed(list(zip(names, [bar.get_width() for bar in axes.patches], strict=True))))
    return shares, axes.get_xlabel()


def test_importances_find_the_setting_that_matters():
    trials = invented_sweep(40)
    found, label = bars_of(trials, SPACE, RECIPE)
    assert f"rests on {sum(trial['score'] is not None for trial in trials)} trials with a score" in label
    assert set(found) == set(SPACE) and sum(found.values()) == pytest.approx(1)
    assert next(iter(found)) == "optimizer.learning_rate" and found["optimizer.learning_rate"] > 0.7
    assert bars_of(trials, SPACE, RECIPE) == (found, label)  # the same seed, the same numbers


def test_scores_over_decades_are_drawn_and_explained_by_their_logarithm():
    """One trial a thousand times worse than the rest would otherwise be all of the variance."""
    space = {"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)}
    rng = np.random.default_rng(3)
    points = rng.uniform(size=(60, 2))
    trials: Trials = [
        {"status": "finished", "settings": {"a": a, "b": b}, "score": math.exp(8 * a + b)} for a, b in points.tolist()
    ]
    found, label = bars_of(trials, space)
    assert f"log {METRIC}" in label
    expected, _ = bars_of([{**trial, "score": 50 + math.log(trial["score"])} for trial in trials], space)
    assert found["a"] == pytest.approx(expected["a"], abs=0.02)
    study = sweep_study(trials, space, METRIC)
    assert drawn(sweep._parallel, study).axes[0].yaxis.get_major_formatter()(2.0) == "100"
    assert drawn(sweep._slices, study).axes[0].get_yscale() == "log"


def test_importances_are_left_out_without_evidence(tmp_path):
    space = {"a": FloatDistribution(0, 1)}
    good: Trials = [{"status": "finished", "settings": {"a": i / 10}, "score": float(i)} for i in range(4)]
    bad = {"status": "finished", "settings": {"a": 0.9}, "score": math.nan}
    nothing = ({}, "")
    assert bars_of(good, space)[0] == {"a": 1.0}
    assert bars_of(good[:3], space) == nothing
    assert bars_of([*good[:3], bad], space) == nothing
    assert bars_of([{**trial, "score": 2.0} for trial in good], space) == nothing
    single = {"a": FloatDistribution(0.1, 0.1)}
    assert bars_of([{**trial, "settings": {"a": 0.1}} for trial in good], single) == nothing
    assert bars_of(good, {}) == nothing
    assert "importance" in trial_pictures(sweep_study(good, space, METRIC), tmp_path, "ring")
    assert "importance" not in trial_pictures(sweep_study(good, space, METRIC), tmp_path, "ring", importance=False)


def test_drawing_leaves_optuna_and_matplotlib_as_they_were(tmp_path, capfd):
    before = dict(matplotlib.rcParams), pyplot.get_fignums(), optuna.logging.get_verbosity()
    trial_pictures(sweep_study(invented_sweep(8), SPACE, METRIC, RECIPE), tmp_path, "ring")
    assert (dict(matplotlib.rcParams), pyplot.get_fignums(), optuna.logging.get_verbosity()) == before
    assert capfd.readouterr() == ("", "")


def test_user_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="no trials"):
        sweep_study([], {}, "m")
    with pytest.raises(ValueError, match=r"'a' has status 'done'.*finished, stopped, failed"):
        sweep_study([{"id": "a", "status": "done"}], {}, "m")
    outside = [{"id": "a", "status": "finished", "settings": {"k": 4}, "score": 1.0}]
    with pytest.raises(ValueError, match=r"value 4 of parameter 'k'"):
        sweep_study(outside, {"k": IntDistribution(1, 3)}, "m")


def test_the_last_comparison_shows_every_seed(tmp_path):
    variants = {"recipe": [1.0], "winner": [], "other": [None, math.nan, 2.0, 2.0]}
    check_picture(final_comparison(variants, METRIC, tmp_path / "b.png", "Last", "ring"))
    check_picture(final_comparison({"recipe": [None]}, METRIC, tmp_path / "c.png"))
    with pytest.raises(ValueError, match=r"ends in \.png"):
        final_comparison({"a": [1.0]}, "m", tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="no variants"):
        final_comparison({}, "m", tmp_path / "a.png")
