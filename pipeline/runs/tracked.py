"""The MLflow run of a training folder: started once, found again when the same command goes on."""

import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.training.loop import read_history

if TYPE_CHECKING:
    from pipeline.tracking.tracker import Tracker

EXPERIMENT = "beam"
DELIVER_SECONDS = 120.0
"""For the journals of earlier runs that a server which was away has not got; no new one is begun after that."""


def start_tracker(
    folder: Path, config: RunConfig, dataset: str, data_hash: str, parent: str = "", must_answer: bool = False
) -> "Tracker":
    """The tracker of the run in `folder`; its id lies in <folder>/mlflow_run_id.

    Rows of the folder's history that never came to its journal, because a kill came between, are added.
    """
    tags = {"dataset": dataset, "data_hash": data_hash, "recipe": config.name, **({"chain": parent} if parent else {})}
    note = folder / "mlflow_run_id"
    complete = not note.exists() or note.with_name(f"{note.name}.spool").exists()  # else: logged before journals were
    tracker = tracker_at(note, folder.name, config.to_dict(), tags, must_answer=must_answer)
    if complete:
        add_history(tracker, folder)
    return tracker


def add_history(tracker: "Tracker | StartingTracker", folder: Path) -> None:
    """Log all rows of a run's metrics.jsonl; those that are in the journal are passed over."""
    for row in read_history(folder):
        tracker.log(int(row["step"]), {k: v for k, v in row.items() if k != "step"})


def tracker_at(
    note: Path,
    name: str,
    config: Mapping[str, Any],
    tags: Mapping[str, str],
    system_metrics: bool = True,
    must_answer: bool = True,
) -> "Tracker":
    """The tracker of the run whose id is written in the file `note`; a new run when there is no such file.

    With `must_answer` a new run needs the server now (TrackingError without it).
    """
    from pipeline.tracking.tracker import Tracker  # not at the top: mlflow takes seconds to import

    return Tracker.start(note, EXPERIMENT, name, config, tags, system_metrics=system_metrics, must_answer=must_answer)


def deliver_left(folder: Path, command: str, journals: str = "*/mlflow_run_id.spool") -> bool:
    """Send what the tracking server, while it was away, has not got of the runs below `folder`, which nobody writes now.

    Returns False, after a line that names `command` (it sends the rest later), when some still waits.
    """
    from pipeline.tracking.delivery import deliver
    from pipeline.tracking.server import tracking_uri

    deadline, uri = time.monotonic() + DELIVER_SECONDS, tracking_uri()
    for journal in sorted(folder.glob(journals)):
        if time.monotonic() > deadline or not deliver(journal.with_suffix(""), uri):
            print(f"not all is in MLflow; when the server is back, this sends the rest: {command}", file=sys.stderr)
            return False
    return True


class StartingTracker:
    """`start_tracker` in a thread, begun at the first report of updates: training goes on meanwhile, and rows wait for the run.

    MLflow's import, a new database's tables and a slow server take seconds, and Python's own work in two threads takes longer
    than one after the other: begun earlier, the first update would come as much later. When the run cannot be started, the
    next `log` (or `finish`) raises what `start_tracker` raised. A training that is gone on with needs no server.
    """

    def __init__(self, folder: Path, config: RunConfig, dataset: str, data_hash: str):
        """Keep what the tracker of the run in `folder` is started with; see start_tracker."""
        self._result: Future[Tracker] = Future()
        self._folder = folder
        self._rows: list[tuple[int, Mapping[str, float]]] = []
        # a kill may have come before the run was begun
        new = not any(row["step"] > 0 for row in read_history(folder))

        def start() -> None:
            try:
                self._result.set_result(start_tracker(folder, config, dataset, data_hash, must_answer=new))
            except BaseException as error:
                self._result.set_exception(error)

        self._thread = threading.Thread(target=start, name="mlflow-start", daemon=True)

    def _begin(self) -> "Future[Tracker]":
        """The result of the thread, which the first call starts."""
        if not self.is_begun:
            self._thread.start()
        return self._result

    @property
    def is_begun(self) -> bool:
        """True once there has been a report of updates, or an end."""
        return self._thread.ident is not None

    @property
    def run_id(self) -> str:
        """Waits until the run is begun; see Tracker.run_id."""
        return self._begin().result().run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue one row of metrics of update `step`; see Tracker.log."""
        self._rows.append((step, metrics))
        is_of_updates = "updates_per_second" in metrics  # not the untrained model's row, nor a new group's
        if is_of_updates and self._begin().done():
            self._pass_on()

    def finish(self, status: str) -> bool:
        """Wait until the run is begun, send all and close it; see Tracker.finish. A run that FAILED keeps its own error."""
        if status == "FAILED" and self._begin().exception() is not None:
            return False
        self._pass_on()
        add_history(self._begin().result(), self._folder)
        return self._begin().result().finish(status)

    def _pass_on(self) -> None:
        tracker = self._begin().result()
        for step, metrics in self._rows:
            tracker.log(step, metrics)
        self._rows.clear()
