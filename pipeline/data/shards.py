"""Shards: rows of fixed shape in tar files, written, checked against their manifest, and read.

All data sets of this project are kept this way: `pixels` (uint8 [size, size, 3]), `latents` (float32 [F], raw; they are
whitened when read) and `points` (float32 [d], drawn from a density and used as they are). A member of a tar is a
*block* of 256 rows as `.npy`: rows one by one read ten times slower.
The bytes of a shard depend on its rows only, so equal rows have equal sha256. Nothing is read without a manifest
(`pipeline.data.manifest`) and nothing is unpickled.

A shard that is not what its manifest says raises ShardError when it is read, naming shard, expectation and finding: a
damaged row would otherwise become part of a model without anybody noticing.
"""

import io
import math
import re
import tarfile
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from webdataset.tariterators import tar_file_iterator
from webdataset.writer import TarWriter

from pipeline.data.manifest import (
    DTYPES,
    REPAIR,
    Manifest,
    ShardEntry,
    ShardError,
    find_split,
    read_manifest,
)
from pipeline.files import file_hash, replacing

BLOCK_ROWS = 256
_HEADER_BYTES = 1 << 14  # of a .npy file, at most


def write_shard(path: Path, rows: np.ndarray) -> ShardEntry:
    """Writes rows [n, ...] (n may be 0) as one shard, atomically; equal rows give equal bytes.

    Raises:
        ValueError: rows that are neither uint8 nor float32, or not finite.
    """
    if str(rows.dtype) not in DTYPES.values():
        raise ValueError(f"{path.name}: rows of type {rows.dtype}; a shard holds uint8 pixels or float32 latents")
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise ValueError(f"{path.name}: {np.count_nonzero(~np.isfinite(rows))} values are not finite")
    # Time, owner and mode are fixed: the sha256 must not depend on who wrote the shard, nor when.
    with replacing(path) as file, TarWriter(file, user="", group="", mode=0o444, encoder=False, mtime=0) as tar:
        for block, start in enumerate(range(0, len(rows), BLOCK_ROWS)):
            npy = io.BytesIO()
            np.save(npy, np.ascontiguousarray(rows[start : start + BLOCK_ROWS]), allow_pickle=False)
            tar.write({"__key__": f"{block:06d}", "npy": npy.getvalue()})
    return ShardEntry(path.name, len(rows), path.stat().st_size, file_hash(path))


def check_shard(directory: str | Path, entry: ShardEntry, verify: bool = True) -> None:
    """Compares a shard's size, and with `verify` its sha256, with the manifest.

    Raises:
        ShardError: the shard is missing or differs.
    """
    path = Path(directory) / entry.name
    if not path.is_file():
        raise ShardError(f"shard {path} is missing; run the prepare job again")
    size = path.stat().st_size
    if size != entry.bytes:
        raise ShardError(f"shard {path} has {size} bytes, its manifest says {entry.bytes}; {REPAIR}")
    if verify and (found := file_hash(path)) != entry.sha256:
        raise ShardError(f"shard {path} has sha256 {found}, its manifest says {entry.sha256}; {REPAIR}")


def iterate_blocks(
    directory: str | Path,
    manifest: Manifest,
    entry: ShardEntry,
    start: int,
    stop: int,
    verify: bool,
    finite: bool = True,
) -> Iterator[np.ndarray]:
    """Yields rows [start, stop) of one shard in order, in arrays of at most 256 rows; stops reading at `stop`.

    With `finite` false, values that are not finite are for the caller to find.

    Raises:
        ShardError: the shard is missing, damaged, or does not hold the rows that the manifest promises.
    """
    check_shard(directory, entry, verify)
    path, dtype = Path(directory) / entry.name, DTYPES[manifest.kind]
    position = start - start % BLOCK_ROWS
    try:
        with path.open("rb") as file:
            first = f"{position // BLOCK_ROWS:06d}"
            _check_members(file, math.prod(manifest.row_shape) * BLOCK_ROWS * np.dtype(dtype).itemsize)
            for member in tar_file_iterator(file, select_files=lambda name: name >= first):
                expected = (min(BLOCK_ROWS, entry.rows - position), *manifest.row_shape)
                block = _read_block(member["data"])
                if block.shape != expected or block.dtype != dtype:
                    raise ShardError(
                        f"shard {path}, block {member['fname']} holds {block.dtype} {list(block.shape)}, "
                        f"its manifest says {dtype} {list(expected)}; {REPAIR}"
                    )
                if finite and block.dtype.kind == "f" and not np.isfinite(block).all():
                    raise ShardError(f"shard {path}, block {member['fname']} has values that are not finite; {REPAIR}")
                yield block[max(start - position, 0) : stop - position]
                position += len(block)
                if position >= stop:
                    return
    except ShardError:
        raise
    except (tarfile.TarError, EOFError, ValueError, TypeError, OverflowError, OSError) as error:
        raise ShardError(f"shard {path} cannot be read ({error}); {REPAIR}") from error
    raise ShardError(f"shard {path} ends after {position} rows, its manifest says {entry.rows}; {REPAIR}")


def _check_members(file: IO[bytes], block_bytes: int) -> None:
    """Refuses a tar with anything but blocks of plain bytes, by the headers alone, and rewinds the file.

    The reader takes compressed and sparse tars too, which could unfold to any size, and so could a member's header.

    Raises:
        tarfile.TarError, ValueError: naming the member.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not re.fullmatch(r"\d{6}\.npy", member.name):
                raise ValueError(f"member {member.name[:80]!r} is no block of rows")
            if not member.isreg() or member.issparse() or member.size > block_bytes + _HEADER_BYTES:
                raise ValueError(f"member {member.name!r} is no plain file of at most {block_bytes} bytes")
    file.seek(0)


def _read_block(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file of version 1. Raises ValueError, also where it is not as large as it says."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a block of another version of .npy")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (
        SyntaxError,
        TypeError,
        RecursionError,
        tokenize.TokenError,
    ) as error:  # numpy parses it as Python's literals
        raise ValueError(f"a block's header is damaged ({error})") from error
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they are pickles")
    if fortran or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"a block says it has {dtype} {list(shape)} and has {len(data) - file.tell()} bytes")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()


def iterate_split(
    directory: str | Path, manifest: Manifest, split: str, start: int, stop: int, verify: bool
) -> Iterator[np.ndarray]:
    """Yields rows [start, stop) of a split in order, opening only the shards that overlap them."""
    first = 0
    for entry in find_split(manifest, split).shards:
        low, high = max(start - first, 0), min(stop - first, entry.rows)
        if low < high:
            yield from iterate_blocks(directory, manifest, entry, low, high, verify)
        first += entry.rows


def load_split(directory: str | Path, split: str, verify: bool = True) -> Tensor:
    """Returns all rows of a split in the manifest's order, resident: uint8 [N, size, size, 3] or float32 [N, F] (raw).

    `verify` compares each shard's sha256; sizes, shapes, row counts and finiteness are checked in any case.

    Raises:
        ShardError: naming the shard, what was expected and found, and what to do.
    """
    manifest = read_manifest(directory)
    rows = find_split(manifest, split).rows
    result = torch.empty((rows, *manifest.row_shape), dtype=getattr(torch, DTYPES[manifest.kind]))
    position = 0
    for block in iterate_split(directory, manifest, split, 0, rows, verify):
        result[position : position + len(block)] = torch.from_numpy(block)
        position += len(block)
    return result
