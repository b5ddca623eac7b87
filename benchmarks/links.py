"""How long collectives take among W workers in a ring: W - 1 steps around, each a latency and some bytes over a link.

    all-gather of s bytes from each      (W - 1) (latency + s / bandwidth)
    all-to-all of s bytes from each      (W - 1) (latency + s / (W bandwidth))
    all-reduce of s bytes                twice that: a reduce-scatter and an all-gather of s / W

Along trees an all-reduce takes 2 ceil(log2 W) latency + 2 s / bandwidth; libraries take the faster of the two.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """From one worker to the next."""

    latency: float
    """Seconds of a step."""
    bandwidth: float
    """Bytes per second."""


def gather_seconds(bytes_each: float, workers: int, link: Link) -> float:
    """A ring all-gather of `bytes_each` from every worker."""
    return (workers - 1) * (link.latency + bytes_each / link.bandwidth)


def exchange_seconds(bytes_each: float, workers: int, link: Link) -> float:
    """An all-to-all in which every worker holds `bytes_each` for all workers together."""
    return (workers - 1) * (link.latency + bytes_each / workers / link.bandwidth)


def sum_seconds(num_bytes: float, workers: int, ring: Link, tree: Link | None = None) -> float:
    """An all-reduce of `num_bytes` along a ring, or along trees of links `tree` where there are and that is faster."""
    along_ring = 2 * exchange_seconds(num_bytes, workers, ring)
    if tree is None or workers == 1:
        return along_ring
    return min(along_ring, 2 * math.ceil(math.log2(workers)) * tree.latency + 2 * num_bytes / tree.bandwidth)
