"""The tables of a report: what a run was and how it ended, its scores, settings that differ, times, environment."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.recipes import RECIPES
from jobs.report_page import Block, Folded, Note, Table
from jobs.report_runs import STAND_IN, Missing, Run, Training
from pipeline.config import RunConfig, flatten
from pipeline.data.manifest import Manifest
from pipeline.evaluation.scores import TABLE_KEYS
from pipeline.tracking.server import TrackingError
from pipeline.tracking.tracker import run_tags

METRICS = {
    "frechet_latent": "Frechet distance, top principal components, smaller is better",
    "recall": "share of data near a sample",
    "precision": "share of samples near data",
    "duplicates": "share of near-copies among the samples",
    "kl_forward": "forward KL divergence per dimension",
    "kl_reverse": "reverse KL divergence per dimension",
    "kl_sum": "both KL divergences",
    "variance_ratio": "variance over that of the data, 1 is right",
    "fresh_frechet_latent": "Frechet distance, fresh protocol",
    "fresh_kl_forward": "forward KL divergence, fresh protocol",
    "fresh_kl_reverse": "reverse KL divergence, fresh protocol",
    "persistent_kl_forward": "forward KL divergence, training chains",
    "persistent_kl_reverse": "reverse KL divergence, training chains",
    "reconstruction_mse": "squared reconstruction error",
    "psnr": "PSNR, dB",
    "memorization_ratio": "distance to training rows over that of test rows, 1 as new, 0 copies",
    "face_share": "share with a detected face",
    "pairwise_distance": "mean distance between samples",
}
TEST_KEYS = (*TABLE_KEYS, "memorization_ratio")
_TAGS = {
    "mlflow.source.git.commit": "git commit",
    "git.dirty": "with changes not committed",
    "version.python": "Python",
    "version.torch": "torch",
    "version.ray": "Ray",
    "version.mlflow": "MLflow",
    "version.faiss-cpu": "faiss (CPU)",
    "version.faiss-gpu": "faiss (GPU)",
    "status": "state of the MLflow run",
}


def number(value: Any, spread: Any = None) -> str:
    """Four digits; a dash for nothing. `spread` is added as ± where it is known."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f"{text} ± {spread:.2g}" if isinstance(spread, int | float) and math.isfinite(spread) else text


def metric_name(key: str) -> str:
    """The metric's key, and in words what it is."""
    return f"{key} ({METRICS[key]})" if key in METRICS else key


def data_name(dataset: str | None) -> str:
    """The data's name; drawn stand-ins are called that."""
    if dataset is None:
        return "not known"
    return f"{dataset} (drawn stand-in faces, NOT CelebA)" if dataset == STAND_IN else dataset


def ending(training: Training, manifest: Manifest | None) -> str:
    """How a training ended, as far as its folder says."""
    phases, steps = training.phases(manifest), training.steps
    if not training.history:
        return "not known: no update was reported"
    total = phases[1] if phases else training.summary.get("total_updates")
    of = f"{steps:,} of {total:,} updates" if total else f"{steps:,} updates"
    if total and steps >= total:
        return f"finished: {of}"
    if (training.folder / "failure.json").exists():
        try:
            reason = json.loads((training.folder / "failure.json").read_text())["error"]
        except (OSError, ValueError, KeyError, TypeError):
            reason = "its reason cannot be read"
        return f"failed after {of}: {reason}"
    return f"stopped on request after {of}" if training.meta.get("stopped") else f"not finished: {of}"


