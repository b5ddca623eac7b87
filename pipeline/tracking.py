"""MLflow tracking: one run per training, written by rank 0; with registry.py the only code that imports mlflow.

Training never waits for the tracking server and never ends because of it. Metrics and files go into a queue; a thread
sends it every few seconds in batches (one call per metric would be 200 times slower). What cannot be sent stays in the
queue, up to a bound, and is sent when the server is back; one warning a minute says so. Every call names its run: nothing
here touches MLflow's process-wide state of active runs.

A step that is logged twice, because a run went on from a checkpoint, is stored twice: readers take the last.
"""

import json
import logging
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Read by mlflow when it is imported or makes a request; a value set by the user stays. No usage data leaves the machine,
# and a dead server costs seconds instead of the default four minutes per call.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # noqa: E402

from pipeline.config import flatten  # noqa: E402
from pipeline.provenance import environment_tags, project_root, without_secrets  # noqa: E402

BATCH_METRICS = 1000  # MLflow's bounds per call, and per value
BATCH_PARAMS = 100
MAX_PARAM_CHARACTERS = 6000
MAX_WAITING = 100_000  # metric values kept while the server is away; beyond it the oldest are dropped
WARNING_SECONDS = 60.0
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
_log = logging.getLogger(__name__)


class TrackingError(ValueError):
    """A run cannot be started: says where it was to be written, and why not."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or MLflow's own default place in the project root: `sqlite:///<root>/mlflow.db`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root().as_posix()}/mlflow.db"


def sqlite_file(uri: str) -> Path | None:
    """The database file of an sqlite URI (absolute), or None for any other URI."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


