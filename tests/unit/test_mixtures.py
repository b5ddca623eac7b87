"""The mixtures: samples have the density's modes and width; log_prob is a density; shards of them are points."""

import math
from pathlib import Path

import pytest
import torch

from data_prep.mixtures import draw_mixture
from jobs.prepare import main
from pipeline.data.manifest import ShardError, read_manifest
from pipeline.data.mixtures import MIXTURES, GaussianMixture, bimodal, grid, make_mixture, moved, ring
from pipeline.data.rows import load_rows, read_scaling
from pipeline.data.shards import load_split
from pipeline.streams import stream


@pytest.mark.parametrize("name", MIXTURES)
def test_samples_have_equal_modes_of_the_stated_width(name: str) -> None:
    mixture = MIXTURES[name]()
    n = 20_000
    rows = mixture.sample(n, stream(0, "test")).double()
    distances = torch.cdist(rows, mixture.centers)
    counts = torch.bincount(distances.argmin(1), minlength=len(mixture.centers)).double()
    share = 1 / len(mixture.centers)
    assert (counts / n - share).abs().max() < 5 * math.sqrt(share * (1 - share) / n)
    noise = rows - mixture.centers[distances.argmin(1)]
    assert noise.std() == pytest.approx(mixture.std, rel=0.02)


@pytest.mark.parametrize("name", MIXTURES)
def test_log_prob_is_the_mean_of_gaussians_and_integrates_to_one(name: str) -> None:
    mixture = MIXTURES[name]()
    width = mixture.centers.shape[1]
    axis = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    rows = axis[:, None] if width == 1 else torch.cartesian_prod(axis, axis)
    log_prob = mixture.log_prob(rows)
    assert float(log_prob.exp().sum()) * 0.01**width == pytest.approx(1, abs=1e-6)
    square = (rows[:50, None] - mixture.centers).square().sum(2) / mixture.std**2
    by_hand = (-0.5 * square).logsumexp(1) - math.log(len(mixture.centers))
    by_hand -= width * math.log(mixture.std * math.sqrt(2 * math.pi))
    assert torch.allclose(log_prob[:50], by_hand, atol=1e-10)


def test_shards_of_a_mixture_are_points_and_are_drawn_once(tmp_path) -> None:
    manifest = draw_mixture("ring", tmp_path / "ring", train_rows=300)
    assert (manifest.kind, manifest.dataset, manifest.row_shape) == ("points", "mixture-ring", (2,))
    rows = load_rows(tmp_path / "ring", "train")
    assert torch.equal(rows, load_split(tmp_path / "ring", "train")) and len(rows) == 300
    assert torch.equal(read_scaling(tmp_path / "ring").invert(rows), rows)
    written = (tmp_path / "ring" / "train-00000.tar").stat().st_mtime_ns
    assert draw_mixture("ring", tmp_path / "ring", train_rows=300) == manifest
    assert (tmp_path / "ring" / "train-00000.tar").stat().st_mtime_ns == written
    assert draw_mixture("ring", tmp_path / "ring", train_rows=301).hash != manifest.hash


def test_an_unknown_mixture_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(ValueError, match="'rings' is unknown; there are bimodal, ring, grid"):
        draw_mixture("rings", tmp_path)


def test_a_folder_without_rows_for_a_beam_is_refused(tmp_path) -> None:
    with pytest.raises(ShardError):
        load_rows(tmp_path, "train")


HASHES = {
    "bimodal": ("6b704a2962ba7dbb9875ef6e183035e42ee3a5bda27526cb63db3884d37e27bb", "1607c884d40ec10e"),
    "ring": ("cc9266709c45b0afae6b36d7a098773a7682006bcefb024e339746ae1be9e7bc", "62972af109ae70e9"),
    "grid": ("99207486e2aac063fadafc0c1f114ed21a5005e33ee1ab7fc661718160fa67e6", "f117a57f0ffa9c78"),
}
"""Source and manifest hash of 300 rows, seed 3: registered models and finished runs name their data by them."""


@pytest.mark.parametrize("name", MIXTURES)
def test_the_standard_mixtures_keep_their_hashes(tmp_path, name: str) -> None:
    for number, mixture in enumerate((name, MIXTURES[name](), moved(MIXTURES[name](), 0.0, 1.0))):
        manifest = draw_mixture(mixture, tmp_path / str(number), 300, 3)
        assert (manifest.source_hash, manifest.hash[:16]) == HASHES[name]
        assert manifest.dataset == f"mixture-{name}"


