"""Search settings of a recipe: trials on Ray Tune, the best one trained in full over 3 seeds beside the recipe, registered.

A sweep's folder holds everything: the same command goes on with one that was interrupted and repeats no finished trial.
Trials are judged on the validation split by a fixed protocol that no searched setting changes; the last comparison is on
the test split. The recipe's own values are always the first trial.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from data_prep.celeba import open_celeba
from data_prep.manifest import write_json
from data_prep.mixtures import draw_mixture
from jobs.chain import Chain, Stopped, is_registered, read_beam
from jobs.evaluate import Scene, open_scene
from jobs.ray_session import prepare_environment, ray_session
from jobs.recipes import AUTOENCODER_OF, MIXTURE_OF, TOYS, recipe
from jobs.spaces import as_text, space_of
from jobs.stages import Stages
from jobs.tracked import tracker_at
from jobs.train import TrainingFailed, total_updates
from jobs.trial import Segment, SweepPlan
from pipeline.config import ConfigError, RBMConfig, RunConfig, parse_settings
from pipeline.data.rows import read_scaling
from pipeline.data.shards import Manifest, read_manifest
from pipeline.packaged import PackagedBeam
from pipeline.samplers.protocols import WideStart
from pipeline.tracking import Tracker
from pipeline.training.checkpoint import load_latest

STAGES = ("search", "final", "scores", "registry", "pictures")
DATA_STAGES = ("data", "pixels", "autoencoder", "latents")
SCHEDULERS = ("asha", "pbt", "none")
NUM_SEEDS = 3
OBJECTIVES = ("frechet_latent", "kl_forward", "kl_sum", "recall", "precision", "duplicates")
"""Metrics that may be an objective: noise lowers the reverse KL alone, and persistent chains carry the searched sampler."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """A sweep: what was asked for, and where things lie."""

    args: argparse.Namespace
    config: RunConfig
    space: Mapping[str, Any]
    objectives: Mapping[str, str]
    folder: Path
    cache: Path
    data_dir: Path
    manifest: Manifest

    @property
    def metric(self) -> str:
        """What decides between trials; smaller is better."""
        return self.config.evaluation.selection_metric

    @property
    def seeds(self) -> list[int]:
        """Training seeds of the final comparison."""
        return [self.config.seed + i for i in range(NUM_SEEDS)]

    def definition(self) -> dict[str, Any]:
        """All that decides which trials there are, as plain values."""
        return {
            "config": self.config.to_dict(),
            "data_hash": self.manifest.hash,
            "space": {key: as_text(distribution) for key, distribution in self.space.items()},
            "objectives": dict(self.objectives),
            "scheduler": self.args.scheduler,
            "trials": self.args.trials,
            "search_seed": self.args.seed,
        }

    def plan(self, stage: str) -> SweepPlan:
        """What the trials of a stage share; call it while Ray runs."""
        import ray

        gpus = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else 0
        return SweepPlan(
            self.config.to_dict(),
            str(self.data_dir),
            self.manifest.hash,
            str(self.folder),
            self.args.workers,
            use_gpu=gpus >= self.args.workers * self.args.concurrent,
            stage=stage,
        )

    def ray(self) -> Any:
        """Ray for a stage of trials, with spare CPUs: what Tune cuts frees its own a little later."""
        return ray_session(self.cache, 2 * self.args.workers * self.args.concurrent + 1, sweep=True)


# --- data ------------------------------------------------------------------------------------------------------------


def prepare_data(args: argparse.Namespace, config: RunConfig, cache: Path) -> Path:
    """The shards that the recipe is trained on: given, drawn, or made as the main job makes them (in its own run folder)."""
    if args.data is not None:
        return args.data.resolve()
    if args.recipe in MIXTURE_OF:
        name = MIXTURE_OF[args.recipe]
        draw_mixture(name, cache / f"mixture-{name}")
        return cache / f"mixture-{name}"
    label = "synthetic-faces" if args.celeba is None else open_celeba(args.celeba).dataset
    if args.celeba is None:
        print("no CelebA given (CELEBA=...): drawing stand-in faces, labeled synthetic-faces everywhere", flush=True)
    folder = (args.runs / f"{label}-{args.recipe}").resolve()
    autoencoder = recipe(AUTOENCODER_OF.get(args.recipe, "celeba_autoencoder"), {})
    chain_args = argparse.Namespace(
        celeba=args.celeba, recipe=args.recipe, workers=args.workers, local=args.local, crop=148
    )
    chain = Chain(chain_args, config, autoencoder, folder, cache, Stages(folder, DATA_STAGES, None))
    with nullcontext() if args.local else ray_session(cache, max(args.workers, os.cpu_count() or 1)):
        pixel_dir, pixels = chain.pixels(chain.source())
        return chain.latents(pixel_dir, chain.autoencoder(pixel_dir, pixels))[0]


# --- stages ----------------------------------------------------------------------------------------------------------


def search(sweep: Sweep, parent: Tracker | None) -> dict[str, Any]:
    """Run the trials; returns their table."""
    with sweep.ray():
        from jobs.search import own_values, population_search, tpe_search
        from jobs.sweep_progress import Watcher
        from jobs.sweep_result import trial_table

        plan, args = sweep.plan("search"), sweep.args
        with Watcher(plan, args.trials, sweep.metric, parent, _tags(sweep)):
            if args.scheduler == "pbt":
                interval = args.interval or sweep.config.evaluation.every_updates
                population_search(plan, sweep.space, sweep.metric, args.trials, args.seed, interval)
            else:
                asha = args.scheduler == "asha"
                tpe_search(plan, sweep.space, sweep.objectives, args.trials, args.concurrent, args.seed, asha)
        return {"trials": trial_table(plan, sweep.metric, own_values(sweep.config, sweep.space))}


def variants_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Segment]]:
    """The recipe and, unless it is the recipe, the best trial.

    Raises:
        TrainingFailed: no trial came to a score.
    """
    from jobs.sweep_result import RECIPE, WINNER, best_of

    best = best_of(rows)
    if best is None:
        reasons = "; ".join(sorted({row["reason"] for row in rows if row["reason"]})) or "none was trained far enough"
        raise TrainingFailed(f"no trial came to a score: {reasons}")
    variants = {RECIPE: [Segment({})]}
    lineage = [Segment(**segment) for segment in best["lineage"]]
    if not (best["recipe"] and len(lineage) == 1):
        variants[WINNER] = lineage
    return variants


def train_final(sweep: Sweep, variants: Mapping[str, Sequence[Segment]], parent: Tracker | None) -> dict[str, Any]:
    """Train winner and recipe in full over the seeds."""
    with sweep.ray():
        from jobs.search import final_runs
        from jobs.sweep_progress import Watcher, read_trials

        plan = sweep.plan("final")
        with Watcher(plan, len(variants) * NUM_SEEDS, sweep.metric, parent, _tags(sweep)):
            final_runs(plan, variants, sweep.seeds, sweep.args.concurrent)
        records = read_trials(plan)
    failed = [record for record in records if record.status != "finished"]
    if failed:
        what = f"{failed[0].settings['variant']} with seed {failed[0].settings['seed']}"
        raise TrainingFailed(
            f"the final run of the {what} did not come to its end: {failed[0].error or 'it was stopped'}"
        )
    return {"runs": [{**record.settings, "folder": f"trials/{record.folder}"} for record in records]}


def register(
    sweep: Sweep, scored: Mapping[str, Any], judged: Mapping[str, Any], run_id: str, scene: Any
) -> dict[str, Any]:
    """Register the winner (the recipe when nothing beat it) as candidate; promote it only when it beats the spread.

    It is the model of the first seed, not the best of the three: that would be chosen on the test split.
    """
    from jobs.sweep_result import RECIPE, WINNER, final_run
    from pipeline.model_card import measured, model_card
    from pipeline.promotion import promote_if_better, set_candidate
    from pipeline.registry import register_beam
    from pipeline.versions import model_name

    variant = scored.get(WINNER, scored[RECIPE])
    config, folder = final_run(sweep.plan("final"), [Segment(**s) for s in variant["lineage"]], sweep.seeds[0])
    found = load_latest(folder / "checkpoints")
    assert found is not None and isinstance(config.model, RBMConfig)
    rbm, chains = read_beam(found, config.model)
    scores, dataset = variant["runs"][0]["scores"], sweep.manifest.dataset
    autoencoder = scene.autoencoder if isinstance(scene, Scene) else None
    package = PackagedBeam(
        rbm, config, read_scaling(sweep.data_dir), WideStart.of(scene.train), chains, autoencoder, dataset, scores
    )
    label = f"{dataset}-toy" if sweep.args.recipe in TOYS else dataset
    name = model_name(label, "beam")
    comparison = {
        which: {key: value for metric in _shown(row) for key, value in _with_spread(row, metric)}
        for which, row in scored.items()
    }
    card = model_card(
        name=name,
        kind="beam",
        dataset=dataset,
        data_hash=sweep.manifest.hash,
        recipe=config.name,
        metrics=measured(scores, num_rows=len(scene.test), num_seeds=3),
        score_name=sweep.metric,
        settings=variant["settings"],
        comparison=comparison,
        comparison_note=f"Found by a sweep of {sweep.args.trials} trials. Training seeds {sweep.seeds}, test partition: "
        f"{judged['verdict']}. Spreads are standard deviations over training seeds.",
        num_visible=None if autoencoder is not None else config.model.num_visible,
        run_id=run_id,
    )
    version = register_beam(
        package,
        name=name,
        run_id=run_id,
        data_hash=sweep.manifest.hash,
        recipe=config.name,
        score=variant["mean"][sweep.metric],
        score_name=sweep.metric,
        num_rows=len(scene.test),
        spread=variant["spread"][sweep.metric],
        card=card,
    )
    set_candidate(version.name, version.version)
    promotion = f"not promoted: {judged['verdict']}"
    if judged["better"]:
        promotion = promote_if_better(version.name, version.version, beyond_spread=True).reason
    return {
        "name": version.name,
        "version": version.version,
        "content": version.tags["content_hash"],
        "promotion": promotion,
    }


def _shown(row: Mapping[str, Any]) -> list[str]:
    return [m for m in (*OBJECTIVES, "kl_reverse", "variance_ratio") if m in row["mean"]]


def _with_spread(row: Mapping[str, Any], metric: str) -> list[tuple[str, float]]:
    return [(metric, row["mean"][metric]), (f"{metric}_spread", row["spread"][metric])]


def _tags(sweep: Sweep) -> dict[str, str]:
    return {
        "dataset": sweep.manifest.dataset,
        "data_hash": sweep.manifest.hash,
        "recipe": sweep.config.name,
        "sweep": sweep.folder.name,
    }


def run_sweep(sweep: Sweep, stages: Stages, parent: Tracker | None) -> dict[str, Any]:
    """All stages; returns the summary that is also written to <sweep>/summary.json."""
    begun = sweep.definition()
    rows = stages.run("search", begun, lambda: search(sweep, parent))["trials"]
    from jobs.sweep_result import draw_pictures, judge, pareto_front, score_variants

    variants = variants_of(rows)
    lineages = {name: [segment._asdict() for segment in lineage] for name, lineage in variants.items()}
    inputs = {"sweep": begun, "variants": lineages, "seeds": sweep.seeds}
    stages.run("final", inputs, lambda: train_final(sweep, variants, parent))

    scene = open_scene(sweep.data_dir, sweep.cache, sweep.config.evaluation.num_components)
    plan = sweep.plan("final")
    scored = stages.run("scores", inputs, lambda: score_variants(plan, variants, sweep.seeds, scene))
    judged = judge(scored, sweep.metric)
    model: dict[str, Any] = {}
    if parent is not None:
        run_id = parent.run_id
        model = stages.run(
            "registry",
            inputs,
            lambda: register(sweep, scored, judged, run_id, scene),
            lambda out: is_registered(out["name"], out),
        )
    switch = total_updates(sweep.config, sweep.manifest.splits["train"].rows)[0]
    pictures = stages.run(
        "pictures",
        inputs,
        lambda: draw_pictures(plan, rows, sweep.space, scored, sweep.metric, switch, scene, sweep.manifest.dataset),
        lambda out: all(Path(path).exists() for path in out.values()),
    )
    summary = {
        "kind": "sweep",
        **begun,
        "recipe": sweep.config.name,
        "dataset": sweep.manifest.dataset,
        "metric": sweep.metric,
        "stages": {r.name: {"seconds": round(r.seconds, 2), "skipped": r.skipped} for r in stages.reports},
        "metrics": {name: row["mean"][sweep.metric] for name, row in scored.items()},
        "trials": rows,
        "pareto_front": pareto_front(rows, sweep.objectives) if len(sweep.objectives) > 1 else [],
        "final": {"variants": scored, **judged, "num_rows": len(scene.test)},
        "model": model,
        "pictures": pictures,
        "mlflow_run_id": None if parent is None else parent.run_id,
    }
    write_json(sweep.folder / "summary.json", summary)
    if parent is not None:
        for path in pictures.values():
            parent.log_artifact(path, "pictures")
        parent.log_artifact(sweep.folder / "summary.json")
        parent.log(0, {f"final_{name}": value for name, value in summary["metrics"].items()})
    return summary


# --- what people see ---------------------------------------------------------------------------------------------------


def last_word(summary: Mapping[str, Any], folder: Path, seconds: float) -> str:
    """The table of trials, the comparison and where things are."""
    metric, rows = summary["metric"], summary["trials"]
    keys = list(summary["space"])
    short = [key.replace("schedules.", "").replace("learning_rate.initial", "lr").split(".", 1) for key in keys]
    heads = [part[-1] if part[-1] != "lr" else f"lr {part[0][:3]}." for part in short]
    stand_in = " (drawn stand-in faces, NOT CelebA)" if summary["dataset"] == "synthetic-faces" else ""
    lines = ["", f"data set: {summary['dataset']}{stand_in}", ""]
    lines += [f"{'trial':18s} {'status':9s} {'updates':>8s} {metric:>15s}" + "".join(f" {h[:13]:>13s}" for h in heads)]
    order = sorted(rows, key=lambda row: (row["score"] is None, row["score"]))
    for row in order:
        score = "-" if row["score"] is None else f"{row['score']:.4g}"
        values = "".join(f" {_cell(row['settings'].get(key)):>13s}" for key in keys)
        mark = " recipe" if row["recipe"] else ""
        mark += " pareto" if row["id"] in summary["pareto_front"] else ""
        lines += [f"{row['id']:18s} {row['status']:9s} {row['updates']:8d} {score:>15s}{values}{mark}"]
    for row in order:
        if row["reason"]:
            lines += [f"{row['id']} failed: {row['reason']}"]
    final = summary["final"]
    lines += [
        "",
        f"trained in full, test partition, {final['num_rows']} samples against as many rows, driven protocol:",
    ]
    for name, variant in final["variants"].items():
        means, spreads = variant["mean"], variant["spread"]
        cells = (f"{m} {means[m]:.4g} +- {spreads[m]:.2g}" for m in _shown(variant))
        lines += [f"  {name:7s} ({len(variant['runs'])} training seeds): " + ", ".join(cells)]
    lines += [f"  {final['verdict']}"]
    if model := summary["model"]:
        lines += ["", f"candidate: models:/{model['name']}/{model['version']}: {model['promotion']}"]
    lines += [f"MLflow run: {summary['mlflow_run_id']}"] if summary["mlflow_run_id"] else []
    lines += [f"picture: {path}" for path in summary["pictures"].values()]
    lines += [f"summary: {folder / 'summary.json'}", f"total: {seconds:.0f} s"]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def parse_objectives(text: str | None, config: RunConfig) -> dict[str, str]:
    """`frechet_latent:min,recall:max` as metric -> mode; None: the recipe's selection metric. Raises ConfigError."""
    if text is None:
        return {config.evaluation.selection_metric: "min"}
    found: dict[str, str] = {}
    for item in text.split(","):
        metric, _, mode = item.strip().partition(":")
        if metric not in OBJECTIVES or mode not in ("min", "max"):
            raise ConfigError(
                f"--objectives {item.strip()!r}: write METRIC:min or METRIC:max with one of {', '.join(OBJECTIVES)} (noise "
                "lowers the reverse KL alone, so it is none of them)"
            )
        found[metric] = mode
    if config.evaluation.selection_metric not in found:
        raise ConfigError(
            f"--objectives {text}: {config.evaluation.selection_metric} has to be one of them: it decides which trial is "
            "trained in full (--set evaluation.selection_metric=... for another)"
        )
    return found


