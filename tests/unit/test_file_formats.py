"""Names that stand in files, or are hashed into seeds: renaming one loses what earlier revisions wrote.

tests/faults/test_earlier_revisions.py loads such files; this says at once which name it was.
"""

import ast
import importlib
import json
from pathlib import Path

import jobs.celeba_train
import jobs.sweep
from pipeline.registry.mlflow_folder import LOADER
from pipeline.runs.stages import Stages
from pipeline.samplers.protocols import DRIVEN, FRESH
from pipeline.streams import stream_seed

ROOT = Path(__file__).parents[2]

PURPOSES = {
    # training
    "initial weights",
    "initial thresholds",
    "data order",
    "chains",
    "fused sweeps",
    "critic forest",
    "critic network",
    "flip",
    "noise",
    # samples and numbers about them
    "evaluation {}",
    "generated noise",
    "sample persistent",
    "inpaint",
    "generate",
    "stack encoding {}",
    "stack descent",
    "annealing",
    "annealing bootstrap",
    "digit classifier weights",
    "digit classifier order",
    "encoded and back",
    "baselines",
    "training rows",
    "pictures",
    # data that are drawn
    "mixture {}",
    # the paper's experiments
    "exact rows",
    "reference rows",
    "persistent snapshots",
    "snapshot order",
    "jitter",
    "picture baselines",
    "training photographs",
    "image baselines",
    "shown rows",
    # decides no number
    "size",
}
"""Purposes of random streams; {} stands for a part that varies."""


def purpose_of(call: ast.Call) -> str | None:
    """The second argument of a call of `stream` or `stream_seed`; None for another call, or a purpose held in a name."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in ("stream", "stream_seed") or len(call.args) < 2:
        return None
    purpose = call.args[1]
    if isinstance(purpose, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in purpose.values)
    return purpose.value if isinstance(purpose, ast.Constant) else None


def test_the_purposes_of_random_streams() -> None:
    files = [file for folder in ("pipeline", "jobs", "data_prep") for file in (ROOT / folder).rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert {purpose_of(node) for node in nodes} - {None} == PURPOSES
    assert (DRIVEN.name, FRESH.name) == ("driven", "fresh")


def test_how_a_purpose_becomes_a_seed() -> None:
    assert stream_seed(0, "chains", 3) == 765566942049655037
    assert stream_seed(7, "data order") == 6859319839599200003


def test_the_names_of_stages() -> None:
    faces = ("data", "pixels", "autoencoder", "latents", "beam", "control", "scores", "pictures", "registry")
    assert faces == jobs.celeba_train.STAGES
    assert faces[:4] == jobs.sweep.DATA_STAGES
    assert jobs.sweep.STAGES == ("search", "final", "scores", "pictures", "registry")


def test_a_stages_record(tmp_path: Path) -> None:
    """`ratio` is a float and stays one: 1.0 and 1 are different inputs."""
    stages = Stages(tmp_path, ("data",), None)
    stages.run("data", {"count": 500, "ratio": 1.0, "folder": None}, lambda: {"hash": "abc"})
    record = json.loads((tmp_path / "stages" / "data.json").read_text())
    assert record == {
        "fingerprint": "fd7370273731bc550616cffe99507549fec2053e470862317db654761d02b731",
        "inputs": {"count": 500, "ratio": 1.0, "folder": None},
        "outputs": {"hash": "abc"},
    }


def test_the_module_that_loads_registered_models() -> None:
    """MLmodel of every registered version names it, and MLflow calls its `_load_pyfunc`."""
    assert LOADER == "pipeline.registry"
    assert callable(importlib.import_module(LOADER)._load_pyfunc)
