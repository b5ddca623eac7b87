"""What `jobs.train` imports, and when; a run's tracker that starts while training has begun."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from latents import write_latents
from mlflow import MlflowClient

from jobs.recipes import recipe
from jobs.train import main
from jobs.train_job import run_training
from pipeline.config import RunConfig
from pipeline.runs import tracked
from pipeline.runs.job import TrainJob
from pipeline.runs.tracked import start_tracker
from pipeline.tracking.server import TrackingError

HEAVY = ("torch", "numpy", "mlflow", "ray", "sklearn", "matplotlib", "pandas", "scipy")
"""Packages that take more than a tenth of a second to import."""
TINY = {
    "model.num_visible": 23,
    "model.num_hidden": 11,
    "sampler.num_chains": 13,
    "sampler.gibbs_steps": 2,
    "data.batch_size": 17,
    "evaluation.num_rows": 19,
    "evaluation.num_components": 5,
    "critic.search": "torch",
    "schedules.likelihood.updates": 2,
    "schedules.adversarial.updates": 2,
}


def imported_by(code: str, names: tuple[str, ...]) -> set[str]:
    """Those of `names` that a new process has imported after `code`, whose own output is not read."""
    report = f"import json, sys\n{code}\nprint('\\n' + json.dumps([n for n in {names!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [["--list"], ["celeba_beam", "--show"], ["celeba_bean"], ["celeba_beam"], ["celeba_beam", "--set", "no.key=1"]],
)
def test_questions_and_wrong_names_are_answered_before_anything_heavy_is_imported(arguments):
    assert imported_by(f"from jobs.train import main\nmain({arguments!r})", HEAVY) == set()


def test_the_check_sees_an_import():
    assert imported_by("import numpy", ("numpy", "mlflow")) == {"numpy"}


def test_a_local_run_without_tracking_imports_only_what_it_uses(tmp_path: Path):
    """torch._dynamo, torch's compiler, alone takes longer than the rest of the way to the first update."""
    data = tmp_path / "latents"
    write_latents(data)
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    where = ["--data", str(data), "--runs", str(tmp_path), "--cache", str(tmp_path / "cache")]
    arguments = ["celeba_beam", *where, "--local", "--no-tracking", *settings]
    unused = ("ray", "mlflow", "pandas", "scipy", "sklearn", "matplotlib", "triton", "torch._dynamo", "sympy")
    assert imported_by(f"from jobs.train import main\nassert main({arguments!r}) == 0", unused) == set()


def tiny_job(tmp_path: Path) -> tuple[TrainJob, RunConfig, str]:
    """A run of 4 updates in tmp_path/run, and the hash of its data."""
    data_hash = write_latents(tmp_path / "latents").hash
    config = recipe("celeba_beam", {key: str(value) for key, value in TINY.items()})
    return TrainJob(config.to_dict(), str(tmp_path / "latents"), data_hash, str(tmp_path / "run")), config, data_hash


def test_rows_wait_for_a_run_that_starts_late_and_none_is_lost(tmp_path, tracking, monkeypatch):
    """Training ends before the run is there: all rows come, in order, and the run is closed."""
    job, config, data_hash = tiny_job(tmp_path)
    allowed = threading.Event()

    def late(*arguments, **options):
        assert allowed.wait(60)
        return start_tracker(*arguments, **options)

    monkeypatch.setattr(tracked, "start_tracker", late)
    tracker = tracked.StartingTracker(tmp_path / "run", config, "synthetic-faces", data_hash)
    outcome = run_training(job, 1, True, tracker, tmp_path / "cache")
    assert outcome.finished and not (tmp_path / "run" / "mlflow_run_id").exists()
    allowed.set()
    assert tracker.finish("FINISHED")
    client = MlflowClient(tracking)
    steps = [metric.step for metric in client.get_metric_history(tracker.run_id, "frechet_latent")]
    assert steps == [int(row["step"]) for row in outcome.history if "frechet_latent" in row]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert (tmp_path / "run" / "mlflow_run_id").read_text() == tracker.run_id


def test_a_run_begins_with_the_first_report_of_updates(tmp_path, monkeypatch):
    """Not with the untrained model's row, nor with that of a group; after such a row alone it is still a new run."""
    _, config, data_hash = tiny_job(tmp_path)
    begun: list[bool] = []

    def start(*_, must_answer: bool):
        begun.append(must_answer)
        raise TrackingError("enough")

    monkeypatch.setattr(tracked, "start_tracker", start)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "kl_reverse": 1.0}\n')
    tracker = tracked.StartingTracker(tmp_path / "run", config, "synthetic-faces", data_hash)
    tracker.log(0, {"kl_reverse": 1.0})
    tracker.log(1, {"workers": 2.0})
    assert begun == []
    with pytest.raises(TrackingError):
        for step in range(1, 10_000):
            tracker.log(step, {"updates_per_second": 1.0})
            time.sleep(0.01)
    assert begun == [True]


def test_an_interrupt_before_training_is_said_in_a_line_and_leaves_no_run(tmp_path, tracking, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.train_job.run_training", interrupted)
    write_latents(tmp_path / "latents")
    where = ["--data", str(tmp_path / "latents"), "--runs", str(tmp_path), "--cache", str(tmp_path / "cache")]
    assert main(["celeba_beam", *where, "--local", "--name", "run"]) == 130
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and errors.startswith("interrupted; the same command")
    assert not list((tmp_path / "run").glob("mlflow_run_id*"))


def test_a_run_that_cannot_be_started_stops_training_with_its_reason(tmp_path, dead_server, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_server)
    write_latents(tmp_path / "latents")
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    where = ["--data", str(tmp_path / "latents"), "--runs", str(tmp_path), "--cache", str(tmp_path / "cache")]
    assert main(["celeba_beam", *where, "--local", *settings]) == 2
    errors = capsys.readouterr().err
    assert "no MLflow run can be written" in errors and "Traceback" not in errors


def test_a_failed_run_keeps_its_own_error_also_when_tracking_failed_too(tmp_path, dead_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_server)
    _, config, data_hash = tiny_job(tmp_path)
    tracker = tracked.StartingTracker(tmp_path / "run", config, "synthetic-faces", data_hash)
    assert tracker.finish("FAILED") is False
    with pytest.raises(TrackingError):
        tracker.finish("FINISHED")
