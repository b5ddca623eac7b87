"""Histograms of oriented gradients: constant pictures, edges of known angle, turned and mirrored pictures."""

import math

import pytest
import torch

from pipeline.metrics import image_features
from pipeline.metrics.image_features import FLATNESS, gray, hog, to_pixels


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def ramp(angle: float, side: int = 32) -> torch.Tensor:
    """A picture whose intensity rises along `angle` (degrees, from x toward y, which points down): [1, side, side]."""
    line = torch.arange(side, dtype=torch.float64) - side / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    radians = math.radians(angle)
    return (127.5 + 5 * (x * math.cos(radians) + y * math.sin(radians))).round().to(torch.uint8)[None]


def orientations(pixels: torch.Tensor, num_bins: int = 9) -> torch.Tensor:
    """Mean of the features over blocks and cells of the one picture: [bins]."""
    return hog(pixels, num_bins).view(-1, num_bins).mean(0)


@pytest.mark.parametrize(
    ("shape", "features"), [((3, 64, 64, 3), 1764), ((3, 64, 64), 1764), ((3, 28, 28), 324), ((1, 16, 16), 36)]
)
def test_sizes_and_ranges(shape, features):
    rows = hog(noise(1, *shape))
    assert rows.shape == (shape[0], features) and rows.dtype == torch.float32
    assert (rows >= 0).all() and torch.isfinite(rows).all()
    lengths = rows.view(shape[0], -1, 36).norm(dim=2)
    assert (lengths <= 1).all() and (lengths > 0.9).all()


def test_constant_pictures_have_no_features():
    for value in (0, 77, 255):
        assert torch.equal(hog(torch.full((2, 28, 28), value, dtype=torch.uint8)), torch.zeros(2, 324))


@pytest.mark.parametrize("k", range(9))
def test_a_ramp_at_a_bins_center_votes_for_that_bin(k):
    found = orientations(ramp(20 * k + 10))
    assert found.argmax() == k and found[k] > 5 * found.sum() / 9  # rounding to uint8 turns some gradients a little


def test_a_vertical_edge_has_a_horizontal_gradient_split_between_the_bins_around_zero():
    pixels = torch.zeros(1, 64, 64, dtype=torch.uint8)
    pixels[:, :, 20:] = 200
    rows = hog(pixels).view(7, 7, 2, 2, 9)
    assert rows[..., 1:8].sum() == 0  # 0 degrees lies half-way between the centers 170 (= -10) and 10
    torch.testing.assert_close(rows[..., 0], rows[..., 8])
    # The gradient is at columns 19 and 20: in the third column of cells, so in the second and third column of blocks.
    assert rows[:, [0, 3, 4, 5, 6]].sum() == 0 and (rows[:, 1, :, 1, 0] > 0).all() and (rows[:, 2, :, 0, 0] > 0).all()
    assert rows[:, 1, :, 0].sum() == 0


def test_a_turned_edge_is_split_where_a_right_angle_falls_between_bins():
    # 90 degrees are 4.5 bins of 20: an edge at a bin's center lands on a boundary, half in each neighbor.
    turned = orientations(ramp(30 + 90))
    torch.testing.assert_close(turned[5], turned[6], rtol=0.2, atol=0)
    assert orientations(ramp(30)).argmax() == 1 and turned[[5, 6]].sum() > 0.8 * turned.sum()


def test_a_quarter_turn_moves_eight_bins_by_four():
    pixels = noise(2, 2, 64, 64)
    rows, turned = hog(pixels, 8).view(2, 7, 7, 2, 2, 8), hog(torch.rot90(pixels, 1, (1, 2)), 8).view(2, 7, 7, 2, 2, 8)
    expected = torch.rot90(torch.rot90(rows, 1, (1, 2)), 1, (3, 4)).roll(4, dims=5)
    torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-5)


def test_a_half_turn_keeps_the_bins_and_a_mirror_reverses_them():
    pixels = noise(3, 2, 28, 28)
    rows = hog(pixels).view(2, 3, 3, 2, 2, 9)
    half = hog(pixels.flip(1, 2)).view(2, 3, 3, 2, 2, 9)
    torch.testing.assert_close(half, rows.flip(1, 2, 3, 4), rtol=1e-4, atol=1e-5)
    mirrored = hog(pixels.flip(2)).view(2, 3, 3, 2, 2, 9)
    torch.testing.assert_close(mirrored, rows.flip(2, 4, 5), rtol=1e-4, atol=1e-5)


