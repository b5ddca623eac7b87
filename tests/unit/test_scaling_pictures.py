"""The picture of scaling: written whole, and refused in words when there is nothing to draw."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.scaling_pictures import Panel, scaling_panels

LINE = {"a": {1: 1.0, 2: 0.0, 4: 3.0}}


def test_panels_are_written(tmp_path: Path) -> None:
    measured = Panel("measured", "updates per second", LINE, {"a": {1: (1.0, 0.9, 1.2)}}, {"a limit": 2.0})
    path = scaling_panels(
        [measured, Panel("projected", "ms", {"b": {2**i: 1.0 + i for i in range(11)}})], tmp_path / "s.png"
    )
    with Image.open(path) as picture:
        assert picture.width > 800 and picture.height > 300
    assert [p.name for p in tmp_path.iterdir()] == ["s.png"]


@pytest.mark.parametrize(
    ("panels", "says"),
    [([], "no panels"), ([Panel("empty", "", {})], "'empty'"), ([Panel("p", "", LINE, {"z": {}})], "points of")],
)
def test_nothing_to_draw_is_an_error(panels: list[Panel], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        scaling_panels(panels, tmp_path / "s.png")
