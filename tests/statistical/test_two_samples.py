"""Kernel MMD and the nearest-neighbor two-sample score: by hand, by their laws, and on rows with known faults."""

import math

import pytest
import torch

from pipeline.metrics.image_features import hog
from pipeline.metrics.image_scores import BOOTSTRAP, GAUSSIAN, bootstrap, score_images
from pipeline.metrics.images import precision_recall
from pipeline.metrics.two_samples import (
    Kernel,
    _squared_discrepancy,
    fit_kernel,
    kernel_discrepancy,
    neighbor_accuracy,
)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(kernel: Kernel, x: torch.Tensor, y: torch.Tensor) -> float:
    if kernel.name == "polynomial":
        return (float(x @ y) / kernel.scale + 1) ** 3
    return math.exp(-float((x - y) @ (x - y)) / (2 * kernel.scale))


@pytest.mark.parametrize("name", ["polynomial", "gaussian"])
def test_discrepancy_is_the_printed_sum(name):
    x, y = normal(1, 7, 3), 1 + normal(2, 7, 3)
    kernel = fit_kernel(x, name)
    within = sum(value(kernel, s[i], s[j]) for s in (x, y) for i in range(7) for j in range(7) if i != j) / 42
    across = sum(value(kernel, a, b) for a in x for b in y) / 49
    assert _squared_discrepancy(x, y, kernel) == pytest.approx(within - 2 * across, rel=1e-12)