class Tracker:
    """A run being written. Make it with `Tracker.start`, on one worker only; end it with `finish`.

    `log`, `log_artifact` and `log_dict` return at once and never raise because of the server.
    """

    def __init__(self, client: MlflowClient, uri: str, run: Run, system_metrics: bool, interval: float):
        """Use `Tracker.start`. `interval` is the number of seconds between two deliveries."""
        self.client = client
        self.uri = uri
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self._start_time = run.info.start_time / 1000
        self._rows: deque[Metric] = deque()
        self._uploads: deque[tuple[str, Callable[[MlflowClient], object]]] = deque()
        self._guard = threading.Lock()  # of the two queues; held for moments
        self._sending = threading.Lock()  # one delivery at a time keeps the order
        self._dropped = 0
        self._last_warning = -math.inf
        self._monitor = SystemMetricsMonitor(self.run_id, tracking_uri=uri) if system_metrics else None
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(interval,), name="mlflow-sender", daemon=True)
        self._thread.start()

    @classmethod
    def start(
        cls,
        experiment: str,
        run_name: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
        *,
        uri: str | None = None,
        system_metrics: bool = True,
        interval: float = 5.0,
    ) -> "Tracker":
        """Start a run, or go on with the run `run_id` (RUNNING again).

        The leaves of `config` become params by dotted key, values as JSON; one that is too long is cut, and whole in the
        artifact `config.json`. A param that has changed since the run began keeps its first value (MLflow allows no
        other), and the tag `changed.<key>` holds the new one. `environment_tags()` and config's seed are added to the tags.

        Args:
            experiment: its name; it is made when there is none.
            run_name: shown in lists.
            config: nested dict of JSON values, such as `RunConfig.to_dict()`.
            tags: data set label, hash of the data manifest, recipe; nothing secret, no names of machines.
            run_id: of a run to go on with. When the server does not know it, a new run is started, with a warning.
            uri: tracking URI; None: `tracking_uri()`.
            system_metrics: measure processor, memory, disk, network (and GPU) every `interval` seconds, as
                `system/...` by seconds since the run began.
            interval: seconds between two deliveries.

        Raises:
            TrackingError: the server cannot be reached or refuses.
        """
        uri = uri or tracking_uri()
        seed = {"seed": str(config["seed"])} if "seed" in config else {}
        all_tags = {**environment_tags(), **seed, **{k: str(v) for k, v in tags.items()}}
        try:
            client = MlflowClient(uri)
            run = _find_run(client, run_id) if run_id else None
            if run is None:
                run = client.create_run(experiment_id(client, uri, experiment), run_name=run_name)
            else:  # what began the run stays said of it: later code only adds what was not known
                all_tags = {k: v for k, v in all_tags.items() if k not in run.data.tags}
            if run.info.status != "RUNNING":
                client.update_run(run.info.run_id, status="RUNNING")
            params, changed = _new_params(flatten(dict(config)), run.data.params)
            all_tags |= {f"changed.{key}": value for key, value in changed.items()}
            for start in range(0, len(params), BATCH_PARAMS):
                client.log_batch(run.info.run_id, params=params[start : start + BATCH_PARAMS])
            client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in all_tags.items()])
        except TrackingError:
            raise
        except Exception as error:  # mlflow lets errors of requests, sqlalchemy and its own through
            raise TrackingError(
                f"no MLflow run can be written to {without_secrets(uri)} ({_first_line(error)}); "
                "check MLFLOW_TRACKING_URI and that the server runs"
            ) from error
        if changed:
            _log.warning("resumed run %s has other settings than it began with: %s", run_id, ", ".join(changed))
        tracker = cls(client, uri, run, system_metrics, interval)
        tracker.log_dict(dict(config), "config.json")
        return tracker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue one row of metrics of update `step`.

        An infinite value is stored as NaN: SQL databases have no infinity, MLflow would store 1.8e308 and every chart
        would be flat beside it.
        """
        now = int(time.time() * 1000)
        values = {key: float(value) for key, value in metrics.items()}
        rows = [Metric(k, math.nan if math.isinf(v) else v, now, int(step)) for k, v in values.items()]
        with self._guard:
            self._rows.extend(rows)
            while len(self._rows) > MAX_WAITING:
                self._rows.popleft()
                self._dropped += 1
            if len(self._rows) >= BATCH_METRICS:
                self._wake.set()

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Queue a file (it must stay where it is until it is sent) for the run's artifacts, into `folder`."""
        name = Path(path).name
        self._queue_upload(name, lambda client: client.log_artifact(self.run_id, str(path), folder))

    def log_dict(self, values: Mapping[str, Any], file: str) -> None:
        """Queue `values`, as they are now, as the JSON artifact `file` ("folder/name.json")."""
        copy = json.loads(json.dumps(values))
        self._queue_upload(file, lambda client: client.log_dict(self.run_id, copy, file))

    def set_tag(self, key: str, value: str) -> None:
        """Queue a tag of the run."""
        self._queue_upload(f"tag {key}", lambda client: client.set_tag(self.run_id, key, value))

    def flush(self) -> bool:
        """Send all that waits. Returns False, after a warning, when something could not be sent and still waits."""
        with self._sending:
            return self._send_rows() and self._send_uploads()

    def finish(self, status: str = "FINISHED") -> bool:
        """Send all that waits and close the run as FINISHED, FAILED or KILLED.

        Returns False, after a warning, when the server did not take it all.
        """
        self._stop.set()
        self._wake.set()
        self._thread.join()
        complete = self.flush()
        try:
            self.client.set_terminated(self.run_id, status)
        except Exception as error:
            complete = False
            self._warn(f"run {self.run_id} cannot be marked {status} ({_first_line(error)})", always=True)
        if not complete:
            self._warn(f"run {self.run_id} ends with {len(self._uploads)} files not sent", always=True)
        return complete

    def _queue_upload(self, name: str, send: Callable[[MlflowClient], object]) -> None:
        with self._guard:
            self._uploads.append((name, send))
        self._wake.set()

    def _work(self, interval: float) -> None:
        """The sender's thread. A wake-up sends early, but never leads to a busy loop while the server is away."""
        while not self._stop.is_set():
            self._measure_system()
            if not self.flush():
                self._stop.wait(interval)
            self._wake.wait(interval)
            self._wake.clear()

    def _measure_system(self) -> None:
        """Queue MLflow's system metrics. Its own thread would end for good at the first failure of the server."""
        if self._monitor is None:
            return
        try:
            self._monitor.collect_metrics()
            measured: dict[str, float] = {}
            for monitor in self._monitor.monitors:
                measured |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            self.log(int(time.time() - self._start_time), {f"system/{key}": v for key, v in measured.items()})
        except Exception as error:
            self._monitor = None
            _log.warning("system metrics are off from here: %s", _first_line(error))

    def _send_rows(self) -> bool:
        while True:
            with self._guard:
                batch = [self._rows.popleft() for _ in range(min(BATCH_METRICS, len(self._rows)))]
            if not batch:
                return True
            for number, rows in enumerate(parts := [batch]):
                try:
                    self.client.log_batch(self.run_id, metrics=rows)
                except Exception as error:
                    refused = isinstance(error, MlflowException) and error.error_code in _REFUSED
                    if refused and len(rows) > 1:
                        parts.extend([row] for row in rows)  # one by one: only what is wrong is lost
                    elif refused:
                        self._dropped += 1
                        self._warn(f"metric {rows[0].key!r} is refused and dropped ({_first_line(error)})")
                    else:
                        with self._guard:
                            self._rows.extendleft(row for part in reversed(parts[number:]) for row in reversed(part))
                        self._warn(f"metrics cannot be sent ({_first_line(error)})")
                        return False

    def _send_uploads(self) -> bool:
        while self._uploads:
            name, send = self._uploads[0]
            try:
                send(self.client)
            except FileNotFoundError:
                _log.warning("artifact %s is gone before it could be sent", name)
            except Exception as error:
                self._warn(f"artifact {name} cannot be sent ({_first_line(error)})")
                return False
            with self._guard:
                self._uploads.popleft()
        return True

    def _warn(self, message: str, always: bool = False) -> None:
        """Say once a minute that the server is away; training goes on."""
        now = time.monotonic()
        if not always and now - self._last_warning < WARNING_SECONDS:
            return
        self._last_warning = now
        lost = f", {self._dropped} values dropped" if self._dropped else ""
        _log.warning("MLflow: %s; training goes on, %d metric values wait%s", message, len(self._rows), lost)


