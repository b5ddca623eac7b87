"""Exact k-nearest-neighbor search by torch: the reference backend."""

import torch
from torch import Tensor


def search_torch(queries: Tensor, rows: Tensor, num_neighbors: int) -> Tensor:
    """Indices [q, k] of the k rows of `rows` [n, F] nearest to each query [q, F] in Euclidean distance, nearest first.

    Ranks by ||x||^2 - 2 q.x, which orders rows as the distance does. Features are centered first: the expansion loses
    digits in proportion to their norms.
    """
    center = rows.mean(0)
    shifted = rows - center
    scores = torch.addmm(shifted.square().sum(1), queries - center, shifted.T, alpha=-2)
    return scores.topk(num_neighbors, dim=1, largest=False).indices