def facts(run: Run, manifest: Manifest | None) -> Table:
    """What was trained, on what, and how it ended."""
    training = run.training
    rows = [["Run", run.name]]
    if training is not None:
        model = training.settings.get("model", {})
        units = [f"{model.get(f'num_{k}', 0):,} {model.get(f'{k}_units')} {k} units" for k in ("visible", "hidden")]
        names = {
            "BEAM": f"BEAM: {' and '.join(units)}",
            "GAN": f"{model.get('architecture')} {str(model.get('loss')).upper()}",
            "autoencoder": "convolutional autoencoder",
        }
        rows.append(["Model", names[training.kind]])
        rows.append(["Recipe", str(training.settings.get("name", "not known"))])
    rows.append(["Data", data_name(run.dataset or (manifest.dataset if manifest else None))])
    if manifest is not None:
        counts = ", ".join(f"{split.rows:,} {name}" for name, split in sorted(manifest.splits.items()))
        rows.append(["Rows", f"{counts} ({manifest.kind})"])
    several = len(run.parts) > 1
    for part in run.parts.values():
        fitting = manifest if manifest is not None and manifest.hash == part.data_hash else None
        rows.append([f"How {part.name} ended" if several else "How it ended", ending(part, fitting)])
    switch = training.switch(manifest) if training is not None else None
    if training is not None and switch is not None:
        gamma = training.settings.get("schedules", {}).get("adversarial", {}).get("gamma")
        rows.append(["Adversary", f"from update {switch:,}, gamma {gamma}"])
    rows += [[f"Registered {what}", registered] for what, registered in _registered(run.summary)]
    return Table((), rows)


