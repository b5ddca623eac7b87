"""MLflow tracking: one run per training, written by the process that was started.

Training never waits for the tracking server and never ends because of it. Whatever is logged is first written to a journal
in the run's folder (journal.py); a thread sends it every few seconds (delivery.py). While the server is away, slow or gone
the journal grows, and one warning a minute says so; it is sent when the server answers again, in this session or when the
same command runs again, also after a SIGKILL. Every call names its run: nothing here touches MLflow's process-wide state.

A step is stored once: a run that goes on from a checkpoint makes some updates again, whose rows are there already.
"""

import logging
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.provenance import environment_tags, without_secrets
from pipeline.tracking.journal import Journal
from pipeline.tracking.server import TrackingError, first_line, is_away, is_refused, sqlite_file, tracking_uri

# isort: split
from mlflow import MlflowClient
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from pipeline.tracking.delivery import Delivery, deliver

__all__ = ["Tracker", "TrackingError", "deliver", "is_away", "is_refused", "run_tags", "sqlite_file", "tracking_uri"]

WAKE_VALUES = 1000
"""Metric values after which the sender is woken before its time."""
WARNING_SECONDS = 60.0
FINISH_SECONDS = 60.0
"""Seconds that the end of a run waits for a slow server; one that is unreachable is not waited for."""
_log = logging.getLogger(__name__)


