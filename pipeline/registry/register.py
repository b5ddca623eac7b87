"""The model registry: packaged models become registered versions; MLflow's `loader_module`.

A registered model is named after its data set and kind (`celeba-beam`, `synthetic-faces-autoencoder`), so a model of one data
set cannot take the place of another's. Alias `candidate` is the newest one worth a look; `champion` the best by its
score (smaller is better) on one content of the data: scores on other data are not comparable.

Versions hold what pipeline/packages/files.py writes, safetensors and JSON, and a card for people; mlflow_folder.py checks
all of it before anything is used. versions.py finds versions, fetch.py loads and copies them, promotion.py decides on
champions; what jobs need of the three is here as well. Every call names its server; nothing here changes MLflow's
process-wide tracking URI.
"""

import contextlib
import importlib.metadata
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import flatten
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.models import Packaged, PackagedBeam, load_package
from pipeline.packages.prediction import DEFAULTS, predict
from pipeline.registry.card import RECONSTRUCTION, Measured, model_card
from pipeline.registry.mlflow_folder import CARD_NAME, DATA, LOADER, PICTURES, open_model, package_folder
from pipeline.registry.scores import score_tags
from pipeline.registry.versions import (
    ModelVersionInfo,
    RegistryError,
    find_version,
    model_name,
    version_info,
)
from pipeline.tracking.server import tracking_uri

# isort: split
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.types.schema import ParamSchema, ParamSpec, Schema, TensorSpec

MAX_DESCRIPTION = 5000
"""Characters that MLflow's databases keep of a version's description."""
_CUT = f"\n\n(cut here; whole in {CARD_NAME} beside the model)"
_PIXELS = Schema([TensorSpec(np.dtype("uint8"), (-1, 64, 64, 3))])
_TYPES = {bool: "boolean", int: "long", list: "long", str: "string"}
"""By the type of a parameter's default; lists are of whole numbers."""
_SIGNATURES = {
    "autoencoder": ModelSignature(inputs=_PIXELS, outputs=_PIXELS),
    "beam": ModelSignature(
        params=ParamSchema(  # no inputs and outputs: they depend on the task, and `predict` checks them itself
            [
                ParamSpec(name, _TYPES[type(default)], default, (-1,) if isinstance(default, list) else None)
                for name, default in DEFAULTS.items()
            ]
        ),
    ),
}


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
    card: str | None = None,
    pictures: Sequence[Path] = (),
    tracking: str | None = None,
) -> ModelVersionInfo:
    """Register `model` as a new version of `<dataset>-autoencoder`; see `register_beam`."""
    tags = score_tags(data_hash, recipe, score_name, score, num_rows, spread)
    return _register(model, "autoencoder", name, run_id, tags, card, pictures, tracking)


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
    card: str | None = None,
    pictures: Sequence[Path] = (),
    tracking: str | None = None,
) -> ModelVersionInfo:
    """Register `model` as a new version of `<dataset>-beam`, without any alias, and return the version.

    A version of the same content and tags is returned as it is, whatever its card, so a job that is run again registers
    nothing twice.

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
        card: Markdown (card.py), kept as MODEL_CARD.md beside MLmodel and as the version's description, which
            MLflow cuts at 5000 characters; None: one is made from the values here.
        pictures: PNG or JPEG files that are kept beside the card.
        tracking: URI of the server; None: `tracking_uri()`.

    Raises:
        PackageError: the model holds values that are not finite, or parts that do not fit together.
        RegistryError: a picture is missing, or no picture, or has the name of another.
    """
    tags = score_tags(data_hash, recipe, score_name, score, num_rows, spread)
    return _register(model, "beam", name, run_id, tags, card, pictures, tracking)


