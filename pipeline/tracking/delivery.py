"""Sending a run's journal (journal.py) to MLflow: in order, nothing lost, nothing twice.

The run is made when the server first answers. Metrics go in batches; a batch whose answer did not come is compared with
the server's history before it is sent again. Every other entry may be sent twice without harm.
"""

import json
import logging
import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import Timeout

from pipeline.config import flatten
from pipeline.tracking.journal import Journal, Sent
from pipeline.tracking.server import TrackingError, first_line, is_refused, sqlite_file

# isort: split
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

BATCH_METRICS = 1000  # MLflow's bounds per call, and per value
BATCH_PARAMS = 100
MAX_PARAM_CHARACTERS = 6000
LOCK_SECONDS = 10.0
_log = logging.getLogger(__name__)


class Delivery:
    """Sends one journal to one server. `send` may be called from any thread, one at a time does the work."""

    def __init__(self, journal: Journal, uri: str, dropped: Callable[[str], None] = _log.warning):
        """`dropped` is told of every entry that the server refuses for good."""
        self.journal, self.uri, self._dropped = journal, uri, dropped
        self._client: MlflowClient | None = None
        self._begun = False

    @property
    def client(self) -> MlflowClient:
        """Made at the first use: with a new sqlite database that takes seconds."""
        if self._client is None:
            self._client = MlflowClient(self.uri)
        return self._client

    @client.setter
    def client(self, client: MlflowClient) -> None:
        self._client = client

    def send(self) -> None:
        """Send all that waits.

        Raises:
            TrackingError: the experiment was deleted, or another thread or process is sending this journal.
            Exception: whatever mlflow lets through when the server is away; what was not sent still waits. So does all of a
            run that was deleted in MLflow meanwhile.
        """
        try:
            with self.journal.lock.acquire(timeout=LOCK_SECONDS):
                sent = self.journal.sent()
                self._find_run(sent)
                self.journal.sync()
                self._send_rows(sent)
                self._send_rest(sent)
        except Timeout:
            raise TrackingError(f"{self.journal.file} is being sent by another thread or process") from None

    def find_run(self) -> None:
        """Make the run, and send nothing else. Raises as `send`."""
        with self.journal.lock:
            self._find_run(self.journal.sent())

    # --- the run ------------------------------------------------------------------------------------------------------

    def _find_run(self, sent: Sent) -> None:
        """Make the run, once; or see that it is still there. A run that is gone is replaced, and gets all of the journal."""
        if self._begun:
            return
        run_id = self.journal.run_id
        if run_id:
            try:
                stage = self.client.get_run(run_id).info.lifecycle_stage
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                stage = "unknown"
            if stage != "active":
                _log.warning("run %s is %s in MLflow; a new run is started", run_id, stage)
                sent.rows = sent.rest = sent.doubt = 0
                sent.creating = run_id = ""
        if not run_id:
            self.journal.name_run(self._make_run(sent))
            sent.creating = ""
            self.journal.keep(sent)
        self._begun = True

    def _make_run(self, sent: Sent) -> str:
        begin = next(entry for entry, _ in self.journal.entries(0) if entry["kind"] == "begin")
        experiment = experiment_id(self.client, self.uri, begin["experiment"])
        if sent.creating:  # the answer to an earlier try was lost: the run may be there
            found = self.client.search_runs([experiment], f"tags.spool = '{sent.creating}'")
            if found:
                return found[0].info.run_id
        else:
            sent.creating = uuid.uuid4().hex
            self.journal.keep(sent)
        tags = {**begin["tags"], "spool": sent.creating}
        run = self.client.create_run(experiment, start_time=begin["time"], tags=tags, run_name=begin["name"])
        return run.info.run_id

    # --- metrics ------------------------------------------------------------------------------------------------------

    def _send_rows(self, sent: Sent) -> None:
        while True:
            batch, end = self._next_batch(sent)
            if batch and sent.doubt:
                batch = self._not_there(batch)
            if batch:
                sent.doubt = end
                self.journal.keep(sent)
                for start in range(0, len(batch), BATCH_METRICS):
                    self._log_metrics(batch[start : start + BATCH_METRICS])
            if end == sent.rows:
                return
            sent.rows, sent.doubt = end, 0
            self.journal.keep(sent)

    def _next_batch(self, sent: Sent) -> tuple[list[Metric], int]:
        """The next metrics and the byte after them; exactly those of a batch in doubt when there is one."""
        batch: list[Metric] = []
        end = sent.rows
        for entry, after in self.journal.entries(sent.rows):
            values = entry["values"] if entry["kind"] == "metrics" else {}
            if (sent.doubt and after > sent.doubt) or (batch and len(batch) + len(values) > BATCH_METRICS):
                break
            # SQL databases have no infinity: MLflow would store 1.8e308, and every chart would be flat beside it
            batch += [
                Metric(k, math.nan if math.isinf(v) else v, entry["time"], entry["step"]) for k, v in values.items()
            ]
            end = after
        return batch, end

    def _not_there(self, batch: Sequence[Metric]) -> list[Metric]:
        """Those of a batch that the server has not."""
        there = {
            (key, m.step, m.timestamp)
            for key in {metric.key for metric in batch}
            for m in self.client.get_metric_history(self.journal.run_id, key)
        }
        return [m for m in batch if (m.key, m.step, m.timestamp) not in there]

    def _log_metrics(self, metrics: Sequence[Metric]) -> None:
        try:
            self.client.log_batch(self.journal.run_id, metrics=metrics)
        except Exception as error:
            if not is_refused(error):
                raise
            self._check_run()
            if len(metrics) == 1:
                self._dropped(f"metric {metrics[0].key!r} is refused and dropped ({first_line(error)})")
                return
            for metric in metrics:  # one by one: only what is wrong is lost
                self._log_metrics([metric])

    def _check_run(self) -> None:
        """Raise when it is the run that is refused, and not what is sent to it."""
        if self.client.get_run(self.journal.run_id).info.lifecycle_stage != "active":
            raise TrackingError(
                f"run {self.journal.run_id} was deleted in MLflow; restore it (`mlflow runs restore`), or run the same "
                "command again for a new one"
            )

    # --- all else -----------------------------------------------------------------------------------------------------

    def _send_rest(self, sent: Sent) -> None:
        kept = sent.rest
        for entry, end in self.journal.entries(sent.rest):
            if entry["kind"] == "metrics":
                sent.rest = end
                continue
            if entry["kind"] == "status" and end > self._rows_end(sent):
                return  # rows came in meanwhile: they go first
            try:
                self._send_entry(entry)
            except FileNotFoundError:
                self._dropped(f"artifact {Path(entry.get('path', '')).name} is gone before it could be sent")
            except Exception as error:
                if not is_refused(error):
                    raise
                self._check_run()
                self._dropped(f"{_name(entry)} is refused and dropped ({first_line(error)})")
            sent.rest = kept = end
            self.journal.keep(sent)
        if sent.rest > kept:  # metrics are not read through again
            self.journal.keep(sent)

    def _rows_end(self, sent: Sent) -> int:
        """Byte up to which no metrics wait."""
        end = sent.rows
        for entry, after in self.journal.entries(sent.rows):
            if entry["kind"] == "metrics":
                break
            end = after
        return end

    def _send_entry(self, entry: Mapping[str, Any]) -> None:
        client, run_id = self.client, self.journal.run_id
        match entry["kind"]:
            case "begin":
                self._send_settings(client.get_run(run_id), entry)
            case "tag":
                client.set_tag(run_id, entry["key"], entry["value"])
            case "file":
                client.log_artifact(run_id, entry["path"], entry["folder"])
            case "json":
                client.log_dict(run_id, entry["values"], entry["file"])
            case "status":
                self._drop_others()
                client.set_terminated(run_id, entry["status"], entry["time"])

    def _drop_others(self) -> None:
        """Delete what a request to make the run left that was sent again, by mlflow itself too, and answered late."""
        run = self.client.get_run(self.journal.run_id)
        if "spool" in run.data.tags:
            for other in self.client.search_runs([run.info.experiment_id], f"tags.spool = '{run.data.tags['spool']}'"):
                if other.info.run_id != run.info.run_id:
                    self.client.delete_run(other.info.run_id)

    def _send_settings(self, run: Run, entry: Mapping[str, Any]) -> None:
        """The run is RUNNING, with params and tags; what an earlier session said of it stays."""
        run_id = run.info.run_id
        if run.info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        params, changed = _new_params(flatten(dict(entry["config"])), run.data.params)
        for start in range(0, len(params), BATCH_PARAMS):
            self.client.log_batch(run_id, params=params[start : start + BATCH_PARAMS])
        tags = {k: v for k, v in entry["tags"].items() if k not in run.data.tags}
        tags |= {f"changed.{key}": value for key, value in changed.items()}
        if tags:
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if changed:
            _log.warning("resumed run %s has other settings than it began with: %s", run_id, ", ".join(changed))


def deliver(note: Path, uri: str) -> bool:
    """Send what waits in the journal of a run that nobody writes now. Returns False, after a warning, when some waits on."""
    journal = Journal(note)
    if journal.waiting() == (0, 0):
        return True
    try:
        Delivery(journal, uri).send()
    except Exception as error:  # mlflow lets errors of requests, sqlalchemy and its own through
        values, others = journal.waiting()
        _log.warning(
            "MLflow: %d metric values and %d other entries wait in %s (%s)",
            values,
            others,
            journal.file,
            first_line(error),
        )
        return False
    return True


def _name(entry: Mapping[str, Any]) -> str:
    what = entry.get("key") or entry.get("file") or entry.get("path") or entry.get("status") or ""
    return f"{entry['kind']} {what}".strip()


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
