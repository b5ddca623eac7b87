"""Reading and writing objects under a URL (s3://, gs://, file://) through pyarrow.

pyarrow brings the clients of both stores, so that nothing else has to be installed. An object appears whole or not at all
(a store shows an upload when it is complete; on a file system the file is renamed into its place). Credentials come from
the environment alone: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, or what the machine's role
gives; for Google GOOGLE_APPLICATION_CREDENTIALS.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from pipeline.files import FULL, naming_a_full_disk

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs", "file")
CHUNK = 1 << 22
CONNECT_SECONDS, REQUEST_SECONDS, ATTEMPTS = 5, 60, 3
_WHY = (  # what the store's client says -> what it means, what to do
    (r"NO_SUCH_BUCKET|bucket does not exist", "there is no such bucket: create it, or correct the name"),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|HTTP status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED",
        "access denied: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (for gs:// GOOGLE_APPLICATION_CREDENTIALS) to keys "
        "that may read, write and list there",
    ),
    (
        r"NETWORK_CONNECTION|curlCode|Could not resolve|timed? ?out|REQUEST_TIMEOUT|SERVICE_UNAVAILABLE|UNAVAILABLE",
        "the store does not answer: check the network and AWS_ENDPOINT_URL",
    ),
)


class StorageError(ValueError):
    """Something at a URL cannot be read or written: says what, where, and what to do."""


class Absent(StorageError):
    """There is no such object."""


class Item(NamedTuple):
    """An object below a place."""

    name: str
    """Path below the place, with slashes."""
    bytes: int
    modified_ns: int
    """When it was written (ns since 1970); 0 where the store does not say."""


class Place:
    """A prefix in a bucket, or a folder given as file:///path; names are relative paths with slashes."""

    def __init__(self, url: str):
        """Nothing is looked up yet. Raises StorageError for a URL of another kind."""
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or (parts.scheme != "file" and not parts.netloc):
            raise StorageError(f"{url}: a place is s3://bucket/prefix, gs://bucket/prefix or file:///path")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise StorageError(
                f"{parts.scheme}://.../{parts.path.lstrip('/')}: leave keys and options out of a URL, it is written into logs; "
                "credentials come from the environment"
            )
        self.url = url.rstrip("/")
        self.is_local = parts.scheme == "file"
        self.root = (parts.netloc + parts.path).rstrip("/")
        with self._saying("reach"):
            self._fs = _file_system(parts.scheme, parts.netloc)

    def __truediv__(self, name: str) -> "Place":
        return Place(f"{self.url}/{name}")

    def items(self) -> list[Item]:
        """Every object below this place, by name; empty when there is none."""
        from pyarrow.fs import FileSelector, FileType

        with self._saying("list"):
            infos = self._fs.get_file_info(FileSelector(self.root, allow_not_found=True, recursive=True))
        found = [i for i in infos if i.type == FileType.File and not i.path.rsplit("/", 1)[-1].startswith(".part-")]
        start = len(self.root) + 1
        return sorted(Item(i.path[start:], i.size or 0, i.mtime_ns or 0) for i in found)

    def read(self, name: str) -> bytes:
        """The content of a (small) object. Raises Absent, StorageError."""
        with self._saying("read", name), self._fs.open_input_file(f"{self.root}/{name}") as source:
            return source.read()

    def write(self, name: str, content: bytes) -> None:
        """Put a (small) object, whole or not at all. Raises StorageError."""
        with self._writing(name) as target:
            target.write(content)

    def put(self, name: str, source: IO[bytes], size: int) -> str:
        """Put the next `size` bytes of `source` as an object, whole or not at all; returns their sha256 (hex)."""
        digest, left = hashlib.sha256(), size
        with self._writing(name) as target:
            while left and (chunk := source.read(min(CHUNK, left))):
                digest.update(chunk)
                target.write(chunk)
                left -= len(chunk)
        return digest.hexdigest()

    def get(
        self,
        name: str,
        path: Path,
        sha256: str | None = None,
        size: int | None = None,
        tell: Callable[[int], object] = int,
        resume: bool = False,
    ) -> str:
        """Fetch an object to `path`, whole or not at all; returns its sha256 (hex).

        What a killed fetch left in `.NAME.part` is gone on with when the object's hash is given, or with `resume`: its size
        does not tell whether the part is of this object or of an earlier one of that name.

        Args:
            name: of the object.
            path: where it goes; its folder is made.
            sha256: what it has to be; None: not known.
            size: bytes that it has to have; None: not known.
            tell: called with the bytes of each chunk that came.
            resume: the caller knows that the part, if there is one, is of this object.

        Raises:
            Absent: there is none.
            StorageError: it is not what it has to be; nothing of it is kept.
            DiskFull: with what it needs.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        if sha256 is None and not resume:
            part.unlink(missing_ok=True)
        digest = hashlib.sha256()
        with naming_a_full_disk(path, size), part.open("a+b") as target:
            target.seek(0)
            while chunk := target.read(CHUNK):
                digest.update(chunk)
            tell(target.tell())
            with self._saying("read", name), self._fs.open_input_file(f"{self.root}/{name}") as source:
                total = source.size()
                begun = target.tell() if target.tell() <= total else 0
                if begun == 0:
                    target.truncate(0)
                    digest = hashlib.sha256()
                source.seek(begun)
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
                    tell(len(chunk))
            target.flush()
            os.fsync(target.fileno())
            written = target.tell()
        found = digest.hexdigest()
        if (size is not None and written != size) or (sha256 is not None and found != sha256):
            part.unlink()
            raise StorageError(
                f"{self.url}/{name} is damaged: {written} bytes with sha256 {found[:12]}, expected were "
                f"{'some' if size is None else size} with {'any' if sha256 is None else sha256[:12]}; put a whole one there, "
                "or delete it to have it made anew"
            )
        part.replace(path)
        return found

    def delete(self, name: str) -> None:
        """Delete an object; nothing happens when there is none."""
        with contextlib.suppress(Absent), self._saying("delete", name):
            self._fs.delete_file(f"{self.root}/{name}")

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[IO[bytes]]:
        path = f"{self.root}/{name}"
        folder, _, last = path.rpartition("/")
        written = f"{folder}/.part-{os.getpid()}-{last}" if self.is_local else path
        with self._saying("write", name):
            if self.is_local:
                self._fs.create_dir(folder, recursive=True)
            stream = self._fs.open_output_stream(written)
            try:
                yield stream
            except BaseException:
                with contextlib.suppress(Exception):
                    (getattr(stream, "abort", None) or stream.close)()
                    self._fs.delete_file(written)
                raise
            stream.close()
            if self.is_local:
                self._fs.move(written, path)

    @contextlib.contextmanager
    def _saying(self, verb: str, name: str = "") -> Iterator[None]:
        where = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except FileNotFoundError as error:
            raise Absent(f"cannot {verb} {where}: there is nothing of that name") from error
        except OSError as error:
            if verb == "read" and error.errno in FULL:
                raise  # of the file that it is read into
            text = " ".join(str(error).split())
            why = next((meaning for pattern, meaning in _WHY if re.search(pattern, text, re.IGNORECASE)), text[:300])
            raise StorageError(f"cannot {verb} {where}: {why}") from error


def is_url(text: str | os.PathLike[str] | None) -> bool:
    """True when `text` is a URL and not a path."""
    return text is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(text)) is not None


def _file_system(scheme: str, bucket: str) -> "FileSystem":
    from pyarrow import fs

    if scheme == "file":
        return fs.LocalFileSystem()
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=REQUEST_SECONDS))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return fs.S3FileSystem(
        endpoint_override=endpoint or None,
        region=region or ("us-east-1" if endpoint else fs.resolve_s3_region(bucket)),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )
