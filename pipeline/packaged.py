"""Trained models as folders of safetensors and JSON: written, verified, loaded and used; no code and no pickle in them.

    config.json                 format version, kind, data set, settings, metrics, sha256 of every file, hash of itself
    autoencoder.safetensors     weights by their names in the module
    rbm.safetensors             a BEAM only: weights by their names in the module
    statistics.safetensors      a BEAM only: whitening and wide start
    chains.safetensors          a BEAM only: the persistent chains where training left them

A BEAM carries its autoencoder, so one folder is all that sampling pictures needs. A folder that is damaged, of another
version or with anything unknown in it is refused by name: half understood, it would give wrong pictures silently.
"""

import contextlib
import difflib
import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.config import AutoencoderConfig, RBMConfig, RunConfig
from pipeline.data.shards import Whitening, canonical_hash, file_hash
from pipeline.models.autoencoder import (
    NUM_FEATURES,
    Autoencoder,
    Precision,
    decode_latents,
    encode_pixels,
)
from pipeline.models.rbm import RBM
from pipeline.samplers.driven import DrivenGibbs, GammaProcess
from pipeline.samplers.gibbs import ChainState
from pipeline.samplers.protocols import DRIVEN, FRESH, ROWS_PER_BLOCK, Protocol, WideStart, draw_samples
from pipeline.streams import stream

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
PROTOCOLS = ("driven", "fresh", "persistent")
SAMPLE_DEFAULTS: dict[str, Any] = {"n_samples": 36, "gibbs_steps": 100, "seed": 0, "protocol": "driven"}
"""Parameters of `PackagedBeam.predict` and their defaults."""
SAMPLE_RANGES = {"n_samples": (1, 10_000), "gibbs_steps": (1, 100_000), "seed": (0, 2**31 - 1)}


class PackageError(ValueError):
    """A packaged model that cannot be written or used: says which file or field, and why."""


@dataclass(frozen=True)
class PackagedAutoencoder:
    """A trained autoencoder with what is needed to use it."""

    model: Autoencoder
    precision: Precision
    """In which it was trained, encodes and decodes; the choice changes bits."""
    dataset: str
    """Label of the data it was trained on, such as `synthetic-faces`."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    def encode(self, pixels: Tensor) -> Tensor:
        """Raw latents float32 [n, 1024] of pixels uint8 [n, 64, 64, 3]."""
        return encode_pixels(self.model, pixels, self.precision)

    def decode(self, raw_latents: Tensor) -> Tensor:
        """Pixels uint8 [n, 64, 64, 3] of raw latents [n, 1024]."""
        return decode_latents(self.model, raw_latents, self.precision)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Reconstructions uint8 [n, 64, 64, 3] of pixels of the same shape (the call that MLflow makes)."""
        pixels = torch.from_numpy(np.array(model_input))
        return self.decode(self.encode(pixels)).numpy()

    def save(self, folder: str | Path) -> str:
        """Write the package into `folder`; see `PackagedBeam.save`."""
        return _write(Path(folder), "autoencoder", self._config(), {"autoencoder.safetensors": self.model.state_dict()})

    def _config(self) -> dict[str, Any]:
        settings = {"config": asdict(self.model.config), "precision": self.precision}
        return {"dataset": self.dataset, "autoencoder": settings, "metrics": _finite(self.metrics)}

    @staticmethod
    def _read(config: Mapping[str, Any], tensors: Mapping[str, dict[str, Tensor]]) -> "PackagedAutoencoder":
        settings = config["autoencoder"]
        _refuse_unknown("autoencoder", settings, ("config", "precision"))
        precision = settings["precision"]
        if precision not in ("float32", "bfloat16"):
            raise PackageError(f"autoencoder.precision is {precision!r}: must be 'float32' or 'bfloat16'")
        model = Autoencoder(AutoencoderConfig(**settings["config"]))
        _load_weights(model, tensors["autoencoder.safetensors"], "autoencoder.safetensors")
        return PackagedAutoencoder(model, precision, config["dataset"], config["metrics"])


