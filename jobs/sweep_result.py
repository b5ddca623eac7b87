"""What came out of a sweep: the table of trials, the comparison of the winner with the recipe, the pictures of both."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution

from jobs.chain import read_beam
from jobs.evaluate import SEEDS, PointScene, Scene, score_model
from jobs.search import own_values
from jobs.spaces import containing
from jobs.sweep_progress import TrialRecord, read_trials
from jobs.trial import Segment, SweepPlan, folder_of, seeded
from pipeline.config import RBMConfig, RunConfig
from pipeline.pictures.comparison import final_comparison
from pipeline.pictures.grids import image_grid
from pipeline.pictures.sweep import trial_pictures
from pipeline.pictures.trials import sweep_study
from pipeline.samplers.protocols import DRIVEN, WideStart, draw_samples
from pipeline.training.checkpoint import load_latest
from pipeline.training.loop import read_history

RECIPE, WINNER = "recipe", "winner"


def trial_table(plan: SweepPlan, metric: str, own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of plain values for each trial, the recipe's first, then as they began; `own`: the recipe's values."""
    rows = []
    for number, record in enumerate(read_trials(plan)):
        score = record.evaluation.get(metric)
        finite = score is not None and math.isfinite(score) and not record.error
        rows.append(
            {
                "id": f"t{number:02d}-{record.trial}",
                "trial": record.trial,
                "recipe": record.settings == own,
                "status": record.status,
                "reason": record.error,
                "settings": record.lineage[-1].settings if record.lineage else record.settings,
                "lineage": [segment._asdict() for segment in record.lineage],
                "updates": record.updates,
                "total_updates": record.total_updates,
                "score": score if finite else None,
                "metrics": {k: v for k, v in record.evaluation.items() if k != "step"},
                "seconds": seconds_of(record),
                "folder": f"trials/{record.folder}",
                "mlflow_run_id": _text(plan.notes / f"{record.trial}.run"),
            }
        )
    return rows


def seconds_of(record: TrialRecord) -> float:
    """Seconds of training, from the rates in its history."""
    seconds, step = 0.0, 0
    for row in record.history:
        if row.get("updates_per_second"):
            seconds += (row["step"] - step) / row["updates_per_second"]
        step = row["step"]
    return round(seconds, 1)


