"""What a run's folder says, whatever is there of it: a training, the main job with its parts, or a sweep.

Nothing here raises for what a run lacks: a missing or damaged file reads as empty, and is named in `problems`.
"""

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError, RunConfig
from pipeline.data.manifest import Manifest
from pipeline.runs.job import total_updates
from pipeline.training.loop import read_history

STAND_IN = "synthetic-faces"
PARTS = {"beam": "BEAM", "control": "likelihood alone (control)", "autoencoder": "autoencoder"}
"""Trainings of the main job: folder -> name on the page."""
SIGNS = ("config.json", "metrics.jsonl", "checkpoints")
"""A folder with one of these holds a training."""


class ReportError(ValueError):
    """A run that cannot be reported on: what was asked for, and what there is."""


class Missing(ValueError):
    """Something that a part of the page needs is not there: says what and why."""


@dataclass(frozen=True)
class Training:
    """A training run's folder."""

    name: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    """config.json as it is."""
    history: list[dict[str, float]] = field(default_factory=list)
    job: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    """Of the newest checkpoint."""
    summary: dict[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    problems: tuple[str, ...] = ()

    @property
    def config(self) -> RunConfig:
        """The settings as this program knows them. Raises Missing."""
        try:
            return RunConfig.from_dict(self.settings)
        except (ConfigError, TypeError, AttributeError) as error:
            raise Missing(f"the settings of {self.name} cannot be read ({error})") from error

    @property
    def data_hash(self) -> str | None:
        """Hash of the manifest of the shards it was trained on."""
        return self.job.get("data_hash") or self.meta.get("data") or self.summary.get("data_hash")

    @property
    def is_beam(self) -> bool:
        """True for an RBM's training, false for an autoencoder's or a GAN's."""
        return self.kind == "BEAM"

    @property
    def kind(self) -> str:
        """`BEAM`, `autoencoder` or `GAN`."""
        model = self.settings.get("model")
        kind = model.get("kind") if isinstance(model, dict) else None
        return {"AutoencoderConfig": "autoencoder", "GANConfig": "GAN"}.get(str(kind), "BEAM")

    @property
    def steps(self) -> int:
        """Updates made, as far as reported."""
        return int(self.history[-1]["step"]) if self.history else 0

    def phases(self, manifest: Manifest | None) -> tuple[int, int] | None:
        """(updates of the likelihood phase, of the whole run); None where it depends on data that are not there."""
        try:
            config = self.config
        except Missing:
            return None
        if manifest is not None:
            return total_updates(config, manifest.splits["train"].rows)
        schedules = (config.schedules.likelihood, config.schedules.adversarial)
        return None if any(p.epochs for p in schedules) else total_updates(config, 1)

    def switch(self, manifest: Manifest | None) -> int | None:
        """The update at which the adversary came in, or None."""
        phases = self.phases(manifest)
        if phases is not None:
            adversary = self.config.schedules.adversarial.gamma < 1
            return phases[0] if adversary and 0 < phases[0] < phases[1] else None
        gammas = [(row["step"], row["gamma"]) for row in self.history if "gamma" in row]
        return next((int(a[0]) for a, b in pairwise(gammas) if a[1] == 1 and b[1] < 1), None)

    def evaluations(self) -> list[dict[str, float]]:
        """Rows of the history with held-out metrics."""
        return [row for row in self.history if "kl_forward" in row or "reconstruction_mse" in row]


@dataclass(frozen=True)
class Run:
    """What was asked for by one name."""

    name: str
    folder: Path
    kind: str
    """`training`, `main` (the main job) or `sweep`."""
    summary: dict[str, Any]
    parts: dict[str, Training]
    """By the name of the part: the main job's, or `run` for a training; of a sweep what its `final` names, or the trials
    that there are while it has none."""
    problems: tuple[str, ...] = ()

    @property
    def training(self) -> Training | None:
        """The training that the run is about: the BEAM's where there is one."""
        return next(
            (self.parts[key] for key in ("run", "beam", "winner", "recipe") if key in self.parts), None
        ) or next(iter(self.parts.values()), None)

    @property
    def dataset(self) -> str | None:
        """The data's name."""
        training = self.training
        known = (training.job.get("dataset"), training.summary.get("dataset")) if training else ()
        return next((name for name in (self.summary.get("dataset"), *known) if name), None)


def find_run(name: str, runs: Path) -> Run:
    """The run in <runs>/<name>, or in the folder `name`.

    Raises:
        ReportError: there is no such folder, or it holds no run.
    """
    folder = next((f for f in (runs / name, Path(name)) if name and f.is_dir()), None)
    if folder is None:
        if Path(name).exists():
            raise ReportError(f"{name!r} is a file: name a run's folder")
        names = sorted(f.name for f in runs.iterdir() if f.is_dir()) if runs.is_dir() else []
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:8]
        raise ReportError(f"there is no run {name!r} in {runs}; there is {', '.join(near) or 'none'}")
    folder = folder.resolve()
    name = folder.relative_to(runs.resolve()).as_posix() if folder.is_relative_to(runs.resolve()) else folder.name
    problems: list[str] = []
    summary = _read_object(folder / "summary.json", problems)
    if summary.get("kind") == "sweep" or (folder / "trials").is_dir():
        return Run(name, folder, "sweep", summary, _trials(folder, summary), tuple(problems))
    parts = {key: label for key, label in PARTS.items() if _holds_training(folder / key)}
    if parts or (folder / "stages").is_dir():
        found = {key: read_training(folder / key, label) for key, label in parts.items()}
        return Run(name, folder, "main", summary, found, tuple(problems))
    if not _holds_training(folder):
        raise ReportError(
            f"{name!r} holds no run: a training has {', '.join(SIGNS)}, the main job the folders "
            f"{', '.join(PARTS)}, a sweep a folder trials"
        )
    return Run(name, folder, "training", summary, {"run": read_training(folder, name)}, tuple(problems))


