"""The paper's convolutional autoencoder: photographs 3x64x64 <-> 1024 linear features, without normalization layers.

Each row passes the network alone: no batch statistics, so training and encoding are the same function, and a gradient is
a plain sum over rows that any number of workers can share.

Pixels are uint8 [n, 64, 64, 3] (as on disk), images float32 [n, 3, 64, 64] in [0, 1], latents float32 [n, 1024] in the
order channel, row, column of the innermost 64x4x4 layer.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from pipeline.config import AutoencoderConfig
from pipeline.device.precision import Precision, computing_in

IMAGE_SIZE = 64
"""Pixels on a side."""
NUM_FEATURES = 1024
"""Features of one image."""
SLOPE = 0.1
"""Slope of the leaky ReLU on its negative side."""


class Autoencoder(nn.Module):
    """3x64x64 -> 32x32x32 -> 64x16x16 -> 64x8x8 -> 64x4x4 and back: kernel 4, stride 2, leaky ReLU between layers.

    The features and the reconstruction are linear outputs; inside, images are centered and scaled to [-1, 1].
    Activations are channels-last in memory, which is what convolutions compute fastest; parameters are contiguous.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        channels = (3, 32, 64, 64, 64)
        self.encoder = _alternate([nn.Conv2d(i, o, 4, 2, 1) for i, o in itertools.pairwise(channels)])
        channels = channels[::-1]
        self.decoder = _alternate([nn.ConvTranspose2d(i, o, 4, 2, 1) for i, o in itertools.pairwise(channels)])

    @torch.no_grad()
    def initialize_(self, generator: torch.Generator) -> "Autoencoder":
        """Draw the weights from N(0, gain / fan_in), which keeps the variance of activations, in place; biases 0.

        fan_in counts the products that one output really sums: 16 taps per channel in a convolution, 4 in a transposed
        one of stride 2. The gain is He's for the leaky ReLU; the last layer starts small, near a gray image.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                taps = 16 if isinstance(layer, nn.Conv2d) else 4
                gain = 0.1 if layer.out_channels == 3 else 2 / (1 + SLOPE**2)
                noise = torch.empty(layer.weight.shape).normal_(generator=generator)
                layer.weight.copy_(noise * math.sqrt(gain / (taps * layer.in_channels)))
                assert layer.bias is not None
                layer.bias.zero_()
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Raw latents [n, 1024] of images [n, 3, 64, 64] in [0, 1]."""
        centered = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        return self.encoder(centered).float().reshape(len(images), NUM_FEATURES)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [n, 3, 64, 64] of raw latents [n, 1024]; may leave [0, 1] a little (`to_pixels` clamps)."""
        grid = latents.reshape(len(latents), 64, 4, 4).contiguous(memory_format=torch.channels_last)
        return (self.decoder(grid).float() + 1) / 2

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions of images, both [n, 3, 64, 64]."""
        return self.decode(self.encode(images))


def _alternate(layers: list[nn.Module]) -> nn.Sequential:
    """The layers with leaky ReLUs between them."""
    modules = [m for layer in layers for m in (layer, nn.LeakyReLU(SLOPE, inplace=True))]
    return nn.Sequential(*modules[:-1])


def from_pixels(pixels: Tensor) -> Tensor:
    """Images float32 [n, 3, 64, 64] in [0, 1] of pixels uint8 [n, 64, 64, 3]. Raises ValueError on another shape or type."""
    if pixels.dtype != torch.uint8 or pixels.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}: must be torch.uint8 [n, {IMAGE_SIZE}, {IMAGE_SIZE}, 3]; "
            "prepare photographs with data_prep first"
        )
    return pixels.permute(0, 3, 1, 2).float() / 255


def to_pixels(images: Tensor) -> Tensor:
    """Pixels uint8 [n, 64, 64, 3] of images [n, 3, 64, 64], clamped to [0, 1] and rounded."""
    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def encode_pixels(model: Autoencoder, pixels: Tensor, precision: Precision, batch_size: int = 256) -> Tensor:
    """Raw latents float32 [n, 1024] of pixels uint8 [n, 64, 64, 3], both on any device; the result is on the pixels'."""
    device = next(model.parameters()).device
    latents = torch.empty(len(pixels), NUM_FEATURES, device=pixels.device)
    with computing_in(precision, device):
        for start in range(0, len(pixels), batch_size):
            rows = slice(start, start + batch_size)
            latents[rows] = model.encode(from_pixels(pixels[rows].to(device))).to(pixels.device)
    return latents


@torch.no_grad()
def decode_latents(model: Autoencoder, latents: Tensor, precision: Precision, batch_size: int = 256) -> Tensor:
    """Pixels uint8 [n, 64, 64, 3] of raw latents [n, 1024]. Raises ValueError on latents of another width."""
    if latents.ndim != 2 or latents.shape[1] != NUM_FEATURES:
        raise ValueError(f"latents are {list(latents.shape)}: must be [n, {NUM_FEATURES}], raw (not whitened)")
    device = next(model.parameters()).device
    pixels = torch.empty(len(latents), IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8, device=latents.device)
    with computing_in(precision, device):
        for start in range(0, len(latents), batch_size):
            rows = slice(start, start + batch_size)
            pixels[rows] = to_pixels(model.decode(latents[rows].to(device))).to(latents.device)
    return pixels
