"""MLflow runs: what is recorded, going on with a run, and a server that goes away and comes back."""

import json
import logging
import math
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import pipeline.tracking.tracker as tracking_module
from pipeline.config import RunConfig
from pipeline.provenance import environment_tags, project_root, without_secrets
from pipeline.tracking.delivery import deliver
from pipeline.tracking.server import TrackingError, tracking_uri
from pipeline.tracking.tracker import Tracker

TAGS = {"dataset": "synthetic-faces", "data_hash": "abc"}
HOUR = 3600.0


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals lie in a test's own folder."""
    monkeypatch.chdir(tmp_path)


def start(
    again: Tracker | None = None, config: dict | None = None, interval: float = HOUR, system: bool = False
) -> Tracker:
    """A new run, or the run of the tracker `again` gone on with."""
    note = again.journal.note if again else Path.cwd() / uuid.uuid4().hex / "mlflow_run_id"
    config = RunConfig("tiny", seed=7).to_dict() if config is None else config
    return Tracker.start(note, "tests", "tiny", config, TAGS, interval=interval, system_metrics=system)


def stored(tracker: Tracker) -> Run:
    return MlflowClient(tracker.uri).get_run(tracker.run_id)


def history(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    points = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, key)
    return sorted((point.step, point.value) for point in points)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_default_place_is_the_project_root_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert (project_root() / "pyproject.toml").is_file()
    assert tracking_uri() == f"sqlite:///{project_root()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri().endswith("/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert tracking_uri() == "http://somewhere:5000"


def test_a_run_records_settings_tags_metrics_and_files(tracking: str, tmp_path: Path) -> None:
    tracker = start()
    assert stored(tracker).info.status == "RUNNING"
    tracker.log(3, {"kl_forward": 0.5, "gamma": 1})
    picture = tmp_path / "grid.png"
    picture.write_bytes(b"png")
    tracker.log_artifact(picture, "pictures")
    tracker.log_dict({"recall": 0.25}, "scores.json")
    assert tracker.finish()

    run = stored(tracker)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"kl_forward": 0.5, "gamma": 1.0}
    params = run.data.params
    assert params["sampler.gibbs_steps"] == "100" and params["critic.form"] == "linear" and params["name"] == "tiny"
    assert params["schedules.likelihood.updates"] == "null" and params["critic.exclude_own_chain"] == "false"
    tags = run.data.tags
    assert TAGS.items() <= tags.items() and environment_tags().items() <= tags.items()
    assert tags["seed"] == "7" and tags["version.torch"]
    if (project_root() / ".git").exists():
        assert len(tags["mlflow.source.git.commit"]) == 40 and tags["git.dirty"] in ("True", "False")
    # nothing about the machine or the user
    assert {key.split(".")[0] for key in tags} <= {"dataset", "data_hash", "seed", "version", "mlflow", "git", "spool"}
    assert {key for key in tags if key.startswith("mlflow.")} <= {"mlflow.source.git.commit", "mlflow.runName"}

    client = MlflowClient(tracking)
    files = {f.path for f in client.list_artifacts(tracker.run_id)} | {
        f.path for f in client.list_artifacts(tracker.run_id, "pictures")
    }
    assert files == {"config.json", "scores.json", "pictures", "pictures/grid.png"}
    # artifacts lie beside the database, wherever the job was started
    assert (tmp_path / "my store" / "mlartifacts" / "tests" / tracker.run_id / "artifacts" / "scores.json").is_file()


def test_a_long_value_is_cut_in_params_and_whole_in_the_artifact(tracking: str, tmp_path: Path) -> None:
    config = {"data": {"note": "x" * 9000, "short": "y" * 6000}}
    tracker = start(config=config)
    tracker.finish()
    params = stored(tracker).data.params
    assert len(params["data.note"]) <= 6000 and params["data.note"].endswith("(cut; whole in config.json)")
    assert params["data.short"] == "y" * 6000
    saved = MlflowClient(tracking).download_artifacts(tracker.run_id, "config.json", str(tmp_path))
    assert json.loads(Path(saved).read_text()) == config
    again = start(tracker, config)  # a cut value is no changed value
    again.finish()
    assert not [tag for tag in stored(again).data.tags if tag.startswith("changed")]


def test_more_settings_than_one_call_takes(tracking: str) -> None:
    tracker = start(config={"many": {f"key_{i}": i for i in range(230)}})
    tracker.finish()
    assert len(stored(tracker).data.params) == 230


def test_metrics_wait_for_a_delivery_and_all_arrive(tracking: str) -> None:
    tracker = start()
    tracker.flush()
    time.sleep(0.5)  # what came with the start is sent
    for step in range(30):
        tracker.log(step, {f"metric_{i}": step + i / 100 for i in range(20)})
    assert history(tracker, "metric_0") == []  # fewer than one batch: nothing is sent yet
    for step in range(30, 120):
        tracker.log(step, {f"metric_{i}": step + i / 100 for i in range(20)})
    assert tracker.flush()
    for i in (0, 19):
        assert history(tracker, f"metric_{i}") == [(step, step + i / 100) for step in range(120)]
    assert tracker.finish()


def test_the_thread_sends_without_being_asked(tracking: str) -> None:
    tracker = start(interval=0.05)
    tracker.log(0, {"loss": 1.0})
    wait_for(lambda: history(tracker, "loss") == [(0, 1.0)])
    tracker.finish()


def test_system_metrics_are_measured_until_they_are_turned_off(tracking: str) -> None:
    tracker = start(interval=0.05, system=True)
    wait_for(lambda: len(history(tracker, "system/cpu_utilization_percentage")) >= 2)
    tracker.finish("KILLED")
    run = stored(tracker)
    assert run.info.status == "KILLED"
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0


