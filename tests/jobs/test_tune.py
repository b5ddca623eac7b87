"""A whole sweep on Ray: killed in the middle, gone on with, with a trial that diverges, registered, and not done again."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.mixtures import draw_mixture
from jobs.ray_session import prepare_environment, ray_session
from jobs.recipes import recipe
from jobs.spaces import changed_in_flight, space_of
from jobs.trial import Segment, SweepPlan, folder_of, seeded
from pipeline.registry.fetch import load_model
from pipeline.training.loop import read_history

ROOT = Path(__file__).parents[2]
RATE = "schedules.likelihood.learning_rate.initial"
ARGUMENTS = [
    *("--recipe", "mixture_toy", "--trials", "4", "--concurrent", "2", "--seed", "1"),
    *("--set", "schedules.likelihood.epochs=0.5", "--set", "schedules.adversarial.epochs=0.5"),
    *("--set", "evaluation.every_updates=25", "--set", "checkpoint.every_updates=25"),
    *("--space", f"{RATE}=choice(0.1,1e30)", "--space", "sampler.gibbs_steps=-"),
]


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "jobs.tune", *ARGUMENTS, "--runs", str(folder), "--cache", str(folder / "cache")]
    log = (folder / "log").open("a")
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def finish(folder: Path) -> str:
    before = len((folder / "log").read_text()) if (folder / "log").exists() else 0
    process = start(folder)
    status = process.wait(timeout=600)
    said = (folder / "log").read_text()[before:]
    assert status == 0, said[-3000:]
    return said


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.long
def test_a_sweep_that_is_killed_goes_on_and_ends_with_a_registered_model(tracking: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    folder = tmp_path / "runs"
    folder.mkdir()
    sweep = folder / "sweep-mixture_toy"
    process = start(folder)
    deadline = time.monotonic() + 300
    while not list(sweep.glob("progress/search/*.json")) and time.monotonic() < deadline:
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches Ray's processes, too
    assert process.wait(timeout=120) == 130, (folder / "log").read_text()[-3000:]

    process = start(folder)
    deadline = time.monotonic() + 300
    while not (ended := list(sweep.glob("progress/search/*.ended"))) and time.monotonic() < deadline:
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        time.sleep(0.2)
    assert ended, "no trial came to its end"
    time.sleep(2.5)  # Tune writes what it knows every 2 seconds
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(3)
    over = [json.loads(mark.with_suffix(".json").read_text()) for mark in ended]
    histories = {note["folder"]: sweep / "trials" / note["folder"] / "metrics.jsonl" for note in over}
    written = {name: file.stat().st_mtime_ns for name, file in histories.items() if file.exists()}

    finish(folder)
    summary = json.loads((sweep / "summary.json").read_text())
    assert len(summary["trials"]) == 4 and summary["trials"][0]["recipe"]
    finished_before = {note["folder"] for note in over if not note["error"]}
    final = {run["folder"] for v in summary["final"]["variants"].values() for run in v["runs"]}
    for name in finished_before & set(written):
        if f"trials/{name}" not in final:  # a cut one of those is trained on
            assert histories[name].stat().st_mtime_ns == written[name], "a finished trial was run again"
    status = {row["status"] for row in summary["trials"]}
    failed = [row for row in summary["trials"] if row["status"] == "failed"]
    assert "finished" in status and failed, summary["trials"]
    assert all(row["settings"][RATE] == 1e30 and "diverged" in row["reason"] for row in failed)
    assert all(row["score"] is None for row in failed)

    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name("beam")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert not [run.info.run_name for run in runs if run.info.status == "RUNNING"]
    parent = summary["mlflow_run_id"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    search = {run.data.tags["trial"]: run for run in children}
    for row in summary["trials"]:
        run = search[row["trial"]]
        expected = {"failed": "FAILED", "finished": "FINISHED", "stopped": "KILLED"}[row["status"]]
        assert run.info.status == expected
        assert json.loads(run.data.params[RATE]) == row["settings"][RATE]
        assert "model.num_hidden" in run.data.params, "a child has the whole config"
    assert all("diverged" in search[row["trial"]].data.tags["failure"] for row in failed)

    for variant in summary["final"]["variants"].values():
        assert [run["seed"] for run in variant["runs"]] == [0, 1, 2]
    assert all(Path(path).stat().st_size > 5000 for path in summary["pictures"].values())
    model = summary["model"]
    assert model["name"] == "mixture-bimodal-toy-beam"
    candidate = client.get_model_version_by_alias(model["name"], "candidate")
    assert str(candidate.version) == str(model["version"])  # SQLite gives a number
    rows = load_model(f"models:/{model['name']}@candidate").sample(50, seed=3)
    assert rows.shape == (50, 1) and rows.isfinite().all()

    said = finish(folder)
    again = json.loads((sweep / "summary.json").read_text())
    assert all(stage["skipped"] for stage in again["stages"].values())
    assert again["final"] == summary["final"] and "candidate: models:/" in said
    assert not [run for run in client.search_runs([experiment.experiment_id]) if run.info.status == "RUNNING"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.long
def test_a_populations_members_change_in_flight_and_the_winner_is_trained_again_as_it_came_about(
    tmp_path: Path,
) -> None:
    """Search and final comparison of a population, in this process: the winner's lineage has the settings that it had."""
    prepare_environment(tmp_path / "cache")
    from jobs.search import final_runs, population_search
    from jobs.sweep_progress import read_trials

    data = tmp_path / "data"
    manifest = draw_mixture("bimodal", data, train_rows=1000)
    config = recipe("mixture_toy", {"evaluation.every_updates": 10, "evaluation.num_rows": 200})
    plan = SweepPlan(config.to_dict(), str(data), manifest.hash, str(tmp_path / "sweep"), workers=1, use_gpu=False)
    space = space_of(config, [])
    with ray_session(tmp_path / "cache", 5, sweep=True):
        known = population_search(plan, space, "kl_sum", num_trials=4, seed=0, interval=20)
        records = read_trials(plan)
        assert {record.trial for record in records} == known and len(known) == 4
        assert {record.status for record in records} == {"finished"}
        assert len({record.folder for record in records}) == 4
        changed = [record for record in records if len(record.lineage) > 1]
        assert changed, "with four members the worst goes on from the best"
        lineage = changed[0].lineage
        assert [segment.until for segment in lineage] == [20, None]
        flight = changed_in_flight(config, space)
        differ = {key for key in space if lineage[0].settings[key] != lineage[1].settings[key]}
        assert differ and differ <= set(flight)
        final = dataclasses.replace(plan, stage="final")
        final_runs(final, {"recipe": [Segment({})], "winner": lineage}, seeds=[1], concurrent=2)
        assert {record.status for record in read_trials(final)} == {"finished"}
    with_seed = seeded(lineage, 1)
    parts = [folder_of(plan, with_seed[:1]), folder_of(plan, with_seed), folder_of(plan, [Segment({"seed": 1})])]
    assert [read_history(part)[-1]["step"] for part in parts] == [20, 40, 40]
    gammas = [{row["gamma"] for row in read_history(parts[1])[1:] if low < row["step"] <= low + 10} for low in (10, 20)]
    assert gammas == [{segment.settings["schedules.adversarial.gamma"]} for segment in lineage]