class Tracker:
    """A run being written. Make it with `Tracker.start`, in one process only; end it with `finish`.

    `log`, `log_artifact`, `log_dict` and `set_tag` write to disk, return at once and never raise because of the server.
    """

    def __init__(self, journal: Journal, uri: str, begun: float, system_metrics: bool, interval: float):
        """Use `Tracker.start`. `interval` is the number of seconds between two deliveries."""
        self.journal, self.uri = journal, uri
        self.delivery = Delivery(journal, uri, lambda what: self._warn(what, always=True))
        self._start_time = begun
        self._guard = threading.Lock()  # of the journal's end; held for moments
        self._new_values = 0
        self._complete = False
        self._last_warning = -math.inf
        self._monitor = SystemMetricsMonitor("", tracking_uri=uri) if system_metrics else None
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(interval,), name="mlflow-sender", daemon=True)

    @classmethod
    def start(
        cls,
        note: Path,
        experiment: str,
        run_name: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        *,
        uri: str | None = None,
        system_metrics: bool = True,
        interval: float = 5.0,
        must_answer: bool = True,
    ) -> "Tracker":
        """Start a run, or go on with the one whose id is in the file `note` (RUNNING again); its journal lies beside it.

        The leaves of `config` become params by dotted key, values as JSON; one that is too long is cut, and whole in the
        artifact `config.json`. A param that has changed since the run began keeps its first value (MLflow allows no
        other), and the tag `changed.<key>` holds the new one. `environment_tags()` and config's seed are added to the tags.

        Args:
            note: file for the run's id. When the server does not know that id, a new run is started, with a warning, and
                gets all that the journal holds.
            experiment: its name; it is made when there is none.
            run_name: shown in lists.
            config: nested dict of JSON values, such as `RunConfig.to_dict()`.
            tags: data set label, hash of the data manifest, recipe; nothing secret, no names of machines.
            uri: tracking URI; None: `tracking_uri()`.
            system_metrics: measure processor, memory, disk, network (and GPU) every `interval` seconds, as
                `system/...` by seconds since the run began.
            interval: seconds between two deliveries.
            must_answer: a run that is not there yet is made now. Without it, and for a run that is there, a server that
                is away is waited for by the sender's thread.

        Raises:
            TrackingError: the run has to be made, and the server cannot be reached or refuses.
        """
        uri = uri or tracking_uri()
        seed = {"seed": str(config["seed"])} if "seed" in config else {}
        all_tags = {**environment_tags(), **seed, **{k: str(v) for k, v in tags.items()}}
        journal = Journal(Path(note))
        journal.open()
        now = _now()
        journal.append("begin", time=now, experiment=experiment, name=run_name, config=dict(config), tags=all_tags)
        journal.append("json", file="config.json", values=dict(config))
        begun = next(entry["time"] for entry, _ in journal.entries(0) if entry["kind"] == "begin")
        tracker = cls(journal, uri, begun / 1000, system_metrics, interval)
        if must_answer and not journal.run_id:
            try:
                tracker.delivery.find_run()  # all else is the thread's: a slow server does not hold up the training
            except TrackingError:
                raise
            except Exception as error:  # mlflow lets errors of requests, sqlalchemy and its own through
                raise TrackingError(
                    f"no MLflow run can be written to {without_secrets(uri)} ({first_line(error)}); "
                    "check MLFLOW_TRACKING_URI and that the server runs"
                ) from error
        tracker._thread.start()
        return tracker

    @property
    def run_id(self) -> str:
        """The run's id; empty while the server has not made the run."""
        return self.journal.run_id

    def log(self, step: int, metrics: Mapping[str, float], corrects: bool = False) -> None:
        """Note one row of metrics of update `step`; infinite values are stored as NaN.

        Args:
            step: a metric's values of steps up to its last one are there already, and are passed over.
            metrics: by name.
            corrects: a value that differs from the last one, at the same step, is stored beside it; readers take it.
        """
        values = {key: float(value) for key, value in metrics.items()}
        with self._guard:
            self._note(lambda: self.journal.append_row(int(step), values, _now(), corrects))
            self._new_values += len(values)
            if self._new_values >= WAKE_VALUES:
                self._new_values = 0
                self._wake.set()

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Note a file (it must stay where it is until it is sent) for the run's artifacts, into `folder`."""
        self._add("file", path=str(Path(path).absolute()), folder=folder)

    def log_dict(self, values: Mapping[str, Any], file: str) -> None:
        """Note `values`, as they are now, as the JSON artifact `file` ("folder/name.json")."""
        self._add("json", file=file, values=dict(values))

    def set_tag(self, key: str, value: str) -> None:
        """Note a tag of the run."""
        self._add("tag", key=key, value=value)

    def flush(self) -> bool:
        """Send all that waits. Returns False, after a warning, when something could not be sent and still waits."""
        try:
            self.delivery.send()
        except Exception as error:  # as in `start`
            self._warn(f"cannot be written to ({first_line(error)})")
            return False
        return True

    def finish(self, status: str = "FINISHED", wait: float = FINISH_SECONDS) -> bool:
        """Close the run as FINISHED, FAILED or KILLED, when all that waits is sent.

        Returns False, after a warning, when the server did not take it all, or not within `wait` seconds; what is left
        stays in the journal, and is sent when the same command runs again.
        """
        self._add("status", status=status, time=_now())
        self._stop.set()
        self._wake.set()
        self._thread.join(wait)
        complete = self._complete and not self._thread.is_alive()
        if not complete:
            self._warn(
                f"run {self.run_id or '(not made yet)'} is not marked {status}: the same command, run again, sends what "
                f"waits in {self.journal.file}",
                always=True,
            )
        return complete

    def _add(self, kind: str, **values: Any) -> None:
        with self._guard:
            self._note(lambda: self.journal.append(kind, **values))
        self._wake.set()

    def _note(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            self._warn(f"{self.journal.file} cannot be written ({error}), what was logged is not sent")

    def _work(self, interval: float) -> None:
        """The sender's thread. A wake-up sends early, but never leads to a busy loop while the server is away."""
        while not self._stop.is_set():
            self._measure_system()
            if not self.flush():
                self._stop.wait(interval)
            self._wake.wait(interval)
            self._wake.clear()
        self._complete = self.flush()

    def _measure_system(self) -> None:
        """Note MLflow's system metrics. Its own thread would end for good at the first failure of the server."""
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
            _log.warning("system metrics are off from here: %s", first_line(error))

    def _warn(self, message: str, always: bool = False) -> None:
        """Say once a minute that the server is away; training goes on."""
        now = time.monotonic()
        if not always and now - self._last_warning < WARNING_SECONDS:
            return
        self._last_warning = now
        values, others = self.journal.waiting()
        _log.warning("MLflow: %s; training goes on, %d metric values and %d entries wait", message, values, others)


def _now() -> int:
    return int(time.time() * 1000)


def run_tags(run_id: str, uri: str | None = None) -> dict[str, str]:
    """The tags of a run, and its state as `status`. Raises TrackingError when it is not known or cannot be reached."""
    uri = uri or tracking_uri()
    file = sqlite_file(uri)
    if file is not None and not file.is_file():  # MLflow would make one
        raise TrackingError(f"there is no database {file.name}")
    try:
        run = MlflowClient(uri).get_run(run_id)
    except Exception as error:  # as in Tracker.start
        raise TrackingError(f"run {run_id} cannot be read ({first_line(error)})") from error
    return {**run.data.tags, "status": run.info.status}
