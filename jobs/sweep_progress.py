"""Watching the trials of a sweep by their folders: a progress bar and an MLflow run per trial, written by this process alone.

Trials write notes (jobs/trial.py) and histories; nothing here talks to them, so a sweep that was killed is read in the
same way as one that runs.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from tqdm import tqdm

from jobs.trial import Segment, SweepPlan
from pipeline.config import flatten
from pipeline.provenance import without_secrets
from pipeline.runs.tracked import tracker_at
from pipeline.tracking.tracker import Tracker
from pipeline.training.loop import read_history

POLL_SECONDS = 2.0
WARNING_SECONDS = 60.0
CLOSE_SECONDS = 5.0
"""How long the end of a trial's run is waited for; what is left then, the end of the sweep sends (tracked.py)."""
_log = logging.getLogger(__name__)


@dataclass
class TrialRecord:
    """A trial as its note and its folder tell it."""

    trial: str
    """Ray Tune's id of it."""
    settings: dict[str, Any]
    """The searched settings that it began with."""
    lineage: list[Segment]
    folder: str
    """Name of its folder below <sweep>/trials; empty when it never came to one."""
    error: str
    """Why it failed; empty when it did not. (A driver that Tune kills may leave an error too: see `read_trials`.)"""
    diverged: bool
    """It failed by its settings; another attempt would end alike."""
    started: float
    history: list[dict[str, Any]] = field(repr=False)
    total_updates: int = 0

    @property
    def updates(self) -> int:
        """Updates that it has made."""
        return int(self.history[-1]["step"]) if self.history else 0

    @property
    def status(self) -> str:
        """`failed`, `finished`, or `stopped` when it is over (or running, when it is not)."""
        if self.error:
            return "failed"
        return "finished" if self.total_updates and self.updates >= self.total_updates else "stopped"

    @property
    def evaluation(self) -> dict[str, Any]:
        """The last row with held-out metrics."""
        return next((row for row in reversed(self.history) if "frechet_latent" in row), {})


def read_trials(plan: SweepPlan) -> list[TrialRecord]:
    """All trials of a sweep that have begun, in that order; the one with the recipe's own values first."""
    records = []
    for file in plan.notes.glob("*.json"):
        note = json.loads(file.read_text())
        folder = note.get("folder", "")
        record = TrialRecord(
            note["trial"],
            note["settings"],
            [Segment(**s) for s in note.get("lineage", [])],
            folder,
            note.get("error", "") if note.get("final") or _ended(file) == "error" else "",
            bool(note.get("final")),
            note["started"],
            read_history(Path(plan.folder) / "trials" / folder) if folder else [],
        )
        if record.lineage:
            record.total_updates = plan.total(plan.resolve(record.lineage[-1].settings))
        records.append(record)
    config = flatten(plan.config)

    def is_own(record: TrialRecord) -> bool:
        return all(config.get(key) == value for key, value in record.settings.items())

    return sorted(records, key=lambda record: (not is_own(record), record.started))


def keep_known(plan: SweepPlan, known: Collection[str]) -> None:
    """Drop the notes of trials that Tune does not know: a kill came between their begin and Tune's next record."""
    for file in plan.notes.iterdir():
        if file.name.split(".")[0] not in known:
            file.unlink()


def _ended(note: Path) -> str:
    """How Tune ended the trial of a note: `complete` (cut ones too), `error`, or empty when it did not."""
    mark = note.with_suffix(".ended")
    return mark.read_text() if mark.exists() else ""


class MarkEnded(tune.Callback):
    """Notes which trials Tune has ended, and asks the workers of one that it cut to stop: Tune kills only their driver."""

    def __init__(self, plan: SweepPlan):
        self.notes, self.trials = str(plan.notes), str(Path(plan.folder) / "trials")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See ray.tune.Callback."""
        self._end(trial.trial_id, "complete")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See ray.tune.Callback."""
        self._end(trial.trial_id, "error")

    def _end(self, trial: str, how: str) -> None:
        notes = Path(self.notes)
        notes.mkdir(parents=True, exist_ok=True)
        (notes / f"{trial}.ended").write_text(how)
        note = notes / f"{trial}.json"
        if note.exists() and (name := json.loads(note.read_text()).get("folder")):
            (Path(self.trials) / name / "STOP").touch()


