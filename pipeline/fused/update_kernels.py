"""Triton kernels of an update but its sweeps: hidden means, neighbors' votes, weights of rows, the weighted gradient.

Launched by update.py; the mathematics is that of models/rbm.py, critics/neighbors.py and learning/weights.py.
Rows are data rows first, then particles; everything is float32.
"""

import triton
import triton.language as tl

from pipeline.fused.sweep_kernels import product


@triton.jit
def hidden_means(
    rows, weights, bias, states, R, H, V,
    PRECISION: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """`states` [R, H] = E[h | v] of `rows` [R, V] at beta = 1, with folded weights [H, V] and biases [H]."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    total = product(rows, weights, r, j, R, H, V, PRECISION, EVEN, BM, BN, BK)
    total += tl.load(bias + j, mask=j < H, other=0.0)[None, :]
    mean = 1 / (1 + tl.exp(-total))
    tl.store(states + r[:, None] * H + j[None, :], mean, mask=(r[:, None] < R) & (j[None, :] < H))


@triton.jit
def distances(queries, memory, order, out, M, N, F, BM: tl.constexpr, BN: tl.constexpr, BF: tl.constexpr):
    """Squared distances `out` [M, N] of `queries` [M, F] to the rows memory[order], memory [N, F]; from differences."""
    q = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    row = tl.load(order + n, mask=n < N, other=0)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, F, BF):
        f = start + tl.arange(0, BF)
        a = tl.load(queries + q[:, None] * F + f[None, :], mask=(q[:, None] < M) & (f[None, :] < F), other=0.0)
        b = tl.load(memory + row[:, None] * F + f[None, :], mask=(n[:, None] < N) & (f[None, :] < F), other=0.0)
        difference = a[:, None, :] - b[None, :, :]
        total += tl.sum(difference * difference, 2)
    tl.store(out + q[:, None] * N + n[None, :], total, mask=(q[:, None] < M) & (n[None, :] < N))


@triton.jit
def votes(
    squared, order, scores, N, num_data, first, num_neighbors, epsilon, sign, least,
    DISTANCE: tl.constexpr, LINEAR: tl.constexpr, HIDE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """`scores` [M]: T of each query from its squared distances [M, N] to memory[order]; one query per program.

    With HIDE the query's own chain, memory row num_data + first + query, is left out.
    """
    query = tl.program_id(0)
    n = tl.arange(0, BN)
    row = tl.load(order + n, mask=n < N, other=-1)
    d = tl.load(squared + query * N + n, mask=n < N, other=float("inf"))
    if HIDE:
        d = tl.where(row == num_data + first + query, float("inf"), d)
    for_data, of_all = 0.0, 0.0
    for _ in range(num_neighbors):
        nearest, at = tl.min(d, 0), tl.minimum(tl.argmin(d, 0), N - 1)  # of NaNs it may be any
        is_data = tl.load(order + at) < num_data
        share = tl.where(is_data, 1.0 / num_data, 1.0 / (N - num_data))
        if DISTANCE:
            share /= tl.sqrt(nearest) + epsilon
        for_data += tl.where(is_data, share, 0.0)
        of_all += share
        d = tl.where(n == at, float("inf"), d)
    p = for_data / of_all
    score = 2.0 * p - 1.0
    if not LINEAR:
        score = 0.6931471805599453 + tl.log(tl.maximum(p, least))
    tl.store(scores + query, sign * score)


@triton.jit
def row_weights(scores, weights, mean, num_data, M, gamma, CRITIC: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr):
    """`weights` [num_data + M] of the rows in the ascent direction, and the mean of T, 0 without a critic.

    One program.
    """
    d, m = tl.arange(0, BD), tl.arange(0, BM)
    tl.store(weights + d, tl.zeros((BD,), tl.float32) + gamma / num_data, mask=d < num_data)
    weight = tl.zeros((BM,), tl.float32) - gamma
    if not CRITIC:
        tl.store(mean, 0.0)
    else:
        score = tl.load(scores + m, mask=m < M, other=0.0)
        average = tl.sum(score.to(tl.float64), 0) / M
        tl.store(mean, average)
        weight += (1.0 - gamma) * (score - average.to(tl.float32))
    tl.store(weights + num_data + m, weight / M, mask=m < M)


@triton.jit
def gradient(
    rows, states, row_weight, weights, log_variance, visible_bias, visible_offset, hidden_offset,
    of_weights, of_visible, of_hidden, square, coupling, hidden_mean, R, num_data, V, H,
    GAUSSIAN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Weighted sums over R rows of -dE/dtheta: of weights [V, H] and biases, and the mean of the data rows' states [H].

    For Gaussian units also what the log variances need: `square` [V], from their own energy, and `coupling` [tiles of H, V],
    parts of the sums over j of W_ij times the gradient of W_ij.
    """
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    offset_v = tl.load(visible_offset + i, mask=i < V, other=0.0)
    offset_h = tl.load(hidden_offset + j, mask=j < H, other=0.0)
    center = tl.zeros((BM,), tl.float32)
    if GAUSSIAN:
        center += tl.load(visible_bias + i, mask=i < V, other=0.0)
    total = tl.zeros((BM, BN), tl.float32)
    first, second = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    hidden, of_data = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    for start in range(0, R, BK):
        r = start + tl.arange(0, BK)
        w = tl.load(row_weight + r, mask=r < R, other=0.0)[:, None]
        v = tl.load(rows + r[:, None] * V + i[None, :], mask=(r[:, None] < R) & (i[None, :] < V), other=0.0)
        h = tl.load(states + r[:, None] * H + j[None, :], mask=(r[:, None] < R) & (j[None, :] < H), other=0.0)
        shifted = tl.trans(v - offset_v[None, :])
        total = tl.dot(shifted, (h - offset_h[None, :]) * w, total, input_precision="tf32x3")
        deviation = v - center[None, :]
        first += tl.sum(w * deviation, 0)
        second += tl.sum(w * deviation * deviation, 0)
        hidden += tl.sum(w * h, 0)
        of_data += tl.sum(tl.where(r[:, None] < num_data, h, 0.0), 0)
    to, inside = i[:, None] * H + j[None, :], (i[:, None] < V) & (j[None, :] < H)
    if GAUSSIAN:
        scale = tl.exp(-tl.load(log_variance + i, mask=i < V, other=0.0))
        total *= scale[:, None]
        first *= scale
        second *= 0.5 * scale
        parts = tl.sum(total * tl.load(weights + to, mask=inside, other=0.0), 1)
        tl.store(coupling + tl.program_id(1) * V + i, parts, mask=i < V)
    tl.store(of_weights + to, total, mask=inside)
    if tl.program_id(1) == 0:
        tl.store(of_visible + i, first, mask=i < V)
        if GAUSSIAN:
            tl.store(square + i, second, mask=i < V)
    if tl.program_id(0) == 0:
        tl.store(of_hidden + j, hidden, mask=j < H)
        tl.store(hidden_mean + j, of_data / num_data, mask=j < H)


@triton.jit
def log_variance_gradient(square, coupling, out, tiles, V, B: tl.constexpr):
    """`out` [V]: square less the sum of `coupling` [tiles, V]."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    total = tl.load(square + i, mask=i < V, other=0.0)
    for tile in range(tiles):
        total -= tl.load(coupling + tile * V + i, mask=i < V, other=0.0)
    tl.store(out + i, total, mask=i < V)
