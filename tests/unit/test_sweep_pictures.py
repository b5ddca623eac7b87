"""Pictures of sweeps are whole for any sweep, name their data, and importances find the setting that matters."""

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from PIL import Image

from pipeline import importance, sweep_trials
from pipeline.pictures import sweep as sweep_pictures

SPACE = {
    "optimizer.learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "critic.num_neighbors": IntDistribution(1, 20),
    "schedules.gamma": FloatDistribution(0.0, 0.5),
    "critic.kind": CategoricalDistribution(["nearest", "distance_weighted"]),
}
LOG_KEYS = {"optimizer.learning_rate"}
RECIPE = {
    "optimizer.learning_rate": 5e-4,
    "critic.num_neighbors": 5,
    "schedules.gamma": 0.1,
    "critic.kind": "distance_weighted",
}


def invented_sweep(number: int = 24, seed: int = 0) -> list[dict]:
    """Trials in which the learning rate decides nearly everything; some stopped, some failed, the recipe first."""
    rng = np.random.default_rng(seed)
    trials: list[dict] = [{"id": "t00-recipe", "status": "finished", "settings": {}, "score": 61.4}]
    for index in range(1, number):
        rate = float(10 ** rng.uniform(-5, -2))
        settings = {
            "optimizer.learning_rate": rate,
            "critic.num_neighbors": int(rng.integers(1, 21)),
            "schedules.gamma": float(rng.uniform(0, 0.5)),
            "critic.kind": str(rng.choice(["nearest", "distance_weighted"])),
        }
        score = (
            45 * math.exp(0.9 * (math.log10(rate) + 3.5) ** 2) * rng.uniform(0.95, 1.1)
            + 20 * settings["schedules.gamma"]
        )
        status = "failed" if rate > 6e-3 else "stopped" if score > 130 else "finished"
        name = f"t{index:02d}-{rng.integers(16**6):06x}"
        trials.append(
            {"id": name, "status": status, "settings": settings, "score": None if status == "failed" else score}
        )
    return trials


def histories_of(trials: list[dict], seed: int = 1) -> dict[str, list[dict]]:
    rng = np.random.default_rng(seed)
    found = {}
    for trial in trials:
        end = {"finished": 4000, "stopped": 1500, "failed": 1000}[trial["status"]]
        last = trial["score"] or 400.0
        found[trial["id"]] = [
            {"step": step, "frechet_latent": last + 900 * math.exp(-step / 500) * rng.uniform(0.9, 1.1)}
            for step in range(0, end + 1, 500)
        ] + [{"step": end, "beta_mean": 1.0}]
    return found


def draw_all(folder, trials: list[dict], recipe=RECIPE, log_keys=LOG_KEYS) -> list:
    """Every picture of a sweep from these trials."""
    common = {"title": "Sweep of celeba_beam", "dataset": "synthetic-faces"}
    scored = {"recipe": [t["score"] for t in trials[:3]], "winner": [t["score"] for t in trials[3:6]]}
    metric = "frechet_latent"
    return [
        sweep_pictures.parallel_coordinates(trials, metric, log_keys, folder / "parallel.png", recipe=recipe, **common),
        sweep_pictures.objective_slices(trials, metric, log_keys, folder / "slices.png", recipe=recipe, **common),
        sweep_pictures.learning_curves(
            histories_of(trials), trials, metric, folder / "curves.png", switch_step=3000, **common
        ),
        sweep_pictures.importance_bars(
            importance.setting_importances(trials, metric, SPACE), len(trials), metric, folder / "bars.png", **common
        ),
        sweep_pictures.final_comparison(scored, metric, folder / "final.png", **common),
    ]


