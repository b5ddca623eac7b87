"""Waiting for a registry that is away: stages that register or look up models ask again, up to a limit.

What was trained lies in the run's folder, so the same command finishes later without training again.
"""

import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeline.provenance import without_secrets
from pipeline.registry.versions import check_registry
from pipeline.tracking.server import is_away, tracking_uri

VARIABLE = "REGISTRY_WAIT_SECONDS"
DEFAULT_SECONDS = 300.0
PAUSE_SECONDS = 5.0
T = TypeVar("T")
_log = logging.getLogger(__name__)


class RegistryAway(ValueError):
    """The registry gave no answer within the limit; says which command finishes the work."""


def as_command(module: str, arguments: Sequence[str] | None) -> str:
    """The command line of this process, to be typed again; `arguments`: what `main` was given (None: sys.argv)."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)])


def wait_seconds() -> float:
    """REGISTRY_WAIT_SECONDS, at least 0, or 300. Raises ValueError on anything else."""
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text or DEFAULT_SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{VARIABLE}={text!r}: write a number of seconds, 0 or more")
    return seconds


def when_there(ask: Callable[[], T], what: str, command: str) -> T:
    """What `ask` returns; while the registry is away it is asked again every few seconds.

    Args:
        ask: may be called several times, and does nothing twice.
        what: is waited for, for messages.
        command: finishes the work later.

    Raises:
        RegistryAway: no answer within `wait_seconds()` of the first failure (one request may take some time longer).
    """
    limit, deadline = wait_seconds(), 0.0
    while True:
        try:
            if deadline:
                check_registry()
            return ask()
        except Exception as error:  # mlflow lets errors of requests and its own through
            if not is_away(error):
                raise
            where = without_secrets(tracking_uri())
            if not deadline:
                deadline = time.monotonic() + limit
                _log.warning("%s: waiting up to %.0f s for the registry at %s (%s)", what, limit, where, VARIABLE)
            if time.monotonic() >= deadline:
                raise RegistryAway(
                    f"{what}: the registry at {where} gave no answer for {limit:.0f} s; all that was trained is kept; "
                    f"when the server is back, finish with: {command}"
                ) from error
            time.sleep(max(0.0, min(PAUSE_SECONDS, deadline - time.monotonic())))