def _register(
    model: Packaged,
    kind: str,
    name: str | None,
    run_id: str,
    tags: dict[str, str],
    card: str | None,
    pictures: Sequence[Path],
    tracking: str | None,
) -> ModelVersionInfo:
    name = name or model_name(model.dataset, kind)
    _check_pictures(pictures)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / Path(DATA).name
        tags = {**tags, "dataset": model.dataset, "content_hash": model.save(data)}
        load_package(data)  # what cannot be read back is not registered
        if found := find_version(name, tags, tracking=tracking):
            return found
        card = card or _known_card(model, name, kind, run_id, tags, pictures)
        client = MlflowClient(tracking or tracking_uri())
        logged = _log_model(client, kind, run_id, data, Path(folder) / "model", tags, card, pictures)
    try:
        client.create_registered_model(name, description=f"{kind} trained on {model.dataset}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # By its place and not as models:/<id>: MLflow would look the id up at the process-wide tracking URI.
    place, text = logged.artifact_location, card
    if len(card) > MAX_DESCRIPTION:
        text = card[: card.rfind("\n", 0, MAX_DESCRIPTION - len(_CUT))] + _CUT
    version = client.create_model_version(name, place, run_id, tags, description=text, model_id=logged.model_id)
    return version_info(version, client.get_registered_model(name).aliases)


def _known_card(
    model: Packaged, name: str, kind: str, run_id: str, tags: Mapping[str, str], pictures: Sequence[Path]
) -> str:
    """The card from what registering knows: rows behind the score alone, no seeds and no baselines."""
    metrics = {key: Measured(value) for key, value in model.metrics.items()}
    score_name, spread = tags["score_name"], tags.get("score_spread")
    protocol = RECONSTRUCTION if kind == "autoencoder" else ""
    metrics[score_name] = Measured(
        float(tags["score"]), None if spread is None else float(spread), int(tags["score_rows"]), protocol=protocol
    )
    metrics.pop(f"{score_name}_spread", None)
    settings: dict[str, Any] = {"precision": model.precision} if isinstance(model, PackagedAutoencoder) else {}
    num_visible = None
    if isinstance(model, PackagedBeam):
        parts = ("seed", "data.", "model.", "sampler.", "critic.", "schedules.")
        settings = {key: value for key, value in flatten(model.run.to_dict()).items() if key.startswith(parts)}
        num_visible = None if model.autoencoder is not None else len(model.rbm.visible.bias)
    return model_card(
        name=name,
        kind=kind,
        dataset=model.dataset,
        data_hash=tags["data_hash"],
        recipe=tags["recipe"],
        metrics=metrics,
        score_name=score_name,
        settings=settings,
        pictures=[Path(picture).name for picture in pictures],
        run_id=run_id,
        num_visible=num_visible,
    )


def _check_pictures(pictures: Sequence[Path]) -> None:
    names = [Path(picture).name for picture in pictures]
    for picture in map(Path, pictures):
        if picture.suffix not in PICTURES:
            raise RegistryError(f"picture {str(picture)!r}: a model keeps pictures of the types {', '.join(PICTURES)}")
        if not picture.is_file():
            raise RegistryError(f"picture {str(picture)!r} is not there: draw it before the model is registered")
        if names.count(picture.name) > 1:
            raise RegistryError(f"two pictures are named {picture.name!r}: a model keeps them in one folder")


def _log_model(
    client: MlflowClient,
    kind: str,
    run_id: str,
    data: Path,
    folder: Path,
    tags: dict[str, str],
    card: str,
    pictures: Sequence[Path],
) -> LoggedModel:
    """The package `data` as a logged model of the run; what `mlflow.pyfunc.log_model` does for the active run."""
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name=kind, source_run_id=run_id, tags=tags, model_type="pyfunc")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input example was not provided")  # the signature says it all
            mlflow.pyfunc.save_model(
                str(folder),
                loader_module=LOADER,
                data_path=str(data),
                mlflow_model=Model(artifact_path=kind, run_id=run_id, model_id=logged.model_id),
                signature=_SIGNATURES[kind],
                pip_requirements=_requirements(),
                metadata={"beam_pipeline": importlib.metadata.version("beam-pipeline"), "dataset": tags["dataset"]},
            )
        (folder / CARD_NAME).write_text(card, encoding="utf-8")
        for picture in pictures:
            shutil.copyfile(picture, folder / Path(picture).name)
        package_folder(folder)  # what would be refused later is not registered
        client.log_model_artifacts(logged.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return client.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        with contextlib.suppress(Exception):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise


class RequestError(MlflowException, ValueError):
    """A call that a model cannot answer; a server makes it status 400 with the reason."""


class _Pyfunc:
    """A packaged model as MLflow calls it."""

    def __init__(self, model: Packaged):
        self.model = model

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> np.ndarray | list[str]:
        try:
            return predict(self.model, model_input, params)
        except ValueError as error:
            raise RequestError(str(error), error_code=INVALID_PARAMETER_VALUE) from error


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> _Pyfunc:
    """The loader that `mlflow.pyfunc.load_model` calls; `model_config={"device": "cuda"}` puts the model on a GPU."""
    return _Pyfunc(open_model(Path(path), (model_config or {}).get("device", "cpu")))


def _requirements() -> list[str]:
    """Exact versions of what a packaged model needs from PyPI. Our own package is not there: it has to be installed."""
    packages = ("mlflow", "torch", "numpy", "safetensors")
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in packages]
