"""Random streams: every random number belongs to a purpose and a block of rows, never to a worker.

A run draws from many small generators, each named by (seed, purpose, ids): the data order of one epoch, the chains of one
block of particles, the temperatures of one block. A worker that owns a block owns its generator, so the numbers are the
same however the blocks are dealt to workers.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def stream_seed(seed: int, purpose: str, *ids: int) -> int:
    """Seed of the stream named (seed, purpose, ids), in [0, 2^63).

    It is a hash, so that streams with neighboring names share nothing. (The CPU generator of torch, a Mersenne twister,
    uses its lower 32 bits only; a run has few streams, so two of them meet with a chance below 1e-5.)
    """
    name = ":".join([str(seed), purpose, *(str(i) for i in ids)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def stream(seed: int, purpose: str, *ids: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device` for the stream named (seed, purpose, ids)."""
    generator = torch.Generator(device=device)
    generator.manual_seed(stream_seed(seed, purpose, *ids))
    return generator


class RowStreams(NamedTuple):
    """The generators of several blocks whose rows stand one after another in one tensor: each draws for its own rows alone."""

    generators: Sequence[torch.Generator]
    rows: Sequence[int]
    """Rows of each block."""
    coarse: bool = False
    """True when a normal number is one of 2^16 equally likely values, the quantiles at (k + 1/2) / 2^16, which end at 4.3 sd:
    about twice as fast."""


_MANY = 2**14
"""Numbers of one block from which fewer random bits save more than the further steps cost."""

Random = torch.Generator | RowStreams | None
"""A source of rows of random numbers; None is torch's own generator."""


def uniform_(x: Tensor, random: Random) -> Tensor:
    """Fill `x` [rows, ..., size] with uniform numbers in [0, 1).

    Those of torch are multiples of 2^-24 in float32. On a CPU, of many such numbers the upper 16 bits are each number's own
    and the lower 8 are shared by a row, at half the time: each keeps its law, and for two in a row the covariance of [u < p]
    and [u' < p'] is at most 2^-34.
    """
    parts = _by_block(x, random)
    in_halves = [x.device.type == "cpu" and x.dtype == torch.float32 and part.numel() >= _MANY for part, _ in parts]
    if all(in_halves):
        size = x.shape[-1]
        halves = _halves(x, random, spare=1)
        lower = halves.view(torch.uint8)[..., 2 * size : 2 * size + 1].to(x.dtype)
        x.copy_(halves[..., :size].view(torch.int16))
        return torch.add(lower.mul_(2**-24).add_(0.5), x, alpha=2**-16, out=x)  # exact
    for is_many, (part, generator) in zip(in_halves, parts):
        if is_many:
            uniform_(part, generator)
        else:
            part.uniform_(generator=generator)
    return x


def normal_(x: Tensor, random: Random) -> Tensor:
    """Fill `x` [rows, ..., size] with standard normal numbers."""
    if _is_coarse(random):
        quantiles = _normal_quantiles(x.dtype, x.device)
        which = _halves(x, random)[..., : x.shape[-1]].flatten().to(torch.int32)
        torch.index_select(quantiles, 0, which, out=x.view(-1))
        return x
    for part, generator in _by_block(x, random):
        part.normal_(generator=generator)
    return x


def exponential_(x: Tensor, random: Random) -> Tensor:
    """Fill `x` [rows, ...] with exponential numbers of mean 1."""
    for part, generator in _by_block(x, random):
        part.exponential_(generator=generator)
    return x


def poisson(rate: Tensor, random: Random) -> Tensor:
    """Poisson numbers of mean `rate` [rows, ...]."""
    return _drawn(torch.poisson, rate, random)


def standard_gamma(shape: Tensor, random: Random) -> Tensor:
    """Gamma numbers of the given shape parameters [rows, ...] and scale 1."""
    return _drawn(torch._standard_gamma, shape, random)


def _by_block(x: Tensor, random: Random) -> list[tuple[Tensor, torch.Generator | None]]:
    if not isinstance(random, RowStreams):
        return [(x, random)]
    if len(random.generators) == 1:
        return [(x, random.generators[0])]
    return list(zip(x.split_with_sizes(list(random.rows)), random.generators, strict=True))


def _is_coarse(random: Random) -> bool:
    return isinstance(random, RowStreams) and random.coarse


def _halves(like: Tensor, random: Random, spare: int = 0) -> Tensor:
    """Integers in 0 .. 2^16 - 1, at least size + `spare` for each row of `like` [rows, ..., size]: four of every 64 bits."""
    words = torch.empty(*like.shape[:-1], -(-(like.shape[-1] + spare) // 4), dtype=torch.int64, device=like.device)
    for part, generator in _by_block(words, random):
        part.random_(-(2**63), None, generator=generator)
    return words.view(torch.uint16)


@functools.cache
def _normal_quantiles(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Values [2^16] of the normal law at probabilities (k + 1/2) / 2^16, with variance 1 exactly."""
    values = torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16)
    return (values / values.square().mean().sqrt()).to(device, dtype)


def _drawn(draw: Callable[..., Tensor], x: Tensor, random: Random) -> Tensor:
    parts = [draw(part, generator=generator) for part, generator in _by_block(x, random)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
