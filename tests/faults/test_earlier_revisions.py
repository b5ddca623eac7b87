"""Files of an earlier revision are loaded, continued, found finished and resumed; see tests/fixtures/README.md."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from jobs.celeba_train import main
from jobs.stack import main as train_stack
from jobs.stack_layers import read_layer
from pipeline.comm import Comm
from pipeline.config import RunConfig
from pipeline.models.stack import RBMStack, encode
from pipeline.packages.models import PackagedBeam
from pipeline.registry.fetch import fetch_model, load_model, pull_model, verify_model
from pipeline.registry.versions import find_model, list_versions
from pipeline.runs.job import JobRows, TrainJob, make_objective
from pipeline.training.checkpoint import load_latest
from pipeline.training.loop import StopRequest, read_history, train
from pipeline.training.objective import Objective

PROJECT = Path(__file__).parents[2]
FIXTURES = PROJECT / "tests" / "fixtures" / "revision_dd4f1cf"
ROOT = "/earlier-project".ljust(160, "x")
"""Stands in the files for the folder that they lay in."""


def unpack(name: str, folder: Path) -> Path:
    """The files of a fixture below `folder`, as if they had been written there.

    The paths in them are replaced by one of the same length, so that it fits into a database and into pickled records; Ray
    Tune nests some of those in hex.
    """
    root = folder / "x".ljust(len(ROOT) - len(str(folder)) - 1, "x")
    old, new = ROOT.encode(), str(root).encode()
    assert len(old) == len(new), f"the path of {folder} has more than {len(ROOT) - 2} characters"
    with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
        archive.extractall(root, filter="data")
    for file in (file for file in root.rglob("*") if file.is_file()):
        before = file.read_bytes()
        content = before.replace(old, new).replace(old.hex().encode(), new.hex().encode())
        if content != before:
            file.write_bytes(content)
    return root


# --- checkpoints ------------------------------------------------------------------------------------------------------

HALF, END = 15, 20
RUNS = (
    "beam",
    "paysage's Adam",
    "network critic",
    "replica exchange",
    "natural gradient",
    "stack",
    "GAN",
    "autoencoder",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("checkpoints", tmp_path_factory.mktemp("checkpoints"))


def test_the_fixture_holds_these_runs(runs: Path) -> None:
    assert sorted(folder.name for folder in runs.iterdir()) == sorted(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_is_verified_loaded_and_continued(name: str, runs: Path, tmp_path: Path) -> None:
    """Twenty updates in all: the state and the reports of the last five are those that the earlier revision came to."""
    folder = shutil.copytree(runs / name, tmp_path / "run")
    expected = json.loads((folder / "continued.json").read_text())
    rows = load_file(folder / "rows.safetensors")
    found = load_latest(folder / "checkpoints")
    assert found is not None and found.step == HALF, "a checkpoint whose hash does not fit is passed over"
    config = RunConfig.from_dict(found.meta["config"])
    job = TrainJob(config.to_dict(), "", found.meta["data"], str(folder))

    def build(config: RunConfig) -> Objective:
        return make_objective(job, Comm(), config, JobRows(rows["train"], rows["valid"], {}))

    objective = build(config)
    objective.load_state(found.tensors)
    state = objective.state()
    assert {k: (v.dtype, v.shape) for k, v in state.items()} == {
        k: (v.dtype, v.shape) for k, v in found.tensors.items()
    }
    assert not [key for key, value in found.tensors.items() if not torch.equal(value, state[key])]

    assert list(train(build, config, folder, Comm(), StopRequest(), {"data": found.meta["data"]}))
    last = load_latest(folder / "checkpoints")
    assert last is not None and last.step == END
    tolerance = {"rel": 1e-8, "abs": 1e-10}  # as tests/golden: processors differ
    if name in ("GAN", "autoencoder"):  # these compute in float32
        tolerance = {"rel": 1e-3, "abs": 1e-5}
    norms = {key: float(value.double().norm()) for key, value in last.tensors.items() if value.is_floating_point()}
    assert norms == pytest.approx(expected["norms"], **tolerance)
    if os.environ.get("SAME_MACHINE"):  # as the fixture was made on, with the same torch: then not a bit differs
        assert last.meta["sha256"] == expected["sha256"]
    reports = [row for row in read_history(folder) if row["step"] > HALF]
    for row, wanted in zip(reports, expected["reports"], strict=True):
        assert {key: row[key] for key in wanted} == pytest.approx(wanted, **tolerance)


def test_the_names_of_a_beams_tensors(runs: Path) -> None:
    """A driven BEAM with Adam and a nearest-neighbor critic; the test above says that today's are the fixture's."""
    found = load_latest(runs / "beam" / "checkpoints")
    assert found is not None
    model = {"weights", "visible.bias", "visible.log_variance", "visible.offset", "hidden.bias", "hidden.offset"}
    learned = {name for name in model if not name.endswith("offset")}
    assert set(found.tensors) == {
        *("chains.visible", "chains.hidden", "chains.beta", "generators"),
        *("memory.features", "memory.num_data", "critic.backend"),
        *(f"model.{name}" for name in model),
        *(f"optimizer.{name}.{part}" for name in learned for part in ("exp_avg", "exp_avg_sq", "step")),
    }


def test_a_stacks_layers_are_read_and_encode_as_they_did(runs: Path) -> None:
    """The upper layer's rows in the fixture are draws of the lower one's hidden units, by named random streams."""
    bottom, top = (read_layer(runs / name) for name in ("beam", "stack"))
    stack = RBMStack([bottom.rbm, top.rbm])
    rows, wanted = (load_file(runs / name / "rows.safetensors") for name in ("beam", "stack"))

    def whole(parts: dict[str, Tensor]) -> Tensor:
        return torch.cat([parts["valid"], parts["train"]])

    encoded = encode(stack, whole(rows).float(), 1, seed=3, split="train")
    assert torch.equal(encoded.double(), whole(wanted))


# --- registry ---------------------------------------------------------------------------------------------------------


def close(found: Any, wanted: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found).double(), wanted.double(), rtol=1e-5, atol=1e-5)


def test_a_registered_model_is_found_verified_and_samples_as_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc

    root = unpack("registry", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    noted, wanted = json.loads((root / "version.json").read_text()), load_file(root / "drawn.safetensors")
    for ref in ("points-beam", "points-beam@champion", "models:/points-beam@champion", "points-beam/1"):
        version = find_model(ref)
        assert (version.version, list(version.aliases), version.run_id) == ("1", noted["aliases"], noted["run_id"])
        assert dict(version.tags) == noted["tags"]
        assert verify_model(ref) == version
    assert [version.version for version in list_versions("points-*")] == ["2", "1"]
    assert find_model(f"run:{noted['run_id']}").version == find_model("points-beam@candidate").version == "2"
    assert fetch_model("points-beam@champion", tmp_path / "cache").content_hash == noted["tags"]["content_hash"]
    pull_model("points-beam/1", tmp_path / "pulled")
    for place in ("models:/points-beam@champion", "models:/points-beam/1", str(tmp_path / "pulled")):
        model = load_model(place)
        assert isinstance(model, PackagedBeam)
        for protocol in ("driven", "fresh", "persistent"):
            close(model.sample(5, 10, 3, protocol), wanted[protocol])
        close(model.encode(wanted["rows"]), wanted["encoded"])
        close(model.free_energy(wanted["rows"]), wanted["free_energy"])
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "pulled"))  # by the module that MLmodel names
    close(loaded.predict(None, params={"n_samples": 5, "gibbs_steps": 10, "seed": 3}), wanted["driven"])


# --- the main job and a sweep -----------------------------------------------------------------------------------------

STAGES = ("data", "pixels", "autoencoder", "latents", "beam", "control", "scores", "pictures", "registry")


def times(folder: Path) -> dict[str, int]:
    """When the files below a folder were written, locks aside."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".lock"))
    return {str(file): file.stat().st_mtime_ns for file in files}


