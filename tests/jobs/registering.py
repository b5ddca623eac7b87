"""Shared by the tests of the registry: a run to register from, and a way to register with few words."""

from pathlib import Path

from mlflow import MlflowClient

from pipeline.packages.models import PackagedBeam
from pipeline.registry.register import register_beam
from pipeline.registry.versions import ModelVersionInfo

BEAM = "synthetic-faces-beam"


def start_run(tracking: str) -> str:
    """The id of a new run of the experiment "tests", whose artifacts lie beside the database."""
    client = MlflowClient(tracking)
    place = Path(tracking.removeprefix("sqlite:///")).parent / "mlartifacts"
    return client.create_run(client.create_experiment("tests", place.as_uri())).info.run_id


def register(
    beam: PackagedBeam, run_id: str, score: float = 50.0, data_hash: str = "data one", tracking: str | None = None
) -> ModelVersionInfo:
    """The beam as a version with this score, measured on 500 rows with a spread of 2."""
    return register_beam(
        beam,
        run_id=run_id,
        data_hash=data_hash,
        recipe="tiny",
        score=score,
        num_rows=500,
        spread=2.0,
        tracking=tracking,
    )
