"""Latent scores against analytic values and brute force; the face detector against a drawing and photographs."""

import io
import math
import os
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.metrics import gaussians, images
from pipeline.metrics.faces import CASCADE, MissingDetector, face_share


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_moments(seed: int, n: int, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Rows whose sample mean and unbiased covariance are the given ones, not only in expectation."""
    rows = normal(seed, n, len(mean))
    rows = rows - rows.mean(0)
    white = rows @ torch.linalg.inv(torch.linalg.cholesky(rows.T @ rows / (n - 1))).T
    return mean + white @ torch.linalg.cholesky(covariance).T


# --- principal space -------------------------------------------------------------------------------------------------


def test_few_wide_rows_have_the_same_principal_space_by_their_products():
    rows = normal(5, 13, 31) * torch.linspace(3, 1, 31)
    by_columns, by_rows = images.fit_principal_space(rows, 7), images.fit_wide_principal_space(rows, 7)
    torch.testing.assert_close(by_rows.mean, by_columns.mean)
    torch.testing.assert_close(by_rows.components, by_columns.components)
    low = images.fit_wide_principal_space(rows[:4].repeat(3, 1), 7)  # 4 different rows span 3 dimensions
    assert low.components.shape == (31, 3)
    with pytest.raises(ValueError, match="all equal"):
        images.fit_wide_principal_space(rows[:1].repeat(5, 1), 2)
    with pytest.raises(ValueError, match="between 1 and 4"):
        images.fit_wide_principal_space(rows[:5], 5)


def test_principal_space_finds_the_axes_in_order_with_fixed_signs():
    axes = torch.linalg.qr(normal(1, 7, 7)).Q
    variances = torch.tensor([13.0, 7.0, 3.0, 1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
    mean = normal(2, 7)
    rows = exact_moments(3, 101, mean, axes @ torch.diag(variances) @ axes.T)
    space = images.fit_principal_space(rows, 3)
    assert space.mean.shape == (7,) and space.components.shape == (7, 3) and space.components.dtype == torch.float64
    torch.testing.assert_close(space.mean, mean)
    torch.testing.assert_close((space.components.T @ axes[:, :3]).abs(), torch.eye(3, dtype=torch.float64))
    largest = space.components.abs().argmax(0)
    assert (space.components[largest, torch.arange(3)] > 0).all()
    points = images.project(space, rows)
    torch.testing.assert_close(points.var(0), variances[:3])
    torch.testing.assert_close(points, (rows - mean) @ space.components)
    again = images.fit_principal_space(rows.flip(0), 3)  # the order of rows only rounds differently: no sign turns
    torch.testing.assert_close(again.components, space.components)


def test_principal_space_does_not_depend_on_the_block_size(monkeypatch):
    rows = normal(4, 103, 11).float()
    whole = images.fit_principal_space(rows, 5)
    monkeypatch.setattr(images, "_BLOCK", 17)
    blocked = images.fit_principal_space(rows, 5)
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(images.project(blocked, rows), images.project(whole, rows))


@pytest.mark.parametrize("num_components", [0, 6, 11])
def test_impossible_numbers_of_components_are_refused(num_components):
    with pytest.raises(ValueError, match=rf"num_components is {num_components}.*between 1 and 5"):
        images.fit_principal_space(normal(5, 6, 11), num_components)


# --- Frechet distance ------------------------------------------------------------------------------------------------


def test_frechet_distance_of_known_gaussians():
    a, b = torch.tensor([4.0, 9.0, 1.0], dtype=torch.float64), torch.tensor([1.0, 0.25, 16.0], dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x = exact_moments(6, 41, torch.zeros(3, dtype=torch.float64), torch.diag(a))
    y = exact_moments(7, 53, mean, torch.diag(b))
    expected = 1 + 4 + 0.25 + (2 - 1) ** 2 + (3 - 0.5) ** 2 + (1 - 4) ** 2
    assert images.frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert images.frechet_distance(y, x) == pytest.approx(expected, rel=1e-10)
    assert images.frechet_distance(x, x) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_with_covariances_that_do_not_commute():
    x, y = normal(8, 61, 5) @ normal(9, 5, 5), 0.5 + normal(10, 67, 5) @ normal(11, 5, 5)
    cov_x, cov_y = np.cov(x.numpy().T), np.cov(y.numpy().T)
    root = np.asarray(scipy.linalg.sqrtm(cov_x @ cov_y)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum().item() + np.trace(cov_x + cov_y - 2 * root)
    assert images.frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_fewer_rows_than_columns_is_finite():
    x, y = normal(12, 7, 19), normal(13, 7, 19)
    assert math.isfinite(images.frechet_distance(x, y)) and images.frechet_distance(x, y) > 0
    assert images.frechet_distance(x, x + 2) == pytest.approx(4 * 19, rel=1e-6)


# --- precision, recall, duplicates, distances ------------------------------------------------------------------------


def test_precision_and_recall_equal_brute_force():
    real, generated = normal(14, 43, 3), 0.5 + 0.7 * normal(15, 43, 3)

    def covered(points, centers, k=3):
        radii = [sorted(math.dist(c, o) for j, o in enumerate(centers) if j != i)[k - 1] for i, c in enumerate(centers)]
        return sum(any(math.dist(p, c) <= r for c, r in zip(centers, radii)) for p in points) / len(points)

    found = images.precision_recall(real, generated)
    assert found.precision == pytest.approx(covered(generated.tolist(), real.tolist()))
    assert found.recall == pytest.approx(covered(real.tolist(), generated.tolist()))
    assert 0 < found.recall < found.precision < 1  # a case in which the two can be told apart


def test_precision_and_recall_of_collapse_and_of_copies():
    real = normal(16, 97, 5)
    collapsed = real[:1] + 1e-3 * normal(17, 97, 5)
    assert images.precision_recall(real, collapsed) == (1.0, pytest.approx(1 / 97))
    assert images.precision_recall(real, real.clone()) == (1.0, 1.0)
    assert images.precision_recall(real, real + 1000) == (0.0, 0.0)
    assert images.precision_recall(real[:1].repeat(7, 1), real[:1].repeat(7, 1)) == (1.0, 1.0)  # radii of 0 include it


def test_duplicates_are_those_under_a_quarter_of_the_heldout_median():
    heldout = torch.arange(11.0)[:, None] * 8.0  # nearest neighbors at 8: the threshold is 2
    samples = torch.tensor([[0.0], [1.9], [10.0], [12.1], [30.0], [30.0], [50.0]])
    assert images.duplicate_share(samples, heldout) == pytest.approx(4 / 7)
    assert images.duplicate_share(heldout, heldout) == 0
    assert images.duplicate_share(torch.zeros(5, 1), heldout) == 1


def test_mean_pairwise_distance():
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert images.mean_pairwise_distance(corners) == pytest.approx(4.0)
    many = 100 + normal(18, 1103, 3)  # more than one block of rows
    expected = torch.pdist(many).mean().item()
    assert images.mean_pairwise_distance(many) == pytest.approx(expected, rel=1e-9)


def test_training_distance_and_memorization():
    train, heldout = normal(19, 307, 5), normal(20, 101, 5)
    nearest = torch.cdist(heldout, train).min(1).values
    assert images.nearest_training_distance(heldout, train) == pytest.approx(nearest.median().item())
    assert images.memorization_ratio(normal(21, 101, 5), heldout, train) == pytest.approx(1, abs=0.25)
    assert images.memorization_ratio(train[:101] + 1e-3 * normal(22, 101, 5), heldout, train) < 0.01
    with pytest.raises(ValueError, match="not trained on"):
        images.memorization_ratio(heldout, train[:31], train)


def test_total_variance_ratio():
    heldout = exact_moments(23, 29, torch.zeros(3, dtype=torch.float64), torch.diag(torch.tensor([1.0, 4, 7]).double()))
    assert images.total_variance_ratio(5 + 0.5 * heldout[:, [2, 0, 1]], heldout) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="no variance"):
        images.total_variance_ratio(heldout, torch.ones(5, 3))


# --- baselines -------------------------------------------------------------------------------------------------------


def correlated(seed: int, n: int) -> torch.Tensor:
    return 3 + normal(seed, n, 5) @ torch.tensor(
        [[3.0, 1, 0, 0, 0], [0, 2, 1, 0, 0], [0, 0, 1, 0.5, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0.3]], dtype=torch.float64
    )


def test_gaussian_baselines_have_the_moments_they_are_named_for():
    latents, n = correlated(24, 211), 40_009
    draw = {
        "full": gaussians.sample_full_gaussian(latents, n, torch.Generator().manual_seed(1)),
        "independent": gaussians.sample_independent_gaussian(latents, n, torch.Generator().manual_seed(2)),
        "principal": gaussians.sample_principal_gaussian(
            latents, n, torch.Generator().manual_seed(3), num_components=2
        ),
    }
    covariance = torch.cov(latents.T)
    values, vectors = torch.linalg.eigh(covariance)
    leading = vectors[:, -2:] * values[-2:] @ vectors[:, -2:].T
    expected = {"full": covariance, "independent": torch.diag(covariance.diagonal()), "principal": leading}
    # A sample covariance has standard error sqrt((C_ii C_jj + C_ij^2) / n).
    for name, rows in draw.items():
        scale = expected[name].diagonal().clamp_min(1e-12)
        error = ((scale[:, None] * scale + expected[name] ** 2) / n).sqrt()
        assert ((torch.cov(rows.T) - expected[name]).abs() < 5 * error + 1e-9).all(), name
        assert ((rows.mean(0) - latents.mean(0)).abs() < 5 * (scale / n).sqrt() + 1e-9).all(), name
    assert torch.linalg.matrix_rank(draw["principal"] - latents.mean(0), rtol=1e-9) == 2


def test_baselines_are_decided_by_the_generator_and_keep_the_type():
    latents = correlated(25, 101).float()
    for draw in (
        gaussians.sample_full_gaussian,
        gaussians.sample_independent_gaussian,
        lambda rows, n, generator: gaussians.sample_principal_gaussian(rows, n, generator, num_components=3),
    ):
        first, again = (draw(latents, 7, torch.Generator().manual_seed(5)) for _ in range(2))
        assert first.shape == (7, 5) and first.dtype == torch.float32
        assert torch.equal(first, again)
        assert not torch.equal(first, draw(latents, 7, torch.Generator().manual_seed(6)))
        with pytest.raises(ValueError, match="n is 0"):
            draw(latents, 0, torch.Generator())
    with pytest.raises(ValueError, match="num_components is 7"):
        gaussians.sample_principal_gaussian(latents, 3, torch.Generator(), num_components=7)


# --- the bundle ------------------------------------------------------------------------------------------------------


def test_scores_take_the_manifold_from_the_reencoded_rows():
    train, heldout, samples, reencoded = (correlated(30 + i, n) for i, n in enumerate((307, 89, 89, 89)))
    reencoded = reencoded * 0.8
    space = images.fit_principal_space(train, 3)
    plain = images.score_latents(space, heldout, samples)
    both = images.score_latents(space, heldout, samples, reencoded)
    assert (plain.manifold_rows, both.manifold_rows, plain.num_rows) == ("latents", "reencoded", 89)
    points = images.project(space, heldout)
    assert plain[1:3] == images.precision_recall(points, images.project(space, samples))
    assert both[1:3] == images.precision_recall(points, images.project(space, reencoded))
    assert plain[1:3] != both[1:3]
    assert plain.frechet == both.frechet == images.frechet_distance(images.project(space, samples), points)
    assert plain.variance_ratio == both.variance_ratio == images.total_variance_ratio(samples, heldout)
    collapsed = images.score_latents(space, heldout, samples, samples[:1].repeat(89, 1))
    assert collapsed.duplicates == 1 and plain.duplicates < 0.1


def test_scores_rank_collapse_below_a_fresh_sample():
    train, heldout, fresh = correlated(40, 307), correlated(41, 97), correlated(42, 97)
    space = images.fit_principal_space(train, 3)
    good = images.score_latents(space, heldout, fresh)
    bad = images.score_latents(space, heldout, train.mean(0) + 0.01 * normal(43, 97, 5))
    assert bad.frechet > 5 * good.frechet and bad.variance_ratio < 0.01 < 0.5 < good.variance_ratio
    assert bad.recall < 0.1 < 0.5 < good.recall


def test_scores_refuse_unequal_or_broken_rows():
    space = images.fit_principal_space(correlated(50, 61), 3)
    rows = correlated(51, 31)
    for call in (
        lambda: images.score_latents(space, rows, rows[:29]),
        lambda: images.score_latents(space, rows, rows, rows[:29]),
        lambda: images.precision_recall(rows, rows[:29]),
    ):
        with pytest.raises(ValueError, match=r"\(31, 5\).*\(29, 5\).*number of rows"):
            call()
    broken = rows.clone()
    broken[3, 1] = torch.inf
    with pytest.raises(ValueError, match=r"not finite.*diverged"):
        images.score_latents(space, rows, broken)
    with pytest.raises(ValueError, match=r"\(31, 3\); expected rows \[n >= 1, 5\]"):
        images.project(space, rows[:, :3])
    with pytest.raises(ValueError, match=r"\(1, 5\); expected rows \[n >= 2"):
        images.frechet_distance(rows[:1], rows)


# --- faces -----------------------------------------------------------------------------------------------------------


def drawn_face() -> np.ndarray:
    """A face of ellipses on 64x64, soft enough for a cascade trained on photographs."""
    y, x = np.mgrid[:64, :64]
    face = np.full((64, 64), 70.0)
    parts = [(32, 32, 24, 30, 40), (32, 36, 20, 26, 200), (32, 42, 2.5, 2, 140), (32, 51, 8, 2.5, 100)]
    parts += [(32 + 9 * s, 27, 6, 2, 90) for s in (-1, 1)] + [(32 + 9 * s, 32, 5, 3, 60) for s in (-1, 1)]
    for center_x, center_y, radius_x, radius_y, value in parts:
        face[((x - center_x) / radius_x) ** 2 + ((y - center_y) / radius_y) ** 2 < 1] = value
    for axis in (0, 1):
        face = sum(w * np.roll(face, s, axis) for s, w in zip((-2, -1, 0, 1, 2), (0.06, 0.24, 0.4, 0.24, 0.06)))
    return np.repeat(face[..., None], 3, -1).astype(np.uint8)


def test_detector_finds_a_drawn_face_and_nothing_else():
    pytest.importorskip("cv2", reason='the face detector needs pip install "beam-pipeline[bench]"')
    face = drawn_face()
    noise = np.random.default_rng(1).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    flat = np.full((2, 64, 64, 3), 128, np.uint8)
    found = face_share(np.concatenate([face[None], face[None, ::-1], noise, flat]))
    assert found[:3] == (1 / 11, 1, 11)
    assert "alt2" in found.detector and found.detector.startswith("OpenCV 4")
    assert face_share(torch.from_numpy(face[None])).share == 1


def test_detector_on_photographs():
    folder = os.environ.get("CELEBA")
    archive = Path(folder or ".") / "img_align_celeba.zip"
    if not folder or not archive.is_file():
        pytest.skip("set CELEBA to the folder of img_align_celeba.zip to check the face detector on photographs")
    pytest.importorskip("cv2", reason='the face detector needs pip install "beam-pipeline[bench]"')
    from PIL import Image

    with zipfile.ZipFile(archive) as photographs:
        names = sorted(name for name in photographs.namelist() if name.endswith(".jpg"))
        chosen = np.random.default_rng(7).choice(len(names), 211, replace=False)
        pixels = []
        for number in chosen:
            photograph = Image.open(io.BytesIO(photographs.read(names[number]))).convert("RGB")
            left, top = (photograph.width - 148) // 2, (photograph.height - 148) // 2
            square = photograph.crop((left, top, left + 148, top + 148))
            pixels.append(np.asarray(square.resize((64, 64), Image.Resampling.BILINEAR)))
    faces = np.stack(pixels)
    assert face_share(faces).share >= 0.9
    assert face_share(np.concatenate([faces[:, :, 32:], faces[:, :, :32]], 2)).share <= 0.02  # halves exchanged


@pytest.mark.parametrize("kind", ["absent", "without data", "without cascade", "without detector"])
def test_missing_detector_says_what_to_install(monkeypatch, tmp_path, kind):
    stand_in = types.ModuleType("cv2")
    if kind != "without data":
        stand_in.data = types.SimpleNamespace(haarcascades=str(tmp_path))
    if kind != "without detector":
        stand_in.CascadeClassifier = object
    else:
        (tmp_path / CASCADE).touch()
    monkeypatch.setitem(sys.modules, "cv2", None if kind == "absent" else stand_in)
    with pytest.raises(MissingDetector, match=r'pip install "beam-pipeline\[bench\]"'):
        face_share(drawn_face()[None])


@pytest.mark.parametrize(
    "bad", [np.zeros((3, 64, 64, 3)), np.zeros((3, 32, 32, 3), np.uint8), np.zeros((0, 64, 64, 3), np.uint8)]
)
def test_detector_refuses_what_it_was_not_calibrated_on(bad):
    with pytest.raises(ValueError, match=r"calibrated on uint8 \[n, 64, 64, 3\]"):
        face_share(bad)
