"""The MLflow run of a training folder: started once, found again when the same command goes on."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig

if TYPE_CHECKING:
    from pipeline.tracking import Tracker

EXPERIMENT = "beam"


def start_tracker(folder: Path, config: RunConfig, dataset: str, data_hash: str, parent: str = "") -> "Tracker":
    """The tracker of the run in `folder`; its id lies in <folder>/mlflow_run_id."""
    tags = {"dataset": dataset, "data_hash": data_hash, "recipe": config.name, **({"chain": parent} if parent else {})}
    return tracker_at(folder / "mlflow_run_id", folder.name, config.to_dict(), tags)


def tracker_at(
    note: Path, name: str, config: Mapping[str, Any], tags: Mapping[str, str], system_metrics: bool = True
) -> "Tracker":
    """The tracker of the run whose id is written in the file `note`; a new run when there is no such file."""
    from pipeline.tracking import Tracker  # not at the top: mlflow takes seconds to import

    note.parent.mkdir(parents=True, exist_ok=True)
    known = note.read_text().strip() if note.exists() else None
    tracker = Tracker.start(EXPERIMENT, name, config, tags, known, system_metrics=system_metrics)
    note.write_text(tracker.run_id)
    return tracker


class StartingTracker:
    """`start_tracker` in a thread: training begins meanwhile, and rows wait until the run is there.

    MLflow's import, a new database's tables and a slow server take seconds. When the run cannot be started, the next `log`
    (or `finish`) raises what `start_tracker` raised.
    """

    def __init__(self, folder: Path, config: RunConfig, dataset: str, data_hash: str):
        """Begin to start the tracker of the run in `folder`; see start_tracker."""
        self._tracker: Future[Tracker] = Future()
        self._rows: list[tuple[int, Mapping[str, float]]] = []

        def start() -> None:
            try:
                self._tracker.set_result(start_tracker(folder, config, dataset, data_hash))
            except BaseException as error:
                self._tracker.set_exception(error)

        threading.Thread(target=start, name="mlflow-start", daemon=True).start()

    @property
    def run_id(self) -> str:
        """Waits until the run is there."""
        return self._tracker.result().run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue one row of metrics of update `step`; see Tracker.log."""
        self._rows.append((step, metrics))
        if self._tracker.done():
            self._pass_on()

    def finish(self, status: str) -> bool:
        """Wait until the run is there, send all and close it; see Tracker.finish. A run that FAILED keeps its own error."""
        if status == "FAILED" and self._tracker.exception() is not None:
            return False
        self._pass_on()
        return self._tracker.result().finish(status)

    def _pass_on(self) -> None:
        tracker = self._tracker.result()
        for step, metrics in self._rows:
            tracker.log(step, metrics)
        self._rows.clear()
