"""Random streams: every random number belongs to a purpose and a block of rows, never to a worker.

A run draws from many small generators, each named by (seed, purpose, ids): the data order of one epoch, the chains of one
block of particles, the temperatures of one block. A worker that owns a block owns its generator, so the numbers are the
same however the blocks are dealt to workers.
"""

import hashlib

import torch


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
