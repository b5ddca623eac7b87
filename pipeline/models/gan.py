"""Generators and critics: fully connected (Tables I and II), or convolutional as the autoencoder (Fig. 12, Table III).

Both speak rows [n, V], as the data do; images are rows in the order height, width, channel of the pixel shards. Where the
paper says ReLU there is ReLU. With batch normalization a layer's own bias is left out: the normalization would take it out
again, and Adam would turn the rounding of its gradient into steps.

In training, `forward_blocks` carries all blocks of a worker through a network together, layer by layer, since the
statistics of a batch normalization belong to the global batch.
"""

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.comm import Comm
from pipeline.config import GANConfig
from pipeline.models.batch_norm import GlobalBatchNorm, Moments, normalize_blocks
from pipeline.streams import stream

CONVOLUTIONS = {
    784: (28, (1, 32, 64)),
    12288: (64, (3, 32, 64, 64, 64)),
}
"""Values in a row -> side of the image, and channels from the image inward; the side halves with each step."""
GENERATED_ROWS = 128
"""Rows of one block, and of one forward pass, of `generate`."""


class _ToImages(nn.Module):
    """Rows -> [n, channels, size, size], channels last in memory: a view."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.channels, self.size = channels, size

    def forward(self, rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), self.size, self.size, self.channels).movedim(-1, 1)


class _ToRows(nn.Module):
    """[n, channels, size, size] -> rows in the order height, width, channel."""

    def forward(self, images: Tensor) -> Tensor:
        return images.movedim(1, -1).reshape(len(images), images.shape[1:].numel())


class _Center(nn.Module):
    """[0, 1] -> [-1, 1], as inside the autoencoder."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows * 2 - 1


class Generator(nn.Module):
    """Noise [n, noise_size] -> rows [n, num_visible]; called as a module it takes the running statistics of batches."""

    def __init__(self, config: GANConfig):
        super().__init__()
        self.config = config
        layers = _dense_generator(config) if config.architecture == "dense" else _convolutional_generator(config)
        if config.output == "sigmoid":
            layers.append(nn.Sigmoid())
        self.layers = nn.Sequential(*layers)

    def forward(self, noise: Tensor) -> Tensor:
        """Rows of noise."""
        return self.layers(noise)


class Critic(nn.Module):
    """Rows [n, num_visible] -> values [n, 1]: logits of being data (gan), or the Wasserstein critic's value (wgan)."""

    def __init__(self, config: GANConfig):
        super().__init__()
        self.config = config
        dense = config.architecture == "dense"
        self.layers = nn.Sequential(*(_dense_critic(config) if dense else _convolutional_critic(config)))

    def forward(self, rows: Tensor) -> Tensor:
        """Values of rows, by the running statistics of batches."""
        return self.layers(rows)


class Gan(nn.Module):
    """A generator and its critic."""

    def __init__(self, config: GANConfig):
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.critic = Critic(config)

    @torch.no_grad()
    def initialize_(self, generator: torch.Generator) -> "Gan":
        """Draw the weights from N(0, generator_initial_std^2) and N(0, critic_initial_std^2), in place; biases are 0."""
        config = self.config
        for network, std in ((self.generator, config.generator_initial_std), (self.critic, config.critic_initial_std)):
            for layer in network.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                    layer.weight.copy_(torch.empty(layer.weight.shape).normal_(0, std, generator=generator))
                    if layer.bias is not None:
                        layer.bias.zero_()
        return self


Network = Generator | Critic


def replicate(network: Network, count: int) -> list[Network]:
    """`count` networks whose parameters lie in the memory of `network`'s, but are leaves of their own of the graph.

    An update of `network` in place is one of all of them; a gradient of each is of what it alone computed.
    """
    replicas = [copy.deepcopy(network) for _ in range(count)]
    for replica in replicas:
        for mine, theirs in zip(replica.parameters(), network.parameters()):
            mine.data = theirs.data
    return replicas


def forward_blocks(
    replicas: Sequence[Network], blocks: list[Tensor], batch_rows: int, comm: Comm
) -> tuple[list[Tensor], list[Moments]]:
    """Each block through its replica, normalized over the global batch; collective when there is such a layer.

    Args:
        replicas: of one network, one per block (`replicate`).
        blocks: this worker's inputs [rows of the block, ...]; one of no rows when it has no block.
        batch_rows: rows of all blocks of all workers.
        comm: the group.

    Returns:
        (outputs float32, one per block; the moments of the batch normalizations in their order).
    """
    found = []
    for layers in zip(*(replica.layers for replica in replicas)):
        if isinstance(layers[0], GlobalBatchNorm):
            blocks, moments = normalize_blocks(list(layers), blocks, batch_rows, comm)
            found.append(moments)
        else:
            blocks = [layer(block) for layer, block in zip(layers, blocks)]
    return [block.float() for block in blocks], found


