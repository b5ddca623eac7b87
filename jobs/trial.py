"""A trial of a sweep inside Ray Tune: a light driver that launches a Ray Train run in a folder of its own.

A folder's name is a hash of all settings that lead to it, so the same settings never train twice: a trial that was
interrupted goes on in its folder, one that comes up again is found finished there, and a trial that was cut is trained on
from where it stood.

The settings of a run may change in flight (population based training). What leads to a folder is then a *lineage*:
segments that were trained one after the other, each from the last one's checkpoint.
"""

import functools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.manifest import write_json
from jobs.train import TrainingFailed, TrainJob, describe_folder, make_trainer, total_updates
from pipeline.config import RunConfig
from pipeline.data.shards import canonical_hash, read_manifest
from pipeline.training.checkpoint import Checkpoint, load_latest, save_checkpoint
from pipeline.training.loop import read_history


@dataclass(frozen=True)
class SweepPlan:
    """What all trials of a sweep share; plain values, so that it travels."""

    config: dict[str, Any]
    """The recipe's settings."""
    data_dir: str
    data_hash: str
    folder: str
    """The sweep's folder, an absolute path that all machines see."""
    workers: int
    use_gpu: bool
    threads: int = 1
    stage: str = "search"
    """`search` or `final`: each keeps its notes apart."""

    @property
    def notes(self) -> Path:
        """The folder of the trials' notes."""
        return Path(self.folder) / "progress" / self.stage

    def resolve(self, settings: dict[str, Any]) -> RunConfig:
        """The recipe with a trial's settings. Raises ConfigError on values that do not go together."""
        return RunConfig.from_dict(self.config).override(settings)

    def total(self, config: RunConfig) -> int:
        """Updates of a whole run."""
        return total_updates(config, _train_rows(self.data_dir))[1]


@functools.cache
def _train_rows(data_dir: str) -> int:
    return read_manifest(Path(data_dir)).splits["train"].rows


class TrialFailed(RuntimeError):
    """Settings that cannot be trained: the run diverges, or they do not go together. Another attempt would end alike."""


class Segment(NamedTuple):
    """Settings that a run had up to `until` updates; None: to its end."""

    settings: dict[str, Any]
    until: int | None = None


Lineage = Sequence[Segment]


def folder_of(plan: SweepPlan, lineage: Lineage) -> Path:
    """Where the last segment of a lineage is trained; how far it is trained is no part of the name."""
    configs = [plan.resolve(segment.settings).to_dict() for segment in lineage]
    ends = [segment.until for segment in lineage[:-1]]
    return Path(plan.folder) / "trials" / canonical_hash([configs, ends])[:12]


def evaluated_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's history that hold held-out metrics, up to its newest checkpoint."""
    found = load_latest(folder / "checkpoints")
    step = found.step if found else -1
    return [row for row in read_history(folder) if "frechet_latent" in row and row["step"] <= step]


def is_done(plan: SweepPlan, lineage: Lineage) -> bool:
    """True when the last segment of a lineage is trained up to its end, with a whole checkpoint."""
    found = load_latest(folder_of(plan, lineage) / "checkpoints")
    config = plan.resolve(lineage[-1].settings)
    return found is not None and found.step >= (lineage[-1].until or plan.total(config))