def _registered(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for what in ("model", "autoencoder"):
        model = summary.get(what) or {}
        if "name" in model and "version" in model:
            aliases = f" ({', '.join(model['aliases'])})" if model.get("aliases") else ""
            reason = f": {model['promotion']}" if model.get("promotion") else ""
            found.append((what, f"models:/{model['name']}/{model['version']}{aliases}{reason}"))
    return found


def test_scores(run: Run) -> list[Block]:
    """The main job's scores on the test partition, beside its baselines."""
    table, count = run.summary["comparison"], run.summary.get("metrics", {}).get("num_test_rows")
    keys = [key for key in TEST_KEYS if any(key in row for row in table.values())]
    models = sorted(table, key=lambda name: (name != "BEAM", "frechet_latent_spread" not in table[name]))
    rows = [[n, *(number(table[n].get(key), table[n].get(f"{key}_spread")) for key in keys)] for n in models]
    caption = (
        f"Test partition: {number(count)} samples of each against as many test rows; models: driven protocol, E[v|h], "
        "mean ± deviation over 3 sampling seeds"
    )
    head = ["", *(key.removesuffix("_latent").replace("_", " ") for key in keys)]
    return [Table(head, rows, caption)]


def heldout_scores(trainings: Sequence[Training], manifest: Manifest | None) -> list[Block]:
    """The last held-out metrics of each training, side by side."""
    last = {t.name: t.evaluations()[-1] for t in trainings if t.evaluations()}
    if not last:
        raise Missing("no held-out metrics were reported yet")
    keys = [key for key in METRICS if any(key in row for row in last.values())]
    rows = [[metric_name(key), *(number(row.get(key)) for row in last.values())] for key in keys]
    rows.insert(0, ["measured after update", *(f"{int(row['step']):,}" for row in last.values())])
    counts = {_heldout_rows(t, manifest) for t in trainings if t.name in last}
    count = counts.pop() if len(counts) == 1 else "different numbers of"
    noisy = {t.settings.get("evaluation", {}).get("samples", "mean") for t in trainings if t.is_beam}
    what = {"mean": "E[v|h]", "noisy": "v with its noise"}.get(
        noisy.pop() if len(noisy) == 1 else "", "see samples below"
    )
    beams = any(t.is_beam for t in trainings)
    caption = f"Held-out (valid) rows: {count}" + (f", as many samples, driven protocol, {what}" if beams else "")
    return [Table(["", *last], rows, caption)]


def _heldout_rows(training: Training, manifest: Manifest | None) -> str:
    wanted = training.settings.get("evaluation", {}).get("num_rows")
    there = manifest.splits["valid"].rows if manifest is not None and "valid" in manifest.splits else wanted
    return "an unknown number" if wanted is None else f"{min(wanted, there):,}"


def settings(trainings: Sequence[Training], with_recipe: bool) -> list[Block]:
    """The settings in which trainings differ, from one another and (`with_recipe`) from the first one's recipe."""
    columns = {t.name: _leaves(t) for t in trainings if t.settings}
    if not columns:
        raise Missing("no settings are known: config.json is missing or damaged")
    recipe = RECIPES.get(str(trainings[0].settings.get("name")))
    if with_recipe and recipe is not None:
        columns = {"the recipe": flatten(RunConfig.from_dict(recipe().to_dict()).to_dict()), **columns}
    keys = sorted({key for leaves in columns.values() for key in leaves} - {"config_version"})
    rows = [[key, *(_setting(leaves, key) for leaves in columns.values())] for key in keys]
    different = [row for row in rows if len(set(row[1:])) > 1]
    blocks: list[Block] = []
    if with_recipe and recipe is None:
        blocks.append(
            Note(f"{trainings[0].settings.get('name')!r} is no recipe of this program: nothing to compare with.")
        )
    if different:
        blocks.append(Table(["setting", *columns], different))
    elif len(columns) > 1:
        blocks.append(Note("None: all settings are the same" + (" as the recipe's." if with_recipe else ".")))
    return [*blocks, Folded(f"All {len(rows)} settings", [Table(["setting", *columns], rows)])]


def _leaves(training: Training) -> dict[str, Any]:
    try:  # a setting that came up since then has the default that the run had
        return flatten(training.config.to_dict())
    except Missing:
        return flatten(training.settings)


def _setting(leaves: Mapping[str, Any], key: str) -> str:
    if key not in leaves:
        return "–"
    value = leaves[key]
    return value if isinstance(value, str) else json.dumps(value)


def times(runs: Sequence[Run]) -> list[Block]:
    """Seconds per stage, and the speed of training."""
    blocks: list[Block] = []
    for run in runs:
        stages = run.summary.get("stages") or {}
        rows = [
            [name, number(float(s["seconds"])), "skipped" if s.get("skipped") else ""] for name, s in stages.items()
        ]
        if rows and not any(s.get("skipped") for s in stages.values()):
            rows.append(["all", number(float(sum(s["seconds"] for s in stages.values()))), ""])
        caption = run.name if len(runs) > 1 else ""
        if rows:
            blocks.append(Table(["stage", "seconds", ""], rows, caption))
        else:
            blocks.append(
                Note(f"{run.name}: no summary.json, so no times: it is not finished, or is older.", missing=True)
            )
    speeds = []
    for run in runs:
        for part in run.parts.values():
            rates = sorted(row["updates_per_second"] for row in part.history if "updates_per_second" in row)
            if rates:
                name = f"{run.name}, {part.name}" if part.name != run.name else run.name
                speeds.append([name, f"{rates[len(rates) // 2]:.3g}"])
    return [*blocks, *([Table(["training", "updates per second, median"], speeds)] if speeds else [])]


def environment(trainings: Sequence[Training], tracking: str | None) -> list[Block]:
    """Which code ran on what: from MLflow where it answers, and from the newest checkpoint."""
    columns: dict[str, dict[str, str]] = {}
    notes: list[Block] = []
    for training in trainings:
        tags: dict[str, str] = {}
        try:
            if training.run_id is None:
                raise TrackingError("its folder names no MLflow run (mlflow_run_id)")
            tags = run_tags(training.run_id, tracking)
        except TrackingError as error:
            notes.append(Note(f"{training.name}: nothing from MLflow: {error}.", missing=True))
        meta = training.meta
        found = {"torch": meta.get("torch"), "device": meta.get("device"), "workers": meta.get("world_size")}
        found |= {"seed": training.settings.get("seed"), "MLflow run": training.run_id}
        found |= {name: tags[tag][:12] for tag, name in _TAGS.items() if tag in tags}
        found |= {tag: value for tag, value in tags.items() if tag.startswith("changed.")}
        columns[training.name] = {name: str(value) for name, value in found.items() if value is not None}
    names = list(dict.fromkeys([*_TAGS.values(), *(name for column in columns.values() for name in column)]))
    rows = [[name, *(column.get(name, "–") for column in columns.values())] for name in names]
    rows = [row for row in rows if set(row[1:]) != {"–"}]
    return [*([Table(["", *columns], rows)] if rows else []), *notes]


def problems(run: Run) -> list[Block]:
    """What was missing or damaged in the run's folder."""
    found = [*run.problems, *(f"{part.name}: {text}" for part in run.parts.values() for text in part.problems)]
    return [Note(f"{text[0].upper()}{text[1:]}.", missing=True) for text in found]
