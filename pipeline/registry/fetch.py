"""The files of registered versions: loaded in place, or copied and kept, and verified every time before they are used."""

import contextlib
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.packages.files import PackageError
from pipeline.packages.models import Packaged, verify_package
from pipeline.registry.mlflow_folder import model_files, open_model, package_folder
from pipeline.registry.versions import ModelVersionInfo, RegistryError, asking, find_model, logged_model
from pipeline.tracking.server import first_line, tracking_uri  # before mlflow: it sets what mlflow reads at its import

# isort: split
import mlflow.artifacts
from mlflow.exceptions import MlflowException


class FetchedModel(NamedTuple):
    """A registered version as a local folder."""

    folder: Path
    """For `load_package`."""
    name: str
    version: str
    aliases: tuple[str, ...]
    content_hash: str
    """Stands for weights and settings alike."""


def load_model(uri: str, device: str = "cpu", *, tracking: str | None = None) -> Packaged:
    """The model behind `models:/NAME@ALIAS`, `models:/NAME/NUMBER`, `runs:/RUN/NAME` or in a local folder, verified.

    A local folder is one that `pull_model` made, or a package; nothing is asked of any server then.

    Raises:
        RegistryError: there is no such model.
        PackageError: its files are damaged, of an unknown kind or version, or MLmodel asks for anything but this loader.
    """
    if uri.startswith(("models:/", "runs:/")):
        with _artifacts(uri, tracking) as (folder, content):
            return open_model(folder, device, content_hash=content)
    if not Path(uri).is_dir():
        raise RegistryError(
            f"{uri!r} is no model: give models:/NAME@ALIAS, models:/NAME/NUMBER, runs:/RUN/NAME or a folder"
        )
    return open_model(Path(uri), device)


def verify_model(ref: str, *, tracking: str | None = None) -> ModelVersionInfo:
    """The version that `ref` names (see `find_model`), once all of its files are known and fit what was registered.

    Raises:
        RegistryError, PackageError: as `load_model`.
    """
    found = find_model(ref, tracking=tracking)
    load_model(found.uri, tracking=tracking)
    return found


def fetch_model(uri: str, cache: str | Path, *, tracking: str | None = None) -> FetchedModel:
    """The package of a registered version as a folder below `cache`: fetched once, verified every time.

    Raises:
        RegistryError, PackageError: as `load_model`.
    """
    found = find_model(uri, tracking=tracking)
    registered = found.tags.get("content_hash")
    target = Path(cache) / f"{found.name}-v{found.version}-{(registered or '')[:12]}"
    try:
        open_model(target, content_hash=registered)
    except PackageError:  # not there yet, or damaged since
        with _artifacts(found.uri, tracking) as (folder, content), _beside(target) as copy:
            open_model(folder, content_hash=content)
            shutil.copytree(package_folder(folder), copy)
            open_model(copy, content_hash=content)
            shutil.rmtree(target, ignore_errors=True)
            copy.rename(target)
    return FetchedModel(target, found.name, found.version, found.aliases, verify_package(target))


def pull_model(ref: str, folder: str | Path, *, tracking: str | None = None) -> FetchedModel:
    """A verified copy of a version (see `find_model`) with its card, for use without a network; whole or not there.

    `load_model(folder)` and `mlflow.pyfunc.load_model(folder)` load it. A folder that holds the same model is left as it is.

    Raises:
        RegistryError: there is no such model, or `folder` is a file, or holds anything else.
        PackageError: as `load_model`.
    """
    found, target = find_model(ref, tracking=tracking), Path(folder)
    if target.exists() and not target.is_dir():
        raise RegistryError(f"{str(target)!r} is a file: name a folder that is not there yet")
    if target.is_dir() and any(target.iterdir()):
        try:
            open_model(target, content_hash=found.tags.get("content_hash"))
            return FetchedModel(
                target, found.name, found.version, found.aliases, verify_package(package_folder(target))
            )
        except PackageError as error:
            raise RegistryError(
                f"{str(target)!r} is not empty, and is not {found.uri} ({error}): name another folder"
            ) from error
    with _artifacts(found.uri, tracking) as (source, content), _beside(target.absolute()) as copy:
        open_model(source, content_hash=content)
        for file in model_files(source):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, copy / file)
        open_model(copy, content_hash=content)
        copy.rename(target)  # takes the place of an empty folder
    return FetchedModel(target, found.name, found.version, found.aliases, verify_package(package_folder(target)))


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary path next to `target`, deleted at the end unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as temporary:
        yield Path(temporary) / "model"


@contextlib.contextmanager
def _artifacts(uri: str, tracking: str | None) -> Iterator[tuple[Path, str | None]]:
    """The folder of a model's artifacts: their own place when that is on this machine, else a copy for the time being; and
    the content hash that the registry has of it. What is wrong with them is said of `uri`.
    """
    server = tracking or tracking_uri()
    with tempfile.TemporaryDirectory() as temporary:
        with asking(tracking) as client:
            if uri.startswith("runs:/"):
                match = re.fullmatch(r"runs:/([^/]+)/([^/]+)", uri)
                if match is None or client is None:
                    raise RegistryError(
                        f"there is no model {uri!r}: write runs:/RUN/NAME, and look at the tracking URI"
                    )
                logged = logged_model(client, match[1], match[2])
                place, tags = logged.artifact_location, logged.tags
            else:
                found = find_model(uri, tracking=tracking)
                assert client is not None
                place, tags = client.get_model_version_download_uri(found.name, found.version), dict(found.tags)
        try:
            copy_to = None if urllib.parse.urlparse(place).scheme in ("", "file") else temporary
            folder = Path(mlflow.artifacts.download_artifacts(place, dst_path=copy_to, tracking_uri=server))
        except (MlflowException, OSError) as error:
            raise RegistryError(f"the files of {uri!r} cannot be fetched ({first_line(error)})") from error
        if not (folder / "MLmodel").is_file():
            raise PackageError(f"{uri!r} cannot be used: there is no MLmodel among its files")
        try:
            yield folder, tags.get("content_hash")
        except PackageError as error:
            raise PackageError(f"{uri!r} cannot be used: {error}") from error