def best_of(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row with the smallest score, cut trials included: what is cut is trained to its end before it is judged."""
    return min((row for row in rows if row["score"] is not None), key=lambda row: row["score"], default=None)


def pareto_front(rows: Sequence[Mapping[str, Any]], objectives: Mapping[str, str]) -> list[str]:
    """Ids of the trials that no other one beats in all objectives."""
    signs = {metric: 1 if mode == "min" else -1 for metric, mode in objectives.items()}
    points: dict[str, list[float]] = {
        row["id"]: [sign * row["metrics"][metric] for metric, sign in signs.items()]
        for row in rows
        if row["score"] is not None and all(metric in row["metrics"] for metric in signs)
    }

    def beaten(mine: Sequence[float]) -> bool:
        return any(all(a <= b for a, b in zip(p, mine)) and p != mine for p in points.values())

    return [name for name, point in points.items() if not beaten(point)]


def score_variants(
    plan: SweepPlan,
    variants: Mapping[str, Sequence[Segment]],
    seeds: Mapping[str, Sequence[int]],
    scene: Scene | PointScene,
) -> dict[str, Any]:
    """The scores of every variant on the test partition, with mean and standard deviation over its training seeds.

    `seeds`: those with which a variant came to its end; one without any is left out.
    """
    result: dict[str, Any] = {}
    for name, lineage in variants.items():
        if not seeds[name]:
            continue
        runs: list[dict[str, Any]] = []
        for seed in seeds[name]:
            config, folder = final_run(plan, lineage, seed)
            scores = score_model(
                scene, load_rbm(folder, config), WideStart.of(scene.train), config.evaluation.num_neighbors
            )
            runs.append({"seed": seed, "folder": f"trials/{folder.name}", "scores": scores})
        metrics = [key for key in runs[0]["scores"] if not key.endswith("_spread")]
        values = {key: [run["scores"][key] for run in runs] for key in metrics}
        result[name] = {
            "settings": lineage[-1].settings,
            "lineage": [segment._asdict() for segment in lineage],
            "runs": runs,
            "mean": {key: statistics.fmean(value) for key, value in values.items()},
            "spread": {key: statistics.stdev(value) if len(value) > 1 else 0.0 for key, value in values.items()},
        }
    return result


def final_run(plan: SweepPlan, lineage: Sequence[Segment], seed: int) -> tuple[RunConfig, Path]:
    """Settings and folder of a variant's run with one seed."""
    with_seed = seeded(lineage, seed)
    return plan.resolve(with_seed[-1].settings), folder_of(plan, with_seed)


def load_rbm(folder: Path, config: RunConfig) -> Any:
    """The RBM of a folder's newest checkpoint."""
    found = load_latest(folder / "checkpoints")
    assert found is not None and isinstance(config.model, RBMConfig)
    return read_beam(found, config.model)[0]


def judge(scored: Mapping[str, Any], metric: str, failed: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """How the winner compares with the recipe: difference of means (positive: better), larger of the spreads, verdict.

    A winner that failed with any training seed is not better, whatever its other seeds score.
    """
    recipe, winner = scored[RECIPE], scored.get(WINNER)
    if lost := [run for run in failed if run["variant"] == WINNER]:
        seeds = ", ".join(str(run["seed"]) for run in lost)
        verdict = f"the best trial's settings do not hold: with training seed {seeds} {lost[0]['reason']}"
        return {"difference": 0.0, "spread": recipe["spread"][metric], "better": False, "verdict": verdict}
    if winner is None:
        return {
            "difference": 0.0,
            "spread": recipe["spread"][metric],
            "better": False,
            "verdict": "no trial beat the recipe",
        }
    difference = recipe["mean"][metric] - winner["mean"][metric]
    spread = max(recipe["spread"][metric], winner["spread"][metric])
    counts = [len(row["runs"]) for row in (winner, recipe)]
    better = difference > spread and min(counts) > 1
    numbers = f"{winner['mean'][metric]:.4g} against {recipe['mean'][metric]:.4g}"
    how = f"the difference {difference:.3g} {'exceeds' if better else 'does not exceed'} the spread {spread:.3g}"
    verdict = f"{metric} {numbers} over {counts[0]} and {counts[1]} training seeds: {how} between seeds"
    return {"difference": difference, "spread": spread, "better": better, "verdict": verdict}


def draw_pictures(
    plan: SweepPlan,
    rows: Sequence[Mapping[str, Any]],
    space: Mapping[str, BaseDistribution],
    scored: Mapping[str, Any],
    metric: str,
    switch_step: int,
    scene: Scene | PointScene,
    dataset: str,
) -> dict[str, str]:
    """Write the sweep's pictures; name -> path."""
    folder = Path(plan.folder) / "pictures"
    own = own_values(RunConfig.from_dict(plan.config), space)
    histories = {  # a cut trial may have been trained on since
        row["id"]: [r for r in read_history(Path(plan.folder) / row["folder"]) if r["step"] <= row["updates"]]
        for row in rows
    }
    space = dict(space)
    for row in rows:  # a value may lie a rounding outside of its range
        space |= {key: containing(space[key], value) for key, value in row["settings"].items()}
    study = sweep_study(rows, space, metric, own, histories)
    steady = all(len(row["lineage"]) == 1 for row in rows)  # settings that changed in flight made no score alone
    made = trial_pictures(study, folder, dataset, switch_step, importance=steady)
    scores = {name: [run["scores"][metric] for run in variant["runs"]] for name, variant in scored.items()}
    made["final"] = final_comparison(
        scores, metric, folder / "final.png", "Trained in full, test partition", dataset=dataset
    )
    if isinstance(scene, Scene):
        for name, variant in scored.items():
            run_config, run_folder = final_run(
                plan, [Segment(**s) for s in variant["lineage"]], variant["runs"][0]["seed"]
            )
            rbm = load_rbm(run_folder, run_config)
            drawn = draw_samples(rbm, WideStart.of(scene.train), DRIVEN, 36, SEEDS[0]).visible_mean
            title = f"{name}, training seed {variant['runs'][0]['seed']}: driven 100 + 5 sweeps, E[v|h] decoded"
            made[f"samples_{name}"] = image_grid(
                scene.pixels(drawn), 6, folder / f"samples_{name}.png", title, dataset=dataset
            )
    return {name: str(path) for name, path in made.items()}


def _text(file: Path) -> str:
    return file.read_text().strip() if file.exists() else ""
