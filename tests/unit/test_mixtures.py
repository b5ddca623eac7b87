"""The mixtures: samples have the density's modes and width; log_prob is a density; shards of them are points."""

import math

import pytest
import torch

from data_prep.mixtures import draw_mixture
from pipeline.data.mixtures import MIXTURES
from pipeline.data.rows import load_rows, read_scaling
from pipeline.data.shards import ShardError, load_split
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
