"""Registered versions of models: their names, the ways to name one, and finding and listing them. Nothing here writes.

Every call names its server; nothing changes MLflow's process-wide tracking URI.
"""

import contextlib
import difflib
import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.packages.files import KINDS, PackageError
from pipeline.provenance import without_secrets

# before mlflow: it sets what mlflow reads at its import
from pipeline.tracking.server import first_line, sqlite_file, tracking_uri

# isort: split
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

CHAMPION, CANDIDATE = "champion", "candidate"
WAYS = "NAME, NAME@ALIAS, NAME/NUMBER (each also after models:/), run:ID or runs:/ID/NAME"
_PAGE = 1000


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
    created: str = ""
    """Time of its registration, as 2026-01-31T12:00:00+00:00."""
    card: str = ""
    """The model card, cut where MLflow ends a description; empty for versions from before there were cards."""


def model_name(dataset: str, kind: str) -> str:
    """`celeba-beam`, `synthetic-faces-autoencoder`. Raises ValueError on an unknown kind or a label of other characters."""
    if kind not in KINDS:
        raise ValueError(f"model kind {kind!r} is unknown; the kinds are {', '.join(KINDS)}")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", dataset):
        raise ValueError(f"data set label {dataset!r}: must be words of a-z and 0-9 joined by '-', such as 'celeba'")
    return f"{dataset}-{kind}"


def find_version(name: str, wanted: str | Mapping[str, str], *, tracking: str | None = None) -> ModelVersionInfo | None:
    """The newest version of `name` with the number, or with all of the tags, `wanted`; None when there is none.

    It asks for nothing to exist: no model of that name and no database yet give None too.
    """
    with asking(tracking) as client:
        if client is None:
            return None
        for version in _versions(client, f"name = '{name}'"):
            if isinstance(wanted, str):
                fits = str(version.version) == wanted
            else:
                fits = all(version.tags.get(key) == value for key, value in wanted.items())
            if fits:
                return version_info(version, client.get_registered_model(version.name).aliases)
    return None


def find_model(ref: str, *, tracking: str | None = None) -> ModelVersionInfo:
    """The version that `ref` names.

    Args:
        ref: models:/NAME@ALIAS or models:/NAME/NUMBER; the same without `models:/`; NAME for NAME@champion; run:ID or
            runs:/ID/NAME for the newest version that a run produced.
        tracking: URI of the server; None: `tracking_uri()`.

    Raises:
        RegistryError: no such name, alias, version or run; the message lists near names, or the aliases and versions.
    """
    with asking(tracking) as client:
        if run := re.fullmatch(r"run:([^/]+)|runs:/([^/]+)/([^/]+)", ref):
            return _of_run(client, run[1] or run[2], run[3], tracking)
        match = re.fullmatch(r"(models:/)?([^/@':]+)(?:@([^/@]+)|/(\d+))?", ref)
        if match is None:
            raise RegistryError(f"{ref!r} names no version: write models:/NAME@ALIAS or models:/NAME/NUMBER; or {WAYS}")
        scheme, name, alias, number = match.groups()
        registered = registered_model(client, name, tracking)
        versions = {str(version.version): version for version in _versions(client, f"name = '{name}'")}
        if number is None and alias is None and scheme is None:
            alias = CHAMPION
        found = versions.get(str(registered.aliases.get(alias)) if alias else str(int(number or 0)))
        if found is None:
            aliases = ", ".join(f"@{a} (version {v})" for a, v in sorted(registered.aliases.items())) or "no aliases"
            numbers = ", ".join(reversed(versions)) or "none"
            raise RegistryError(f"{ref!r} is not there; model {name!r} has {aliases}; versions: {numbers}")
        return version_info(found, registered.aliases)


def list_versions(pattern: str | None = None, *, tracking: str | None = None) -> list[ModelVersionInfo]:
    """All versions of the models whose names match `pattern` (as in a shell: `celeba-*`), by name, the newest first.

    Raises:
        RegistryError: the server cannot be asked, or no name matches.
    """
    with asking(tracking) as client:
        models = {} if client is None else {model.name: model.aliases for model in _all_models(client)}
        names = fnmatch.filter(models, pattern or "*")
        if pattern and not names:
            raise RegistryError(f"no model is named {pattern!r}; there is {_near(pattern, list(models))}")
        assert client is not None or not names
        return [version_info(v, models[n]) for n in sorted(names) for v in _versions(client, f"name = '{n}'")]


