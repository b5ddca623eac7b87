"""One command at a time in a folder: two would write the same checkpoints, or fill the same shards."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)


class FolderInUse(ValueError):
    """Another command works in the folder; says which, and what to do."""


def run_folder(runs: Path, name: str) -> Path:
    """The folder of the run `name` below `runs`, absolute; nothing is made.

    Raises:
        ValueError: a name that is no plain folder name, so that the run would be written elsewhere.
    """
    plain = name == name.strip() and name.isprintable() and not set(name) & set("/\\") and not name.startswith(".")
    if not name or not plain or len(name.encode(errors="replace")) > 200:
        raise ValueError(
            f"{name[:80]!r} cannot name a run: give a plain folder name (no slash, no dot or space in front); --runs says where"
        )
    return (runs / name).resolve()


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """`folder` (made if need be) belongs to this process until the block ends; the system frees it when the process dies.

    Args:
        folder: of a run, or of data that several runs share.
        wait: wait for another process, saying so, instead of raising.

    Raises:
        FolderInUse: another process has it, and `wait` is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / ".lock"), folder / ".lock-holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            who = holder.read_text().strip()
        except OSError:
            who = "another process"
        if not wait:
            raise FolderInUse(
                f"{folder} is in use by {who}: wait for its end, stop it, or choose another name for this run"
            ) from None
        _log.warning("waiting for %s, which works in %s", who, folder)
        lock.acquire()
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
