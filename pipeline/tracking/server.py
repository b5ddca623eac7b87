"""The tracking server's address, the time limits of requests, and which errors mean that it is unreachable.

It sets what mlflow reads at its import, so it comes before every import of mlflow.
"""

import logging
import os
import re
from pathlib import Path

from pipeline.provenance import project_root, without_secrets

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

if (_retries := logging.getLogger("urllib3.connectionpool")).level == logging.NOTSET:
    _retries.setLevel(logging.ERROR)  # several lines for every request to a dead server; our own say it once a minute

import requests  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

_AWAY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "ABORTED")
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE")  # not 401, 403: a password can be put right
_LOST_DATABASE = re.compile(r"InterfaceError|PendingRollbackError|InternalError|[Cc]onnect|SSL SYSCALL|in recovery")
"""MLflow calls a database connection that broke in the middle of a request a BAD_REQUEST, as it does a wrong value."""


class TrackingError(ValueError):
    """A run cannot be started: says where it was to be written, and why not."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or MLflow's own default place in the project root: `sqlite:///<root>/mlflow.db`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root().as_posix()}/mlflow.db"


def sqlite_file(uri: str) -> Path | None:
    """The database file of an sqlite URI (absolute), or None for any other URI."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def is_away(error: BaseException | None) -> bool:
    """True when `error`, or what it was raised from, says that the server (or its database) gives no answer for now."""
    while error is not None:
        if isinstance(error, requests.exceptions.RequestException):
            return True
        if isinstance(error, MlflowException) and (error.error_code in _AWAY or _lost_database(error)):
            return True
        error = error.__cause__
    return False


def is_refused(error: Exception) -> bool:
    """True when the server says that the request itself is wrong: sending it again is no use."""
    return isinstance(error, MlflowException) and error.error_code in _REFUSED and not _lost_database(error)


def _lost_database(error: MlflowException) -> bool:
    return error.error_code == "BAD_REQUEST" and bool(_LOST_DATABASE.search(str(error)))


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says, without passwords."""
    text = without_secrets(str(error)).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300] if text else 'no message'}"
