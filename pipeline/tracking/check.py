"""A check that MLflow takes runs, files and models, by giving it some."""

import tempfile
from pathlib import Path

from pipeline.provenance import without_secrets
from pipeline.tracking.server import TrackingError, tracking_uri

# isort: split
from mlflow import MlflowClient

from pipeline.tracking.delivery import experiment_id


def check_tracking(experiment: str) -> str:
    """Make a run with a metric and a file in `experiment`, read them back, delete the run, look into the registry.

    Returns the server's address, for messages (no secrets in it).

    Raises:
        TrackingError: with what did not work.
    """
    uri = tracking_uri()
    shown, doing = without_secrets(uri), "connecting"
    try:
        client = MlflowClient(uri)
        doing = "making a run"
        run = client.create_run(experiment_id(client, uri, experiment), run_name="cluster-check").info.run_id
        try:
            doing = "writing a metric"
            client.log_metric(run, "check", 1.0, step=1)
            if client.get_run(run).data.metrics.get("check") != 1.0:
                raise TrackingError("the metric that was written is not there")
            doing = "writing a file (the artifact store)"
            client.log_text(run, "check", "check.txt")
            with tempfile.TemporaryDirectory() as folder:
                if Path(client.download_artifacts(run, "check.txt", folder)).read_text() != "check":
                    raise TrackingError("the file that was written is another one")
            doing = "looking into the model registry"
            client.search_registered_models(max_results=1)
        finally:
            client.delete_run(run)
    except Exception as error:  # mlflow lets errors of requests, sqlalchemy and its own through
        text = without_secrets(str(error)).strip().splitlines()
        raise TrackingError(f"{shown}: {doing}: {text[0][:200] if text else type(error).__name__}") from error
    return shown