def read_training(folder: Path, name: str) -> Training:
    """What there is of the training in `folder`; `name` is its name on the page."""
    problems: list[str] = []
    states = sorted((folder / "checkpoints").glob("step_*"))
    meta = _read_object(states[-1] / "meta.json", problems) if states else {}
    settings = _read_object(folder / "config.json", problems) or meta.get("config")
    settings = settings if isinstance(settings, dict) else {}
    if not settings:
        problems.append("it has no config.json and no checkpoint: its settings are not known")
    history = _guarded(lambda: [row for row in read_history(folder) if "step" in row], folder, problems) or []
    if not history:
        problems.append("it has no metrics: no update was reported, or metrics.jsonl is missing or damaged")
    return Training(
        name,
        folder,
        settings,
        history,
        _read_object(folder / "job.json", problems),
        meta,
        _read_object(folder / "summary.json", problems),
        _text(folder / "mlflow_run_id", problems),
        tuple(problems),
    )


def _holds_training(folder: Path) -> bool:
    return any((folder / sign).exists() for sign in SIGNS)


def _trials(folder: Path, summary: dict[str, Any]) -> dict[str, Training]:
    """The first run of each variant in the final comparison of a sweep; before there is a summary, all trials.

    Trials have no MLflow run of their own in their folders: they get the sweep's.
    """
    if not summary:
        named = {path.name: (path, path.name) for path in sorted(folder.glob("trials/*"))}
    else:
        first = _first_runs(summary)
        named = {name: (folder / str(r.get("folder")), f"{name}, seed {r.get('seed')}") for name, r in first.items()}
    parent = _text(folder / "mlflow_run_id", [])
    found = {key: read_training(path, name) for key, (path, name) in named.items() if _holds_training(path)}
    return {key: replace(training, run_id=training.run_id or parent) for key, training in found.items()}


def _first_runs(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The first run of each variant, by the variant's name; what is not as a sweep writes it is passed over."""
    final = summary.get("final")
    variants = final.get("variants") if isinstance(final, dict) else None
    found = {}
    for name, variant in variants.items() if isinstance(variants, dict) else ():
        runs = variant.get("runs") if isinstance(variant, dict) else None
        if isinstance(runs, list) and runs and isinstance(runs[0], dict):
            found[name] = runs[0]
    return found


def _text(path: Path, problems: list[str]) -> str | None:
    return (_guarded(path.read_text, path, problems) or "").strip() or None if path.exists() else None


def _read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = _guarded(lambda: json.loads(path.read_text()), path, problems)
    if value is not None and not isinstance(value, dict):
        problems.append(f"{path.name} holds no JSON object")
    return value if isinstance(value, dict) else {}


def _guarded(read: Callable[[], Any], path: Path, problems: list[str]) -> Any:
    try:
        return read()
    except (OSError, ValueError, TypeError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
        return None
