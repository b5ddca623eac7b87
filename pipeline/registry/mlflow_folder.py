"""A model as MLflow keeps it, a folder with MLmodel and the package in data/package: checked before anything in it is used.

    MLmodel                  which loader, which data: only what register.py writes is accepted
    MODEL_CARD.md, *.png     for people
    conda.yaml, python_env.yaml, requirements.txt    what MLflow writes about the environment
    data/package/            the package (packages/files.py)

MLmodel can name code to import, and MLflow imports it. So another loader, other flavors, code of its own and files of
unknown names are refused by name; MLmodel is parsed as plain data, and nothing is imported because of it.
"""

from pathlib import Path
from typing import Any

import torch

from pipeline.packages.files import CONFIG_NAME, PackageError, naming, read_config
from pipeline.packages.models import Packaged, load_package, verify_package

# isort: split
from mlflow.models import Model

LOADER = "pipeline.registry"
"""The module whose `_load_pyfunc` MLflow calls."""
DATA = "data/package"
CARD_NAME = "MODEL_CARD.md"
PICTURES = (".png", ".jpg", ".jpeg")
_FLAVOR = "python_function"
_META = "registered_model_meta"  # MLflow leaves a note of the name and version where it loads a model from
_NAMES = ("MLmodel", CARD_NAME, "conda.yaml", "python_env.yaml", "requirements.txt", _META)
_KEYS = ("code", "data", "env", "loader_module", "python_version", "streamable")


def open_model(folder: Path, device: torch.device | str = "cpu", *, content_hash: str | None = None) -> Packaged:
    """The model in a folder of MLflow's, or in a package alone, once all of it is known and every file fits its hash.

    Args:
        folder: local.
        device: where the tensors go.
        content_hash: what the registry says that the package is; None: not compared.

    Raises:
        PackageError: it is not there, damaged, another one, or has something unknown; the message names it.
    """
    package = package_folder(folder)
    found = verify_package(package)
    if content_hash is not None and found != content_hash:
        raise PackageError(
            f"model in {folder}: its content hash is {found[:12]}, registered was {content_hash[:12]}: this is another model"
        )
    return load_package(package, device)


def package_folder(folder: Path) -> Path:
    """Find the package in a folder of MLflow's, or the folder itself when it is a package; nothing in it is unknown.

    Raises:
        PackageError: MLmodel asks for anything but our loader, or there are other files than ours.
    """
    if not folder.is_dir():
        raise PackageError(f"model in {folder}: there is no such folder")
    with naming(folder):
        package = folder
        if (folder / "MLmodel").exists():
            _check_mlmodel(folder)
            package = folder / DATA
            if not package.is_dir():
                raise PackageError(f"there is no folder {DATA}")
            _refuse_others(folder, {*_NAMES, "data", *(p.name for p in folder.iterdir() if _is_picture(p))})
            _refuse_others(folder / "data", {"package"})
        _refuse_others(package, {CONFIG_NAME, *read_config(package)["files"]})
    return package


def model_files(folder: Path) -> list[Path]:
    """Every file of a checked folder that belongs to the model, relative to it, in order."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != _META)


def _check_mlmodel(folder: Path) -> None:
    try:
        flavors: dict[str, Any] = Model.load(str(folder)).flavors
        others = sorted(set(flavors) - {_FLAVOR})
        flavor = dict(flavors.get(_FLAVOR, {}))
    except Exception as error:  # YAML's, MLflow's, and whatever a wrong type leads to
        raise PackageError(f"MLmodel cannot be read ({type(error).__name__}); package it again") from error
    if others:
        raise PackageError(f"MLmodel has the flavor {others[0]!r}; this program knows only {_FLAVOR!r}")
    if (loader := flavor.get("loader_module")) != LOADER:
        raise PackageError(f"MLmodel names the loader {loader!r}; this program knows only {LOADER!r}")
    if unknown := sorted(set(flavor) - set(_KEYS)):
        raise PackageError(f"MLmodel has {unknown[0]!r}, which this program does not know; it knows {', '.join(_KEYS)}")
    if flavor.get("code"):
        raise PackageError(f"MLmodel brings code of its own (code: {flavor['code']!r}); this program runs none")
    if flavor.get("data") != DATA:
        raise PackageError(f"MLmodel has its data in {flavor.get('data')!r}; this program knows only {DATA!r}")


def _refuse_others(folder: Path, known: set[str]) -> None:
    """Raises PackageError on anything in `folder` that is not known, and on links, which may lead anywhere."""
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            what = "folder" if path.is_dir() else "file"
            raise PackageError(
                f"there is the {what} {path.name!r}, which this program does not know; nothing of it was loaded"
            )
        if path.is_symlink():
            raise PackageError(f"{path.name!r} is a link: a model holds its files itself")


def _is_picture(path: Path) -> bool:
    return path.suffix in PICTURES and path.is_file()
