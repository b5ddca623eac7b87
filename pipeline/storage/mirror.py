"""A run's folder, kept a second time at a URL: sent in the background while it runs, fetched where it is missing.

<place>/index.json                          every file of the folder: name, bytes, sha256, object; hash of all that
<place>/beam/metrics.jsonl.d/<sha>.jsonl    an object's name carries its hash: what is there is never written over

The index is written after the objects, in one piece, so that a reader always finds one whole state of the run; objects that
no index names are deleted after that. A checkpoint (step_...) is fetched whole or not at all: a damaged one is passed over
for the one before it.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipeline.files import canonical_hash
from pipeline.storage.places import CHUNK, Absent, Place, StorageError

INDEX = "index.json"
VERSION = 1
EVERY_SECONDS = float(os.environ.get("MIRROR_EVERY_SECONDS", "10"))
BUSY_SHARE = 0.1
"""Most of the time that is spent sending: a pass that takes a minute is followed by nine of rest."""
LAST_SECONDS = 60.0
"""Seconds that the end of a run waits for a store that does not answer."""
SKIPPED = {"ray", "STOP", "failure.json", "worker.log", "workers.txt"}
_log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A file of the folder, as the index knows it."""

    bytes: int
    sha256: str

    def object(self, name: str) -> str:
        """The object that holds the file `name`."""
        return f"{name}.d/{self.sha256[:32]}{PurePosixPath(name).suffix}"


class Pulled(NamedTuple):
    """The objects that came from a place."""

    files: int
    """Files fetched."""
    damaged: tuple[str, ...]
    """Objects that were missing or not what the index says: not to be taken for stored."""


def read_index(place: Place) -> dict[str, Entry] | None:
    """The files at `place`; None where there is no index, that is, no run. Raises StorageError when it is damaged."""
    try:
        values = json.loads(place.read(INDEX))
        if not isinstance(values, dict) or values.get("version") != VERSION:
            raise ValueError("another version")
        if canonical_hash({k: v for k, v in values.items() if k != "hash"}) != values.get("hash"):
            raise ValueError("its hash does not fit")
        index = {name: Entry(int(size), str(sha)) for name, (size, sha) in values["files"].items()}
        for name in index:
            if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name:
                raise ValueError(f"name {name[:80]!r} points out of the folder")
        return index
    except Absent:
        return None
    except StorageError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise StorageError(
            f"{place.url}/{INDEX} is damaged ({error}): delete it and the run is stored anew from its folder, or use another "
            "--storage"
        ) from error


def pull(place: Place, folder: Path) -> Pulled:
    """Fetch what `folder` lacks of the run at `place`; what is there stays, except in parts that went on elsewhere.

    A part of the run (the folder above checkpoints/) whose newest checkpoint at `place` is newer than every local one is
    taken from there with its metrics. Each file is compared with its hash, each checkpoint appears whole or not at all.
    """
    index = read_index(place)
    if index is None:
        return Pulled(0, ())
    groups: dict[str, list[str]] = {}
    for name in index:
        groups.setdefault(_checkpoint_of(name) or name, []).append(name)
    fetched, damaged, newer = 0, [], set()
    steps = sorted((g for g in groups if _checkpoint_of(f"{g}/x")), reverse=True)
    for group in steps:
        target = folder / group
        if target.exists():
            continue
        temporary = target.with_name(f".writing-fetched-{target.name}")
        try:
            for name in groups[group]:
                _fetch(place, name, index[name], temporary / PurePosixPath(name).relative_to(group))
        except StorageError as error:
            bad = [index[name].object(name) for name in groups[group]]
            if not _answers(place):
                raise
            _log.warning("%s; going back to the checkpoint before it", error)
            damaged += bad
            shutil.rmtree(temporary, ignore_errors=True)
            continue
        older = all(target.name > other.name for other in target.parent.glob("step_*"))
        if target.parent.name == "checkpoints" and older:
            newer.add(str(PurePosixPath(group).parent.parent))
        temporary.rename(target)
        fetched += len(groups[group])
    for name in sorted(index.keys() - {n for g in steps for n in groups[g]}):
        target = folder / name
        if target.exists() and str(PurePosixPath(name).parent) not in newer:
            continue
        try:
            _fetch(place, name, index[name], target)
            fetched += 1
        except StorageError as error:
            if not _answers(place):
                raise
            _log.warning("%s; going on without it", error)
            damaged.append(index[name].object(name))
    return Pulled(fetched, tuple(damaged))


def _fetch(place: Place, name: str, entry: Entry, target: Path) -> None:
    place.get(entry.object(name), target, entry.sha256, entry.bytes)


def _answers(place: Place) -> bool:
    """True when the store is there at all: a damaged object is passed over, an absent store is not."""
    try:
        place.read(INDEX)
    except StorageError:
        return False
    return True


def _checkpoint_of(name: str) -> str | None:
    """The checkpoint's folder that a file belongs to; None for other files."""
    parts = PurePosixPath(name).parts
    found = [i for i, part in enumerate(parts[:-1]) if part.startswith("step_")]
    return "/".join(parts[: found[0] + 1]) if found else None