def run_tags(run_id: str, uri: str | None = None) -> dict[str, str]:
    """The tags of a run, and its state as `status`. Raises TrackingError when it is not known or cannot be reached."""
    uri = uri or tracking_uri()
    file = sqlite_file(uri)
    if file is not None and not file.is_file():  # MLflow would make one
        raise TrackingError(f"there is no database {file.name}")
    try:
        run = MlflowClient(uri).get_run(run_id)
    except Exception as error:  # as in Tracker.start
        raise TrackingError(f"run {run_id} cannot be read ({_first_line(error)})") from error
    return {**run.data.tags, "status": run.info.status}


def _find_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run to go on with, or None when it is unknown or deleted there (a database that was thrown away)."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        _log.warning("MLflow does not know run %s; a new run is started", run_id)
        return None
    if run.info.lifecycle_stage == "deleted":
        _log.warning("run %s was deleted; a new run is started", run_id)
        return None
    return run


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment's id. With sqlite its artifacts lie beside the database: MLflow would put them where it is called."""
    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(uri)
        folder = re.sub(r"[^\w.-]+", "-", name)
        try:
            return client.create_experiment(name, (file.parent / "mlartifacts" / folder).as_uri() if file else None)
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # made by another process in this moment
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} was deleted; restore it (`mlflow experiments restore`) or use another"
        )
    return found.experiment_id


def _new_params(leaves: Mapping[str, Any], known: Mapping[str, str]) -> tuple[list[Param], dict[str, str]]:
    """Params that the run has not, and the values of those that it has with another value."""
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in leaves.items()}
    end = " ... (cut; whole in config.json)"
    values = {
        k: v if len(v) <= MAX_PARAM_CHARACTERS else v[: MAX_PARAM_CHARACTERS - len(end)] + end
        for k, v in values.items()
    }
    changed = {key: value for key, value in values.items() if key in known and known[key] != value}
    return [Param(key, value) for key, value in values.items() if key not in known], changed


def _first_line(error: Exception) -> str:
    text = without_secrets(str(error)).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300] if text else 'no message'}"
