"""The layers of a stack on disk: read from their runs, started from the layer below, and used to encode rows."""

from pathlib import Path
from typing import NamedTuple

import torch

from data_prep.encode import Encode, EncodedShardSpec
from pipeline.comm import Comm
from pipeline.config import ConfigError, RBMConfig, RunConfig
from pipeline.data.manifest import Manifest
from pipeline.data.rows import read_scaling
from pipeline.models.rbm import RBM
from pipeline.models.stack import encode_rows, parameters_hash, transpose
from pipeline.runs.job import TrainJob, make_objective, total_updates
from pipeline.runs.trained import read_beam
from pipeline.training.checkpoint import load_latest, save_checkpoint
from pipeline.training.loop import pick_device


def is_whole(folder: Path, updates: int) -> bool:
    """True when the newest whole checkpoint of a run's folder is its last."""
    found = load_latest(folder / "checkpoints")
    return found is not None and found.step == updates


class Layer(NamedTuple):
    """A trained layer, from its run's folder."""

    folder: Path
    rbm: RBM
    config: RunConfig
    steps: int
    """Updates behind it."""
    data_hash: str
    """Of the rows it was trained on."""


def read_layer(folder: Path) -> Layer:
    """The RBM of a run's newest checkpoint.

    Raises:
        ValueError: the folder has no whole checkpoint, or one of something else.
    """
    found = load_latest(folder / "checkpoints")
    if found is None:
        raise ValueError(f"{folder} holds no checkpoint; give the folder of a trained BEAM, as runs/NAME/beam")
    config = RunConfig.from_dict(found.meta["config"])
    if not isinstance(config.model, RBMConfig):
        raise ValueError(f"{folder} holds a run of {config.name!r}, which is no RBM; give the folder of a trained BEAM")
    rbm = read_beam(found, config)[0]
    return Layer(folder.resolve(), rbm, config, found.step, str(found.meta.get("data")))


def read_bottom(folder: Path, manifest: Manifest) -> Layer:
    """The first layer from an earlier run. Raises ValueError when it is unfinished, or was trained on other rows."""
    layer = read_layer(folder)
    if layer.data_hash != manifest.hash:
        raise ValueError(
            f"{folder} was trained on other rows ({layer.data_hash}) than --data holds ({manifest.hash}); give its own"
        )
    total = total_updates(layer.config, manifest.splits["train"].rows)[1]
    if layer.steps != total:
        raise ValueError(f"{folder} holds {layer.steps} of {total} updates; finish that run first")
    return layer


def start_tied(job: TrainJob, below: RBM) -> None:
    """Make the state at step 0 of a layer's run the layer below with its roles exchanged; nothing when it has begun.

    The prior of the hidden units below is then that layer's own, and training starts from the single layer's law.

    Raises:
        ConfigError: the layer's shape or units are not those of the layer below, flipped.
    """
    config, folder = RunConfig.from_dict(job.config), Path(job.folder)
    assert isinstance(config.model, RBMConfig)
    if load_latest(folder / "checkpoints") is not None:
        return
    model, turned = config.model, transpose(below)
    for key in ("num_visible", "num_hidden", "visible_units", "hidden_units"):
        mine, wanted = getattr(model, key), getattr(turned.config, key)
        if mine != wanted:
            raise ConfigError(f"model.{key} = {mine!r}: must be {wanted!r} for --tied, the layer below turned around")
    state = make_objective(job, Comm(device=pick_device())).state()
    state |= {f"model.{name}": value.detach().cpu().clone() for name, value in turned.state_dict().items()}
    meta = {"data": job.data_hash, "config": config.to_dict(), "torch": torch.__version__, "stopped": False}
    save_checkpoint(
        folder / "checkpoints", 0, state, {**meta, "world_size": 1, "device": "cpu"}, config.checkpoint.keep
    )


def load_layer(spec: EncodedShardSpec, layer_dir: str) -> Encode:
    """Return the encoder of the layer in `layer_dir`, on the CPU. Raises ValueError when it has changed."""
    settings = spec.encoding.settings
    rbm = read_layer(Path(layer_dir)).rbm
    if parameters_hash(rbm) != settings["parameters"]:
        raise ValueError(f"the layer in {layer_dir} changed since its encodings were planned; run the job again")
    scaling = read_scaling(spec.source_dir, settings["scaling"])
    how, seed, layer = (settings[key] for key in ("encoding", "seed", "layer"))
    return lambda rows, first: encode_rows(rbm, scaling.apply(rows), how, seed, layer, spec.split, first)
