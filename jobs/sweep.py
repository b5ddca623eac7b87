"""A sweep from its data to its registered winner: search, final comparison, scores, pictures, registry."""

import argparse
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.celeba import open_celeba
from data_prep.mixtures import draw_mixture
from jobs.chain import Chain, is_registered
from jobs.ray_session import interruptible, ray_session
from jobs.recipes import AUTOENCODER_OF, MIXTURE_OF, TOYS, recipe
from jobs.registry_wait import when_there
from jobs.spaces import as_text
from jobs.trial import Segment, SweepPlan
from pipeline.config import RBMConfig, RunConfig
from pipeline.data.manifest import Manifest
from pipeline.data.rows import read_scaling
from pipeline.evaluation.scene import PointScene, Scene, open_scene
from pipeline.evaluation.scores import SEEDS
from pipeline.files import write_json
from pipeline.packages.models import PackagedBeam
from pipeline.runs.job import TrainingFailed, total_updates
from pipeline.runs.stages import Stages
from pipeline.runs.trained import read_beam
from pipeline.samplers.protocols import WideStart
from pipeline.tracking.tracker import Tracker
from pipeline.training.checkpoint import load_latest

STAGES = ("search", "final", "scores", "pictures", "registry")
DATA_STAGES = ("data", "pixels", "autoencoder", "latents")
NUM_SEEDS = 3
OBJECTIVES = ("frechet_latent", "kl_forward", "kl_sum", "recall", "precision", "duplicates")
"""Metrics that may be an objective: noise lowers the reverse KL alone, and persistent chains carry the searched sampler."""


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
            "interval": self.args.interval,
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
            use_gpu=gpus >= self.args.workers,  # with fewer than all trials need, some wait
            stage=stage,
        )

    @contextmanager
    def ray(self) -> Iterator[None]:
        """Ray for a stage of trials, with spare CPUs: what Tune cuts frees its own a little later."""
        num_cpus = 2 * self.args.workers * self.args.concurrent + 1
        with ray_session(self.cache, num_cpus, sweep=True), interruptible():
            yield


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
        celeba=args.celeba,
        recipe=args.recipe,
        workers=args.workers,
        min_workers=None,
        local=args.local,
        crop=148,
        storage=None,
        command=args.command,
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
        from jobs.sweep_progress import Watcher, keep_known
        from jobs.sweep_result import trial_table

        plan, args = sweep.plan("search"), sweep.args
        with Watcher(plan, args.trials, sweep.metric, parent, tags_of(sweep)):
            if args.scheduler == "pbt":
                interval = args.interval or sweep.config.evaluation.every_updates
                known = population_search(plan, sweep.space, sweep.metric, args.trials, args.seed, interval)
            else:
                asha = args.scheduler == "asha"
                known = tpe_search(plan, sweep.space, sweep.objectives, args.trials, args.concurrent, args.seed, asha)
        keep_known(plan, known)
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


def forget_stage(folder: Path, stage: str) -> None:
    """Remove what Tune and the trials' notes know of a stage; what was trained stays."""
    for place in ("tune", "progress"):
        shutil.rmtree(folder / place / stage, ignore_errors=True)


def train_final(sweep: Sweep, variants: Mapping[str, Sequence[Segment]], parent: Tracker | None) -> dict[str, Any]:
    """Train winner and recipe in full over the seeds."""
    with sweep.ray():
        from jobs.search import final_runs
        from jobs.sweep_progress import Watcher, keep_known, read_trials

        plan = sweep.plan("final")
        with Watcher(plan, len(variants) * NUM_SEEDS, sweep.metric, parent, tags_of(sweep)):
            known = final_runs(plan, variants, sweep.seeds, sweep.args.concurrent)
        keep_known(plan, known)
        records = [record for record in read_trials(plan) if record.status != "finished"]
    if broken := [record for record in records if not record.diverged]:
        what = f"{broken[0].settings['variant']} with training seed {broken[0].settings['seed']}"
        forget_stage(sweep.folder, "final")  # so that the same command tries again, from the checkpoints
        raise TrainingFailed(f"{what} did not come to its end: {broken[0].error or 'it was stopped'}; try again")
    return {"failed": [{**record.settings, "reason": record.error} for record in records]}