def test_geometry_by_settings() -> None:
    twelve = ring(12, radius=3, std=0.1)
    assert torch.allclose(twelve.centers.norm(dim=1), torch.tensor(3.0, dtype=torch.float64))
    neighbors = (twelve.centers - twelve.centers.roll(1, 0)).norm(dim=1)
    assert torch.allclose(neighbors, torch.full((12,), 6 * math.sin(math.pi / 12), dtype=torch.float64))
    assert twelve.std == 0.1
    four_by_six = grid(rows=4, columns=6, spacing=0.5)
    assert len({tuple(c) for c in four_by_six.centers.tolist()}) == 24
    assert four_by_six.centers[:, 0].unique().tolist() == [-1.25, -0.75, -0.25, 0.25, 0.75, 1.25]  # columns along x
    assert four_by_six.centers[:, 1].unique().tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert bimodal(6.0, 0.1).centers.tolist() == [[-3.0], [3.0]]
    assert make_mixture("ring", {"num_modes": 12, "radius": 3}).centers.tolist() == ring(12, 3).centers.tolist()


def recorded_mixture(directory: Path | str) -> GaussianMixture:
    """The density from which the rows in a folder were drawn, as its manifest has it."""
    settings = read_manifest(directory).settings
    return GaussianMixture(torch.tensor(settings["centers"], dtype=torch.float64), settings["std"])


def test_a_moved_mixture_is_the_density_of_moved_rows() -> None:
    mixture, shift = ring(5), torch.tensor([5.0, -3.0], dtype=torch.float64)
    rows = mixture.sample(100, stream(0, "test")).double()
    far = moved(mixture, shift.tolist(), 10)
    # p'(a x + b) = p(x) / a^d
    assert torch.allclose(far.log_prob(10 * rows + shift), mixture.log_prob(rows) - 2 * math.log(10), atol=1e-9)
    assert moved(bimodal(), 3).centers.tolist() == [[1.0], [5.0]]


def test_another_geometry_is_another_data_set_with_its_density_on_record(tmp_path) -> None:
    settings = {"num_modes": 12}
    one = draw_mixture("ring", tmp_path / "a", 300, settings=settings)
    other = draw_mixture(moved(ring(12), [5, -3], 10), tmp_path / "b", 300, label="far-ring")
    standard = draw_mixture("ring", tmp_path / "c", 300)
    assert len({one.source_hash, other.source_hash, standard.source_hash}) == 3
    assert one.dataset.startswith("mixture-ring-") and other.dataset.startswith("mixture-far-ring-")
    assert recorded_mixture(tmp_path / "a").centers.tolist() == ring(12).centers.tolist()
    far = recorded_mixture(tmp_path / "b")
    rows = load_split(tmp_path / "b", "train").double()
    assert (far.std, len(far.centers)) == (2.0, 12)
    assert torch.cdist(rows, far.centers).amin(1).max() < 6 * far.std
    assert draw_mixture("ring", tmp_path / "a", 300, settings=settings) == one


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_mixture("rings"), "'rings' is unknown"),
        (lambda: make_mixture("ring", {"modes": 3}), "no setting 'modes'.*num_modes, radius, std"),
        (lambda: ring(0), "num_modes = 0: .* at least 1"),
        (lambda: grid(rows=2.5), "rows = 2.5"),  # type: ignore[arg-type]
        (lambda: ring(std=0), "std = 0: must be positive"),
        (lambda: ring(radius=math.inf), "all must be finite"),
        (lambda: moved(ring(), [1, 2, 3]), "give one number, or 2"),
        (lambda: moved(ring(), 0, -1), "scale = -1: must be positive"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_without_a_name_and_no_rows_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="belong to a mixture by name"):
        draw_mixture(GaussianMixture(torch.zeros(1, 1), 1.0), tmp_path, settings={"std": 2})
    with pytest.raises(ValueError, match="train_rows = 0"):
        draw_mixture("ring", tmp_path, 0)


def test_the_job_draws_any_geometry(tmp_path, capsys) -> None:
    out = str(tmp_path / "out")
    geometry = ["--name", "ring", "--modes", "12", "--radius", "3", "--std", ".2", "--shift", "5,-3", "--scale", "10"]
    assert main(["mixture", *geometry, "--rows", "200", "--out", out]) == 0
    expected = moved(ring(12, 3, 0.2), [5, -3], 10)
    assert recorded_mixture(out).centers.tolist() == expected.centers.tolist() and recorded_mixture(out).std == 2.0
    assert len(load_split(out, "train")) == 200
    assert main(["mixture", "--name", "grid", "--modes", "3", "--out", out]) == 2
    assert "has no setting 'num_modes'" in capsys.readouterr().err
    assert main(["mixture", "--name", "grid", "--grid-rows", "4", "--grid-columns", "6", "--out", out]) == 0
    assert len(recorded_mixture(out).centers) == 24
