"""Triton kernels of driven Gibbs for Bernoulli hidden and Bernoulli or Gaussian visible units; launched by sweeps.py.

Random numbers are Philox of (seed; unit / 4, particle, half sweep, step), one call for the numbers of four units, in 7 rounds
(the fewest that pass the tests of Salmon et al., 2011): they belong to the particle, wherever it lies, and need no state.
Weights lie along the summed index: [H, V] towards the hidden units, [V, H] towards the visible ones.
"""

import triton
import triton.language as tl


@triton.jit
def _interleaved(a, b, c, d, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS] whose columns 4 i, ..., 4 i + 3 are columns i of a, b, c, d [ROWS, COLS / 4]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (ROWS, COLS))


@triton.jit
def _cos_and_sin(u, APPROXIMATE: tl.constexpr):
    """Cosine and sine of the angle 2 pi (u - 1/2); approximate: one instruction each, off by 5e-7 at most."""
    angle = 6.283185307179586 * (u - 0.5)
    if APPROXIMATE:
        cosine = tl.inline_asm_elementwise("cos.approx.f32 $0, $1;", "=f,f", [angle], tl.float32, True, 1)
        sine = tl.inline_asm_elementwise("sin.approx.f32 $0, $1;", "=f,f", [angle], tl.float32, True, 1)
        return cosine, sine
    else:
        return tl.cos(angle), tl.sin(angle)


@triton.jit
def _radius(u):
    """Box and Muller's sqrt(-2 log u), by the base that the device has."""
    return tl.sqrt(-1.3862943611198906 * tl.log2(tl.maximum(u, 1e-10)))


@triton.jit
def _four_uniforms(seed, c0, c1, c2, c3):
    r0, r1, r2, r3 = tl.philox(seed, c0, c1, c2, c3, 7)
    return (
        tl.uint_to_uniform_float(r0),
        tl.uint_to_uniform_float(r1),
        tl.uint_to_uniform_float(r2),
        tl.uint_to_uniform_float(r3),
    )


