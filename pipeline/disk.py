"""A full disk is told apart from other errors of writing: which file, how much is free there, what to do."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(ValueError):
    """A file could not be written for want of space (or by a quota or a limit on file sizes)."""


@contextmanager
def naming_a_full_disk(path: Path, need: int | None = None) -> Iterator[None]:
    """Turn the system's word for a full disk in the block into DiskFull with the path and what it takes.

    Args:
        path: what is being written; its folder exists.
        need: bytes that it takes, where known.

    Raises:
        DiskFull: no space, a quota reached, or a file larger than is allowed. Other errors pass through.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        wanted = "" if need is None else f" needs {need} bytes;"
        raise DiskFull(
            f"cannot write {path}: {error.strerror};{wanted} {shutil.disk_usage(path.parent).free} bytes are free there. "
            "What was written before is whole: make space and give the same command again"
        ) from error
