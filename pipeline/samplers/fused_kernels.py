"""Triton kernels of driven Gibbs for Bernoulli hidden and Bernoulli or Gaussian visible units; launched by fused.py.

Random numbers are Philox of (seed; unit / 4, particle, half sweep, step), one call for the numbers of four units, in 7 rounds
(the fewest that pass the tests of Salmon et al., 2011): they belong to the particle, wherever it lies, and need no state.
Weights lie along the summed index: [H, V] towards the hidden units, [V, H] towards the visible ones.

Two other forms were measured on an H100 at 1024-512, 128 chains, and lost: all sweeps in one launch, where the weights stay on
chip and programs wait for each other (1.33 ms for 100 sweeps against .77), and a launch whose weights are read while the one
before still runs (.91 at best).
"""

import triton
import triton.language as tl


@triton.jit
def _interleaved(a, b, c, d, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS] whose columns 4 i, ..., 4 i + 3 are columns i of a, b, c, d [ROWS, COLS / 4]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (ROWS, COLS))


@triton.jit
def _cos_and_sin(u, APPROXIMATE: tl.constexpr):
    """Of the angle 2 pi (u - 1/2); approximate: one instruction each, off by 5e-7 at most."""
    angle = 6.283185307179586 * (u - 0.5)
    if APPROXIMATE:
        cosine = tl.inline_asm_elementwise("cos.approx.f32 $0, $1;", "=f,f", [angle], tl.float32, True, 1)
        sine = tl.inline_asm_elementwise("sin.approx.f32 $0, $1;", "=f,f", [angle], tl.float32, True, 1)
        return cosine, sine
    else:
        return tl.cos(angle), tl.sin(angle)


@triton.jit
def _random(
    seed, step, half, particles, col,
    NORMAL: tl.constexpr, APPROXIMATE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
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
        # Box and Muller's radius sqrt(-2 log u), by the base that the device has
        p = tl.sqrt(-1.3862943611198906 * tl.log2(tl.maximum(u0, 1e-10)))
        q = tl.sqrt(-1.3862943611198906 * tl.log2(tl.maximum(u2, 1e-10)))
        cos_1, sin_1 = _cos_and_sin(u1, APPROXIMATE)
        cos_3, sin_3 = _cos_and_sin(u3, APPROXIMATE)
        return _interleaved(p * cos_1, p * sin_1, q * cos_3, q * sin_3, ROWS, COLS)
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
    APPROXIMATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
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
