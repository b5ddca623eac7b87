"""The model registry: register packaged models, mark the best one, find and load them; MLflow's `loader_module`.

A registered model is named after its data set and kind (`celeba-beam`, `synthetic-faces-autoencoder`), so a model of one data
set cannot take the place of another's. Alias `candidate` is the newest one worth a look; `champion` the best by its
score (smaller is better) on one content of the data: scores on other data are not comparable.

Versions hold what pipeline/packaged.py writes: safetensors and JSON. Every call names its server; nothing here changes
MLflow's process-wide tracking URI.
"""

import contextlib
import difflib
import importlib.metadata
import re
import shutil
import tempfile
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.packaged import (
    SAMPLE_DEFAULTS,
    Packaged,
    PackagedAutoencoder,
    PackagedBeam,
    PackageError,
    load_package,
    verify_package,
)
from pipeline.provenance import without_secrets
from pipeline.scores import Promotion, compare_scores, score_tags
from pipeline.tracking import sqlite_file, tracking_uri  # before mlflow: it sets what mlflow reads at its import

# isort: split
import mlflow.artifacts
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ParamSchema, ParamSpec, Schema, TensorSpec

CHAMPION, CANDIDATE = "champion", "candidate"
_PIXELS = Schema([TensorSpec(np.dtype("uint8"), (-1, 64, 64, 3))])
_TYPES = {"n_samples": "long", "gibbs_steps": "long", "seed": "long", "protocol": "string"}
_SIGNATURES = {
    "autoencoder": ModelSignature(inputs=_PIXELS, outputs=_PIXELS),
    "beam": ModelSignature(
        outputs=_PIXELS,
        params=ParamSchema([ParamSpec(name, _TYPES[name], default) for name, default in SAMPLE_DEFAULTS.items()]),
    ),
}


class RegistryError(ValueError):
    """A model that is not there or cannot be used: says what was asked for, and what there is."""


@dataclass(frozen=True)
class ModelVersionInfo:
    """A registered version."""

    name: str
    version: str
    aliases: tuple[str, ...]
    uri: str
    """`models:/<name>/<version>`"""
    run_id: str
    tags: Mapping[str, str]


class FetchedModel(NamedTuple):
    """A registered version as a local folder."""

    folder: Path
    """For `load_package`."""
    name: str
    version: str
    aliases: tuple[str, ...]
    content_hash: str
    """Stands for weights and settings alike."""


def model_name(dataset: str, kind: str) -> str:
    """`celeba-beam`, `synthetic-faces-autoencoder`. Raises ValueError on an unknown kind or a label of other characters."""
    if kind not in _SIGNATURES:
        raise ValueError(f"model kind {kind!r} is unknown; the kinds are {', '.join(_SIGNATURES)}")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", dataset):
        raise ValueError(f"data set label {dataset!r}: must be words of a-z and 0-9 joined by '-', such as 'celeba'")
    return f"{dataset}-{kind}"


def register_autoencoder(
    model: PackagedAutoencoder,
    *,
    run_id: str,
    data_hash: str,
    recipe: str,
    score: float,
    num_rows: int,
    score_name: str = "reconstruction_mse",
    spread: float | None = None,
    name: str | None = None,
    tracking: str | None = None,
) -> ModelVersionInfo:
    """Register `model` as a new version of `<dataset>-autoencoder`; see `register_beam`."""
    tags = score_tags(data_hash, recipe, score_name, score, num_rows, spread)
    return _register(model, "autoencoder", name, run_id, tags, tracking)


def register_beam(
    model: PackagedBeam,
    *,
    run_id: str,
    data_hash: str,
    recipe: str,
    score: float,
    num_rows: int,
    score_name: str = "frechet_latent",
    spread: float | None = None,
    name: str | None = None,
    tracking: str | None = None,
) -> ModelVersionInfo:
    """Register `model` as a new version of `<dataset>-beam`, without any alias, and return the version.

    A version of the same content and tags is returned as it is, so a job that is run again registers nothing twice.

    Args:
        model: what to package; it is written, read back, and uploaded.
        run_id: the MLflow run that trained it.
        data_hash: hash of the manifest of its data; only versions with the same one are compared.
        recipe: name of the recipe.
        score: what decides between models; smaller is better.
        num_rows: rows of data and of model that the score was measured on; values on other numbers are not comparable.
        score_name: the recipe's `evaluation.selection_metric`.
        spread: standard deviation of the score over evaluation seeds.
        name: in the registry; None: `model_name(dataset, kind)`.
        tracking: URI of the server; None: `tracking_uri()`.

    Raises:
        PackageError: the model holds values that are not finite, or parts that do not fit together.
    """
    tags = score_tags(data_hash, recipe, score_name, score, num_rows, spread)
    return _register(model, "beam", name, run_id, tags, tracking)


