"""A trained autoencoder as a package."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config import AutoencoderConfig
from pipeline.device.precision import Precision
from pipeline.models.autoencoder import Autoencoder, decode_latents, encode_pixels
from pipeline.packages.files import (
    PackageError,
    Tensors,
    finite,
    load_weights,
    refuse_unknown,
    write_package,
)
from pipeline.packages.inputs import Data, as_pixels


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

    def reconstruct(self, pixels: Data) -> Tensor:
        """Pixels uint8 [n, 64, 64, 3], encoded and decoded again. Raises ValueError on an input of another kind."""
        return self.decode(self.encode(as_pixels(pixels)))

    def save(self, folder: str | Path) -> str:
        """Write the package into `folder`; see `PackagedBeam.save`."""
        config = {"dataset": self.dataset, "autoencoder": self.settings(), "metrics": finite(self.metrics)}
        return write_package(Path(folder), "autoencoder", config, {"autoencoder.safetensors": self.model.state_dict()})

    def settings(self) -> dict[str, Any]:
        """The autoencoder's part of a package's config.json."""
        return {"config": asdict(self.model.config), "precision": self.precision}

    @staticmethod
    def read(config: Mapping[str, Any], tensors: Tensors) -> "PackagedAutoencoder":
        """The autoencoder in a package's config.json and tensors. Raises PackageError on what it does not know."""
        settings = config["autoencoder"]
        refuse_unknown("autoencoder", settings, ("config", "precision"))
        precision = settings["precision"]
        if precision not in ("float32", "bfloat16"):
            raise PackageError(f"autoencoder.precision is {precision!r}: must be 'float32' or 'bfloat16'")
        model = Autoencoder(AutoencoderConfig(**settings["config"]))
        load_weights(model, tensors["autoencoder.safetensors"], "autoencoder.safetensors")
        return PackagedAutoencoder(model, precision, config["dataset"], config["metrics"])
