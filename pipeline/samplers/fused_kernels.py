"""Triton kernels of driven Gibbs for Bernoulli hidden and Bernoulli or Gaussian visible units; launched by fused.py.

Random numbers are Philox of (seed; unit / 4, particle, half sweep, step), one call for the numbers of four units, in 7 rounds
(the fewest that pass the tests of Salmon et al., 2011): they belong to the particle, wherever it lies, and need no state.
Both ways to sweep draw the same numbers:

- `half_sweep`, one launch per half: for many particles, where the products are large enough to fill the device;
- `all_sweeps`, one launch for all: for few particles, where launches and reading the weights would cost more than the
  products. Particles are dealt in groups, weights in parts: program (group, part) keeps its units' columns of both products
  on chip, and the programs of a group hand each other the states through memory, half sweep by half sweep.

Weights lie along the summed index: [H, V] towards the hidden units, [V, H] towards the visible ones.
"""

import triton
import triton.language as tl


@triton.jit
def _interleaved(a, b, c, d, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS] whose columns 4 i, ..., 4 i + 3 are columns i of a, b, c, d [ROWS, COLS / 4]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (ROWS, COLS))


@triton.jit
def _random(seed, step, half, particles, col, NORMAL: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Uniform or standard normal [ROWS, COLS] of `particles` [ROWS] and the units from `col` on, a multiple of four."""
    zero = tl.zeros((ROWS, COLS // 4), tl.int32)
    quad = zero + (col // 4 + tl.arange(0, COLS // 4))[None, :]
    r0, r1, r2, r3 = tl.philox(seed, quad, zero + particles[:, None], zero + half, zero + step, 7)
    u0, u1, u2, u3 = (
        tl.uint_to_uniform_float(r0),
        tl.uint_to_uniform_float(r1),
        tl.uint_to_uniform_float(r2),
        tl.uint_to_uniform_float(r3),
    )
    if NORMAL:
        turn = 6.283185307179586
        p, q = tl.sqrt(-2.0 * tl.log(tl.maximum(u0, 1e-10))), tl.sqrt(-2.0 * tl.log(tl.maximum(u2, 1e-10)))
        s, t = turn * u1, turn * u3
        return _interleaved(p * tl.cos(s), p * tl.sin(s), q * tl.cos(t), q * tl.sin(t), ROWS, COLS)
    else:
        return _interleaved(u0, u1, u2, u3, ROWS, COLS)


@triton.jit
def drift(beta, normal, gamma, out, M, sweeps, half_c, pull, B: tl.constexpr):
    """`out` [sweeps, M]: the temperatures of each sweep, from beta [M] and draws [M, sweeps]."""
    rows = tl.program_id(0) * B + tl.arange(0, B)
    inside = rows < M
    value = tl.load(beta + rows, mask=inside, other=1.0)
    for sweep in range(sweeps):
        n = tl.load(normal + rows * sweeps + sweep, mask=inside, other=0.0) + tl.sqrt(pull * value)
        value = half_c * (n * n + 2.0 * tl.load(gamma + rows * sweeps + sweep, mask=inside, other=0.0))
        tl.store(out + sweep * M + rows, value, mask=inside)


@triton.jit(do_not_specialize=["first", "half", "seed"])
def half_sweep(
    x, w, bias, scale, beta, out, last, step, M, N, K, first, half, seed, min_beta,
    GAUSSIAN: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """`out` [M, N] ~ p(. | x) of one layer for states x [M, K] and weights w [N, K]; with LAST also to `last`, in float32."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        inner = start + tl.arange(0, BK)
        if EVEN:  # the sizes are multiples of the tile's: masks would cost
            a = tl.load(x + rows[:, None] * K + inner[None, :])
            b = tl.load(w + cols[None, :] * K + inner[:, None])
        else:
            a = tl.load(
                x + rows[:, None] * K + inner[None, :], mask=(rows[:, None] < M) & (inner[None, :] < K), other=0.0
            )
            b = tl.load(
                w + cols[None, :] * K + inner[:, None], mask=(cols[None, :] < N) & (inner[:, None] < K), other=0.0
            )
        total = tl.dot(a, b, total, input_precision=PRECISION)
    total += tl.load(bias + cols, mask=cols < N, other=0.0)[None, :]
    used = tl.maximum(tl.load(beta + rows, mask=rows < M, other=1.0), min_beta)[:, None]
    noise = _random(seed, tl.load(step), half, rows + first, tl.program_id(1) * BN, GAUSSIAN, BM, BN)
    if GAUSSIAN:
        drawn = total + noise * tl.load(scale + cols, mask=cols < N, other=0.0)[None, :] / tl.sqrt(used)
    else:
        drawn = (noise < tl.sigmoid(total * used)).to(tl.float32)
    to, inside = rows[:, None] * N + cols[None, :], (rows[:, None] < M) & (cols[None, :] < N)
    tl.store(out + to, drawn.to(out.dtype.element_ty), mask=inside)
    if LAST:
        tl.store(last + to, drawn, mask=inside)


@triton.jit
def _wait(arrivals, number):
    """Until `number` arrivals are counted; what was written before them is then seen."""
    seen = 0
    while seen < number:
        seen = tl.atomic_add(arrivals, 0, sem="acquire")


@triton.jit(do_not_specialize=["first", "seed"])
def all_sweeps(
    visible, hidden, last, to_hidden, to_visible, hidden_bias, visible_bias, std, betas, arrivals, step,
    M, V, H, sweeps, first, seed, min_beta,
    GAUSSIAN: tl.constexpr, BM: tl.constexpr, PARTS: tl.constexpr, SPLIT: tl.constexpr,
    V_ALL: tl.constexpr, H_ALL: tl.constexpr,
):  # fmt: skip
    """`sweeps` sweeps of visible [M, V] and hidden [M, H], in place; the last visible states also to `last`, in float32.

    All programs must run at the same time (a cooperative launch). `arrivals` [groups], zeros, counts the programs of a group
    that have written their part of a layer. A sum over K is made in SPLIT stretches at once, one per warp. States are read
    past the first-level cache, which does not see what others write (volatile).
    """
    PV: tl.constexpr = V_ALL // PARTS
    PH: tl.constexpr = H_ALL // PARTS
    group, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    rows = group * BM + tl.arange(0, BM)
    own_v, own_h = part * PV + tl.arange(0, PV), part * PH + tl.arange(0, PH)
    stretches = tl.arange(0, SPLIT)[:, None]
    all_v = stretches * (V_ALL // SPLIT) + tl.arange(0, V_ALL // SPLIT)[None, :]
    all_h = stretches * (H_ALL // SPLIT) + tl.arange(0, H_ALL // SPLIT)[None, :]
    w_h = tl.load(
        to_hidden + own_h[None, None, :] * V + all_v[:, :, None],
        mask=(own_h[None, None, :] < H) & (all_v[:, :, None] < V),
        other=0.0,
    )
    w_v = tl.load(
        to_visible + own_v[None, None, :] * H + all_h[:, :, None],
        mask=(own_v[None, None, :] < V) & (all_h[:, :, None] < H),
        other=0.0,
    )
    b_h = tl.load(hidden_bias + own_h, mask=own_h < H, other=0.0)[None, :]
    b_v = tl.load(visible_bias + own_v, mask=own_v < V, other=0.0)[None, :]
    s_v = tl.load(std + own_v, mask=own_v < V, other=0.0)[None, :]
    from_v, in_v = visible + rows[None, :, None] * V + all_v[:, None, :], all_v[:, None, :] < V
    from_h, in_h = hidden + rows[None, :, None] * H + all_h[:, None, :], all_h[:, None, :] < H
    in_v, in_h = in_v & (rows[None, :, None] < M), in_h & (rows[None, :, None] < M)
    to_v, out_v = rows[:, None] * V + own_v[None, :], (rows[:, None] < M) & (own_v[None, :] < V)
    to_h, out_h = rows[:, None] * H + own_h[None, :], (rows[:, None] < M) & (own_h[None, :] < H)
    at, arrived = tl.load(step), arrivals + group
    uniform = _random(seed, at, 0, rows + first, part * PH, False, BM, PH)
    for sweep in tl.range(0, sweeps, num_stages=1):
        used = tl.maximum(tl.load(betas + sweep * M + rows, mask=rows < M, other=1.0), min_beta)[:, None]
        total = tl.sum(tl.dot(tl.load(from_v, mask=in_v, other=0.0, volatile=True), w_h), 0) + b_h
        h = uniform < tl.sigmoid(total * used)
        tl.store(hidden + to_h, h.to(hidden.dtype.element_ty), mask=out_h)
        tl.debug_barrier()
        tl.atomic_add(arrived, 1, sem="release")
        # while the others finish
        noise = _random(seed, at, 2 * sweep + 1, rows + first, part * PV, GAUSSIAN, BM, PV)
        _wait(arrived, (2 * sweep + 1) * PARTS)
        total = tl.sum(tl.dot(tl.load(from_h, mask=in_h, other=0.0, volatile=True), w_v), 0) + b_v
        if GAUSSIAN:  # noqa: SIM108
            v = total + noise * s_v / tl.sqrt(used)
        else:
            v = (noise < tl.sigmoid(total * used)).to(tl.float32)
        tl.store(visible + to_v, v.to(visible.dtype.element_ty), mask=out_v)
        if sweep == sweeps - 1:
            tl.store(last + to_v, v, mask=out_v)
        else:
            tl.debug_barrier()
            tl.atomic_add(arrived, 1, sem="release")
            uniform = _random(seed, at, 2 * sweep + 2, rows + first, part * PH, False, BM, PH)
            _wait(arrived, (2 * sweep + 2) * PARTS)