def register(
    sweep: Sweep,
    scored: Mapping[str, Any],
    judged: Mapping[str, Any],
    run_id: str,
    scene: Scene | PointScene,
    pictures: Mapping[str, str],
) -> dict[str, Any]:
    """Register the winner (the recipe when nothing beat it) as candidate; promote it only when it beats the spread.

    It is the model of the first seed, not the best of the three: that would be chosen on the test split.
    """
    from jobs.sweep_result import RECIPE, WINNER, final_run
    from pipeline.registry.card import measured, model_card
    from pipeline.registry.promotion import promote_if_better, set_candidate
    from pipeline.registry.register import register_beam
    from pipeline.registry.versions import find_model, model_name

    which = WINNER if WINNER in scored else RECIPE
    variant = scored[which]
    shown = [Path(pictures[key]) for key in (f"samples_{which}", "final") if key in pictures]
    first = variant["runs"][0]["seed"]
    config, folder = final_run(sweep.plan("final"), [Segment(**s) for s in variant["lineage"]], first)
    found = load_latest(folder / "checkpoints")
    assert found is not None and isinstance(config.model, RBMConfig)
    rbm, chains = read_beam(found, config)
    scores, dataset = variant["runs"][0]["scores"], sweep.manifest.dataset
    autoencoder = scene.autoencoder if isinstance(scene, Scene) else None
    scaling = read_scaling(sweep.data_dir, config.data.scaling)
    package = PackagedBeam(rbm, config, scaling, WideStart.of(scene.train), chains, autoencoder, dataset, scores)
    label = f"{dataset}-toy" if sweep.args.recipe in TOYS else dataset
    name = model_name(label, "beam")
    comparison = {
        one: {key: value for metric in shown_metrics(row) for key, value in _with_spread(row, metric)}
        for one, row in scored.items()
    }
    card = model_card(
        name=name,
        kind="beam",
        dataset=dataset,
        data_hash=sweep.manifest.hash,
        recipe=config.name,
        metrics=measured(scores, num_rows=len(scene.test), num_seeds=len(SEEDS)),
        score_name=sweep.metric,
        settings=variant["settings"],
        comparison=comparison,
        comparison_note=f"Found by a sweep of {sweep.args.trials} trials. Test partition: {judged['verdict']}. Spreads are "
        f"standard deviations over training seeds; this is the model of seed {first}.",
        pictures=[path.name for path in shown],
        num_visible=None if autoencoder is not None else config.model.num_visible,
        run_id=run_id,
    )
    version = register_beam(
        package,
        name=name,
        run_id=run_id,
        data_hash=sweep.manifest.hash,
        recipe=config.name,
        score=scores[sweep.metric],
        score_name=sweep.metric,
        num_rows=len(scene.test),
        spread=variant["spread"][sweep.metric],
        card=card,
        pictures=shown,
    )
    set_candidate(version.name, version.version)
    promotion = f"not promoted: {judged['verdict']}"
    if judged["better"]:
        promotion = promote_if_better(version.name, version.version, beyond_spread=True).reason
    return {
        "name": version.name,
        "version": version.version,
        "content": version.tags["content_hash"],
        "aliases": list(find_model(f"models:/{version.name}/{version.version}").aliases),
        "promotion": promotion,
    }


def shown_metrics(row: Mapping[str, Any]) -> list[str]:
    """The metrics of a variant that tables show."""
    return [m for m in (*OBJECTIVES, "kl_reverse", "variance_ratio") if m in row["mean"]]


def _with_spread(row: Mapping[str, Any], metric: str) -> list[tuple[str, float]]:
    return [(metric, row["mean"][metric]), (f"{metric}_spread", row["spread"][metric])]


def tags_of(sweep: Sweep) -> dict[str, str]:
    """Tags of the sweep's MLflow runs."""
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
    from jobs.sweep_result import RECIPE, draw_pictures, judge, pareto_front, score_variants

    variants = variants_of(rows)
    lineages = {name: [segment._asdict() for segment in lineage] for name, lineage in variants.items()}
    inputs = {"sweep": begun, "variants": lineages, "seeds": sweep.seeds}
    failed = stages.run("final", inputs, lambda: train_final(sweep, variants, parent))["failed"]

    components, scaling = sweep.config.evaluation.num_components, sweep.config.data.scaling  # neither is ever searched
    scene = open_scene(sweep.data_dir, sweep.cache, components, scaling)
    plan = sweep.plan("final")
    seeds = {
        name: [s for s in sweep.seeds if not any(f["variant"] == name and f["seed"] == s for f in failed)]
        for name in variants
    }
    if not seeds[RECIPE]:
        raise TrainingFailed(f"the recipe diverged with every training seed: {failed[0]['reason']}")
    scored = stages.run("scores", inputs, lambda: score_variants(plan, variants, seeds, scene))
    judged = judge(scored, sweep.metric, failed)
    switch = total_updates(sweep.config, sweep.manifest.splits["train"].rows)[0]
    pictures = stages.run(
        "pictures",
        inputs,
        lambda: draw_pictures(plan, rows, sweep.space, scored, sweep.metric, switch, scene, sweep.manifest.dataset),
        lambda out: all(Path(path).exists() for path in out.values()),
    )
    model: dict[str, Any] = {}
    if parent is not None:
        run_id = parent.run_id

        def ask(answer: Callable[[], Any]) -> Any:
            return when_there(answer, "registering the sweep's model", sweep.args.command)

        model = stages.run(
            "registry",
            inputs,
            lambda: ask(lambda: register(sweep, scored, judged, run_id, scene, pictures)),
            lambda out: ask(lambda: is_registered(out["name"], out)),
        )
    summary = {
        "kind": "sweep",
        **begun,
        "recipe": sweep.config.name,
        "dataset": sweep.manifest.dataset,
        "metric": sweep.metric,
        "stages": {r.name: r.to_dict() for r in stages.reports},
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
        parent.log(0, {f"final_{name}": value for name, value in summary["metrics"].items()}, corrects=True)
    return summary
