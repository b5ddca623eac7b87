"""The k-NN KL estimator against analytic divergences of Gaussians, a brute-force sum, and its known traps."""

import gzip
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.metrics.divergences import (
    RELATIVE_FLOOR,
    _subtract_all_pairs,
    forward_reverse_kl,
    knn_kl,
    nearest_distances,
)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force_kl(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Eq. 17 with its logarithm, row by row, written without the code under test."""
    n, d = x.shape
    total = 0.0
    for i in range(n):
        rho = sorted(math.dist(x[i], x[j]) for j in range(n) if j != i)[k - 1]
        nu = sorted(math.dist(x[i], row) for row in y)[k - 1]
        total += math.log(nu / rho)
    return d / n * total + math.log(len(y) / (n - 1))


@pytest.fixture(params=["all pairs", "candidates"])
def way(request, monkeypatch):
    """Each way to find neighbors, whatever the size of the sets."""
    monkeypatch.setattr(
        "pipeline.metrics.divergences._FEW_SUBTRACTIONS", {"all pairs": 1 << 60, "candidates": 0}[request.param]
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_printed_formula_with_its_logarithm(way, k):
    x, y = normal(1, 13, 7), 2 + normal(2, 13, 7)
    estimate = knn_kl(x, y, k)
    assert estimate.nats == pytest.approx(brute_force_kl(x.numpy(), y.numpy(), k), rel=1e-12)
    assert estimate.per_dimension == estimate.nats / 7
    assert (estimate.num_rows, estimate.num_neighbors, estimate.num_duplicates, estimate.num_floored) == (13, k, 0, 0)
    unequal = knn_kl(x, y[:11], k, allow_unequal=True)
    assert unequal.nats == pytest.approx(brute_force_kl(x.numpy(), y[:11].numpy(), k), rel=1e-12)


def test_distances_are_exact_where_the_product_form_cancels(way):
    # Far from the origin |a|^2 + |b|^2 - 2ab in float64 has an error near 1e-8 in squared distances of 1e-6.
    x = 1e4 + 1e-3 * normal(3, 211, 17)
    expected = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, 1:6]
    torch.testing.assert_close(nearest_distances(x, None, 5), expected, rtol=1e-12, atol=0)
    other = 1e4 + 1e-3 * normal(4, 199, 17)
    expected = torch.cdist(x, other, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, :3]
    torch.testing.assert_close(nearest_distances(x, other, 3), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("block", [1 << 27, 300])
def test_small_sets_and_a_gpu_have_the_distances_of_large_sets(block, monkeypatch):
    """All pairs subtracted, in one block and in several, against scikit-learn's candidates."""
    monkeypatch.setattr("pipeline.metrics.divergences._BLOCK_ELEMENTS", block)
    monkeypatch.setattr("pipeline.metrics.divergences._FEW_SUBTRACTIONS", 0)
    x, y = normal(5, 101, 5), normal(6, 97, 5)
    x[3], x[50:60], y[7] = x[2], x[60], x[0]  # equal rows: at exactly 0 on both
    for references in (None, y):
        expected = nearest_distances(x, references, 7)
        found = _subtract_all_pairs(x, x if references is None else references, 7, references is None)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_row_is_not_its_own_neighbor_in_the_smallest_set_and_among_copies(way):
    x = normal(5, 8, 5)
    whole = torch.cdist(x, x).fill_diagonal_(torch.inf).sort(1).values[:, :7]
    torch.testing.assert_close(nearest_distances(x, None, 7), whole, rtol=1e-12, atol=0)
    copies = x[[0] * 40 + [1]]  # more copies than candidates
    assert nearest_distances(copies, None, 5)[:40].eq(0).all()
    assert nearest_distances(copies, None, 5)[40].eq(torch.linalg.vector_norm(x[1] - x[0])).all()


def test_distances_do_not_depend_on_the_number_of_threads():
    """In processes of their own: scikit-learn's loops and the libraries below count their threads when they start."""
    code = (
        "import hashlib, torch; from pipeline.metrics.divergences import nearest_distances as f; "
        "g = torch.Generator().manual_seed(0); x, y = (torch.randn(700, 300, generator=g) for _ in range(2)); x[5:40] = x[4]; "
        "print(hashlib.sha256(b''.join(f(x, r, 5).numpy().tobytes() for r in (None, y, y[:50]))).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in (1, 2, 3)
    }
    assert len(said) == 1 and len(said.pop()) == 65


# Per row, d log rho_k and d log nu_k are logarithms of Gamma(k) variables plus log densities: their difference has
# variance 2 psi'(k) + Var_p[log p/q]. Rows share neighbors with about k others, so the mean's variance is at most about
# k times that over n. Bias: the density is not constant inside the k-NN ball, of probability k/n: order d (k/n)^(2/d).
@pytest.mark.parametrize(
    ("dimension", "shift", "scale"), [(1, 0.0, 2.0), (1, 0.7, 1.5), (2, 0.0, 2.0), (2, 0.7, 1.5), (3, 0.0, 1.5)]
)
def test_analytic_divergence_of_gaussians(dimension, shift, scale):
    n, k, num_seeds = 1511, 5, 3
    exact = dimension * (math.log(scale) + (1 / scale**2 - 1) / 2) + shift**2 / (2 * scale**2)
    curvature = (1 - 1 / scale**2) / 2
    variance = 2 * (math.pi**2 / 6 - sum(1 / i**2 for i in range(1, k)))
    variance += 2 * dimension * curvature**2 + (shift / scale**2) ** 2
    bound = 4 * math.sqrt(k * variance / (n * num_seeds)) + dimension * (k / n) ** (2 / dimension)
    assert bound < 0.25 and bound < exact  # else a forgotten self-exclusion or a factor 2 would pass
    estimates = []
    for seed in range(num_seeds):
        x, y = normal(100 + seed, n, dimension), scale * normal(200 + seed, n, dimension)
        y[:, 0] += shift
        estimates.append(knn_kl(x, y, k).nats)
    assert abs(sum(estimates) / num_seeds - exact) < bound


def test_direction_is_from_x_to_y():
    narrow, wide = normal(7, 997, 2), 2 * normal(8, 997, 2)
    # Analytic: D(narrow || wide) = .64, D(wide || narrow) = 1.61; the estimate of the latter saturates, but is larger.
    forward, reverse = forward_reverse_kl(narrow, wide, 5)
    assert forward == knn_kl(narrow, wide, 5) and reverse == knn_kl(wide, narrow, 5)
    assert forward.nats == pytest.approx(2 * math.log(2) - 0.75, abs=0.2)
    assert reverse.nats != pytest.approx(forward.nats, abs=0.05)


def test_unequal_counts_need_the_count_term():
    # One dimension, where the estimator is consistent: without log(m/(n-1)) the two would be off by -+ log 3 = 1.1.
    x, y = normal(9, 1201, 1), normal(10, 401, 1)
    assert abs(knn_kl(x, y, 5, allow_unequal=True).nats) < 0.3
    assert abs(knn_kl(y, x, 5, allow_unequal=True).nats) < 0.3


def embedded(seed: int, n: int) -> torch.Tensor:
    """Rows of an 11-dimensional sheet in 97 dimensions: like images, they fill few of their dimensions."""
    basis = torch.linalg.qr(normal(0, 97, 11)).Q
    return normal(seed, n, 11) @ basis.T


def test_two_samples_of_one_law_are_near_zero():
    # The sum runs over log ratios of an 11-dimensional sheet, so 1/11 of the spread above is left per dimension.
    trigamma = math.pi**2 / 6 - sum(1 / i**2 for i in range(1, 5))
    bound = 4 * math.sqrt(5 * 2 * trigamma / 503) / 11
    assert bound < 0.025  # below the shifts that the traps are tested for
    for seed in (0, 1, 2):
        forward, reverse = forward_reverse_kl(embedded(10 + seed, 503), embedded(20 + seed, 503))
        assert abs(forward.per_dimension) < bound and abs(reverse.per_dimension) < bound
    high = knn_kl(normal(11, 401, 1024), normal(12, 401, 1024))
    assert abs(high.per_dimension) < 0.002


def test_trap_noise_makes_the_reverse_estimate_negative():
    data, model = embedded(31, 503), embedded(32, 503) + 0.2 * normal(33, 503, 97)
    forward, reverse = forward_reverse_kl(data, model)
    assert forward.per_dimension > 0.05 and reverse.per_dimension < -0.03


def test_trap_unequal_counts_shift_the_estimate_and_are_refused():
    few, many = embedded(41, 251), embedded(42, 1009)
    with pytest.raises(ValueError, match=r"1009 rows and y has 251.*allow_unequal"):
        knn_kl(many, few)
    with pytest.raises(ValueError, match="equal numbers"):
        forward_reverse_kl(few, many)
    # Fewer, sparser references look farther away: an artefact of about log(4) (1/11 - 1/97) = .11 per dimension.
    assert knn_kl(many, few, allow_unequal=True).per_dimension > 0.05
    assert knn_kl(few, many, allow_unequal=True).per_dimension < -0.05


def test_collapse_and_near_copies_raise_the_reverse_estimate():
    data = embedded(51, 510)
    copies = embedded(52, 51).repeat(10, 1) + 0.01 * normal(53, 510, 97)
    assert forward_reverse_kl(data, copies)[1].per_dimension > 0.5


def test_few_duplicates_are_counted_and_do_not_touch_the_value():
    x, y = normal(61, 307, 11), normal(62, 307, 11)
    x[3], x[5] = x[2], y[7]
    estimate = knn_kl(x, y, 5)
    assert (estimate.num_duplicates, estimate.num_floored) == (3, 0)
    assert estimate.nats == pytest.approx(brute_force_kl(x.numpy(), y.numpy(), 5), rel=1e-12)


def test_many_duplicates_are_floored_and_stay_finite():
    x, y = normal(63, 29, 3), normal(64, 29, 3)
    x[:7] = x[0]  # six zero distances each: the 5th neighbor distance is 0
    estimate = knn_kl(x, y, 5)
    assert (estimate.num_duplicates, estimate.num_floored) == (7, 7)
    within, across = nearest_distances(x, None, 5)[:, -1], nearest_distances(x, y, 5)[:, -1]
    positive = torch.cat([within[7:], across])
    floor = RELATIVE_FLOOR * positive.median()
    expected = 3 * (across.log() - within.clamp_min(floor).log()).mean().item() + math.log(29 / 28)
    assert estimate.nats == pytest.approx(expected, rel=1e-12)
    assert knn_kl(1000 * x, 1000 * y, 5).nats == pytest.approx(estimate.nats, rel=1e-9)  # no unit in the floor


def test_sets_without_any_positive_distance():
    same = torch.ones(17, 5)
    estimate = knn_kl(same, same, 3)
    assert estimate.nats == pytest.approx(math.log(17 / 16))
    assert (estimate.num_duplicates, estimate.num_floored) == (17, 17)


def test_identical_sets_have_zero_forward_neighbors():
    x = normal(65, 53, 3)
    estimate = knn_kl(x, x.clone(), 1)  # nu_1 = 0 for every row
    assert (estimate.num_duplicates, estimate.num_floored) == (53, 53) and math.isfinite(estimate.nats)
    assert estimate.nats < -20


def test_minibatches_are_averaged_by_rows():
    data, model = normal(71, 103, 3), 1.3 * normal(72, 103, 3)
    forward, reverse = forward_reverse_kl(data, model, 3, batch_size=40)  # 40 + 40 + 23: the last is over half
    parts = [(data[a:b], model[a:b]) for a, b in ((0, 40), (40, 80), (80, 103))]
    weights = (40, 40, 23)
    assert forward.num_rows == reverse.num_rows == 103
    expected = sum(w * knn_kl(x, y, 3).nats for w, (x, y) in zip(weights, parts)) / 103
    assert forward.nats == pytest.approx(expected, rel=1e-12)
    expected = sum(w * knn_kl(y, x, 3).nats for w, (x, y) in zip(weights, parts)) / 103
    assert reverse.nats == pytest.approx(expected, rel=1e-12) and reverse.per_dimension == reverse.nats / 3
    dropped, _ = forward_reverse_kl(data[:95], model[:95], 3, batch_size=40)  # 15 rows are under half
    assert dropped.num_rows == 80
    assert dropped.nats == pytest.approx(sum(knn_kl(x, y, 3).nats for x, y in parts[:2]) / 2, rel=1e-12)
    too_few, _ = forward_reverse_kl(data[:13], model[:13], 5, batch_size=8)  # 5 rows are over half, too few for k = 5
    assert too_few.num_rows == 8


@pytest.mark.parametrize("batch_size", [-1, 0, 5, 104])
def test_impossible_batch_sizes_are_refused(batch_size):
    rows = normal(73, 103, 3)
    with pytest.raises(ValueError, match=rf"batch_size is {batch_size}.*6\.\.103"):
        forward_reverse_kl(rows, rows + 1, 5, batch_size)


def test_bad_inputs_are_refused_with_the_reason():
    rows = normal(74, 23, 5)
    with pytest.raises(ValueError, match=r"num_neighbors is 23.*22 possible"):
        knn_kl(rows, rows + 1, 23)
    with pytest.raises(ValueError, match="num_neighbors is 0"):
        knn_kl(rows, rows + 1, 0)
    with pytest.raises(ValueError, match="5 and 3 columns"):
        knn_kl(rows, rows[:, :3])
    with pytest.raises(ValueError, match="flatten"):
        knn_kl(rows.reshape(23, 5, 1), rows)
    broken = rows.clone()
    broken[4, 2] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 23 references .*not finite"):
        knn_kl(rows, broken)


def test_inputs_are_left_alone_and_float32_gives_the_same():
    x, y = normal(75, 131, 7).float(), 1.5 * normal(76, 131, 7).float()
    kept = x.clone(), y.clone()
    assert knn_kl(x, y).nats == knn_kl(x.double(), y.double()).nats
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])


def test_real_digits_against_real_digits():
    folder = os.environ.get("MNIST")
    path = Path(folder or ".") / "t10k-images-idx3-ubyte.gz"
    if not folder or not path.is_file():
        pytest.skip("set MNIST to the folder of t10k-images-idx3-ubyte.gz to check the estimator on real images")
    pixels = torch.frombuffer(bytearray(gzip.decompress(path.read_bytes())[16:]), dtype=torch.uint8).view(-1, 784)
    chosen = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(5))[:2000]] / 255.0
    forward, reverse = forward_reverse_kl(chosen[:1000], chosen[1000:])
    assert abs(forward.per_dimension) < 0.01 and abs(reverse.per_dimension) < 0.01
    noisy = chosen[1000:] + 0.1 * normal(77, 1000, 784)
    forward, reverse = forward_reverse_kl(chosen[:1000], noisy)
    assert forward.per_dimension > 0.05 and reverse.per_dimension < -0.03
