"""Pictures hold the pixels they were given, are complete or absent, and name their data."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.pictures import canvas, curves, grids


def random_images(seed: int, n: int, height: int = 11, width: int = 7, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def pixels_of(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def contains(picture: np.ndarray, image: np.ndarray) -> bool:
    """Whether the image occurs in the picture, pixel for pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, image.shape)
    return bool((windows == image).all((-1, -2, -3)).any())


def test_grid_shows_every_image_in_its_place(tmp_path):
    images = random_images(1, 5)
    path = grids.image_grid(images, 3, tmp_path / "new" / "grid.png", scale=2)
    picture = pixels_of(path)
    margin, gap, height, width = 12, 2, 22, 14
    assert path == tmp_path / "new" / "grid.png"
    assert picture.shape == (2 * margin + 2 * height + gap, 2 * margin + 3 * width + 2 * gap, 3)
    for place, image in enumerate(images):
        top, left = margin + place // 3 * (height + gap), margin + place % 3 * (width + gap)
        enlarged = image.repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(picture[top : top + height, left : left + width], enlarged)
    assert (picture[margin + height + gap :, margin + 2 * (width + gap) :] == 255).all()  # the empty sixth place


def test_gray_images_and_tensors(tmp_path):
    images = random_images(2, 3, channels=1)
    picture = pixels_of(grids.image_grid(torch.from_numpy(images), 1, tmp_path / "a.png", scale=1))
    np.testing.assert_array_equal(picture[12:23, 12:19], images[0].repeat(3, -1))


def test_title_and_data_stand_above_and_are_not_cut(tmp_path):
    images = random_images(3, 6, 64, 64)
    bare = pixels_of(grids.image_grid(images, 3, tmp_path / "a.png"))
    titled = pixels_of(grids.image_grid(images, 3, tmp_path / "b.png", "BEAM, " * 20 + "γ = 0.1"))
    labeled = pixels_of(grids.image_grid(images, 3, tmp_path / "c.png", dataset="synthetic-faces"))
    for picture in (titled, labeled):
        assert picture.shape[1] == bare.shape[1] and picture.shape[0] > bare.shape[0]
        added = picture.shape[0] - bare.shape[0]
        np.testing.assert_array_equal(picture[added + 12 :], bare[12:])
        assert (picture[:added] < 100).any()  # ink
        assert (picture[: added + 12, -12:] == 255).all()  # but none in the right margin
    wide = pixels_of(grids.image_grid(images[:1], 1, tmp_path / "d.png", "unbreakable" * 5, scale=1))
    assert wide.shape[1] > 300 and (wide[:, -12:] == 255).all()


def test_every_kind_of_picture_carries_the_name_of_its_data(tmp_path, monkeypatch):
    images = random_images(4, 4)
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    drawn: list[str | None] = []
    wrap, suptitle = grids._wrap, canvas.Figure.suptitle
    monkeypatch.setattr(grids, "_wrap", lambda text, *rest: drawn.append(text) or wrap(text, *rest))
    monkeypatch.setattr(
        canvas.Figure, "suptitle", lambda self, text, **kwargs: drawn.append(text) or suptitle(self, text, **kwargs)
    )
    for draw in (
        lambda path: grids.image_grid(images, 2, path, "T", dataset="synthetic-faces"),
        lambda path: grids.compare_grids({"a": images}, path, 2, "T", dataset="synthetic-faces"),
        lambda path: grids.reconstruction_rows(images, images, path, "T", dataset="synthetic-faces"),
        lambda path: curves.training_curves(history, path, {"p": ["loss"]}, None, "T", dataset="synthetic-faces"),
    ):
        drawn.clear()
        draw(tmp_path / "x.png")
        assert "T\ndata: synthetic-faces" in drawn


def test_compared_grids_show_the_same_first_images_and_stand_level(tmp_path):
    left, right = random_images(5, 7), random_images(6, 4)
    path = grids.compare_grids(
        {"a": left, "a title that needs several lines": right}, tmp_path / "c.png", columns=2, suptitle="both", scale=3
    )
    picture = pixels_of(path)
    for image in (*left[:4], *right):
        assert contains(picture, image.repeat(3, 0).repeat(3, 1))
    assert not contains(picture, left[4].repeat(3, 0).repeat(3, 1))

    def top_of(image: np.ndarray) -> int:
        enlarged = image.repeat(3, 0).repeat(3, 1)
        windows = np.lib.stride_tricks.sliding_window_view(picture, enlarged.shape)
        return int(np.argwhere((windows == enlarged).all((-1, -2, -3)))[0][0])

    assert top_of(left[0]) == top_of(right[0])


