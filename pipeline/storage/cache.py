"""Data at a URL: fetched once into a cache of bounded size, and shards stored there whole or not at all.

<cache>/fetched/<id>/      the files of one URL; `.journal` has what was fetched (size, time, sha256), so that a killed fetch
                           goes on and a second one does nothing; `.in-use` is locked by whoever reads the folder

A folder of shards is fetched by its manifest and compared with its hashes. Of other folders every file is fetched, compared
with its size, and with its hash where the folder has a file SHA256SUMS (as sha256sum writes it).
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from pipeline.data.manifest import MANIFEST_NAME, Manifest, ShardError, read_manifest
from pipeline.files import parse_checksums
from pipeline.storage.places import Absent, Item, Place, StorageError

SUMS = "SHA256SUMS"
UPLOADING = "uploading.json"
THREADS = 8
RESUMED_BYTES = 1 << 24
"""Files from this size on are gone on with where a killed fetch ended; smaller ones begin again."""
DEFAULT_GB = 200.0
_log = logging.getLogger(__name__)
_held: dict[Path, IO[bytes]] = {}  # locks, by folder, until this process ends: no other may delete what it reads


def fetch(url: str, cache: Path) -> Path:
    """A local copy of the folder at `url`, below `<cache>/fetched`; fetched if it is not there, or is not what is at `url`.

    What this process fetched before from there is replaced when the place has changed.
    The cache is bounded by BEAM_FETCHED_GB (200): what was used longest ago, and is not in use, makes room.

    Raises:
        StorageError: nothing is at `url`, it cannot be read, it is not what its hashes say, or it is larger than the bound.
        ShardError: a manifest there is damaged.
        DiskFull: with what is needed.
    """
    place = Place(url)
    folder = cache / "fetched" / hashlib.sha256(place.url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    held = _held.get(folder.resolve())
    if held is not None and not (folder / ".in-use").exists():  # somebody cleared the cache
        held = None
    if held is not None and _is_same(place, folder):
        os.utime(folder / ".in-use")
        return folder
    lock = held or (folder / ".in-use").open("ab")
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another process fetches or reads %s: waiting until it only reads", folder)
            fcntl.flock(lock, fcntl.LOCK_SH)  # readers share it, one that fetches has it alone
            if not _is_same(place, folder):
                raise StorageError(
                    f"{url} is not what {folder} holds, and another process reads that: wait for its end"
                ) from None
        else:
            items = place.items()
            if not items:
                raise StorageError(f"there is nothing at {url}: name a folder (prefix) that holds the files")
            _fetch_into(place, items, folder, cache)
            fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(folder / ".in-use")
    except BaseException:
        if held is None:
            lock.close()
        else:
            fcntl.flock(lock, fcntl.LOCK_SH)
        raise
    _held[folder.resolve()] = lock
    return folder


def _fetch_into(place: Place, items: list[Item], folder: Path, cache: Path) -> None:
    for item in items:
        if any(part in ("", ".", "..") or part.startswith(".") for part in PurePosixPath("./" + item.name).parts):
            raise StorageError(
                f"{place.url}/{item.name[:80]!r} cannot be a file here: a hidden name, or one out of the folder"
            )
    names = {item.name: item for item in items}
    incoming = folder / ".incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    expected: dict[str, str] = {}
    if MANIFEST_NAME in names:  # it is put into its place last: until then the folder is no data set
        place.get(MANIFEST_NAME, incoming / MANIFEST_NAME)
        manifest = read_manifest(incoming)
        expected = {shard.name: shard.sha256 for split in manifest.splits.values() for shard in split.shards}
        if missing := sorted(expected.keys() - names):
            raise StorageError(f"{place.url}/{missing[0]} is missing, its manifest names it: store the shards again")
        items = [names[name] for name in sorted(expected)]
    elif UPLOADING in names:
        raise StorageError(f"{place.url} is half an upload: give the command that stores it again, and let it end")
    elif SUMS in names:
        expected = _sums(place)
    journal = _journal(folder)
    for stale in journal.keys() - {item.name for item in items}:
        (folder / stale).unlink(missing_ok=True)
    wanted = _missing(items, folder, journal)
    if wanted or incoming.exists():
        _make_room(cache / "fetched", folder, sum(item.bytes for item in items))
    if wanted:
        _get_all(place, wanted, folder, expected, journal)
    if incoming.exists():
        (incoming / MANIFEST_NAME).replace(folder / MANIFEST_NAME)
        incoming.rmdir()


def _get_all(
    place: Place,
    wanted: list[Item],
    folder: Path,
    expected: Mapping[str, str],
    journal: Mapping[str, Mapping[str, Any]],
) -> None:
    def get(item: Item) -> dict[str, Any]:
        part = (folder / item.name).with_name(f".{PurePosixPath(item.name).name}.part")
        begun = journal.get(item.name, {}).get("begun")
        if item.bytes < RESUMED_BYTES or begun != [item.bytes, item.modified_ns]:
            part.unlink(missing_ok=True)
        if item.bytes >= RESUMED_BYTES:
            write({"name": item.name, "begun": [item.bytes, item.modified_ns]})
        sha256 = place.get(item.name, folder / item.name, expected.get(item.name), item.bytes, bar.update, resume=True)
        return {"name": item.name, "bytes": item.bytes, "modified_ns": item.modified_ns, "sha256": sha256}

    def write(line: Mapping[str, Any]) -> None:
        log.write(json.dumps(line) + "\n")  # one call a line: threads do not mix
        log.flush()

    total = sum(item.bytes for item in wanted)
    with (
        (folder / ".journal").open("a") as log,
        tqdm(total=total, desc=f"fetching {place.url}", unit="B", unit_scale=True, mininterval=1.0) as bar,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        log.write("\n")  # after a line that a kill cut
        waiting = [pool.submit(get, item) for item in wanted]
        try:
            for done in as_completed(waiting):
                write(done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _journal(folder: Path) -> dict[str, dict[str, Any]]:
    """The objects fetched into `folder`, by name; lines that are not whole are passed over."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / ".journal").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                found[str(row["name"])] = row
    return found