def test_kernels_are_scaled_by_the_real_rows():
    x = normal(3, 51, 5)
    assert fit_kernel(x, "polynomial").scale == pytest.approx(x.square().sum(1).mean().item())
    pairs = sorted(float((x[i] - x[j]).norm()) for i in range(51) for j in range(i))
    assert fit_kernel(x, "gaussian").scale == pytest.approx(pairs[(len(pairs) - 1) // 2] ** 2)
    with pytest.raises(ValueError, match="all equal"):
        fit_kernel(torch.ones(5, 3), "gaussian")
    with pytest.raises(ValueError, match="unknown"):
        fit_kernel(x, "cubic")
    with pytest.raises(ValueError, match="n >= 2"):
        fit_kernel(x[:1], "gaussian")


@pytest.mark.parametrize("name", ["polynomial", "gaussian"])
def test_equal_laws_are_at_zero_within_the_error_bar(name):
    scores = []
    for seed in range(40):
        x, y = normal(100 + seed, 200, 5), normal(200 + seed, 200, 5)
        found = kernel_discrepancy(x, y, fit_kernel(x, name))
        assert (found.num_rows, found.num_subsets) == (200, 10)
        scores.append(found.squared / found.standard_error)
    scores = torch.tensor(scores)
    assert abs(scores.mean()) < 0.6 and 0.6 < scores.std() < 1.7  # unbiased (its mean to 1/sqrt(40)), honest error bar


def test_gaussian_kernel_against_the_closed_form():
    # E k(x, x') of N(0, 1) and N(m, 1) in one dimension, scale b: sqrt(b / (b + 2)) exp(-m^2 / (2 (b + 2))).
    kernel, shift = Kernel("gaussian", 1.5), 0.8
    height = math.sqrt(1.5 / 3.5)
    exact = 2 * height - 2 * height * math.exp(-(shift**2) / (2 * 3.5))
    found = kernel_discrepancy(normal(4, 5000, 1), shift + normal(5, 5000, 1), kernel)
    assert abs(found.squared - exact) < 4 * found.standard_error < 0.3 * exact


def test_polynomial_kernel_against_the_closed_form():
    # (x y / c + 1)^3 sums the squared differences of the moments: 3 d1^2 / c + 3 d2^2 / c^2 + d3^2 / c^3.
    shift, c = 0.5, 1.5
    moments = shift, shift**2, shift**3 + 3 * shift  # E y^j - E x^j of N(shift, 1) and N(0, 1)
    exact = 3 * moments[0] ** 2 / c + 3 * moments[1] ** 2 / c**2 + moments[2] ** 2 / c**3
    found = kernel_discrepancy(normal(6, 5000, 1), shift + normal(7, 5000, 1), Kernel("polynomial", c))
    assert abs(found.squared - exact) < 4 * found.standard_error < 0.6 * exact


def test_unequal_counts_and_impossible_subsets_are_refused():
    x = normal(8, 23, 3)
    kernel = fit_kernel(x, "gaussian")
    with pytest.raises(ValueError, match="equally many"):
        kernel_discrepancy(x, x[:22], kernel)
    with pytest.raises(ValueError, match="equally many"):
        neighbor_accuracy(x, x[:22])
    for number in (0, 1, 12):
        with pytest.raises(ValueError, match=rf"num_subsets is {number}.*2\.\.11"):
            kernel_discrepancy(x, x, kernel, number)


def test_neighbor_accuracy_by_brute_force():
    x, y = normal(9, 29, 3), 0.7 * normal(10, 29, 3)
    both, labels = torch.cat([x, y]), torch.arange(58) >= 29
    right = []
    for i in range(58):
        nearest = min((float((both[i] - both[j]).norm()), j) for j in range(58) if j != i)[1]
        right.append(float(labels[nearest] == labels[i]))
    found = neighbor_accuracy(x, y)
    assert found.real == pytest.approx(sum(right[:29]) / 29) and found.generated == pytest.approx(sum(right[29:]) / 29)
    assert found.overall == pytest.approx(sum(right) / 58) and found.num_rows == 29


def test_neighbor_accuracy_of_known_faults():
    x, n = normal(11, 1009, 5), 1009
    same = neighbor_accuracy(x, normal(12, n, 5))
    # Neighbors come in mutual pairs: the variance of the share is at most about twice the binomial one.
    assert abs(same.overall - 0.5) < 5 * math.sqrt(0.5 / (2 * n)) and abs(same.real - 0.5) < 5 * math.sqrt(0.5 / n)
    copies = neighbor_accuracy(x, x + 1e-4 * normal(13, n, 5))  # copies of the real rows themselves
    assert copies.real < 0.01 and copies.generated < 0.01
    collapsed = neighbor_accuracy(x, normal(14, 101, 5).repeat(10, 1)[:n] + 1e-4 * normal(15, n, 5))
    assert collapsed.generated > 0.99 and collapsed.real > 0.8
    apart = neighbor_accuracy(x, 100 + normal(16, n, 5))
    assert (apart.overall, apart.real, apart.generated) == (1, 1, 1)
    exact = neighbor_accuracy(torch.cat([x, x]), torch.cat([x, x]))  # all distances 0: nothing can be told
    assert (exact.overall, exact.real, exact.generated) == (0.5, 0.5, 0.5)


# --- pictures --------------------------------------------------------------------------------------------------------


def strokes(seed: int, n: int, side: int = 28) -> torch.Tensor:
    """Bright bars of random place, length and angle on black: uint8 [n, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    angle, x0, y0 = (torch.rand(n, 1, 1, generator=generator, dtype=torch.float64) for _ in range(3))
    angle, x0, y0 = angle * math.pi, (x0 - 0.5) * side / 4, (y0 - 0.5) * side / 4
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64) - side / 2] * 2, indexing="ij")
    along = (x - x0) * angle.cos() + (y - y0) * angle.sin()
    across = -(x - x0) * angle.sin() + (y - y0) * angle.cos()
    return (255 * torch.sigmoid(4 - 2 * across.abs()) * torch.sigmoid(16 - 2 * along.abs())).to(torch.uint8)


def test_scores_of_pictures_with_known_faults():
    n = 200
    real, train = strokes(1, n), strokes(2, 500)
    generator = torch.Generator().manual_seed(3)
    noisy = (strokes(4, n).double() + 40 * normal(5, n, 28, 28)).clamp(0, 255).to(torch.uint8)
    generated = {
        GAUSSIAN: noisy,
        BOOTSTRAP: bootstrap(train, n, generator),
        "same law": strokes(6, n),
        "one stroke": strokes(7, 1).expand(n, -1, -1),
        "test copies": real.clone(),
    }
    scores = score_images(real, generated, num_neighbors=3, train_pixels=train)
    assert list(scores) == list(generated)
    assert {(s.num_rows, s.num_neighbors, s.num_features) for s in scores.values()} == {(n, 3, 324)}
    good = scores["same law"]
    for estimate in (good.polynomial, good.gaussian):
        assert abs(estimate.squared) < 4 * estimate.standard_error
    assert good.manifold.precision > 0.7 and good.manifold.recall > 0.7
    assert abs(good.neighbors.overall - 0.5) < 0.15 and 0.7 < good.novelty < 1.4
    for name in (GAUSSIAN, "one stroke"):
        bad = scores[name]
        assert bad.polynomial.squared > 5 * bad.polynomial.standard_error
        assert bad.gaussian.squared > 5 * bad.gaussian.standard_error
        assert bad.neighbors.overall > 0.8 and bad.manifold.recall < 0.3
    assert scores[BOOTSTRAP].novelty == 0 and scores["test copies"].novelty == 1
    assert scores["test copies"].neighbors.real < 0.05 and scores["test copies"].manifold == (1.0, 1.0)
    assert score_images(real, generated)["same law"].novelty is None
    again = score_images(real, generated, train_pixels=train)
    assert again == scores


def test_manifold_shares_are_those_of_the_existing_function():
    real, other = strokes(8, 50), strokes(9, 50)
    scores = score_images(real, {GAUSSIAN: other, BOOTSTRAP: real}, num_neighbors=2)
    assert scores[GAUSSIAN].manifold == precision_recall(hog(real), hog(other), 2)


def test_tables_without_baselines_or_with_other_counts_are_refused():
    real = strokes(10, 40)
    with pytest.raises(ValueError, match=r"\['full Gaussian'\] are missing"):
        score_images(real, {BOOTSTRAP: real, "model": real})
    with pytest.raises(ValueError, match=r"'model' is torch.uint8 of shape \(39, 28, 28\).*equally many"):
        score_images(real, {GAUSSIAN: real, BOOTSTRAP: real, "model": real[:39]})
    with pytest.raises(ValueError, match=r"torch.float32"):
        score_images(real, {GAUSSIAN: real, BOOTSTRAP: real, "model": real.float()})
    with pytest.raises(ValueError, match="test split"):
        score_images(real, {GAUSSIAN: real, BOOTSTRAP: real}, train_pixels=real)


def test_a_bootstrap_draws_with_replacement():
    rows = torch.arange(7)[:, None].expand(7, 3)
    drawn = bootstrap(rows, 700, torch.Generator().manual_seed(1))
    counts = torch.bincount(drawn[:, 0], minlength=7)
    assert drawn.shape == (700, 3) and counts.min() > 50 and counts.max() < 160
    with pytest.raises(ValueError, match="cannot draw 0 rows from 7"):
        bootstrap(rows, 0, torch.Generator())