def track_moments_(network: Network, moments: list[Moments]) -> None:
    """Move the network's running statistics toward the moments that `forward_blocks` found, in place."""
    layers = [layer for layer in network.layers if isinstance(layer, GlobalBatchNorm)]
    for layer, found in zip(layers, moments, strict=True):
        layer.track_(found)


@torch.no_grad()
def generate(generator: Generator, num_rows: int, seed: int, comm: Comm) -> Tensor:
    """Rows float32 [num_rows, num_visible] of noise from `seed`, by running statistics; on every worker, on its device.

    Workers share the blocks; neither their number nor `num_rows` changes a row (CPU). Images are rows in [0, 1].
    """
    sizes = [min(GENERATED_ROWS, num_rows - start) for start in range(0, num_rows, GENERATED_ROWS)]
    config = generator.config
    rows = [torch.empty(0, config.num_visible, device=comm.device)]
    for block in comm.my_blocks(len(sizes)):
        # always of full size: the products of a smaller block may round differently
        noise = draw_noise(GENERATED_ROWS, config, stream(seed, "generated noise", block)).to(comm.device)
        rows.append(generator(noise)[: sizes[block]].float())
    return comm.gather(torch.cat(rows), comm.rows_per_rank(sizes))


def rows_to_pixels(rows: Tensor) -> Tensor:
    """Pixels uint8 [n, 64, 64, 3] of generated rows [n, 12288] in [0, 1], rounded."""
    return (rows * 255).round().clamp(0, 255).to(torch.uint8).reshape(len(rows), 64, 64, 3)


def draw_noise(num_rows: int, config: GANConfig, stream: torch.Generator) -> Tensor:
    """Standard normal noise [num_rows, noise_size]."""
    return torch.randn(num_rows, config.noise_size, generator=stream)


def _dense_generator(config: GANConfig) -> list[nn.Module]:
    sizes = (config.noise_size, *config.generator_hidden)
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o, bias=not config.batch_norm), *_activation(o, config.batch_norm)]
    return [*layers, nn.Linear(sizes[-1], config.num_visible)]


def _dense_critic(config: GANConfig) -> list[nn.Module]:
    sizes = (config.num_visible, *config.critic_hidden)
    layers: list[nn.Module] = []
    for depth, (i, o) in enumerate(itertools.pairwise(sizes)):
        normalized = config.batch_norm and depth > 0
        layers += [nn.Linear(i, o, bias=not normalized), *_activation(o, normalized)]
    return [*layers, nn.Linear(sizes[-1], 1)]


def _convolutional_generator(config: GANConfig) -> list[nn.Module]:
    side, channels = CONVOLUTIONS[config.num_visible]
    inner, inward = side // 2 ** (len(channels) - 1), channels[::-1]
    norm = config.batch_norm
    layers: list[nn.Module] = [
        nn.Linear(config.noise_size, inward[0] * inner**2, bias=not norm),
        _ToImages(inward[0], inner),
        *_activation(inward[0], norm),
    ]
    for i, o in itertools.pairwise(inward[:-1]):
        layers += [nn.ConvTranspose2d(i, o, 4, 2, 1, bias=not norm), *_activation(o, norm)]
    return [*layers, nn.ConvTranspose2d(inward[-2], inward[-1], 4, 2, 1), _ToRows()]


def _convolutional_critic(config: GANConfig) -> list[nn.Module]:
    side, channels = CONVOLUTIONS[config.num_visible]
    inner = side // 2 ** (len(channels) - 1)
    layers: list[nn.Module] = [_Center(), _ToImages(channels[0], side)]
    for depth, (i, o) in enumerate(itertools.pairwise(channels)):
        normalized = config.batch_norm and depth > 0
        layers += [nn.Conv2d(i, o, 4, 2, 1, bias=not normalized), *_activation(o, normalized)]
    return [*layers, _ToRows(), nn.Linear(channels[-1] * inner**2, 1)]


def _activation(channels: int, normalized: bool) -> list[nn.Module]:
    return [*([GlobalBatchNorm(channels)] if normalized else []), nn.ReLU(inplace=True)]