def _missing(items: list[Item], folder: Path, journal: Mapping[str, Mapping[str, Any]]) -> list[Item]:
    """The items that are not in `folder` as they are at the place now."""

    def is_there(item: Item) -> bool:
        row, path = journal.get(item.name, {}), folder / item.name
        same = (row.get("bytes"), row.get("modified_ns")) == (item.bytes, item.modified_ns)
        return same and path.is_file() and path.stat().st_size == item.bytes

    return [item for item in items if not is_there(item)]


def _is_same(place: Place, folder: Path) -> bool:
    """True when `folder` holds what is at the place now."""
    items = place.items()
    if any(item.name == MANIFEST_NAME for item in items):  # a data set is what its manifest names
        manifest = folder / MANIFEST_NAME
        return manifest.is_file() and manifest.read_bytes() == place.read(MANIFEST_NAME)
    return not _missing(items, folder, _journal(folder))


def _sums(place: Place) -> dict[str, str]:
    """Name -> sha256 of the place's SHA256SUMS."""
    text = place.read(SUMS).decode(errors="replace")
    try:
        return parse_checksums(text, f"{place.url}/{SUMS}")
    except ValueError as error:
        raise StorageError(str(error)) from error


def _make_room(fetched: Path, folder: Path, needed: int) -> None:
    """Delete what was used longest ago, until `needed` bytes more fit below the bound; what is in use stays."""
    text = os.environ.get("BEAM_FETCHED_GB", str(DEFAULT_GB))
    try:
        limit = float(text) * 1e9
    except ValueError:
        raise StorageError(f"BEAM_FETCHED_GB={text!r}: give a number of gigabytes") from None
    if needed > limit:
        raise StorageError(
            f"{needed / 1e9:.1f} GB are to be fetched, BEAM_FETCHED_GB allows {limit / 1e9:g}: allow more"
        )
    others = [other for other in fetched.iterdir() if other != folder and (other / ".in-use").exists()]
    others.sort(key=lambda other: (other / ".in-use").stat().st_mtime)
    sizes = {other: sum(file.stat().st_size for file in other.rglob("*") if file.is_file()) for other in others}
    for other in others:
        if needed + sum(sizes.values()) <= limit:
            return
        with (other / ".in-use").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(other)
            del sizes[other]


def store_shards(folder: Path, url: str) -> int:
    """Put the shards of `folder` and, last, their manifest at `url`; returns the bytes sent, 0 when they were there.

    A killed upload is gone on with by the same call; until its end nobody reads anything there.

    Raises:
        ShardError: `folder` holds no whole data set.
        StorageError: the place takes nothing.
    """
    manifest, place = read_manifest(folder), Place(url)
    there = {item.name: item.bytes for item in place.items()}
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    if _hash_at(place) == manifest.hash and all(there.get(s.name) == s.bytes for s in shards):
        return 0
    with contextlib.suppress(Absent):
        if json.loads(place.read(UPLOADING)) != {"manifest": manifest.hash}:
            there = {}  # what lies there is of another data set
    if UPLOADING not in there:
        there = {}
    place.write(UPLOADING, json.dumps({"manifest": manifest.hash}).encode())
    place.delete(MANIFEST_NAME)
    sent = 0
    for shard in tqdm(shards, desc=f"storing {url}", unit="shard", mininterval=1.0):
        if there.get(shard.name) == shard.bytes:
            continue
        with (folder / shard.name).open("rb") as source:
            if place.put(shard.name, source, shard.bytes) != shard.sha256:
                place.delete(shard.name)
                raise ShardError(
                    f"shard {folder / shard.name} is not what its manifest says: delete it and prepare it again"
                )
        sent += shard.bytes
    place.write(MANIFEST_NAME, (folder / MANIFEST_NAME).read_bytes())
    place.delete(UPLOADING)
    return sent


def _hash_at(place: Place) -> str | None:
    """Hash of the manifest at a place; None where there is none that can be read."""
    try:
        values = json.loads(place.read(MANIFEST_NAME))
        return Manifest.from_dict({k: v for k, v in values.items() if k != "hash"}).hash
    except StorageError as error:
        if isinstance(error, Absent):
            return None
        raise
    except (ValueError, AttributeError):
        return None