class Mirror:
    """Keeps a place equal to a folder, from a thread of its own; training neither waits for it nor ends because of it."""

    def __init__(self, folder: Path, place: Place, distrust: tuple[str, ...] = (), every: float = EVERY_SECONDS):
        """Call `start` to begin. `distrust`: objects to be sent again although they are there (Pulled.damaged)."""
        self.folder, self.place, self.every = folder, place, every
        self._distrust = set(distrust)
        self._known: dict[str, int] | None = None  # object -> bytes
        self._signatures: dict[str, tuple[tuple[int, int, int], Entry]] = {}
        self._sent: dict[str, Entry] | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._error: Exception | None = None
        self._deadline = 0.0

    def check(self) -> None:
        """Raises StorageError when nothing can be written there: before a run begins, rather than after it."""
        self.place.write("check", b"")
        self.place.delete("check")

    def start(self) -> "Mirror":
        """Begin to send."""
        self._thread.start()
        return self

    def finish(self, seconds: float = LAST_SECONDS) -> bool:
        """Send what is left; False, and a warning, when the store did not take it for about `seconds`."""
        self._deadline = time.monotonic() + seconds
        self._ending.set()
        self._thread.join(None)
        if self._error is not None:
            _log.warning(
                "%s; %s is not all at %s: it is whole here, and the same command sends it",
                *(self._error, self.folder, self.place.url),
            )
        return self._error is None

    def _run(self) -> None:
        rest = self.every
        while True:
            ending = self._ending.wait(rest)
            start = time.monotonic()
            try:
                self.send()
                if self._error is not None:
                    _log.warning("%s answers again: everything is stored there", self.place.url)
                self._error = None
            except Exception as error:  # nothing that happens here may reach training
                if self._error is None:
                    _log.warning("%s; the run goes on, and what is missing is sent later", error)
                self._error = error
            if ending:
                if self._error is None or time.monotonic() > self._deadline:
                    return
                time.sleep(1.0)
            took = time.monotonic() - start
            rest = max(self.every, took / BUSY_SHARE - took)

    def send(self) -> None:
        """One pass: what is new goes there, then the index, then what is no longer named is deleted.

        Raises:
            StorageError: the store did not take something; the index there is still that of the last whole pass.
        """
        if self._known is None:
            self._known = {i.name: i.bytes for i in self.place.items() if i.name not in self._distrust}
        index: dict[str, Entry] = {}
        gone: set[str] = set()
        for name in _files(self.folder):
            try:
                index[name] = self._store(name)
            except FileNotFoundError:  # an old checkpoint, dropped meanwhile: none of it, rather than half
                if (group := _checkpoint_of(name)) is not None:
                    gone.add(group)
        index = {name: entry for name, entry in index.items() if _checkpoint_of(name) not in gone}
        if index == self._sent:
            return
        values: dict[str, Any] = {
            "version": VERSION,
            "files": {name: list(entry) for name, entry in sorted(index.items())},
        }
        self.place.write(INDEX, json.dumps({**values, "hash": canonical_hash(values)}).encode())
        self._sent = index
        for name in self._known.keys() - {entry.object(name) for name, entry in index.items()} - {INDEX}:
            self.place.delete(name)
            del self._known[name]

    def _store(self, name: str) -> Entry:
        """The file's entry, after its object is there. Raises FileNotFoundError, StorageError."""
        assert self._known is not None
        with (self.folder / name).open("rb") as file:
            status = os.fstat(file.fileno())
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._signatures.get(name)
            if known is not None and known[0] == signature and self._known.get(known[1].object(name)) == known[1].bytes:
                return known[1]
            # a file that grows meanwhile is taken as long as it was when it was opened
            digest, left = hashlib.sha256(), status.st_size
            while left and (chunk := file.read(min(CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
            entry = Entry(status.st_size - left, digest.hexdigest())
            if self._known.get(key := entry.object(name)) != entry.bytes:
                file.seek(0)
                if self.place.put(key, file, entry.bytes) != entry.sha256:
                    self.place.delete(key)
                    raise StorageError(f"{self.folder / name} changed while it was sent to {self.place.url}")
                self._known[key] = entry.bytes
            self._signatures[name] = (signature, entry)
            return entry


def _files(folder: Path) -> Iterator[str]:
    """Names below `folder`, the newest checkpoints first and records of stages last; nothing hidden, nothing of Ray's."""
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in SKIPPED]
        names += [
            (Path(parent) / file).relative_to(folder).as_posix()
            for file in files
            if not file.startswith((".", "error-")) and file not in SKIPPED
        ]
    steps = sorted((n for n in names if _checkpoint_of(n)), reverse=True)
    others = sorted(n for n in names if not _checkpoint_of(n))
    return iter([*steps, *sorted(others, key=lambda n: n.startswith("stages/") or n == "summary.json")])
