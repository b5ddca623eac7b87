"""Starting Ray on this machine, or joining a cluster; always with token authentication.

Ray's servers listen on all interfaces whatever the node's address, so a token guards them even on a laptop. The token of
a local session lies in the project's cache folder; a cluster's comes from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
"""

import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from jobs.imports import importing
from jobs.ray_address import AddressError, address_kind

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # Train's actors, with an environment of their own, never take those
}


def prepare_environment(cache: Path) -> None:
    """Set what Ray reads when it is imported; call it before the first `import ray`.

    Without RAY_ADDRESS and a token, a token for this machine is made in `cache`. A cluster's token is never made here: it is
    the environment's, or the file that Ray itself keeps in the home folder.
    """
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    os.environ["RAY_AUTH_MODE"] = "token"
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")):
        return
    token = cache / "ray_auth_token"
    if not token.exists():
        cache.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=cache)  # readable by its owner only
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        os.replace(temporary, token)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token.resolve())


@contextmanager
def ray_session(cache: Path, num_cpus: int, sweep: bool = False) -> Iterator[bool]:
    """Ray until the block ends: the cluster at RAY_ADDRESS if set, else a local one with `num_cpus` logical CPUs.

    Yields whether it is one of this block's own, which ends with it.
    A session that is already open in this process is used and left open. A `sweep` has the dashboard on (on loopback: what
    cleans up after a trial that Tune cuts asks it), and its trials wait for their turn.

    Raises:
        AddressError: RAY_ADDRESS is a job server (`jobs.submit` sends a job there), or not an address.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and address_kind(address) == "jobs":
        raise AddressError(
            f"RAY_ADDRESS={address} is a job server: send the job there with `python -m jobs.submit -- MODULE ...` or "
            "`make celeba-train`; a process on the cluster joins with RAY_ADDRESS=auto"
        )
    if sweep:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "86400")
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise RuntimeError("ray was imported before its token was set: call jobs.ray_session.prepare_environment first")
    prepare_environment(cache)
    with importing():
        import ray

    if ray.is_initialized():
        yield False
        return
    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        # never bare: without an address, init would join a leftover cluster of someone else
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=sweep,
            object_store_memory=256 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        yield not address
    finally:
        ray.shutdown()


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM leave the block as KeyboardInterrupt (main thread only).

    Also where a library's C code swallowed the exception and raised one of its own, as torch does while it reads a tensor.
    Use it within a Ray session: Ray brings a handler of SIGTERM that aborts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    on_interrupt = previous[signal.SIGINT]

    def interrupt(_number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        if callable(on_interrupt):
            on_interrupt(signal.SIGINT, frame)
        else:  # ignored, as in a shell's background
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if callable(on_interrupt):
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
