"""A packaged model as a folder of safetensors and JSON: written, verified and read back; no code and no pickle in it.

    config.json                 format version, kind, data set, settings, metrics, sha256 of every file, hash of itself
    autoencoder.safetensors     weights by their names in the module; not where config.json says "autoencoder": null
    rbm.safetensors             a BEAM only: weights by their names in the module
    statistics.safetensors      a BEAM only: whitening and wide start
    chains.safetensors          a BEAM only: the persistent chains at the end of training; of replicas those at beta = 1

A folder that is damaged, of another version or with anything unknown in it is refused by name: half understood, it would
give wrong pictures silently. The meaning of the tensors is in models.py and autoencoder.py.
"""

import contextlib
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.files import canonical_hash, file_hash

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "autoencoder": (("autoencoder",), ("autoencoder.safetensors",)),
    "beam": (
        ("run", "autoencoder"),
        ("rbm.safetensors", "statistics.safetensors", "chains.safetensors", "autoencoder.safetensors"),
    ),
}
"""By kind: fields of config.json besides the common ones, and files."""
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types of numbers that a tensor of a package may have."""
_COMMON = ("format_version", "kind", "dataset", "metrics", "files", "hash")

Tensors = Mapping[str, dict[str, Tensor]]
"""Tensors by file and by name."""


class PackageError(ValueError):
    """A packaged model that cannot be written or used: says which file or field, and why."""


def write_package(folder: Path, kind: str, config: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Write a package into `folder` (made when missing), and return the hash that stands for its content.

    Raises:
        PackageError: a tensor with values that are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise PackageError(f"{kind} of {config['dataset']}: {name} of {file} has values that are not finite")
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, folder / file)
    hashes = {name: file_hash(folder / name) for name in files}
    written = {"format_version": FORMAT_VERSION, "kind": kind, **config, "files": hashes}
    written = json.loads(json.dumps(written, allow_nan=False))
    written["hash"] = canonical_hash(written)
    (folder / CONFIG_NAME).write_text(json.dumps(written, indent=1))
    return written["hash"]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, checked, and with it the sha256 of every file. Raises PackageError."""
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PackageError(f"there is no {CONFIG_NAME}: this is no packaged model") from None
    except (ValueError, RecursionError, OSError) as error:  # JSON's and Unicode's are ValueErrors
        raise PackageError(f"{CONFIG_NAME} cannot be read ({error})") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise PackageError(
            f"format_version is {reprlib.repr(version)}; this program knows {FORMAT_VERSION}: "
            "use the version of the package that wrote it"
        )
    if (kind := config.get("kind")) not in list(KINDS):
        raise PackageError(f"kind is {reprlib.repr(kind)}; the known kinds are {', '.join(KINDS)}")
    refuse_unknown(CONFIG_NAME, config, (*_COMMON, *KINDS[kind][0]))
    files = _files(config)
    refuse_unknown(f"{CONFIG_NAME}: files", config["files"], files)
    if canonical_hash({k: v for k, v in config.items() if k != "hash"}) != config["hash"]:
        raise PackageError(f"{CONFIG_NAME} was changed after it was written: its hash is not the recorded one")
    for name in files:
        if not (folder / name).is_file():
            raise PackageError(f"file {name} is missing")
        if (found := file_hash(folder / name)) != (written := config["files"][name]):
            raise PackageError(f"file {name} is damaged: its sha256 is {found[:12]}, written was {written[:12]}")
    return config


def read_tensors(folder: Path, config: Mapping[str, Any], device: torch.device | str) -> Tensors:
    """The tensors of every file of the package, on `device`."""
    return {name: load_file(folder / name, str(device)) for name in _files(config)}


@contextlib.contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Errors inside become PackageErrors that name the folder."""
    try:
        yield
    except PackageError as error:
        raise PackageError(f"model in {folder}: {error}") from error.__cause__
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, SafetensorError) as error:
        raise PackageError(
            f"model in {folder}: a field is missing or wrong ({str(error)[:300]}); package it again"
        ) from error


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], file: str) -> None:
    """Put a file's tensors into `module`, on their device and without gradients. Raises PackageError on other shapes."""
    check_shapes(file, tensors, {name: tuple(value.shape) for name, value in module.state_dict().items()})
    module.to(next(iter(tensors.values())).device).load_state_dict(dict(tensors))
    module.requires_grad_(False)


def check_shapes(file: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises PackageError unless a file holds exactly the tensors of these shapes."""
    refuse_unknown(file, tensors, tuple(shapes))
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise PackageError(f"{name} of {file} has shape {found}, its settings say {shape}")
        if tensors[name].dtype not in FLOATS:
            raise PackageError(
                f"{name} of {file} is {tensors[name].dtype}: it must be one of {', '.join(map(str, FLOATS))}"
            )


def refuse_unknown(where: str, found: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raises PackageError on a key that is not known."""
    if unknown := sorted(set(found) - set(known)):
        raise PackageError(
            f"{where} has {reprlib.repr(unknown[0])}, which this program does not know; it knows {', '.join(known)}"
        )


def _files(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that a package of this config holds."""
    files = KINDS[config["kind"]][1]
    if config["kind"] == "beam" and config["autoencoder"] is None:
        return tuple(name for name in files if name != "autoencoder.safetensors")
    return files


def finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Metrics as JSON knows them: null for a value that is not finite."""
    return {k: None if v is None or not math.isfinite(v) else float(v) for k, v in metrics.items()}
