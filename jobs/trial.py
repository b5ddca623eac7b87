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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jobs.train_on_ray import make_trainer
from pipeline.config import RunConfig
from pipeline.data.manifest import read_manifest
from pipeline.files import canonical_hash, write_json
from pipeline.runs.job import TrainingFailed, TrainJob, describe_folder, total_updates
from pipeline.training.checkpoint import Checkpoint, load_latest, save_checkpoint
from pipeline.training.loop import read_history

CLAIM = "claim"
"""File in a trial's folder that names the trial which trains there."""
CLAIM_SECONDS = 2.0


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


def folder_of(plan: SweepPlan, lineage: Lineage, owner: str = "") -> Path:
    """Where the last segment of a lineage is trained; with `owner`, a folder of that trial's own."""
    configs = [plan.resolve(segment.settings).to_dict() for segment in lineage]
    ends = [segment.until for segment in lineage if segment.until is not None]
    return Path(plan.folder) / "trials" / canonical_hash([configs, ends, *([owner] if owner else [])])[:12]


def evaluated_rows(folder: Path, until: int | None = None) -> list[dict[str, Any]]:
    """The rows of a folder's history that hold held-out metrics, up to its newest checkpoint or to `until` updates."""
    found = load_latest(folder / "checkpoints")
    step = -1 if found is None else found.step if until is None else min(found.step, until)
    return [row for row in read_history(folder) if "frechet_latent" in row and row["step"] <= step]


def is_done(plan: SweepPlan, folder: Path, config: RunConfig, until: int | None = None) -> bool:
    """True when a folder's run is trained up to `until` updates (None: to its end), with a whole checkpoint."""
    found = load_latest(folder / "checkpoints")
    return found is not None and found.step >= (until or plan.total(config))


def train_on(
    plan: SweepPlan, folder: Path, config: RunConfig, until: int | None = None, callbacks: Sequence[Any] = ()
) -> None:
    """Train on Ray in a folder, from where it stands, up to `until` updates or to the run's end.

    Raises:
        TrialFailed: the run diverged.
        TrainingFailed: Ray gave up; the last checkpoint is whole.
    """
    if is_done(plan, folder, config, until):
        return
    job = TrainJob(config.to_dict(), plan.data_dir, plan.data_hash, str(folder), plan.threads, until)
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


def train_lineage(
    plan: SweepPlan, lineage: Lineage, train: Callable[[Path, RunConfig, int | None], None]
) -> Iterator[tuple[Path, Lineage]]:
    """Train a lineage's segments in order by `train(folder, config, until)`; yields each one's folder before it is trained."""
    before: Path | None = None
    for i, segment in enumerate(lineage):
        part = lineage[: i + 1]
        folder, config = folder_of(plan, part), plan.resolve(segment.settings)
        yield folder, part
        if before is not None:
            found = load_latest(before / "checkpoints")
            assert found is not None and found.step == lineage[i - 1].until, "the segment before ends at its end"
            continue_from(folder, found, read_history(before), config)
        train(folder, config, segment.until)
        before = folder


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
        self.trial = trial
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


def claim(plan: SweepPlan, folder: Path, trial: str) -> None:
    """Wait until no other trial that is still on trains in `folder`: equal settings may come up twice at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CLAIM
    while True:
        try:
            with file.open("x") as new:
                new.write(trial)
            return
        except FileExistsError:
            holder = file.read_text()
            if holder == trial:
                return
            if holder and (plan.notes / f"{holder}.ended").exists():
                file.unlink(missing_ok=True)
            else:
                time.sleep(CLAIM_SECONDS)


def forget_claims(plan: SweepPlan) -> None:
    """Remove all claims: before a search begins or goes on, no trial is on."""
    for file in Path(plan.folder).glob(f"trials/*/{CLAIM}"):
        file.unlink()


def run_trial(settings: dict[str, Any], plan: SweepPlan) -> None:
    """One trial: trained from start to end, reporting each held-out evaluation to Tune."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    def body(note: ProgressNote) -> None:
        lineage, config = [Segment(settings)], plan.resolve(settings)
        total, folder = plan.total(config), folder_of(plan, lineage)

        class ReportAllButLast(TuneReportCallback):
            """The last row comes when the training is over: at a trial's end a scheduler stops it, killing what runs."""

            def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
                if metrics[0]["step"] < total:
                    super().after_report(run_context, metrics, checkpoint)

        note.write(folder=folder.name, lineage=[lineage[0]._asdict()])
        claim(plan, folder, note.trial)
        for row in evaluated_rows(folder):  # of an earlier session: the scheduler may not have seen them
            if row["step"] < total:
                tune.report(row)
        train_on(plan, folder, config, callbacks=[ReportAllButLast()])
        tune.report(evaluated_rows(folder)[-1])

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
                lineage, step = [Segment(**s) for s in member["lineage"]], member["step"]
                if lineage[-1].settings != settings:
                    lineage = [*lineage[:-1], lineage[-1]._replace(until=step), Segment(settings)]
                found = load_latest(Path(place) / "checkpoints")
                assert found is not None and found.step == step, "a member's checkpoint is of its step"
                continue_from(folder_of(plan, lineage, note.trial), found, read_history(Path(place)), config)
        folder, total = folder_of(plan, lineage, note.trial), plan.total(config)
        note.write(folder=folder.name, lineage=[s._asdict() for s in lineage])
        while step < total:
            step = min(total, (step // interval + 1) * interval)
            train_on(plan, folder, config, until=step)
            _report_member(folder, lineage, step)

    _noting(plan, settings, body)


def _report_member(folder: Path, lineage: Lineage, step: int) -> None:
    from ray import tune

    with tempfile.TemporaryDirectory() as temporary:
        place, name = Path(temporary), f"step_{step:08d}"
        shutil.copytree(folder / "checkpoints" / name, place / "checkpoints" / name)
        shutil.copy(folder / "metrics.jsonl", place)
        write_json(place / "member.json", {"lineage": [s._asdict() for s in lineage], "step": step})
        row = evaluated_rows(folder, step)[-1]
        tune.report(row, checkpoint=tune.Checkpoint.from_directory(temporary))


def seeded(lineage: Lineage, seed: int) -> list[Segment]:
    """The lineage with another seed."""
    return [segment._replace(settings={**segment.settings, "seed": seed}) for segment in lineage]


def run_variant(settings: dict[str, Any], plan: SweepPlan, variants: dict[str, list[dict[str, Any]]]) -> None:
    """A whole run of one of the compared variants with one seed: settings {"variant": name, "seed": n}."""
    from ray import tune

    def body(note: ProgressNote) -> None:
        lineage = seeded([Segment(**s) for s in variants[settings["variant"]]], settings["seed"])

        def train(folder: Path, config: RunConfig, until: int | None) -> None:
            claim(plan, folder, note.trial)
            train_on(plan, folder, config, until)

        for folder, part in train_lineage(plan, lineage, train):
            note.write(folder=folder.name, lineage=[s._asdict() for s in part])
        tune.report(evaluated_rows(folder)[-1])

    _noting(plan, settings, body)