class Watcher:
    """Follows the trials of a sweep in a thread, as a context: the bar, and a child run in MLflow for each trial."""

    def __init__(self, plan: SweepPlan, num_trials: int, metric: str, parent: Tracker | None, tags: Mapping[str, str]):
        self.plan, self.metric, self.parent, self.tags = plan, metric, parent, dict(tags)
        self.bar = tqdm(total=num_trials, desc=plan.stage, unit="trial", dynamic_ncols=True, mininterval=2.0)
        self._trackers: dict[str, Tracker] = {}
        self._folders: dict[str, str] = {}
        self._logged: dict[str, int] = {}
        self._shown, self._warned = 0.0, -WARNING_SECONDS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sweep-watcher", daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End all child runs: those that Tune has ended by their status, others as KILLED."""
        self._stop.set()
        self._thread.join()
        self._look_safely(last=True)
        for tracker in self._trackers.values():  # what the last look could not end
            tracker.finish("KILLED", CLOSE_SECONDS)
        self.bar.close()

    def _work(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._look_safely()

    def _look_safely(self, last: bool = False) -> None:
        """Look; trouble (a server that is away) is said once a minute and never ends the sweep."""
        try:
            self.look(last)
        except Exception as error:
            if last or time.monotonic() - self._warned > WARNING_SECONDS:
                self._warned = time.monotonic()
                _log.warning("watching the trials: %s; the sweep goes on", without_secrets(str(error)))

    def look(self, last: bool = False) -> None:
        """Log what is new."""
        records = read_trials(self.plan)
        ended = {file.stem for file in self.plan.notes.glob("*.ended")}
        for number, record in enumerate(records):
            over = record.trial in ended
            if self.parent is not None:
                self._log_trial(number, record, over, last)
        done = [record for record in records if record.trial in ended]
        self.bar.update(len(done) - self.bar.n)
        scores = [r.evaluation[self.metric] for r in records if self.metric in r.evaluation and not r.error]
        steps = sum(record.updates for record in records)
        best = f"{min(scores):.4g}" if scores else "-"
        failed = sum(bool(record.error) for record in records)
        self.bar.set_postfix({"best": best, "updates": steps, "failed": failed}, refresh=False)
        if last or time.monotonic() - self._shown > (2 if sys.stderr.isatty() else 60):
            self._shown = time.monotonic()
            self.bar.refresh()

    def _log_trial(self, number: int, record: TrialRecord, over: bool, last: bool) -> None:
        note, closed = (self.plan.notes / f"{record.trial}.{end}" for end in ("run", "closed"))
        if closed.exists():  # logged and ended, in this session or in an earlier one
            return
        tracker = self._tracker(number, record, note)
        for row in record.history:
            if row["step"] > self._logged.get(record.trial, -1):
                tracker.log(int(row["step"]), {k: v for k, v in row.items() if k != "step"})
                self._logged[record.trial] = int(row["step"])
        if over or last:
            if record.error:
                tracker.set_tag("failure", record.error[:500])
            status = {"failed": "FAILED", "finished": "FINISHED", "stopped": "KILLED"}[record.status]
            del self._trackers[record.trial]
            tracker.finish(status, CLOSE_SECONDS)
            if over:
                closed.touch()

    def _tracker(self, number: int, record: TrialRecord, note: Path) -> Tracker:
        """The child run of a trial; its settings are written again when they changed in flight (tags `changed.<key>`)."""
        if record.trial in self._trackers and self._folders[record.trial] == record.folder:
            return self._trackers[record.trial]
        if record.trial in self._trackers:
            self._trackers.pop(record.trial).finish("KILLED", CLOSE_SECONDS)
        assert self.parent is not None
        config: dict[str, Any] = {"settings": record.settings}  # of a trial that was refused, all that there is
        if record.lineage:
            config = self.plan.resolve(record.lineage[-1].settings).to_dict()
        own: dict[str, str] = {k: str(record.settings[k]) for k in ("variant", "seed") if k in record.settings}
        name = f"{own['variant']}-seed{own['seed']}" if own else f"t{number:02d}-{record.trial}"
        tags: dict[str, str] = {
            "mlflow.parentRunId": self.parent.run_id,
            "trial": record.trial,
            "stage": self.plan.stage,
            **own,
        }
        tracker = tracker_at(note, name, config, self.tags | tags, system_metrics=False, must_answer=False)
        self._trackers[record.trial], self._folders[record.trial] = tracker, record.folder
        return tracker