def check_picture(path) -> None:
    """A whole PNG of a size that one looks at, with ink in it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert all(250 <= side <= 4000 for side in pixels.shape), pixels.shape
    assert 0.001 < (pixels < 160).mean() < 0.5


def test_all_pictures_of_a_plausible_sweep(tmp_path):
    for path in draw_all(tmp_path / "new", invented_sweep()):
        check_picture(path)
    assert not list(tmp_path.rglob("*.partial"))


LONG = "optimizer.second_moment_estimate.exponential_decay_rate_of_the_variances"
MANY = {f"part{i}.some_setting_{i}": 10.0**-i for i in range(10)}
DEGENERATE = {
    "one trial, the recipe": [{"id": "a", "status": "finished", "settings": {}, "score": 3.0}],
    "one trial": [{"id": "a", "status": "finished", "settings": {"a.b": 1.0}, "score": 3.0}],
    "all failed": [{"id": str(i), "status": "failed", "settings": {"a.b": 1.0 * i}, "score": None} for i in range(3)],
    "one value": [{"id": str(i), "status": "finished", "settings": {"a.b": 2.0}, "score": 1.0 + i} for i in range(3)],
    "equal scores": [{"id": str(i), "status": "finished", "settings": {"a.b": i}, "score": 5.0} for i in range(5)],
    "not finite": [
        {"id": str(i), "status": "finished", "settings": {"a.b": 0.1 * i}, "score": score}
        for i, score in enumerate([math.nan, math.inf, -1.0, 2.0])
    ],
    "zero on a log axis": [
        {"id": str(i), "status": "stopped", "settings": {"a.b": 1e-3 * i}, "score": 10.0**i} for i in range(4)
    ],
    "numbers and words": [
        {"id": str(i), "status": "finished", "settings": {"a.b": value}, "score": 1.0 + i}
        for i, value in enumerate([1, "auto", True, None, "a_very_long_category_of_many_letters"])
    ],
    "ten keys": [
        {"id": f"t{i}", "status": "finished", "settings": {k: v * (1 + i) for k, v in MANY.items()}, "score": 40.0 + i}
        for i in range(12)
    ],
    "a long key": [
        {"id": f"t{i}", "status": "finished", "settings": {LONG: 0.9 + i / 100, "a": i}, "score": 40.0 + i}
        for i in range(6)
    ],
    "a key that some do not set": [
        {"id": "a", "status": "finished", "settings": {"a.b": 1.0}, "score": 4.0},
        {"id": "b", "status": "finished", "settings": {"c.d": "x", "a.b": 2.0}, "score": 3.0},
    ],
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_all_pictures_of_a_degenerate_sweep(tmp_path, name):
    for path in draw_all(tmp_path, DEGENERATE[name], recipe=None, log_keys={"a.b", *MANY}):
        check_picture(path)


def test_pictures_without_histories_or_seeds(tmp_path):
    trials = invented_sweep(3)
    check_picture(sweep_pictures.learning_curves({}, trials, "frechet_latent", tmp_path / "a.png", switch_step=10))
    variants = {"recipe": [1.0], "winner": [], "other": [None, math.nan, 2.0, 2.0]}
    check_picture(sweep_pictures.final_comparison(variants, "frechet_latent", tmp_path / "b.png"))
    check_picture(sweep_pictures.final_comparison({"recipe": [None]}, "frechet_latent", tmp_path / "c.png"))


def test_every_picture_carries_the_name_of_its_data(tmp_path, monkeypatch):
    drawn = []
    suptitle = sweep_pictures.Figure.suptitle
    monkeypatch.setattr(
        sweep_pictures.Figure, "suptitle", lambda self, text, **kw: drawn.append(text) or suptitle(self, text, **kw)
    )
    paths = draw_all(tmp_path, invented_sweep(8))
    assert drawn == ["Sweep of celeba_beam\ndata: synthetic-faces"] * len(paths)


def test_the_best_may_be_cut_but_not_failed_and_the_recipe_may_be_flagged():
    read = sweep_trials.read_trials(
        [
            {"id": "a", "status": "stopped", "settings": {"k": 1}, "score": 1.0},
            {"id": "b", "status": "finished", "settings": {"k": 2}, "score": 3.0, "recipe": True},
            {"id": "c", "status": "finished", "settings": {"k": 3}, "score": 2.0},
            {"id": "d", "status": "failed", "settings": {"k": 3}, "score": 0.0},
        ]
    )
    assert sweep_trials.best_trial(read).name == "a"
    assert [trial.is_recipe for trial in read] == [False, True, False, False]


def test_ticks_hold_the_values_that_were_tried():
    assert sweep_pictures._scale([50, 100, 200], False).ticks == {0.0: "50", 1.0: "200", 1 / 3: "100"}
    ticks = sweep_pictures._scale([1.3e-5 * 2**i for i in range(9)], True).ticks
    assert ticks[0.0] == "1.3e-5" and ticks[1.0] == "0.00333" and "0.0001" in ticks.values()
    assert sweep_pictures._scale([0.1, 0.1], True).ticks == {0.5: "0.1"}
    assert list(sweep_pictures._scale(["b", "a", "b"], False).ticks.values()) == ["a", "b"]


def test_user_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="no trials"):
        sweep_pictures.parallel_coordinates([], "m", (), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"'a' has status 'done'.*finished, stopped, failed"):
        sweep_pictures.objective_slices([{"id": "a", "status": "done"}], "m", (), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"ends in \.png"):
        sweep_pictures.final_comparison({"a": [1.0]}, "m", tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="no variants"):
        sweep_pictures.final_comparison({}, "m", tmp_path / "a.png")


def test_importances_find_the_setting_that_matters():
    trials = invented_sweep(40)
    found = importance.setting_importances(trials, "frechet_latent", SPACE)
    assert set(found) == set(SPACE) and sum(found.values()) == pytest.approx(1)
    assert next(iter(found)) == "optimizer.learning_rate" and found["optimizer.learning_rate"] > 0.7
    assert importance.setting_importances(trials, "frechet_latent", SPACE) == found  # the same seed, the same numbers
    with_score = sum(trial["score"] is not None for trial in trials)
    assert importance.usable_trials(trials, SPACE) == with_score - 1  # all but the recipe, which sets nothing


def test_importances_of_scores_over_decades_are_those_of_their_logarithm():
    """One trial a thousand times worse than the rest would otherwise be all of the variance."""
    space = {"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)}
    rng = np.random.default_rng(3)
    points = rng.uniform(size=(60, 2))
    trials = [{"settings": {"a": a, "b": b}, "score": math.exp(8 * a + b)} for a, b in points.tolist()]
    logs = [{**trial, "score": 50 + math.log(trial["score"])} for trial in trials]
    found = importance.setting_importances(trials, "m", space)
    expected = importance.setting_importances(logs, "m", space)
    assert found["a"] == pytest.approx(expected["a"], abs=0.02)


def test_importances_are_empty_without_evidence():
    space = {"a": FloatDistribution(0, 1)}
    good = [{"settings": {"a": i / 10}, "score": float(i)} for i in range(4)]
    assert importance.setting_importances(good, "m", space) == {"a": 1.0}
    assert importance.setting_importances(good[:3], "m", space) == {}
    assert importance.setting_importances([], "m", space) == {}
    assert importance.setting_importances([*good[:3], {"settings": {"a": 0.9}, "score": math.nan}], "m", space) == {}
    assert importance.setting_importances([*good[:3], {"settings": {"a": 1.9}, "score": 4.0}], "m", space) == {}
    assert importance.setting_importances([{**trial, "score": 2.0} for trial in good], "m", space) == {}
    assert importance.setting_importances(good, "m", {"a": FloatDistribution(0.1, 0.1)}) == {}
    assert importance.setting_importances(good, "m", {}) == {}


def test_importances_leave_optunas_logging_as_it_was(capfd):
    before = optuna.logging.get_verbosity()
    importance.setting_importances(invented_sweep(8), "m", SPACE)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr().err == ""