@dataclass(frozen=True)
class PackagedBeam:
    """A trained BEAM with all that turns its samples into pictures."""

    rbm: RBM
    run: RunConfig
    whitening: Whitening
    wide_start: WideStart
    chains: ChainState
    """The persistent chains of all workers, [M, .] in order."""
    autoencoder: PackagedAutoencoder
    """The one whose latents it was trained on."""
    dataset: str
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    def sample_latents(
        self, n_samples: int = 36, gibbs_steps: int = 100, seed: int = 0, protocol: str = "driven"
    ) -> Tensor:
        """E[v | h] of the last sweep, whitened latents [n_samples, 1024], on the model's device.

        Args:
            n_samples: rows, 1 to 10 000; at most the number of chains for `persistent`.
            gibbs_steps: sweeps of the main stage, 1 to 100 000; 100 are the evaluation protocols themselves.
            seed: 0 to 2^31 - 1; with the same device and number of threads, the same rows.
            protocol: `driven` or `fresh` (samplers/protocols.py), or `persistent`: the chains of training go on with
                their own sampler for gibbs_steps sweeps, then 5 at beta = 1.

        Raises:
            ValueError: a value out of its range.
        """
        _check_parameters({"n_samples": n_samples, "gibbs_steps": gibbs_steps, "seed": seed, "protocol": protocol})
        if protocol == "persistent":
            return self._continue_chains(n_samples, gibbs_steps, seed)
        fixed = DRIVEN if protocol == "driven" else FRESH
        main = replace(fixed.stages[0], num_sweeps=gibbs_steps)
        stages = Protocol(fixed.name, (main, *fixed.stages[1:]))
        return draw_samples(self.rbm, self.wide_start, stages, n_samples, seed).visible_mean

    def sample(self, n_samples: int = 36, gibbs_steps: int = 100, seed: int = 0, protocol: str = "driven") -> Tensor:
        """Pictures, pixels uint8 [n_samples, 64, 64, 3]: the decoded rows of `sample_latents`."""
        latents = self.sample_latents(n_samples, gibbs_steps, seed, protocol)
        return self.autoencoder.decode(self.whitening.invert(latents)).cpu()

    def predict(self, model_input: Any = None, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """`sample(**params)` as an array (the call that MLflow makes; there is no input).

        Raises:
            ValueError: an unknown parameter, or a value out of its range.
        """
        _check_parameters(params or {})
        return self.sample(**{**SAMPLE_DEFAULTS, **(params or {})}).numpy()

    def save(self, folder: str | Path) -> str:
        """Write the package into `folder` (made when missing), and return the hash that stands for its content.

        Raises:
            PackageError: a tensor with values that are not finite.
        """
        statistics = {
            "whitening.mean": self.whitening.mean,
            "whitening.std": self.whitening.std,
            "wide_start.mean": self.wide_start.mean,
            "wide_start.std": self.wide_start.std,
        }
        files = {
            "rbm.safetensors": self.rbm.state_dict(),
            "statistics.safetensors": statistics,
            "chains.safetensors": self.chains._asdict(),
            "autoencoder.safetensors": self.autoencoder.model.state_dict(),
        }
        autoencoder = self.autoencoder._config()["autoencoder"]
        config = {"run": self.run.to_dict(), "autoencoder": autoencoder, "metrics": _finite(self.metrics)}
        return _write(Path(folder), "beam", {"dataset": self.dataset, **config}, files)

    @staticmethod
    def _read(config: Mapping[str, Any], tensors: Mapping[str, dict[str, Tensor]]) -> "PackagedBeam":
        run = RunConfig.from_dict(config["run"])
        if not isinstance(run.model, RBMConfig):
            raise PackageError(f"run.model is {type(run.model).__name__}: a BEAM has an RBMConfig")
        weights = tensors["rbm.safetensors"]
        rbm = RBM(run.model, weights["weights"].dtype if "weights" in weights else torch.float32)
        _load_weights(rbm, weights, "rbm.safetensors")
        moments, chains = tensors["statistics.safetensors"], tensors["chains.safetensors"]
        width, num_chains = run.model.num_visible, len(chains.get("beta", ()))
        if width != NUM_FEATURES:
            raise PackageError(f"run.model.num_visible is {width}: the decoder takes {NUM_FEATURES} features")
        names = ("whitening.mean", "whitening.std", "wide_start.mean", "wide_start.std")
        _check_shapes("statistics.safetensors", moments, {name: (width,) for name in names})
        shapes = {"visible": width, "hidden": run.model.num_hidden, "beta": 1}
        _check_shapes("chains.safetensors", chains, {name: (num_chains, size) for name, size in shapes.items()})
        return PackagedBeam(
            rbm,
            run,
            Whitening(moments["whitening.mean"], moments["whitening.std"]),
            WideStart(moments["wide_start.mean"], moments["wide_start.std"]),
            ChainState(**chains),
            PackagedAutoencoder._read({**config, "metrics": {}}, tensors),
            config["dataset"],
            config["metrics"],
        )

    @torch.no_grad()
    def _continue_chains(self, n_samples: int, gibbs_steps: int, seed: int) -> Tensor:
        settings = self.run.sampler
        assert settings is not None
        if n_samples > len(self.chains.beta):
            raise ValueError(
                f"n_samples = {n_samples}: protocol 'persistent' goes on with the {len(self.chains.beta)} chains of "
                "training; ask for at most as many, or use protocol 'driven'"
            )
        process = GammaProcess(settings.beta_std, settings.beta_momentum)
        stages = (DrivenGibbs(process, gibbs_steps, settings.min_beta), DRIVEN.stages[-1])
        rows = []
        for block, start in enumerate(range(0, n_samples, ROWS_PER_BLOCK)):
            part = slice(start, min(start + ROWS_PER_BLOCK, n_samples))
            chains = ChainState(*(state[part] for state in self.chains))
            generator = stream(seed, "sample persistent", block, device=self.rbm.weights.device)
            for stage in stages:
                chains = stage.run(self.rbm, chains, generator)
            rows.append(self.rbm.visible_mean(chains.hidden))
        return torch.cat(rows)


Packaged = PackagedAutoencoder | PackagedBeam
_READERS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[..., Packaged]]] = {
    "autoencoder": (("autoencoder",), ("autoencoder.safetensors",), PackagedAutoencoder._read),
    "beam": (
        ("run", "autoencoder"),
        ("rbm.safetensors", "statistics.safetensors", "chains.safetensors", "autoencoder.safetensors"),
        PackagedBeam._read,
    ),
}
"""By kind: fields of config.json besides the common ones, files, and how they become a model."""
_COMMON = ("format_version", "kind", "dataset", "metrics", "files", "hash")