@contextlib.contextmanager
def asking(tracking: str | None) -> Iterator[MlflowClient | None]:
    """A client; errors of the server become RegistryErrors. None where an sqlite database is not there yet: MLflow would
    make one.
    """
    uri = tracking or tracking_uri()
    file = sqlite_file(uri)
    try:
        yield None if file is not None and not file.is_file() else MlflowClient(uri)
    except (RegistryError, PackageError):
        raise
    except Exception as error:  # mlflow lets errors of requests, sqlalchemy and its own through
        raise RegistryError(
            f"the registry at {without_secrets(uri)} cannot be looked up ({first_line(error)}); check the server and "
            "MLFLOW_TRACKING_URI"
        ) from error


def check_registry(tracking: str | None = None) -> None:
    """Ask the registry anything. Raises RegistryError when it gives no answer."""
    with asking(tracking) as client:
        if client is not None:
            client.search_registered_models(max_results=1)


def registered_model(client: MlflowClient | None, name: str, tracking: str | None) -> RegisteredModel:
    """The model of that name, with its aliases and tags. Raises RegistryError, which lists near names."""
    if client is None:
        raise RegistryError(f"there is no model {name!r}: {sqlite_file(tracking or tracking_uri())} does not exist yet")
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    names = [model.name for model in _all_models(client)]
    raise RegistryError(f"there is no model {name!r}; there is {_near(name, names)}")


def logged_model(client: MlflowClient, run_id: str, name: str) -> LoggedModel:
    """The newest model that a run logged under `name`. Raises RegistryError."""
    try:
        outputs = client.get_run(run_id).outputs
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(f"run {run_id!r} was not found; {_runs_with_versions(client)}") from None
    models = [client.get_logged_model(o.model_id) for o in (outputs.model_outputs if outputs else [])]
    ready = [model for model in models if model.name == name and model.status == "READY"]
    if not ready:
        names = ", ".join(sorted({model.name for model in models})) or "none"
        raise RegistryError(f"run {run_id} has no model {name!r}; its models: {names}")
    return max(ready, key=lambda model: model.creation_timestamp)


def version_info(version: ModelVersion, aliases: Mapping[str, str]) -> ModelVersionInfo:
    """MLflow's version as ours; `aliases` are the registered model's, since a search leaves them out of the versions."""
    number = str(version.version)
    mine = tuple(sorted(alias for alias, of in aliases.items() if str(of) == number))
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds")
    return ModelVersionInfo(
        version.name,
        number,
        mine,
        f"models:/{version.name}/{number}",
        version.run_id or "",
        dict(version.tags),
        created,
        version.description or "",
    )


def _of_run(client: MlflowClient | None, run_id: str, name: str | None, tracking: str | None) -> ModelVersionInfo:
    """The newest version that a run produced; `name` of the logged model, which need not be the registry's."""
    if client is None:
        raise RegistryError(
            f"there is no model of run {run_id!r}: {sqlite_file(tracking or tracking_uri())} is not there"
        )
    versions = _versions(client, f"run_id = '{run_id}'") if re.fullmatch(r"\w+", run_id) else []
    if name is not None:
        place = logged_model(client, run_id, name).artifact_location
        versions = [version for version in versions if version.source == place]
    if not versions:
        raise RegistryError(f"no registered version is from run {run_id!r}; {_runs_with_versions(client)}")
    if len(names := sorted({version.name for version in versions})) > 1:
        found = ", ".join(f"{v.name}/{v.version}" for v in versions)
        raise RegistryError(f"run {run_id} produced versions of {len(names)} models: name one of {found}")
    return version_info(versions[0], client.get_registered_model(names[0]).aliases)


def _runs_with_versions(client: MlflowClient) -> str:
    newest = sorted(_versions(client, None), key=lambda v: v.creation_timestamp, reverse=True)[:5]
    return "newest runs with versions: " + (", ".join(f"{v.run_id} ({v.name}/{v.version})" for v in newest) or "none")


def _versions(client: MlflowClient | None, search: str | None) -> list[ModelVersion]:
    """Versions by an MLflow search, the highest number first."""
    versions: list[ModelVersion] = []
    token: str | None = None
    while client is not None:
        page = client.search_model_versions(search, max_results=_PAGE, page_token=token)
        versions += page
        if not (token := page.token):
            break
    return sorted(versions, key=lambda v: int(v.version), reverse=True)


def _all_models(client: MlflowClient) -> list[RegisteredModel]:
    models: list[RegisteredModel] = []
    token: str | None = None
    while True:
        page = client.search_registered_models(max_results=_PAGE, page_token=token)
        models += page
        if not (token := page.token):
            return models


def _near(name: str, names: list[str]) -> str:
    """The names that resemble `name`, or some of all."""
    parts = [other for other in names if name.strip("*") in other]
    near = parts[:3] or difflib.get_close_matches(name, names, n=3, cutoff=0.4) or sorted(names)[:10]
    return ", ".join(near) or "none at all"