def test_nan_and_infinity_are_stored_as_nan(tracking: str) -> None:
    tracker = start()
    tracker.log(0, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e300})
    assert tracker.finish("FAILED")
    metrics = stored(tracker).data.metrics
    assert all(math.isnan(metrics[key]) for key in "abc") and metrics["d"] == 1e300
    assert stored(tracker).info.status == "FAILED"


def test_a_run_goes_on_where_it_was(tracking: str, caplog: pytest.LogCaptureFixture) -> None:
    first = start()
    first.log(0, {"loss": 3.0})
    first.log(1, {"loss": 2.0})
    first.finish("KILLED")
    second = start(first)
    assert second.run_id == first.run_id
    wait_for(lambda: stored(second).info.status == "RUNNING")
    assert not caplog.records
    second.log(1, {"loss": 2.0})  # the step after the checkpoint, once more
    second.log(2, {"loss": 1.0})
    second.finish()
    assert history(second, "loss") == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert stored(second).info.status == "FINISHED"


def test_a_changed_setting_keeps_its_first_value_and_is_tagged(tracking: str, caplog: pytest.LogCaptureFixture) -> None:
    first = start(config={"seed": 1, "workers": 4})
    first.finish()
    second = start(first, {"seed": 1, "workers": 3, "added": True})
    second.finish()
    data = stored(second).data
    assert data.params == {"seed": "1", "workers": "4", "added": "true"}
    assert data.tags["changed.workers"] == "3" and "changed.seed" not in data.tags
    assert "workers" in caplog.text


@pytest.mark.parametrize("gone", ["unknown", "deleted"])
def test_a_run_that_is_gone_is_replaced_by_a_new_one(
    tracking: str, caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    old = start()
    old.log(0, {"loss": 2.0})
    old.finish()
    MlflowClient(tracking).delete_run(old.run_id)
    known = old.run_id if gone == "deleted" else "0" * 32
    old.journal.name_run(known)
    tracker = start(old)
    tracker.log(1, {"loss": 1.0})
    assert tracker.finish()
    assert tracker.run_id != known and known in caplog.text
    assert history(tracker, "loss") == [(0, 2.0), (1, 1.0)]  # the new run has what the old one had


def test_training_goes_on_while_the_server_is_away_and_all_arrives_later(
    tracking: str, dead_server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(interval=0.05)
    tracker.log(0, {"loss": 10.0})
    tracker.flush()
    alive, tracker.delivery.client = tracker.delivery.client, MlflowClient(dead_server)
    (tmp_path / "curves.png").write_bytes(b"png")
    slowest = 0.0
    for step in range(1, 300):
        before = time.perf_counter()
        tracker.log(step, {"loss": 10.0 - step / 100, "rate": 1.0})
        if step == 5:
            tracker.log_artifact(tmp_path / "curves.png")
        slowest = max(slowest, time.perf_counter() - before)
    assert slowest < 0.5  # it never waits for the server
    wait_for(lambda: "cannot be written to" in caplog.text)
    assert tracker.flush() is False and tracker.flush() is False
    warnings = [record for record in caplog.records if record.name == tracking_module.__name__]
    assert len(warnings) == 1 and warnings[0].levelno == logging.WARNING  # one a minute

    tracker.delivery.client = alive
    assert tracker.flush()
    assert history(tracker, "loss") == [(step, 10.0 - step / 100) for step in range(300)]
    assert "curves.png" in {file.path for file in alive.list_artifacts(tracker.run_id)}
    assert tracker.finish()


def test_a_server_that_stays_away_does_not_hold_up_the_end(
    tracking: str, dead_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start()
    tracker.flush()
    tracker.delivery.client = MlflowClient(dead_server)
    tracker.log(0, {"loss": 1.0})
    assert tracker.finish() is False
    assert "is not marked FINISHED" in caplog.text and "1 metric values and 1 entries wait" in caplog.text
    assert stored(tracker).info.status == "RUNNING"
    assert deliver(tracker.journal.note, tracking)
    assert stored(tracker).info.status == "FINISHED" and history(tracker, "loss") == [(0, 1.0)]


def test_a_refused_metric_is_dropped_alone(tracking: str, caplog: pytest.LogCaptureFixture) -> None:
    tracker = start()
    tracker.log(0, {"good": 1.0, "bad name!?": 2.0, "also_good": 3.0})
    assert tracker.finish()
    assert stored(tracker).data.metrics == {"good": 1.0, "also_good": 3.0}
    assert "'bad name!?' is refused" in caplog.text


def test_a_file_that_is_gone_before_it_is_sent_stops_nothing(
    tracking: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start()
    tracker.flush()
    tracker.log_artifact(tmp_path / "never.png")
    tracker.log_dict({"a": 1}, "after.json")
    assert tracker.finish()
    assert "never.png" in caplog.text
    assert "after.json" in {file.path for file in MlflowClient(tracking).list_artifacts(tracker.run_id)}


def test_a_dead_server_at_the_start_is_one_clear_error_without_secrets(
    dead_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_server.replace("//", "//someone:hidden@"))
    with pytest.raises(
        TrackingError, match=r"no MLflow run can be written to http://\*\*\*@127.*MLFLOW_TRACKING_URI"
    ) as e:
        start()
    assert "hidden" not in str(e.value)
    assert without_secrets("at postgresql://me:pw@host/db now") == "at postgresql://***@host/db now"


def test_a_deleted_experiment_is_named(tracking: str) -> None:
    tracker = start()
    tracker.finish()
    MlflowClient(tracking).delete_experiment(stored(tracker).info.experiment_id)
    with pytest.raises(TrackingError, match="experiment 'tests' was deleted"):
        start()