def test_a_finished_main_job_has_nothing_left_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpack("main_job", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    run, before = root / "runs" / "finished", json.loads((root / "runs/finished/summary.json").read_text())
    made = [run / part for part in ("autoencoder", "beam", "control", "pictures", "stages")] + [root / "mlartifacts"]
    written = [times(folder) for folder in [*made, root / "cache"]]
    settings = ("model.num_hidden=2", "sampler.num_chains=8", "sampler.gibbs_steps=2", "critic.search=torch")
    command = ["--quick", "--local", *(word for setting in settings for word in ("--set", setting))]
    where = ["--runs", str(root / "runs"), "--cache", str(root / "cache"), "--name", "finished"]
    assert main([*command, "--set-autoencoder", "model.precision=float32", *where]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert {name: stage["skipped"] for name, stage in summary["stages"].items()} == dict.fromkeys(STAGES, True)
    ours, theirs = ({k: v for k, v in s.items() if k not in ("stages", "config")} for s in (summary, before))
    assert {key: ours[key] for key in theirs} == theirs
    after = [times(folder) for folder in [*made, root / "cache"]]
    assert [{k: v for k, v in now.items() if k in old} for now, old in zip(after, written)] == written
    assert [version.version for version in list_versions()] == ["1", "1"]


def test_a_finished_stack_has_nothing_left_to_do(tmp_path: Path) -> None:
    root = unpack("stack", tmp_path)
    deep = root / "deep"
    written, before = times(deep), json.loads((deep / "summary.json").read_text())
    settings = (
        *("1:schedules.likelihood.epochs=1", "1:schedules.adversarial.epochs=1", "sampler.gibbs_steps=2"),
        *("sampler.num_chains=20", "data.batch_size=50", "evaluation.num_rows=40", "evaluation.minibatch_rows=40"),
    )
    where = ["--data", str(root / "data"), "--runs", str(root), "--cache", str(root / "cache"), "--name", "deep"]
    command = ["--recipes", "mixture_toy,stack_toy", "--local", "--no-tracking", *where]
    assert train_stack([*command, *(word for setting in settings for word in ("--set", setting))]) == 0
    summary = json.loads((deep / "summary.json").read_text())
    skipped = {name: stage["skipped"] for name, stage in summary["stages"].items()}
    assert skipped == dict.fromkeys(("layer_1", "rows_2", "layer_2", "scores"), True)
    assert summary["metrics"] == before["metrics"] and summary["comparison"] == before["comparison"]
    changed = {file for file, time in times(deep).items() if time != written.get(file)}
    assert changed == {str(deep / "summary.json")}


@pytest.mark.slow
@pytest.mark.ray
def test_a_half_done_sweep_is_resumed_to_its_end(tmp_path: Path) -> None:
    """Its first trial was over, its second one on: neither is trained anew, and what they had logged goes on."""
    from mlflow import MlflowClient

    root = unpack("sweep", tmp_path)
    sweep, uri = root / "runs" / "half", f"sqlite:///{root / 'mlflow.db'}"
    (over,) = (json.loads(f.with_suffix(".json").read_text())["folder"] for f in sweep.glob("progress/search/*.ended"))
    begun = {folder.name for folder in (sweep / "trials").iterdir()}
    assert len(begun) == 2
    written = times(sweep / "trials" / over / "checkpoints")
    parent = (sweep / "mlflow_run_id").read_text().strip()
    command = [
        *(sys.executable, "-m", "jobs.tune"),
        *("--recipe", "mixture_toy", "--trials", "3", "--concurrent", "1", "--seed", "1", "--name", "half"),
        *("--set", "schedules.likelihood.epochs=0.5", "--set", "schedules.adversarial.epochs=0.5"),
        *("--set", "evaluation.every_updates=25", "--set", "checkpoint.every_updates=5"),
        *("--space", "schedules.likelihood.learning_rate.initial=choice(0.1,0.05)"),
        *("--space", "sampler.gibbs_steps=-", "--runs", str(root / "runs"), "--cache", str(root / "cache")),
    ]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]

    summary = json.loads((sweep / "summary.json").read_text())
    trials = summary["trials"]
    assert len(trials) == 3 and {row["status"] for row in trials} <= {"finished", "stopped"}
    assert begun <= {folder.name for folder in (sweep / "trials").iterdir()}
    assert times(sweep / "trials" / over / "checkpoints") == written, "a finished trial was trained again"
    assert summary["mlflow_run_id"] == parent
    runs = MlflowClient(uri).search_runs(["1"])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    assert len([run for run in children if run.data.tags["stage"] == "search"]) == 3
    assert not [run.info.run_name for run in runs if run.info.status == "RUNNING"]
    assert summary["model"]["name"] == "mixture-bimodal-toy-beam"
    rows = load_model("models:/mixture-bimodal-toy-beam@candidate", tracking=uri).sample(50, seed=3)  # type: ignore[union-attr]
    assert rows.shape == (50, 1) and rows.isfinite().all()
