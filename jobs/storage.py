"""Where a job's data, run folder and results lie when that is a URL (s3://, gs://): the doors that the commands use.

What a command works on is always a local folder: data are fetched into the cache, a run's folder is kept a second time at
STORAGE while the command runs, and fetched from there where it is missing. What imports torch is imported when a URL is used:
questions are answered before that.
"""

import argparse
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.storage.places import Absent, Place, is_url

_log = logging.getLogger(__name__)


def add_storage(parser: argparse.ArgumentParser) -> None:
    """The flag --storage."""
    parser.add_argument(
        "--storage",
        default=os.environ.get("BEAM_STORAGE") or None,
        metavar="URL",
        help="s3://bucket/prefix or gs://...: the run is kept there, too, and fetched from there (default: BEAM_STORAGE)",
    )


def path_or_url(text: str) -> Path | str:
    """The type of an argument that may be a URL: a Path would fold its slashes."""
    return text if is_url(text) else Path(text)


def local_path(text: str) -> Path:
    """The type of an argument that has to be a path. Raises as argparse wants it."""
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL, and this has to be a folder (of all nodes); --storage {text} keeps runs at a URL"
        )
    return Path(text)


def local_input(given: Path | str, cache: Path) -> Path:
    """The folder of an input: itself, or where it was fetched to. Raises StorageError, ShardError, DiskFull."""
    if not is_url(given):
        return Path(given)
    from pipeline.storage.cache import fetch

    return fetch(str(given), cache)


def local_output(given: Path | str, cache: Path) -> Path:
    """Where to make what goes to `given`: there, or in a folder of the cache, from where `store_output` sends it."""
    if not is_url(given):
        return Path(given)
    Place(str(given)).items()  # refuses a bucket that is not there before hours of work
    return cache / "stored" / hashlib.sha256(str(given).rstrip("/").encode()).hexdigest()[:16]


def store_output(given: Path | str, folder: Path) -> None:
    """Send the shards in `folder` to `given` when that is a URL. Raises StorageError."""
    if is_url(given):
        from pipeline.storage.cache import store_shards

        sent = store_shards(folder, str(given))
        _log.info("%s: %s", given, f"{sent / 1e6:.1f} MB stored" if sent else "there already")


def fetch_shards_to(url: str, folder: Path) -> bool:
    """Fetch the shards at `url` into `folder`, unless it has a manifest or there are none; True when they were fetched."""
    from pipeline.data.manifest import MANIFEST_NAME
    from pipeline.storage.cache import fetch

    if (folder / MANIFEST_NAME).exists():
        return False
    try:
        Place(url).read(MANIFEST_NAME)
    except Absent:
        return False
    copy = fetch(url, folder.parent / ".from-storage")
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(
        (f for f in copy.iterdir() if not f.name.startswith(".")), key=lambda f: f.name == MANIFEST_NAME
    ):
        file.replace(folder / file.name)  # the manifest last
    return True


@contextmanager
def stored(folder: Path, storage: str | None) -> Iterator[None]:
    """`folder` is kept at `<storage>/runs/<name>` while the block runs; what it lacks of that is fetched first.

    Raises:
        StorageError: before the block: the store is not there, or refuses. Once the block runs nothing is raised.
    """
    if storage is None:
        yield
        return
    from pipeline.storage.mirror import Mirror, pull

    place = Place(storage) / "runs" / folder.name
    pulled = pull(place, folder)
    if pulled.files:
        _log.info("%d files of the run fetched from %s", pulled.files, place.url)
    mirror = Mirror(folder, place, pulled.damaged)
    mirror.check()
    mirror.start()
    try:
        yield
    finally:
        if mirror.finish():
            _log.info("the run is stored at %s", place.url)
