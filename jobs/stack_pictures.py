"""Pictures of a deep stack of faces, at every depth."""

from pathlib import Path
from typing import Any

from pipeline.evaluation.scene import Scene
from pipeline.evaluation.scores import SEEDS
from pipeline.evaluation.stack import SceneOf, depths, encoded_and_back
from pipeline.models.stack import Encoding, RBMStack
from pipeline.pictures.grids import compare_grids
from pipeline.samplers.protocols import DRIVEN, WideStart
from pipeline.samplers.stack import draw_stack_samples


def draw_pictures(
    stack: RBMStack, starts: list[WideStart], where: SceneOf, encoding: Encoding, path: Path, dataset: str
) -> dict[str, Any]:
    """Write a grid of 36 faces per depth, and of 36 training faces encoded and back, with the seed of the scores."""
    scene = where.open()
    assert isinstance(scene, Scene)
    grids = {
        name: scene.pixels(draw_stack_samples(cut, start, DRIVEN, 36, SEEDS[0]).visible_mean)
        for name, (cut, start) in depths(stack, starts).items()
    }
    if len(stack) > 1:
        back = encoded_and_back(stack, scene, encoding, SEEDS[0]).visible_mean[:36]
        grids["training faces, encoded and back"] = scene.pixels(back)
    title = "Deep stack: driven 100 + 5 sweeps in the top, passes down, E[v|h] decoded"
    compare_grids(grids, path, suptitle=title, dataset=dataset)
    return {"samples": str(path)}
