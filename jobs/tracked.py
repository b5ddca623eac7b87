"""The MLflow run of a training folder: started once, found again when the same command goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.tracking import Tracker

EXPERIMENT = "beam"


def start_tracker(folder: Path, config: RunConfig, dataset: str, data_hash: str, parent: str = "") -> Tracker:
    """The tracker of the run in `folder`; its id lies in <folder>/mlflow_run_id."""
    tags = {"dataset": dataset, "data_hash": data_hash, "recipe": config.name, **({"chain": parent} if parent else {})}
    return tracker_at(folder / "mlflow_run_id", folder.name, config.to_dict(), tags)


def tracker_at(
    note: Path, name: str, config: Mapping[str, Any], tags: Mapping[str, str], system_metrics: bool = True
) -> Tracker:
    """The tracker of the run whose id is written in the file `note`; a new run when there is no such file."""
    note.parent.mkdir(parents=True, exist_ok=True)
    known = note.read_text().strip() if note.exists() else None
    tracker = Tracker.start(EXPERIMENT, name, config, tags, known, system_metrics=system_metrics)
    note.write_text(tracker.run_id)
    return tracker
