"""A real MLflow server that is killed, frozen, slow, loses answers or never comes back, while real trainings run.

What has to hold: training is not held up and its bits are the same; every row of the run's metrics.jsonl comes to MLflow
once, in order, at the latest when the same command runs again.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from latents import write_latents
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow_server import Relay, Server

from jobs.recipes import recipe
from jobs.train import main
from pipeline.runs.job import TrainJob, describe_folder, train_local
from pipeline.runs.tracked import add_history, deliver_left, start_tracker
from pipeline.tracking.delivery import deliver
from pipeline.tracking.server import TrackingError, is_away, is_refused
from pipeline.tracking.tracker import Tracker
from pipeline.training.checkpoint import load_latest
from pipeline.training.loop import read_history

UPDATES = 60
TINY = {
    "model.num_visible": 23,
    "model.num_hidden": 11,
    "sampler.num_chains": 13,
    "sampler.gibbs_steps": 2,
    "data.batch_size": 17,
    "evaluation.num_rows": 19,
    "evaluation.num_components": 5,
    "evaluation.every_updates": 20,
    "critic.search": "torch",
    "schedules.likelihood.updates": UPDATES // 2,
    "schedules.adversarial.updates": UPDATES // 2,
    "checkpoint.every_updates": 20,
    "checkpoint.log_every_updates": 1,
}
SETTINGS = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_latents(tmp_path / "latents")
    return tmp_path / "latents"


def command(data: Path, name: str) -> list[str]:
    runs = data.parent / "runs"
    return ["celeba_beam", "--data", str(data), "--runs", str(runs), "--name", name, "--local", *SETTINGS]


def begin(data: Path, name: str = "run") -> tuple[TrainJob, Tracker]:
    """A job in <tmp>/runs/<name> and its tracker, which sends ten times a second."""
    config = recipe("celeba_beam", {key: str(value) for key, value in TINY.items()})
    hash_ = write_latents(data).hash
    folder = data.parent / "runs" / name
    job = TrainJob(config.to_dict(), str(data), hash_, str(folder))
    describe_folder(job, 1)
    return job, Tracker.start(folder / "mlflow_run_id", "beam", name, job.config, {}, interval=0.1)


def stored(server: Server, folder: Path) -> Run:
    return MlflowClient(server.uri).get_run((folder / "mlflow_run_id").read_text())


def assert_complete(server: Server, folder: Path, redone: bool = False) -> None:
    """All that the run's history holds is in MLflow, once and in order; the run is closed, and there is no second one.

    Of updates that were redone after a kill MLflow keeps the first time, and the history the second.
    """
    run = stored(server, folder)
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in read_history(folder):
        for key, value in row.items():
            if key != "step":
                expected.setdefault(key, []).append((int(row["step"]), value))
    assert len(expected["gamma"]) >= UPDATES
    client = MlflowClient(server.uri)
    for key, points in expected.items():
        found = client.get_metric_history(run.info.run_id, key)
        assert sorted(m.step for m in found) == [step for step, _ in points], key
        if not (redone and key == "updates_per_second"):
            assert sorted((m.step, m.value) for m in found) == points, key
        times = [m.timestamp for m in sorted(found, key=lambda m: m.step)]
        assert times == sorted(times), key
    assert run.info.status == "FINISHED" and run.data.params["model.num_hidden"] == "11"
    tag = run.data.tags["spool"]
    assert len(client.search_runs([run.info.experiment_id], f"tags.spool = '{tag}'")) == 1
    assert "config.json" in {file.path for file in client.list_artifacts(run.info.run_id)}


def bits(folder: Path) -> dict[str, torch.Tensor]:
    found = load_latest(folder / "checkpoints")
    assert found is not None and found.step == UPDATES
    return found.tensors


def assert_bits_of_an_undisturbed_run(data: Path, folder: Path, *settings: str) -> None:
    assert main([*command(data, "undisturbed"), *settings, "--no-tracking"]) == 0
    expected, found = bits(folder.parent / "undisturbed"), bits(folder)
    assert expected.keys() == found.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_during_a_training(server: Server, relay: Relay, data: Path) -> None:
    job, tracker = begin(data)
    away = 0
    for row in train_local(job):
        step = int(row["step"])
        tracker.log(step, {key: value for key, value in row.items() if key != "step"})
        if step == 15:
            assert tracker.flush()
            server.kill()
        elif step == 40:
            away = tracker.journal.waiting()[0]
            server.start()
    add_history(tracker, Path(job.folder))
    assert tracker.finish()
    assert away >= 25  # training went on without it
    assert_complete(server, Path(job.folder))


@pytest.mark.slow
def test_a_frozen_server_does_not_hold_up_the_training_and_what_it_took_in_meanwhile_is_not_doubled(
    server: Server, relay: Relay, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, tracker = begin(data)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    slowest, asked = 0.0, 0
    server.freeze()  # it takes requests in, and carries them out when it thaws: long after they were given up here
    try:
        for row in train_local(job):
            before = time.perf_counter()
            tracker.log(int(row["step"]), {key: value for key, value in row.items() if key != "step"})
            slowest = max(slowest, time.perf_counter() - before)
        assert slowest < 0.5  # one request is given a second
        before = time.perf_counter()
        assert tracker.finish(wait=3) is False
        assert time.perf_counter() - before < 4
        asked = relay.passed
    finally:
        server.thaw()
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    assert asked > 0
    time.sleep(1)
    assert deliver_left(Path(job.folder).parent, "the same command")
    assert_complete(server, Path(job.folder))
    assert_bits_of_an_undisturbed_run(data, Path(job.folder))


def test_a_slow_server_delays_no_update(server: Server, relay: Relay, data: Path) -> None:
    job, tracker = begin(data)
    relay.delay = 10.0
    slowest = 0.0
    for row in train_local(job):
        before = time.perf_counter()
        tracker.log(int(row["step"]), {key: value for key, value in row.items() if key != "step"})
        slowest = max(slowest, time.perf_counter() - before)
    assert slowest < 0.5
    assert tracker.finish(wait=0.5) is False
    relay.delay = 0.0
    relay.close()  # the request that is held back ends here
    relay.reopen()
    tracker._thread.join(30)
    assert deliver_left(Path(job.folder).parent, "the same command")
    assert_complete(server, Path(job.folder))


@pytest.mark.parametrize("retries", ["0", "2"])
@pytest.mark.parametrize("lost", ["runs/create", "settings", "metrics", "file", "runs/update"])
def test_a_request_whose_answer_was_lost_is_not_carried_out_twice(
    server: Server, relay: Relay, data: Path, lost: str, retries: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with mlflow's own retries, which send everything again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    words = {"settings": b"log-batch", "metrics": b"", "file": b"mlflow-artifacts/artifacts"}
    relay.lose = words.get(lost, lost.encode())
    folder = data.parent / "runs" / "run"
    config = recipe("celeba_beam", {key: str(value) for key, value in TINY.items()}).to_dict()
    tracker = Tracker.start(folder / "mlflow_run_id", "beam", "run", config, {}, interval=0.1, must_answer=False)
    if lost == "metrics":
        assert tracker.flush()  # params and tags are there: the next batch is metrics
        relay.lose = b"log-batch"
    rows = [{"step": step, "gamma": 1.0 / (step + 1), "rate": 0.5} for step in range(UPDATES)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    add_history(tracker, folder)
    assert tracker.finish() or deliver(tracker.journal.note, relay.uri)
    assert relay.lost == 1, "no answer was lost"
    assert_complete(server, folder)


def test_a_server_that_never_comes_back_changes_nothing_of_the_training(
    server: Server, relay: Relay, data: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """The result is whole, of the same bits, and exit status 0; MLflow gets it all when the same command runs again."""
    job, tracker = begin(data)  # the run is begun, as by an earlier session of the command
    relay.close()
    tracker.finish("KILLED")
    folder = Path(job.folder)
    assert main(command(data, "run")) == 0
    assert "Traceback" not in capsys.readouterr().err and "the same command, run again, sends" in caplog.text
    assert json.loads((folder / "summary.json").read_text())["updates"] == UPDATES
    assert stored(server, folder).info.status == "RUNNING"
    assert_bits_of_an_undisturbed_run(data, folder)

    relay.reopen()
    assert main(command(data, "run")) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert_complete(server, folder)


KILLED = """
import os, signal, sys
from pathlib import Path
from jobs.recipes import recipe
from pipeline.runs.tracked import start_tracker
folder = Path(sys.argv[1])
tracker = start_tracker(folder, recipe("celeba_beam", {"model.num_hidden": "11"}), "synthetic-faces", "abc", must_answer=True)
for step in range(60):
    values = {"gamma": 1.0 / (step + 1)}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": %d, "gamma": %r}\\n' % (step, values["gamma"]))
    if step < 50:
        tracker.log(step, values)
    if step == 30:
        assert tracker.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_had_not_sent_the_next_one_sends(server: Server, relay: Relay, data: Path) -> None:
    """Rows that were sent, rows in the journal only, rows that the driver had not seen; and a line cut by the kill."""
    folder = data.parent / "runs" / "run"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    journal = folder / "mlflow_run_id.spool"
    with journal.open("ab") as file:
        file.write(b'{"kind": "metrics", "time": 17')
    config = recipe("celeba_beam", {"model.num_hidden": "11"})
    tracker = start_tracker(folder, config, "synthetic-faces", "abc")
    assert tracker.finish()
    assert_complete(server, folder)