def refuse_another_sweep(folder: Path, definition: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming what differs, when the folder holds a sweep that was defined otherwise."""
    file = folder / "sweep.json"
    if not file.exists():
        return
    theirs = json.loads(file.read_text())
    theirs["config"] = RunConfig.from_dict(
        theirs["config"]
    ).to_dict()  # settings that came up since have their defaults
    different = [key for key in definition if definition[key] != theirs.get(key)]
    if different:
        raise ConfigError(
            f"{folder} holds another sweep: {', '.join(different)} differ; choose another --name, or delete that folder"
        )


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM as Ctrl-C, which Tune and the stages know how to end."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tune", description=__doc__)
    parser.add_argument(
        "--recipe", help="default: celeba_beam with --celeba, mixture_toy with --quick, else faces_quick"
    )
    parser.add_argument("--celeba", type=Path, help="folder or zip of the aligned photographs")
    parser.add_argument("--data", type=Path, help="folder of prepared shards, in place of --celeba")
    parser.add_argument("--quick", action="store_true", help="recipe mixture_toy and 4 trials, for CI")
    parser.add_argument("--trials", type=int, help="in all (default 12; 4 with --quick)")
    parser.add_argument("--concurrent", type=int, help="trials at a time (default: CPUs over workers, at most 8)")
    parser.add_argument("--workers", type=int, default=1, help="Ray Train workers of each trial (default 1)")
    parser.add_argument(
        "--space", action="append", default=[], metavar="KEY=DIST", help="for instance a.b=uniform(0,1)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="asha", help="(default asha)")
    parser.add_argument(
        "--interval", type=int, help="pbt: updates between perturbations (default: between evaluations)"
    )
    parser.add_argument(
        "--objectives", metavar="M:min,M:max", help="several make the search multi-objective, without asha"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--name", help="the sweep's folder under --runs (default: sweep-RECIPE)")
    parser.add_argument("--from", dest="redo_from", metavar="STAGE", help=f"redo from: {', '.join(STAGES)}")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--local", action="store_true", help="prepare data without Ray (trials need it)")
    parser.add_argument("--no-tracking", action="store_true", help="no MLflow: nothing is logged or registered")
    parser.add_argument("--show", action="store_true", help="print the space and end")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Fill in defaults. Raises ConfigError on numbers out of range."""
    args.recipe = args.recipe or ("mixture_toy" if args.quick else "celeba_beam" if args.celeba else "faces_quick")
    args.trials = args.trials or (4 if args.quick else 12)
    args.concurrent = args.concurrent or max(1, min(8, (os.cpu_count() or 1) // max(args.workers, 1)))
    for name in ("trials", "concurrent", "workers"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: at least 1")
    if args.scheduler == "pbt" and args.trials < 4:
        raise ConfigError(f"--trials {args.trials}: a population needs at least 4 members")
    if args.scheduler == "pbt" and args.objectives:
        raise ConfigError("--objectives: a population has one objective, the recipe's evaluation.selection_metric")
    if args.interval is not None and (args.scheduler != "pbt" or args.interval < 1):
        raise ConfigError("--interval is at least 1, and for --scheduler pbt only")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 130 interrupted (the same command goes on), 2 a user's error."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    begin, parent, status = time.perf_counter(), None, "FAILED"
    prepare_environment(args.cache.resolve())  # before anything imports ray
    from jobs.search import Interrupted

    try:
        check(args)
        config = recipe(args.recipe, parse_settings(args.settings))
        space = space_of(config, args.space)
        objectives = parse_objectives(args.objectives, config)
        if args.show:
            print("\n".join(f"{key} = {as_text(distribution)}" for key, distribution in space.items()))
            return 0
        folder, cache = (args.runs / (args.name or f"sweep-{args.recipe}")).resolve(), args.cache.resolve()
        with _terminate_as_interrupt():
            data_dir = prepare_data(args, config, cache)
            sweep = Sweep(args, config, space, objectives, folder, cache, data_dir, read_manifest(data_dir))
            refuse_another_sweep(folder, sweep.definition())
            stages = Stages(folder, STAGES, args.redo_from)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "sweep.json", sweep.definition())
            if not args.no_tracking:
                parent = tracker_at(folder / "mlflow_run_id", folder.name, sweep.definition(), _tags(sweep))
            summary = run_sweep(sweep, stages, parent)
            status = "FINISHED"
    except (KeyboardInterrupt, Interrupted, Stopped) as stop:
        status = "KILLED"
        print(f"interrupted ({stop}); the same command goes on from there", file=sys.stderr)
        return 130
    except (ValueError, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if parent is not None:
            parent.finish(status)
    print(last_word(summary, folder, time.perf_counter() - begin))
    return 0


if __name__ == "__main__":
    from jobs.tune import main as imported_main

    sys.exit(imported_main())
