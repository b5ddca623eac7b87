"""Nearest-neighbor estimates of the forward and reverse KL divergence (paper, Eq. 17) between two sets of rows.

A BEAM is monitored by D(data || model) and D(model || data) on held-out data, because likelihood training lowers the
first and lets the second rise. Read the two together and over time, never one alone: in hundreds of dimensions noise on
the model's rows makes the reverse estimate *negative*, blur makes the forward one negative, collapse and near-copies
make the reverse one large. The paper's text omits the logarithm of Eq. 17; it is here, as in Wang, Kulkarni and Verdu,
"Divergence estimation for multidimensional densities via k-nearest-neighbor distances" (IEEE Trans. Inf. Theory 2009).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

RELATIVE_FLOOR = 1e-6
"""Distances below this share of the median neighbor distance are raised to it, so that no logarithm is infinite."""

_SPARE_CANDIDATES = 8  # neighbors kept beyond those asked for, so that rounding in the product form cannot lose one
_BLOCK_ELEMENTS = 1 << 24  # 128 MiB of float64 distances at a time where all pairs are subtracted
_MOST_SUBTRACTED = 1 << 22  # numbers of one block of differences: 32 MiB
_FEW_SUBTRACTIONS = 1 << 24  # a hundredth of a second on one thread; importing scikit-learn takes one to two


class KLEstimate(NamedTuple):
    """One nearest-neighbor estimate of D(x || y)."""

    nats: float
    """The whole estimate, logarithmic correction for the counts included, in nats. Can be negative."""
    per_dimension: float
    """`nats` divided by d, all of it: the figure of tables and curves. Not comparable across different d."""
    num_duplicates: int
    """Rows of x that equal another row of x, or a row of y, exactly."""
    num_rows: int
    """Rows of x that entered, summed over minibatches; a dropped partial minibatch is not in it."""
    num_neighbors: int
    """The k of the k-th neighbor."""
    num_floored: int
    """Rows of x of which a k-th neighbor distance was raised to the floor; 0 = duplicates did not touch the value."""


def nearest_distances(queries: Tensor, references: Tensor | None, num_neighbors: int) -> Tensor:
    """Return the Euclidean distances from each query to its nearest references, ascending, exact in float64.

    Distances are those of direct subtraction, so equal rows are at exactly 0 and the values carry no cancellation. Of
    large sets on a CPU only candidates are subtracted, which scikit-learn finds by a matrix product in float64. (The
    choice among more than `num_neighbors + 8` references that differ by less than about 1e-7 of the rows' norm is
    subject to rounding; the error is of that size.) On a GPU all pairs are subtracted: training there waits for its
    monitors, which would take the CPU longer than the updates between them.

    Args:
        queries: [n, d], any floating or integer type.
        references: [m, d], or None for the queries themselves, with each row excluded from its own neighbors.
        num_neighbors: k, 1 <= k <= m (<= n - 1 among the queries themselves).

    Returns:
        [n, k], float64, on the device of `queries`.

    Raises:
        ValueError: on mismatched shapes, values that are not finite, or too few references.
    """
    _require_rows("queries", queries)
    among_themselves = references is None
    if references is None:
        references = queries
    else:
        _require_rows("references", references)
    if queries.shape[1] != references.shape[1]:
        raise ValueError(
            f"the two sets have {queries.shape[1]} and {references.shape[1]} columns; they must lie in one space"
        )
    available = len(references) - among_themselves
    if not 1 <= num_neighbors <= available:
        raise ValueError(
            f"num_neighbors is {num_neighbors}, but a row has {available} possible neighbors here: "
            f"give 1 <= num_neighbors <= {available}, or more rows"
        )
    few = len(queries) * references.numel() <= _FEW_SUBTRACTIONS
    if few or queries.device.type != "cpu":
        return _subtract_all_pairs(queries, references, num_neighbors, among_themselves)
    from sklearn.neighbors import NearestNeighbors

    center = references.mean(0, dtype=torch.float64)  # small norms keep the product form accurate
    search = NearestNeighbors(n_neighbors=min(num_neighbors + _SPARE_CANDIDATES, available), algorithm="brute")
    search.fit((references.double() - center).numpy())
    centered = None if among_themselves else (queries.double() - center).numpy()
    candidates = torch.from_numpy(search.kneighbors(centered, return_distance=False))
    exact = torch.empty(candidates.shape, dtype=torch.float64)
    for rows in torch.arange(len(queries)).split(max(1, _MOST_SUBTRACTED // queries.shape[1])):
        mine = queries[rows].double()
        for column in range(candidates.shape[1]):
            difference = mine - references[candidates[rows, column]].double()
            exact[rows, column] = torch.linalg.vector_norm(difference, dim=1)
    return exact.sort(1).values[:, :num_neighbors]


def knn_kl(x: Tensor, y: Tensor, num_neighbors: int = 5, allow_unequal: bool = False) -> KLEstimate:
    """Estimate D(p || q) from rows x ~ p and y ~ q (Eq. 17 with its logarithm).

        D(p || q) = d/n sum_i log(nu_k(i) / rho_k(i)) + log(m / (n - 1))

    nu_k(i) is the distance from x_i to its k-th nearest row of y, rho_k(i) that to its k-th nearest *other* row of x.
    Duplicates: with more than k equal rows a k-th distance is 0. Every k-th distance below RELATIVE_FLOOR times the
    median of all positive ones is raised to that value (so the estimate stays finite and does not change with the unit
    of the data); a row whose two distances are both at the floor adds 0. Collapse onto copies still shows as a large
    value: d log(1e6) nats per copied row. Excluding such rows would hide it.

    Args:
        x: [n, d] rows of p.
        y: [m, d] rows of q.
        num_neighbors: k, from 1 to n - 1; the paper's MNIST and CelebA settings use 5.
        allow_unequal: accept n != m. Only sound where neighbor distances shrink with the dimension d itself (few
            dimensions, smooth densities), not for images.

    Returns:
        The estimate over the given rows (not averaged over ranks).

    Raises:
        ValueError: on unequal counts unless allowed, mismatched shapes, values that are not finite or too few rows.
    """
    if not allow_unequal and len(x) != len(y):
        raise ValueError(
            f"x has {len(x)} rows and y has {len(y)}: the k-NN KL estimate needs equal numbers, because on image-like "
            "data (which fill few of their d dimensions) unequal numbers shift it by -0.2 to +0.1 per dimension with "
            f"no difference between the two; use the first {min(len(x), len(y))} rows of each, or pass "
            "allow_unequal=True in few dimensions"
        )
    within = nearest_distances(x, None, num_neighbors)
    across = nearest_distances(x, y, num_neighbors)
    rho, nu = within[:, -1], across[:, -1]
    positive = torch.cat([rho, nu])
    positive = positive[positive > 0]
    floor = RELATIVE_FLOOR * positive.median().item() if len(positive) else 1.0
    log_ratio = nu.clamp_min(floor).log() - rho.clamp_min(floor).log()
    num_rows, dimension = x.shape
    nats = dimension * log_ratio.mean().item() + math.log(len(y) / (num_rows - 1))
    return KLEstimate(
        nats=nats,
        per_dimension=nats / dimension,
        num_duplicates=int(((within[:, 0] == 0) | (across[:, 0] == 0)).sum()),
        num_rows=num_rows,
        num_neighbors=num_neighbors,
        num_floored=int(((rho < floor) | (nu < floor)).sum()),
    )


def forward_reverse_kl(
    data: Tensor, model: Tensor, num_neighbors: int = 5, batch_size: int | None = None
) -> tuple[KLEstimate, KLEstimate]:
    """Return the estimates of D(data || model), forward, and D(model || data), reverse, from equal numbers of rows.

    With `batch_size` each estimate is made per minibatch of both sets and averaged, the paper's protocol. Minibatches
    are consecutive rows, so rows in a meaningful order (by class, by chain age) must be shuffled first. A last partial
    minibatch is dropped when it has fewer than half of `batch_size` rows or too few for k neighbors; otherwise it
    enters with the weight of its rows. Counts are sums over the minibatches.

    Args:
        data: [n, d] held-out rows.
        model: [n, d] rows of the model; say in the report whether these are v or E[v|h], they differ.
        num_neighbors: k, from 1 to n - 1 (to batch_size - 1).
        batch_size: rows per minibatch, up to n; None for one estimate over all rows.

    Returns:
        (forward, reverse).

    Raises:
        ValueError: as `knn_kl`, and for a batch_size outside num_neighbors + 1 .. n.
    """
    if len(data) != len(model):
        knn_kl(data, model, num_neighbors)  # raises with the reason
    num_rows = len(data)
    size = num_rows if batch_size is None else batch_size
    if batch_size is not None and not num_neighbors < size <= num_rows:
        raise ValueError(
            f"batch_size is {batch_size}; with {num_rows} rows and num_neighbors {num_neighbors} it must lie in "
            f"{num_neighbors + 1}..{num_rows}, or be None for one estimate over all rows"
        )
    starts = [
        start
        for start in range(0, num_rows, max(size, 1))
        if start == 0 or num_rows - start >= max(size / 2, num_neighbors + 1)
    ]
    pairs = [(data[start : start + size], model[start : start + size]) for start in starts]
    forward = _average([knn_kl(x, y, num_neighbors) for x, y in pairs], data.shape[1])
    reverse = _average([knn_kl(y, x, num_neighbors) for x, y in pairs], data.shape[1])
    return forward, reverse


def _average(estimates: list[KLEstimate], dimension: int) -> KLEstimate:
    num_rows = sum(estimate.num_rows for estimate in estimates)
    nats = sum(estimate.nats * estimate.num_rows for estimate in estimates) / num_rows
    return KLEstimate(
        nats=nats,
        per_dimension=nats / dimension,
        num_duplicates=sum(estimate.num_duplicates for estimate in estimates),
        num_rows=num_rows,
        num_neighbors=estimates[0].num_neighbors,
        num_floored=sum(estimate.num_floored for estimate in estimates),
    )


def _subtract_all_pairs(queries: Tensor, references: Tensor, num_neighbors: int, among_themselves: bool) -> Tensor:
    """Return the same as `nearest_distances`, without candidates: n m d subtractions."""
    rows, found = max(1, _BLOCK_ELEMENTS // len(references)), []
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows].double()
        distances = torch.cdist(block, references.double(), compute_mode="donot_use_mm_for_euclid_dist")
        if among_themselves:
            distances.diagonal(start).fill_(torch.inf)
        found.append(distances.topk(num_neighbors, largest=False).values)
    return torch.cat(found)


def _require_rows(name: str, rows: Tensor) -> None:
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            f"{name} have shape {tuple(rows.shape)}; expected rows [n, d], neither of them 0: flatten first"
        )
    if not torch.isfinite(rows).all():
        bad = int((~torch.isfinite(rows)).any(1).sum())
        raise ValueError(f"{bad} of {len(rows)} {name} hold values that are not finite: the run has diverged")
