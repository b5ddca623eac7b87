"""The paper's figures are drawn whole from whatever the experiments give, and refuse what they cannot draw."""

import math

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures.paper import digit_grids, divergence_curves, mixing_traces, sample_panels, separation_curves


def pixels_of(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def has_color(picture: np.ndarray, color: str) -> bool:
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(picture - wanted).sum(-1) < 24).any())


BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def test_separation_has_all_curves_and_refuses_other_lengths(tmp_path):
    x = [0.0, 1.0, 2.0]
    curves = {"forward": [0.0, 0.1, 0.2], "reverse": [0.0, 0.3, 0.5], "log 2 + D_D": [0.7, 0.8, 0.9]}
    picture = pixels_of(separation_curves(tmp_path / "new" / "a.png", x, curves, "title"))
    assert has_color(picture, BLUE) and has_color(picture, ORANGE) and not has_color(picture, GREEN)
    for bad in ({}, {"forward": [1.0]}):
        with pytest.raises(ValueError, match="for 3 separations"):
            separation_curves(tmp_path / "b.png", x, bad)
    assert not (tmp_path / "b.png").exists()


def gaussian(points: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * (points**2).sum(1)) / math.sqrt(2 * math.pi)


def test_panels_of_one_and_two_dimensions_with_absent_models(tmp_path):
    rng = np.random.default_rng(0)
    rows = {
        "line": {"data": rng.normal(size=(500, 1)), "BEAM": rng.normal(size=(500, 1)) + 9},
        "plane": {"data": rng.normal(size=(500, 2)), "GAN": rng.normal(size=(300, 2))},
    }
    wide = pixels_of(sample_panels(tmp_path / "a.png", rows, {"line": gaussian, "plane": gaussian}))
    narrow = pixels_of(sample_panels(tmp_path / "b.png", {"line": {"data": rows["line"]["data"]}}, {}))
    assert wide.shape[1] > 2 * narrow.shape[1] and wide.shape[0] > 1.5 * narrow.shape[0]


def test_a_panel_says_what_lies_outside(tmp_path):
    inside = {"plane": {"data": np.zeros((4, 2))}}
    half = {"plane": {"data": np.array([[0.0, 0], [0, 0], [5, 5], [5, 5]])}}
    blank, told = (
        pixels_of(sample_panels(tmp_path / f"{i}.png", rows, {}, {"plane": (-1, 1)}))
        for i, rows in enumerate((inside, half))
    )
    assert not np.array_equal(blank, told)  # the same points are drawn; the note is the difference


@pytest.mark.parametrize("bad", [np.zeros((0, 2)), np.zeros((3, 3)), np.zeros(3), np.full((3, 2), np.nan)])
def test_samples_that_cannot_be_drawn_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="samples of BEAM on ring have shape"):
        sample_panels(tmp_path / "a.png", {"ring": {"BEAM": bad}}, {})
    with pytest.raises(ValueError, match="no samples"):
        sample_panels(tmp_path / "a.png", {"ring": {}}, {})


def test_divergences_of_one_seed_of_several_and_with_gaps(tmp_path):
    one = [(0.0, 1.0, 0.5), (1.0, 0.5, math.nan), (2.0, 0.4, 0.6)]
    several = [[(e, 1.0 + s, 0.2 * s) for e in (0.0, 1.0, 2.0)] for s in range(3)]
    picture = pixels_of(divergence_curves(tmp_path / "a.png", {"RBM": one, "BEAM": several}, 1.0, "t", "digits-8x8"))
    assert has_color(picture, BLUE) and has_color(picture, ORANGE)
    bare = pixels_of(divergence_curves(tmp_path / "b.png", {"RBM": one}))
    assert has_color(bare, BLUE) and not has_color(bare, ORANGE)
    with pytest.raises(ValueError, match="no divergences"):
        divergence_curves(tmp_path / "c.png", {"RBM": [], "BEAM": [[], []]})


def test_digits_show_the_first_sixteen_and_are_cut_at_black_and_white(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.random((20, 8, 8))
    images[0] = -3.0
    images[1] = 3.0
    whole = pixels_of(digit_grids(tmp_path / "a.png", {"data": images}))
    same = pixels_of(digit_grids(tmp_path / "b.png", {"data": images[:16]}))
    np.testing.assert_array_equal(whole, same)
    rounded = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
    np.testing.assert_array_equal(whole, pixels_of(digit_grids(tmp_path / "c.png", {"data": rounded})))
    black = np.lib.stride_tricks.sliding_window_view(whole.sum(-1), (64, 64))
    assert bool((black == 0).all((-1, -2)).any()) and bool((black == 765).all((-1, -2)).any())
    for bad in (np.zeros((4, 64)), np.full((1, 2, 2), np.inf)):
        with pytest.raises(ValueError, match="grid 'x' has shape"):
            digit_grids(tmp_path / "d.png", {"x": bad})


def test_traces_of_a_hot_and_a_cold_sampler(tmp_path):
    rng = np.random.default_rng(0)

    def sampler(beta):
        return {
            "trace": {"v": rng.normal(size=50).tolist(), "beta": beta.tolist()},
            "histogram": {"edges": [-2.0, 0.0, 2.0], "density": [0.2, 0.25]},
            "switches_per_1000": {of: {"value": 3.0, "error": 0.1} for of in ("visible", "hidden")},
        }

    found = {
        "modes": {"means": [-1.0, 1.0], "std": 0.5, "weights": [0.5, 0.5]},
        "density": {"v": [-2.0, 0.0, 2.0], "p": [0.0, 0.4, 0.0]},
        "samplers": {"gibbs": sampler(np.ones(50)), "driven": sampler(rng.gamma(2, 0.5, 50))},
    }
    both = pixels_of(mixing_traces(tmp_path / "a.png", found, "title"))
    found["samplers"] = {"gibbs": found["samplers"]["gibbs"]}
    cold = pixels_of(mixing_traces(tmp_path / "b.png", found))
    assert has_color(both, BLUE) and has_color(both, ORANGE) and not has_color(cold, ORANGE)
    assert both.shape[0] > 1.8 * cold.shape[0]