def _register(
    model: Packaged, kind: str, name: str | None, run_id: str, tags: dict[str, str], tracking: str | None
) -> ModelVersionInfo:
    name = name or model_name(model.dataset, kind)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "package"
        tags = {**tags, "dataset": model.dataset, "content_hash": model.save(data)}
        load_package(data)  # what cannot be read back is not registered
        if found := find_version(name, tags, tracking=tracking):
            return found
        client = MlflowClient(tracking or tracking_uri())
        logged = _log_model(client, kind, run_id, data, Path(folder) / "model", tags)
    try:
        client.create_registered_model(name, description=f"{kind} trained on {model.dataset}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # By its place and not as models:/<id>: MLflow would look the id up at the process-wide tracking URI.
    place = logged.artifact_location
    return _info(client, client.create_model_version(name, place, run_id, tags, model_id=logged.model_id))


def _log_model(
    client: MlflowClient, kind: str, run_id: str, data: Path, folder: Path, tags: dict[str, str]
) -> LoggedModel:
    """The package `data` as a logged model of the run; what `mlflow.pyfunc.log_model` does for the active run."""
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name=kind, source_run_id=run_id, tags=tags, model_type="pyfunc")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input example was not provided")  # the signature says it all
            mlflow.pyfunc.save_model(
                str(folder),
                loader_module=__name__,
                data_path=str(data),
                mlflow_model=Model(artifact_path=kind, run_id=run_id, model_id=logged.model_id),
                signature=_SIGNATURES[kind],
                pip_requirements=_requirements(),
                metadata={"beam_pipeline": importlib.metadata.version("beam-pipeline"), "dataset": tags["dataset"]},
            )
        client.log_model_artifacts(logged.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return client.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        with contextlib.suppress(Exception):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise


def find_version(name: str, wanted: str | Mapping[str, str], *, tracking: str | None = None) -> ModelVersionInfo | None:
    """The newest version of `name` with the number, or with all of the tags, `wanted`; None when there is none.

    It asks for nothing to exist: no model of that name and no database yet give None too.
    """
    client = _reader(tracking)
    if client is None:
        return None
    for version in sorted(_versions(client, name), key=lambda v: int(v.version), reverse=True):
        if isinstance(wanted, str):
            fits = str(version.version) == wanted
        else:
            fits = all(version.tags.get(key) == value for key, value in wanted.items())
        if fits:
            return _info(client, version)
    return None


def find_model(uri: str, *, tracking: str | None = None) -> ModelVersionInfo:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        RegistryError: no such name, alias or version; the message lists near names, or the aliases and versions.
    """
    match = re.fullmatch(r"models:/([^/@']+)(?:@([^/@]+)|/(\d+))?", uri)
    if match is None:
        raise RegistryError(f"{uri!r} names no version: write models:/NAME@ALIAS or models:/NAME/NUMBER")
    name, alias, number = match.groups()
    client = _reader(tracking)
    if client is None:
        raise RegistryError(f"there is no model {name!r}: {sqlite_file(tracking or tracking_uri())} does not exist yet")
    try:
        registered = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise RegistryError(f"model {name!r} cannot be looked up ({_text(error)}); check the server") from error
        names = [model.name for model in client.search_registered_models()]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
        raise RegistryError(f"there is no model {name!r}; there is {', '.join(near) or 'none at all'}") from None
    versions = {str(version.version): version for version in _versions(client, name)}
    found = versions.get(str(registered.aliases.get(alias) if alias else number))
    if found is None:
        aliases = ", ".join(f"@{a} (version {v})" for a, v in sorted(registered.aliases.items())) or "no aliases"
        numbers = ", ".join(sorted(versions, key=int)) or "none"
        raise RegistryError(f"{uri!r} is not there; model {name!r} has {aliases}; versions: {numbers}")
    return _info(client, found)


def set_candidate(name: str, version: str, *, tracking: str | None = None) -> None:
    """Give `version` the alias `candidate`."""
    MlflowClient(tracking or tracking_uri()).set_registered_model_alias(name, CANDIDATE, version)


def promote_if_better(name: str, version: str, *, tracking: str | None = None) -> Promotion:
    """Make `version` the champion when there is none, or when its score beats the champion's on the same data hash.

    Better is strictly smaller; the reason says when the difference is within the spread. It is kept as the version's tag
    `promotion`. A version that is the champion already stays it.
    """
    client = MlflowClient(tracking or tracking_uri())
    current = client.get_registered_model(name).aliases.get(CHAMPION)
    new = client.get_model_version(name, version)
    if str(current) == str(version):
        return Promotion(True, new.tags.get("promotion", "it is the champion already"))
    champion = None if current is None else client.get_model_version(name, str(current)).tags
    result = compare_scores(new.tags, champion, str(current))
    client.set_model_version_tag(name, version, "promotion", result.reason)
    if result.promoted:
        client.set_registered_model_alias(name, CHAMPION, version)
    return result


def load_model(uri: str, device: str = "cpu", *, tracking: str | None = None) -> Packaged:
    """The model behind `models:/NAME@ALIAS`, `models:/NAME/NUMBER`, `runs:/RUN/NAME` or in a local folder, verified.

    Raises:
        RegistryError: there is no such model.
        PackageError: its files are damaged or of an unknown kind or version.
    """
    if uri.startswith(("models:/", "runs:/")):
        with _artifacts(uri, tracking) as folder:
            return load_package(_data_folder(folder), device)
    if not Path(uri).is_dir():
        raise RegistryError(
            f"{uri!r} is no model: give models:/NAME@ALIAS, models:/NAME/NUMBER, runs:/RUN/NAME or a folder"
        )
    return load_package(_data_folder(Path(uri)), device)


def fetch_model(uri: str, cache: str | Path, *, tracking: str | None = None) -> FetchedModel:
    """The package of a registered version as a folder below `cache`: fetched once, verified every time.

    Raises:
        RegistryError, PackageError: as `load_model`.
    """
    found = find_model(uri, tracking=tracking)
    target = Path(cache) / f"{found.name}-v{found.version}-{found.tags.get('content_hash', '')[:12]}"
    try:
        content = verify_package(target)
    except PackageError:  # not there yet, or damaged since
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            _artifacts(found.uri, tracking) as artifacts,
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as temporary,
        ):
            copy = Path(temporary) / "package"
            shutil.copytree(_data_folder(artifacts), copy)
            content = verify_package(copy)
            shutil.rmtree(target, ignore_errors=True)
            copy.rename(target)
    return FetchedModel(target, found.name, found.version, found.aliases, content)


@contextlib.contextmanager
def _artifacts(uri: str, tracking: str | None) -> Iterator[Path]:
    """The folder of a model's artifacts: their own place when that is on this machine, else a copy for the time being."""
    server = tracking or tracking_uri()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            if uri.startswith("models:/"):
                found = find_model(uri, tracking=tracking)
                place = MlflowClient(server).get_model_version_download_uri(found.name, found.version)
            else:
                place = _logged_place(uri, tracking)
            copy_to = None if urllib.parse.urlparse(place).scheme in ("", "file") else temporary
            folder = mlflow.artifacts.download_artifacts(place, dst_path=copy_to, tracking_uri=server)
        except (MlflowException, OSError) as error:
            raise RegistryError(f"the files of {uri!r} cannot be fetched ({_text(error)})") from error
        yield Path(folder)


def _logged_place(uri: str, tracking: str | None) -> str:
    """Where the newest model lies that `runs:/RUN/NAME` names."""
    match = re.fullmatch(r"runs:/([^/]+)/([^/]+)", uri)
    client = _reader(tracking)
    if match is None or client is None:
        raise RegistryError(f"there is no model {uri!r}: write runs:/RUN/NAME, and look at the tracking URI")
    outputs = client.get_run(match[1]).outputs
    models = [client.get_logged_model(o.model_id) for o in (outputs.model_outputs if outputs else [])]
    ready = [model for model in models if model.name == match[2] and model.status == "READY"]
    if not ready:
        names = ", ".join(sorted({model.name for model in models})) or "none"
        raise RegistryError(f"run {match[1]} has no model {match[2]!r}; its models: {names}")
    return max(ready, key=lambda model: model.creation_timestamp).artifact_location


def _data_folder(folder: Path) -> Path:
    """Where the package lies in a model folder of MLflow, or the folder itself when it is a package."""
    if not (folder / "MLmodel").is_file():
        return folder
    flavor = Model.load(str(folder)).flavors.get("python_function", {})
    if flavor.get("loader_module") != __name__ or "data" not in flavor:
        raise RegistryError(
            f"model in {folder} was not packaged by this program (loader {flavor.get('loader_module')!r})"
        )
    return folder / flavor["data"]


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Packaged:
    """What `mlflow.pyfunc.load_model` calls; `model_config={"device": "cuda"}` puts the model on a GPU."""
    return load_package(path, (model_config or {}).get("device", "cpu"))


def _requirements() -> list[str]:
    """Exact versions of what a packaged model needs from PyPI. Our own package is not there: it has to be installed."""
    packages = ("mlflow", "torch", "numpy", "safetensors")
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in packages]


def _reader(tracking: str | None) -> MlflowClient | None:
    """A client for looking things up; None where an sqlite database is not there yet (MLflow would make one)."""
    uri = tracking or tracking_uri()
    file = sqlite_file(uri)
    return None if file is not None and not file.is_file() else MlflowClient(uri)


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    versions: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        versions += page
        if not (token := page.token):
            return versions


def _info(client: MlflowClient, version: ModelVersion) -> ModelVersionInfo:
    aliases = client.get_registered_model(version.name).aliases  # a search leaves them out of the versions
    mine = tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(version.version)))
    number = str(version.version)
    uri = f"models:/{version.name}/{number}"
    return ModelVersionInfo(version.name, number, mine, uri, version.run_id or "", dict(version.tags))


def _text(error: Exception) -> str:
    """The first line of an error's message, for one of ours."""
    return next(iter(without_secrets(str(error)).strip().splitlines()), type(error).__name__)[:300]