@triton.jit
def _random(
    seed, step, half, particles, col,
    NORMAL: tl.constexpr, APPROXIMATE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Uniform or standard normal [ROWS, COLS] of `particles` [ROWS] and the units from `col` on, a multiple of four."""
    zero = tl.zeros((ROWS, COLS // 4), tl.int32)
    quad = zero + (col // 4 + tl.arange(0, COLS // 4))[None, :]
    u0, u1, u2, u3 = _four_uniforms(seed, quad, zero + particles[:, None], zero + half, zero + step)
    if NORMAL:
        p, q = _radius(u0), _radius(u2)
        cos_1, sin_1 = _cos_and_sin(u1, APPROXIMATE)
        cos_3, sin_3 = _cos_and_sin(u3, APPROXIMATE)
        return _interleaved(p * cos_1, p * sin_1, q * cos_3, q * sin_3, ROWS, COLS)
    else:
        return _interleaved(u0, u1, u2, u3, ROWS, COLS)


@triton.jit(do_not_specialize=["first", "seed", "shape"])
def temperature_draws(normal, gamma, step, M, first, seed, shape, BOOST: tl.constexpr, B: tl.constexpr):
    """Standard normal and Gamma(shape, 1) numbers [sweeps, M] for the temperatures; one row of sweeps per program_id(1).

    Gamma by Marsaglia and Tsang (2000) from proposals until one is accepted (19 in 20 are), for shape < 1 (BOOST) that of
    shape + 1 times u^(1/shape). Counters: the proposal's number stands for the unit, and sweep s for half sweep -1 - s.
    """
    sweep = tl.program_id(1)
    rows = tl.program_id(0) * B + tl.arange(0, B)
    zero = tl.zeros((B,), tl.int32)
    half, now = zero + (-1 - sweep), zero + tl.load(step)
    d = shape - 1.0 / 3.0
    if BOOST:
        d += 1.0
    c = 1.0 / tl.sqrt(9.0 * d)
    value = tl.zeros((B,), tl.float32)
    n, boost = value, value + 1.0
    pending = rows < M
    proposal = 0
    while tl.max(pending.to(tl.int32), 0) > 0:
        u0, u1, u2, u3 = _four_uniforms(seed, zero + proposal, rows + first, half, now)
        cosine, sine = _cos_and_sin(u1, False)
        v = 1.0 + c * _radius(u0) * cosine
        v = v * v * v
        x = _radius(u0) * cosine
        accepted = (v > 0) & (
            tl.log(tl.maximum(u2, 1e-10)) < 0.5 * x * x + d * (1.0 - v + tl.log(tl.maximum(v, 1e-30)))
        )
        if proposal == 0:
            n = _radius(u0) * sine
            boost = u3
        value = tl.where(pending & accepted, d * v, value)
        pending = pending & (accepted == 0)
        proposal += 1
    if BOOST:
        value *= tl.exp2(tl.log2(tl.maximum(boost, 1e-30)) / shape)
    tl.store(normal + sweep * M + rows, n, mask=rows < M)
    tl.store(gamma + sweep * M + rows, value, mask=rows < M)


@triton.jit
def product(
    x, w, rows, cols, M, N, K,
    PRECISION: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x[rows] w[cols]^T [BM, BN] in float32, for x [M, K] and w [N, K]; with EVEN sizes are multiples of the tile's."""
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        inner = start + tl.arange(0, BK)
        if EVEN:  # masks would cost
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
    return total


@triton.jit(do_not_specialize=["first", "half", "seed"])
def half_sweep(
    x, w, bias, scale, beta, normal, gamma, next_beta, out, last, step,
    M, N, K, first, half, seed, min_beta, half_c, pull,
    GAUSSIAN: tl.constexpr, DRIFT: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    APPROXIMATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """`out` [M, N] ~ p(. | x) of one layer for states x [M, K] and weights w [N, K]; with LAST also to `last`, in float32.

    At temperatures beta [M]; with DRIFT these move first, by `normal` and `gamma` [M], to `next_beta` [M].
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    value = tl.load(beta + rows, mask=rows < M, other=1.0)
    if DRIFT:
        n = tl.load(normal + rows, mask=rows < M, other=0.0) + tl.sqrt(pull * value)
        value = half_c * (n * n + 2.0 * tl.load(gamma + rows, mask=rows < M, other=0.0))
        if tl.program_id(1) == 0:
            tl.store(next_beta + rows, value, mask=rows < M)
    total = product(x, w, rows, cols, M, N, K, PRECISION, EVEN, BM, BN, BK)
    total += tl.load(bias + cols, mask=cols < N, other=0.0)[None, :]
    used = tl.maximum(value, min_beta)[:, None]
    noise = _random(seed, tl.load(step), half, rows + first, tl.program_id(1) * BN, GAUSSIAN, APPROXIMATE, BM, BN)
    if GAUSSIAN:
        drawn = total + noise * tl.load(scale + cols, mask=cols < N, other=0.0)[None, :] * (1 / tl.sqrt(used))
    else:
        # u < 1 / (1 + exp(-x)), without the division
        drawn = (noise * (1 + tl.exp2(-1.4426950408889634 * total * used)) < 1).to(tl.float32)
    to, inside = rows[:, None] * N + cols[None, :], (rows[:, None] < M) & (cols[None, :] < N)
    tl.store(out + to, drawn.to(out.dtype.element_ty), mask=inside)
    if LAST:
        tl.store(last + to, drawn, mask=inside)


@triton.jit
def fold(
    weights, log_variance, visible_offset, hidden_offset, visible_bias, hidden_bias,
    to_hidden, to_visible, folded_hidden_bias, folded_visible_bias, std, exact_to_hidden, exact_hidden_bias,
    V, H, hidden_programs,
    GAUSSIAN: tl.constexpr, ROUNDED: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """RBM.couplings() as the sweeps read them: weights in the type of their operands, and offsets folded in with those.

    The first `hidden_programs` programs serve BN hidden units each, the others BN visible ones. With ROUNDED the same
    towards the hidden units in float32, for the statistics.
    """
    program = tl.program_id(0)
    bias, exact_bias = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    if program < hidden_programs:
        j = program * BN + tl.arange(0, BN)
        for start in range(0, V, BK):
            i = start + tl.arange(0, BK)
            inside = (i[:, None] < V) & (j[None, :] < H)
            w = tl.load(weights + i[:, None] * H + j[None, :], mask=inside, other=0.0)
            if GAUSSIAN:
                w /= tl.exp(tl.load(log_variance + i, mask=i < V, other=0.0))[:, None]
            offset = tl.load(visible_offset + i, mask=i < V, other=0.0)[:, None]
            used = w.to(to_hidden.dtype.element_ty)
            tl.store(to_hidden + j[None, :] * V + i[:, None], used, mask=inside)
            bias += tl.sum(offset * used.to(tl.float32), 0)
            if ROUNDED:
                tl.store(exact_to_hidden + j[None, :] * V + i[:, None], w, mask=inside)
                exact_bias += tl.sum(offset * w, 0)
        own = tl.load(hidden_bias + j, mask=j < H, other=0.0)
        tl.store(folded_hidden_bias + j, own - bias, mask=j < H)
        if ROUNDED:
            tl.store(exact_hidden_bias + j, own - exact_bias, mask=j < H)
    else:
        i = (program - hidden_programs) * BN + tl.arange(0, BN)
        for start in range(0, H, BK):
            j = start + tl.arange(0, BK)
            inside = (i[:, None] < V) & (j[None, :] < H)
            used = tl.load(weights + i[:, None] * H + j[None, :], mask=inside, other=0.0).to(
                to_visible.dtype.element_ty
            )
            tl.store(to_visible + i[:, None] * H + j[None, :], used, mask=inside)
            offset = tl.load(hidden_offset + j, mask=j < H, other=0.0)[None, :]
            bias += tl.sum(offset * used.to(tl.float32), 1)
        tl.store(folded_visible_bias + i, tl.load(visible_bias + i, mask=i < V, other=0.0) - bias, mask=i < V)
        if GAUSSIAN:
            variance = tl.exp(tl.load(log_variance + i, mask=i < V, other=0.0))
            tl.store(std + i, tl.sqrt(variance), mask=i < V)