def test_contrast_and_brightness_are_normalized_away():
    pixels = (noise(4, 3, 64, 64) // 2).to(torch.uint8)
    torch.testing.assert_close(hog(2 * pixels), hog(pixels), rtol=0, atol=0.01)
    torch.testing.assert_close(hog(pixels + 100), hog(pixels), rtol=0, atol=1e-4)


def test_normalization_by_hand():
    votes = torch.tensor([[3.0, 4.0, 0.0, 0.1]])  # to length 1: .6, .8, 0, .02; cut: .2, .2, 0, .02
    expected = torch.tensor([[0.2, 0.2, 0.0, 0.02]]) / math.sqrt(2 * 0.2**2 + 0.02**2)
    torch.testing.assert_close(image_features._normalized(votes), expected, rtol=1e-3, atol=0)
    small = FLATNESS * torch.tensor([[0.6, 0.8]])  # as long as FLATNESS: both halves weigh the same
    torch.testing.assert_close(image_features._normalized(small), torch.tensor([[0.5, 0.5]]))


def test_features_of_a_ramp_by_hand():
    # 2 levels a pixel along x: angle 0, half in bin 0 and half in bin 8, alike in all cells but those at a border.
    pixels = (torch.arange(64) * 2).expand(1, 64, 64).to(torch.uint8)
    length = math.sqrt(8) * (2 / 255) / 2  # eight equal votes in a block
    expected = torch.zeros(4, 9)
    expected[:, [0, 8]] = math.sqrt(1 / 8) * length / math.hypot(length, FLATNESS)
    torch.testing.assert_close(hog(pixels).view(7, 7, 4, 9)[3, 3], expected, rtol=1e-4, atol=1e-6)


def test_rounding_of_a_flat_picture_is_not_blown_up():
    flat = 128 + noise(5, 7, 64, 64) % 2  # gradients of half a level
    lengths = hog(flat.to(torch.uint8)).view(7, 49, 36).norm(dim=2)
    edges = hog(noise(5, 7, 64, 64)).view(7, 49, 36).norm(dim=2)
    assert lengths.max() < 0.5 and edges.min() > 0.98


def test_blocks_of_pictures_change_nothing(monkeypatch):
    pixels = noise(6, 11, 28, 28)
    whole = hog(pixels)
    monkeypatch.setattr(image_features, "_BLOCK", 3)
    torch.testing.assert_close(hog(pixels), whole, rtol=1e-6, atol=1e-7)


def test_color_pictures_are_weighted_to_gray():
    pixels = noise(7, 2, 28, 28)
    torch.testing.assert_close(gray(pixels[..., None].expand(-1, -1, -1, 3)), gray(pixels))
    torch.testing.assert_close(hog(pixels[..., None].repeat(1, 1, 1, 3)), hog(pixels), rtol=0, atol=1e-4)
    red = torch.zeros(1, 1, 1, 3, dtype=torch.uint8)
    red[..., 0] = 255
    assert gray(red).item() == pytest.approx(0.299)


def test_rows_become_pixels():
    rows = torch.tensor([[0.0, 0.5, 1.0, 1.7], [-0.2, 0.1, 0.2, 0.3]])
    assert torch.equal(
        to_pixels(rows, 2), torch.tensor([[[0, 128], [255, 255]], [[0, 26], [51, 76]]], dtype=torch.uint8)
    )
    with pytest.raises(ValueError, match="side 3"):
        to_pixels(rows, 3)
    with pytest.raises(ValueError, match="not finite"):
        to_pixels(rows / 0, 2)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 28, 28),
        torch.zeros(2, 28, 32, dtype=torch.uint8),
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(2, 30, 30, dtype=torch.uint8),
        torch.zeros(2, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 28, 28, dtype=torch.uint8),
    ],
)
def test_other_pictures_are_refused(pixels):
    with pytest.raises(ValueError, match=r"expected uint8 \[n, s, s, 3\]"):
        hog(pixels)
