"""What one machine is and has, for `jobs.cluster_check`: plain values that travel, collected without Ray."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.celeba import open_celeba
from data_prep.images import crop_photograph

PACKAGES = ("torch", "ray", "mlflow", "faiss-cpu", "faiss-gpu", "numpy", "webdataset")
_TREE = Path(__file__).resolve().parents[1]
_GPU = (
    "import torch; n = torch.cuda.device_count(); print(n); print(torch.distributed.is_available() "
    "and torch.distributed.is_nccl_available()); print(torch.cuda.get_device_name(0) if n else '')"
)


@dataclass(frozen=True)
class Wanted:
    """What to look at on each node.

    Fields:
        places: names ("runs", "cache") -> folder or URI that all nodes write.
        mark: name of the check's own folder below each place.
        celeba: folder or zip of the photographs, or "".
        ray_folder: Ray's session folder on the node ("" where it is not known).
    """

    places: dict[str, str]
    mark: str
    celeba: str = ""
    ray_folder: str = ""


@dataclass(frozen=True)
class NodeFacts:
    """What was found on a node.

    Fields:
        versions: package -> version; "code" is a hash of this project's files.
        gpus: that torch sees, with nothing hidden from it.  gpu_name: of the first.
        nccl: whether torch has it.
        written: place -> "" or why nothing could be written, read back and deleted there.
        unseen: place -> nodes whose files are not seen from here.
        free, total: bytes of the disk below each place and below "ray".
        images: photographs found.  data_hash: of their names and sizes.  data_error: why there are none, or "".
    """

    node: str
    versions: dict[str, str]
    gpus: int
    gpu_name: str
    nccl: bool
    written: dict[str, str]
    free: dict[str, int]
    total: dict[str, int]
    images: int = 0
    data_hash: str = ""
    data_error: str = ""
    unseen: dict[str, list[str]] = field(default_factory=dict)


def collect(node: str, wanted: Wanted) -> NodeFacts:
    """All but `unseen`; leaves a file named `node` in each place's `mark` folder."""
    gpus, nccl, name = _gpus()
    images, data_hash, data_error = _data(wanted.celeba)
    disks = {key: place for key, place in wanted.places.items() if "://" not in place}
    if wanted.ray_folder:
        disks["ray"] = wanted.ray_folder
    written = {key: _write(place, wanted.mark, node) for key, place in wanted.places.items()}
    usage = {key: shutil.disk_usage(_existing(place)) for key, place in disks.items()}
    return NodeFacts(
        node=node,
        versions=versions(),
        gpus=gpus,
        gpu_name=name,
        nccl=nccl,
        written=written,
        free={key: disk.free for key, disk in usage.items()},
        total={key: disk.total for key, disk in usage.items()},
        images=images,
        data_hash=data_hash,
        data_error=data_error,
    )


def versions() -> dict[str, str]:
    """Of Python, of the packages that are installed, and of this project: its version and a hash of its code."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    digest = hashlib.sha256()
    for folder in ("pipeline", "jobs", "data_prep"):
        for file in sorted((_TREE / folder).rglob("*.py")):
            digest.update(file.relative_to(_TREE).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return {**found, "code": digest.hexdigest()[:12]}


def unseen_files(nodes: list[str], wanted: Wanted, patience: float = 10.0) -> dict[str, list[str]]:
    """Place -> the `nodes` whose files in it cannot be read from here; waits a little for a slow file system."""
    missing = {key: list(nodes) for key in wanted.places}
    end = time.monotonic() + patience
    while True:
        for key, place in wanted.places.items():
            missing[key] = [node for node in missing[key] if not _reads(place, wanted.mark, node)]
        if not any(missing.values()) or time.monotonic() > end:
            return {key: names for key, names in missing.items() if names}
        time.sleep(0.5)


def clean(wanted: Wanted) -> None:
    """Remove the check's own folders, as far as they can be reached from here."""
    for place in wanted.places.values():
        try:
            filesystem, path = _open(place)
            filesystem.delete_dir(f"{path}/{wanted.mark}")
        except (OSError, ValueError):
            continue  # another node removed it, or it never was


def now() -> float:
    """Seconds since 1970 by the clock of the machine that is asked."""
    return time.time()


def _open(place: str) -> tuple[Any, str]:
    """File system and path of a folder or a URI (s3://, gs://)."""
    from pyarrow import fs

    return fs.FileSystem.from_uri(place if "://" in place else str(Path(place).absolute()))


def _write(place: str, mark: str, node: str) -> str:
    """Write two files, read one back and delete it; "" or what went wrong."""
    try:
        filesystem, path = _open(place)
        filesystem.create_dir(f"{path}/{mark}", recursive=True)
        for name in (node, f"{node}.deleted"):
            with filesystem.open_output_stream(f"{path}/{mark}/{name}") as file:
                file.write(node.encode())
        if not _reads(place, mark, f"{node}.deleted", node):
            return "what was written is not what is read"
        filesystem.delete_file(f"{path}/{mark}/{node}.deleted")
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return ""


def _reads(place: str, mark: str, name: str, content: str | None = None) -> bool:
    try:
        filesystem, path = _open(place)
        with filesystem.open_input_stream(f"{path}/{mark}/{name}") as file:
            return bool(file.read() == (content or name).encode())
    except (OSError, ValueError):
        return False


def _data(celeba: str) -> tuple[int, str, str]:
    """(photographs, hash, error) of the data set; one photograph is decoded."""
    if not celeba:
        return 0, "", ""
    if "://" in celeba:
        from pyarrow import fs

        try:
            filesystem, path = _open(celeba)
            if filesystem.get_file_info(path).type == fs.FileType.NotFound:
                return 0, "", f"{celeba} is not there"
        except (OSError, ValueError) as error:
            return 0, "", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        return 0, celeba, ""
    try:
        source = open_celeba(celeba)
        first = next(name for names in source.names.values() for name in names)
        if Path(source.images).is_dir():
            crop_photograph((Path(source.images) / first).read_bytes())
    except (ValueError, OSError, StopIteration) as error:
        return 0, "", str(error) or f"{celeba}: no photographs"
    return sum(map(len, source.names.values())), source.content_hash, ""


def _gpus() -> tuple[int, bool, str]:
    """(number of GPUs, nccl, name of the first). In a process of its own: Ray hides GPUs from a task that asks for none."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", _GPU]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        count, nccl, name = (*done.stdout.splitlines(), "")[:3]
        return int(count), nccl == "True", name
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0, False, ""


def _existing(place: str) -> Path:
    """`place` or the nearest folder above it that is there."""
    path = Path(place).absolute()
    while not path.exists():
        path = path.parent
    return path