def train_segment(plan: SweepPlan, lineage: Lineage, callbacks: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Train the last segment of a lineage on Ray up to its end; returns the rows with held-out metrics.

    Raises:
        TrialFailed: the run diverged.
        TrainingFailed: Ray gave up; the last checkpoint is whole.
    """
    folder, last = folder_of(plan, lineage), lineage[-1]
    if not is_done(plan, lineage):
        config = plan.resolve(last.settings).to_dict()
        job = TrainJob(config, plan.data_dir, plan.data_hash, str(folder), plan.threads, last.until)
        describe_folder(job, plan.workers)
        trouble: Exception | None = None
        try:
            make_trainer(job, plan.workers, plan.use_gpu, callbacks).fit()
        except Exception as error:
            trouble = error
        if reason := _reason(folder):
            raise TrialFailed(reason) from trouble
        if trouble is not None:
            raise TrainingFailed(f"Ray Train gave up: {str(trouble).strip().splitlines()[-1]}") from trouble
    return evaluated_rows(folder)


def _reason(folder: Path) -> str:
    """What a worker of the run gave as the reason of its end; empty when none did."""
    file = folder / "failure.json"
    return json.loads(file.read_text())["error"] if file.exists() else ""


def continue_from(folder: Path, found: Checkpoint, history: list[dict[str, Any]], config: RunConfig) -> None:
    """Let a run with `config` begin in `folder` at another run's checkpoint, with that run's history; once."""
    if load_latest(folder / "checkpoints") is None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in history if row["step"] <= found.step]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        save_checkpoint(
            folder / "checkpoints", found.step, found.tensors, {**found.meta, "config": config.to_dict()}, 2
        )


# --- what Tune runs -------------------------------------------------------------------------------------------------


class ProgressNote:
    """<sweep>/progress/<stage>/<trial>.json: a trial's folder and lineage, and why it failed, for whoever watches.

    It is also what a trial that is run again knows of itself.
    """

    def __init__(self, plan: SweepPlan, trial: str, settings: dict[str, Any]):
        self.file = plan.notes / f"{trial}.json"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.values = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.values = {"trial": trial, "settings": settings, "started": time.time(), **self.values}

    def write(self, **values: Any) -> None:
        """Add values and write the note."""
        self.values |= values
        write_json(self.file, self.values)


def _noting(plan: SweepPlan, settings: dict[str, Any], body: Callable[[ProgressNote], None]) -> None:
    """Run `body`, with what ends it written down. A trial that cannot be trained fails again at once."""
    from ray import tune

    note = ProgressNote(plan, tune.get_context().get_trial_id(), settings)
    if note.values.get("final"):
        raise TrialFailed(note.values["error"])
    try:
        note.write(error="", final=False)
        body(note)
    except Exception as error:
        note.write(error=str(error), final=isinstance(error, TrialFailed | ValueError))
        raise


def run_trial(settings: dict[str, Any], plan: SweepPlan) -> None:
    """One trial: trained from start to end, reporting each held-out evaluation to Tune."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    def body(note: ProgressNote) -> None:
        lineage = [Segment(settings)]
        total = plan.total(plan.resolve(settings))

        class ReportAllButLast(TuneReportCallback):
            """The last row comes when the training is over: at a trial's end a scheduler stops it, killing what runs."""

            def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
                if metrics[0]["step"] < total:
                    super().after_report(run_context, metrics, checkpoint)

        folder = folder_of(plan, lineage)
        note.write(folder=folder.name, lineage=[lineage[0]._asdict()])
        for row in evaluated_rows(folder):  # of an earlier session: the scheduler may not have seen them
            if row["step"] < total:
                tune.report(row)
        tune.report(train_segment(plan, lineage, [ReportAllButLast()])[-1])

    _noting(plan, settings, body)


def run_member(settings: dict[str, Any], plan: SweepPlan, interval: int) -> None:
    """One member of a population: trained in stretches of `interval` updates; Tune decides after each how it goes on.

    Every stretch is a Ray Train run of its own that ends before Tune decides, so nothing has to be killed.
    """
    from ray import tune

    def body(note: ProgressNote) -> None:
        lineage, step = [Segment(settings)], 0
        config = plan.resolve(settings)
        if (given := tune.get_checkpoint()) is not None:
            with given.as_directory() as place:
                member = json.loads((Path(place) / "member.json").read_text())
                before, step = [Segment(**s) for s in member["lineage"]], member["step"]
                lineage = before
                if before[-1].settings != settings:
                    lineage = [*before[:-1], before[-1]._replace(until=step), Segment(settings)]
                    found = load_latest(Path(place) / "checkpoints")
                    assert found is not None, "a member's checkpoint holds a checkpoint"
                    continue_from(folder_of(plan, lineage), found, read_history(Path(place)), config)
        total = plan.total(config)
        while step < total:
            step = min(total, (step // interval + 1) * interval)
            note.write(folder=folder_of(plan, lineage).name, lineage=[s._asdict() for s in lineage])
            rows = train_segment(plan, [*lineage[:-1], lineage[-1]._replace(until=step)])
            _report_member(folder_of(plan, lineage), lineage, step, rows[-1])

    _noting(plan, settings, body)


def _report_member(folder: Path, lineage: Lineage, step: int, row: dict[str, Any]) -> None:
    from ray import tune

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        newest = max((folder / "checkpoints").glob("step_*"))
        shutil.copytree(newest, place / "checkpoints" / newest.name)
        shutil.copy(folder / "metrics.jsonl", place)
        write_json(place / "member.json", {"lineage": [s._asdict() for s in lineage], "step": step})
        tune.report({**row, "step": step}, checkpoint=tune.Checkpoint.from_directory(temporary))


def seeded(lineage: Lineage, seed: int) -> list[Segment]:
    """The lineage with another seed."""
    return [segment._replace(settings={**segment.settings, "seed": seed}) for segment in lineage]


def run_variant(settings: dict[str, Any], plan: SweepPlan, variants: dict[str, list[dict[str, Any]]]) -> None:
    """A whole run of one of the compared variants with one seed: settings {"variant": name, "seed": n}."""
    from ray import tune

    def body(note: ProgressNote) -> None:
        lineage = seeded([Segment(**s) for s in variants[settings["variant"]]], settings["seed"])
        rows: list[dict[str, Any]] = []
        for i in range(len(lineage)):
            part = lineage[: i + 1]
            folder = folder_of(plan, part)
            note.write(folder=folder.name, lineage=[s._asdict() for s in part])
            if i:
                before = folder_of(plan, lineage[:i])
                found = load_latest(before / "checkpoints")
                assert found is not None, "the segment before has been trained"
                continue_from(folder, found, read_history(before), plan.resolve(part[-1].settings))
            rows = train_segment(plan, part)
        tune.report(rows[-1])

    _noting(plan, settings, body)