def test_reconstructions_stand_below_their_originals(tmp_path):
    originals = random_images(7, 5)
    decoded = 255 - originals
    picture = pixels_of(grids.reconstruction_rows(originals, decoded, tmp_path / "r.png", columns=3, scale=1))
    for above, below in zip(originals, decoded):
        assert contains(picture, np.concatenate([above, np.full((2, 7, 3), 255, np.uint8), below]))


def curves_of(monkeypatch, tmp_path, *args, **kwargs):
    """Draw, and return the axes of the figure that was written."""
    figures = []
    original = canvas.Figure.savefig
    monkeypatch.setattr(canvas.Figure, "savefig", lambda self, *a, **k: figures.append(self) or original(self, *a, **k))
    path = curves.training_curves(args[0], tmp_path / "curves.png", *args[1:], **kwargs)
    assert Image.open(path).size[0] > 500
    return figures[0].axes


def test_curves_hold_the_logged_points_and_the_phase_change(tmp_path, monkeypatch):
    history = [{"step": s, "loss": 1.0 / s, "rare": 0.5 if s % 5 == 0 else None} for s in range(1, 18)]
    history[6]["loss"] = math.nan
    panels = {"first": ["loss", "never"], "second": ["rare"], "third": ["never"]}
    axes = curves_of(monkeypatch, tmp_path, history[9:] + history[:9], panels, 11, "run")  # a resumed, unsorted log
    assert [panel.get_legend().get_title().get_text() for panel in axes] == ["first", "second"]
    loss, phase = axes[0].get_lines()
    assert list(loss.get_xdata()) == [s for s in range(1, 18) if s != 7]
    assert loss.get_ydata()[1] == 0.5
    assert list(axes[1].get_lines()[0].get_xdata()) == [5, 10, 15]
    assert list(phase.get_xdata()) == [11, 11] and phase.get_linestyle() == "--"
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["loss", "adversary on (step 11)"]
    assert axes[0].get_xlim() == axes[1].get_xlim()


def test_curves_without_a_phase_change_have_no_line(tmp_path, monkeypatch):
    (panel,) = curves_of(monkeypatch, tmp_path, [{"step": 3, "loss": 1.0}], {"p": ["loss"]})
    assert len(panel.get_lines()) == 1


def test_curves_that_were_never_logged_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none of \['lost'\] was logged in 1 rows; logged metrics: \['loss'\]"):
        curves.training_curves([{"step": 1, "loss": 2.0}], tmp_path / "x.png", {"p": ["lost"]})
    with pytest.raises(ValueError, match=r'no "step"; its keys are \[\'loss\'\]'):
        curves.training_curves([{"loss": 2.0}], tmp_path / "x.png", {"p": ["loss"]})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_picture_and_no_rest(tmp_path, monkeypatch):
    path = grids.image_grid(random_images(8, 2), 2, tmp_path / "a.png")
    before, number = path.read_bytes(), path.stat().st_ino
    grids.image_grid(random_images(8, 2), 2, path)
    assert path.stat().st_ino != number  # renamed into place, not written over: a reader keeps the old picture

    def broken(self, target, **kwargs):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        grids.image_grid(random_images(9, 2), 2, path)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_equal_inputs_give_equal_bytes(tmp_path):
    history = [{"step": s, "loss": s * 0.5} for s in range(5)]
    first, again = (
        curves.training_curves(history, tmp_path / name, {"p": ["loss"]}).read_bytes() for name in ("a.png", "b.png")
    )
    assert first == again


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((3, 5, 5, 3)),
        np.zeros((3, 5, 5, 2), np.uint8),
        np.zeros((3, 5, 5), np.uint8),
        np.zeros((0, 5, 5, 3), np.uint8),
    ],
)
def test_images_that_cannot_be_shown_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=r"expected uint8 \[n, H, W, C\]"):
        grids.image_grid(bad, 2, tmp_path / "x.png")


def test_impossible_layouts_are_refused(tmp_path):
    images = random_images(10, 3)
    with pytest.raises(ValueError, match="columns is 0"):
        grids.image_grid(images, 0, tmp_path / "x.png")
    with pytest.raises(ValueError, match="0 grids"):
        grids.compare_grids({}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"\(3, 11, 7, 3\).*\(2, 11, 7, 3\).*one reconstruction per original"):
        grids.reconstruction_rows(images, images[:2], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"\(0, 11, 7, 3\)"):
        grids.reconstruction_rows(images[:0], images[:0], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"end.*\.png"):
        grids.image_grid(images, 2, tmp_path / "x.jpg")
