"""The MLflow run of a training folder: started once, found again when the same command goes on."""

from pathlib import Path

from pipeline.config import RunConfig
from pipeline.tracking import Tracker

EXPERIMENT = "beam"


def start_tracker(folder: Path, config: RunConfig, dataset: str, data_hash: str, parent: str = "") -> Tracker:
    """The tracker of the run in `folder`; its id lies in <folder>/mlflow_run_id."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "mlflow_run_id"
    known = note.read_text().strip() if note.exists() else None
    tags = {"dataset": dataset, "data_hash": data_hash, "recipe": config.name, **({"chain": parent} if parent else {})}
    tracker = Tracker.start(EXPERIMENT, folder.name, config.to_dict(), tags, known)
    note.write_text(tracker.run_id)
    return tracker
