"""Files written whole or not at all, hashes of contents, and a full disk told apart from other errors."""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NUMBERS = re.compile(r"\[\n[^\[\]{}\"]*\]")  # a raw line break occurs in no JSON string


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


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Give a file to write that becomes `path` when all of it is there, and nothing when the body raises.

    With `durable` it is on the disk when the block ends, and survives a power cut; without, only a killed process.

    A killed process leaves `.NAME.ID.tmp` beside `path`; the name is unique, so that a retried task cannot meet the
    first attempt that still runs. A full disk raises DiskFull with the path.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with naming_a_full_disk(path), temporary.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)  # the rename itself


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's list of names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, values: Any) -> None:
    """Write `values` as JSON for people, whole or not at all: indented, but a list of numbers on one line."""
    text = json.dumps(values, indent=1, sort_keys=True)
    text = _NUMBERS.sub(lambda match: " ".join(match.group().split()), text)
    with replacing(path) as file:
        file.write(text.encode() + b"\n")


def canonical_hash(values: Any) -> str:
    """Return the sha256 (hex) of `values` as JSON with sorted keys and no spaces."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_checksums(text: str, where: str) -> dict[str, str]:
    """Return name -> sha256 (hex) of lines as `sha256sum` writes them.

    Raises:
        ValueError: another line; names `where`, its number, and what is expected.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](\S.*)", line.strip())
            if match is None:
                raise ValueError(
                    f"{where}, line {number}: {line[:100]!r} is no line of sha256sum (64 hex digits, two spaces, a name)"
                )
            found[match[2].removeprefix("./")] = match[1].lower()
    return found