def test_a_run_that_is_deleted_meanwhile_keeps_its_journal(server: Server, relay: Relay, data: Path) -> None:
    _, tracker = begin(data)
    client = MlflowClient(server.uri)
    client.delete_run(tracker.run_id)
    for step in range(UPDATES):
        tracker.log(step, {"gamma": float(step)})
    assert tracker.flush() is False and tracker.journal.waiting()[0] >= UPDATES
    with pytest.raises(TrackingError, match="was deleted in MLflow; restore it"):
        tracker.delivery.send()
    client.restore_run(tracker.run_id)
    assert tracker.finish()
    assert [m.value for m in client.get_metric_history(tracker.run_id, "gamma")] == list(range(UPDATES))


def test_a_broken_database_connection_is_no_refusal() -> None:
    """MLflow answers BAD_REQUEST to both; only a value that is wrong may be dropped."""
    for text in ("(psycopg2.InterfaceError) connection already closed", "Can't reconnect until invalid transaction is"):
        error = MlflowException(text, error_code=BAD_REQUEST)
        assert error.error_code == "BAD_REQUEST" and is_away(error) and not is_refused(error)
    error = MlflowException("(psycopg2.errors.StringDataRightTruncation) value too long", error_code=BAD_REQUEST)
    assert is_refused(error) and not is_away(error)


def test_the_journal_is_not_read_through_again_and_again(tracking: str, tmp_path: Path) -> None:
    """A delivery begins where the last one ended, also when metrics alone were logged for a long time."""
    tracker = Tracker.start(tmp_path / "run" / "id", "tests", "x", {}, {}, interval=3600, system_metrics=False)
    for step in range(3000):
        tracker.log(step, {"loss": 1.0})
    assert tracker.flush() and tracker.flush()
    size = tracker.journal.file.stat().st_size
    assert (tracker.journal.sent().rows, tracker.journal.sent().rest) == (size, size)
    assert tracker.finish()
