"""Checkpoints: the whole state of a run in safetensors plus JSON, whole or absent, never pickle.

<folder>/step_00001200/state.safetensors    every tensor the remaining steps depend on
<folder>/step_00001200/meta.json            step, config, sha256 of the tensors, versions, hash of all that

A checkpoint is written beside its place and renamed into it. One whose hash does not fit is passed over, loudly, for the
one before.
"""

import hashlib
import json
import logging
import os
import reprlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.files import canonical_hash, file_hash, naming_a_full_disk, sync

FORMAT_VERSION = 1
_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: says which, and why."""


class Checkpoint(NamedTuple):
    """A checkpoint read back."""

    path: Path
    step: int
    """Updates made: the next one is number `step`."""
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint after `step` updates, then drop all but the newest `keep`. Returns its folder.

    Call it on one worker. Killed at any moment, it leaves the old checkpoints as they were.

    Raises:
        DiskFull: with the path and the bytes needed; the old checkpoints are as they were and nothing half is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover)
    temporary = folder / f".writing-{os.getpid()}"
    final = folder / f"step_{step:08d}"
    # bytes first: the library's own writer hides the system's error number
    content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    record = {**meta, "format_version": FORMAT_VERSION, "step": step, "sha256": hashlib.sha256(content).hexdigest()}
    record = json.loads(json.dumps(record))
    record["hash"] = canonical_hash(record)
    try:
        with naming_a_full_disk(final, len(content)):
            temporary.mkdir()
            (temporary / "state.safetensors").write_bytes(content)
            (temporary / "meta.json").write_text(json.dumps(record, indent=1))
            for name in ("state.safetensors", "meta.json"):
                sync(temporary / name)
            sync(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():  # a rerun after a fallback to an older one: same step, same bits, or a damaged one
        _remove(final)
    temporary.rename(final)
    sync(folder)
    for old in sorted(folder.glob("step_*"))[:-keep]:
        _remove(old)
    return final


def _remove(checkpoint: Path) -> None:
    """Renamed first: killed amid it, no half checkpoint lies there under its name, and the next write cleans up."""
    doomed = checkpoint.with_name(f".writing-removed-{checkpoint.name}")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`, None when there is none. Damaged ones are named in a warning and passed over.

    Raises:
        CheckpointError: there are some and none is whole; to start over, unasked, would throw away what they stand for.
    """
    paths = sorted(folder.glob("step_*"), reverse=True)
    for path in paths:
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            if path == paths[-1]:
                raise CheckpointError(
                    f"no checkpoint in {folder} can be used; the last looked at: {error}. Put a whole one back, or delete that "
                    "folder to start over"
                ) from error
            _log.warning("%s; going back to the checkpoint before it", error)
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in folder `path`. Raises CheckpointError when it is damaged, incomplete or of an unknown version."""
    try:
        meta = json.loads((path / "meta.json").read_bytes())
        if not isinstance(meta, dict) or not isinstance(meta["sha256"], str) or type(meta["step"]) is not int:
            raise CheckpointError(f"checkpoint {path}: meta.json is not what this program writes")
        if meta["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {path} has format version {reprlib.repr(meta['format_version'])}; "
                f"this program knows {FORMAT_VERSION}"
            )
        # those of earlier programs have no hash of their own
        if "hash" in meta and canonical_hash({k: v for k, v in meta.items() if k != "hash"}) != meta["hash"]:
            raise CheckpointError(f"checkpoint {path} is damaged: meta.json is not what its hash says")
        found = file_hash(path / "state.safetensors")
        if found != meta["sha256"]:
            raise CheckpointError(
                f"checkpoint {path} is damaged: sha256 is {found[:12]}, written was {meta['sha256'][:12]}"
            )
        meta.pop("hash", None)
        return Checkpoint(path, meta["step"], load_file(path / "state.safetensors"), meta)
    except CheckpointError:
        raise
    except (
        OSError,
        KeyError,
        ValueError,
        RecursionError,
        SafetensorError,
    ) as error:  # JSON's and Unicode's are ValueErrors
        raise CheckpointError(
            f"checkpoint {path} is incomplete or unreadable ({type(error).__name__}: {str(error)[:300]})"
        ) from error