def load_package(folder: str | Path, device: torch.device | str = "cpu") -> Packaged:
    """The model in a package, on `device`.

    Raises:
        PackageError: a file is missing, differs from its recorded hash, or holds something unknown; the folder was
            written by another version of the format.
    """
    folder = Path(folder)
    with _naming(folder):
        config = _read_config(folder)
        _, files, read = _READERS[config["kind"]]
        tensors = {name: load_file(folder / name, str(device)) for name in files}
        return read(config, tensors)


def verify_package(folder: str | Path) -> str:
    """The hash that stands for the content of a package, once every file fits it. Raises PackageError."""
    with _naming(Path(folder)):
        return _read_config(Path(folder))["hash"]


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Errors inside become PackageErrors that name the folder."""
    try:
        yield
    except PackageError as error:
        raise PackageError(f"model in {folder}: {error}") from error.__cause__
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(f"model in {folder}: a field is missing or wrong ({error}); package it again") from error


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json, checked, and with it the sha256 of every file."""
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PackageError(f"there is no {CONFIG_NAME}: this is no packaged model") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise PackageError(f"{CONFIG_NAME} cannot be read ({error})") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise PackageError(
            f"format_version is {version!r}; this program knows {FORMAT_VERSION}: use the version of the package that wrote it"
        )
    if (kind := config.get("kind")) not in list(_READERS):
        raise PackageError(f"kind is {kind!r}; the known kinds are {', '.join(_READERS)}")
    fields, files, _ = _READERS[config["kind"]]
    _refuse_unknown(CONFIG_NAME, config, (*_COMMON, *fields))
    _refuse_unknown(f"{CONFIG_NAME}: files", config["files"], files)
    if canonical_hash({k: v for k, v in config.items() if k != "hash"}) != config["hash"]:
        raise PackageError(f"{CONFIG_NAME} was changed after it was written: its hash is not the recorded one")
    for name in files:
        if not (folder / name).is_file():
            raise PackageError(f"file {name} is missing")
        if (found := file_hash(folder / name)) != (written := config["files"][name]):
            raise PackageError(f"file {name} is damaged: its sha256 is {found[:12]}, written was {written[:12]}")
    return config


def _write(folder: Path, kind: str, config: dict[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise PackageError(f"{kind} of {config['dataset']}: {name} of {file} has values that are not finite")
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, folder / file)
    hashes = {name: file_hash(folder / name) for name in files}
    config = {"format_version": FORMAT_VERSION, "kind": kind, **config, "files": hashes}
    config = json.loads(json.dumps(config, allow_nan=False))
    config["hash"] = canonical_hash(config)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=1))
    return config["hash"]


def _load_weights(module: nn.Module, tensors: Mapping[str, Tensor], file: str) -> None:
    _check_shapes(file, tensors, {name: tuple(value.shape) for name, value in module.state_dict().items()})
    module.to(next(iter(tensors.values())).device).load_state_dict(dict(tensors))
    module.requires_grad_(False)


def _check_shapes(file: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    _refuse_unknown(file, tensors, tuple(shapes))
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise PackageError(f"{name} of {file} has shape {found}, its settings say {shape}")


def _check_parameters(params: Mapping[str, Any]) -> None:
    """Raises ValueError on an unknown sampling parameter or a value out of range."""
    for name, value in params.items():
        if name not in SAMPLE_DEFAULTS:
            near = difflib.get_close_matches(name, SAMPLE_DEFAULTS, n=1, cutoff=0.0)
            raise ValueError(f"unknown parameter {name!r}; the nearest is {near[0]!r}")
        if name == "protocol":
            if value not in PROTOCOLS:
                raise ValueError(f"protocol = {value!r}: must be one of {', '.join(PROTOCOLS)}")
            continue
        low, high = SAMPLE_RANGES[name]
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or not low <= int(value) <= high:
            raise ValueError(f"{name} = {value!r}: must be a whole number from {low} to {high}")


def _refuse_unknown(where: str, found: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(found) - set(known)):
        raise PackageError(f"{where} has {unknown[0]!r}, which this program does not know; it knows {', '.join(known)}")


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Metrics as JSON knows them: null for a value that is not finite."""
    return {k: None if v is None or not math.isfinite(v) else float(v) for k, v in metrics.items()}
