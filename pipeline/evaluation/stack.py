"""Scores of a deep stack, at every depth, beside what its bottom could reach with a perfect prior."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.config import EvaluationConfig
from pipeline.data.rows import Scaling
from pipeline.evaluation.scene import PointScene, Scene, open_scene
from pipeline.evaluation.scores import FACE_SAMPLES, SEEDS, detected_faces, score_draws
from pipeline.models.stack import Encoding, RBMStack, encode
from pipeline.samplers.protocols import DRIVEN, Samples, WideStart
from pipeline.samplers.stack import descend_blocks, draw_stack_samples
from pipeline.streams import stream


class SceneOf(NamedTuple):
    """The data and settings on which a stack is compared."""

    data_dir: Path
    """Latents or points that the bottom was trained on."""
    cache: Path
    """The folder of packaged autoencoders."""
    evaluation: EvaluationConfig
    """num_neighbors and num_components count."""
    scaling: Scaling

    def open(self) -> Scene | PointScene:
        """The scene; raises RegistryError without the autoencoder of latents."""
        return open_scene(self.data_dir, self.cache, self.evaluation.num_components, self.scaling)


def depths(stack: RBMStack, starts: list[WideStart]) -> dict[str, tuple[RBMStack, WideStart]]:
    """The stack cut at every depth by name, `1 layer` first, with the start of its top."""
    named = {}
    for depth, start in enumerate(starts, start=1):
        cut = RBMStack([stack.layer(index) for index in range(depth)])
        named[f"{depth} layer{'s' if depth > 1 else ''}"] = (cut, start)
    return named


def encoded_and_back(stack: RBMStack, scene: Scene | PointScene, encoding: Encoding, seed: int) -> Samples:
    """Training rows, as many as test rows, up to the top's visible units and down again.

    What the stack would give if its top were a perfect model of its training rows: no top does better but by chance.
    """
    order = torch.randperm(len(scene.train), generator=stream(seed, "encoded and back"))
    hidden = encode(stack, scene.train[order[: len(scene.test)]], len(stack) - 1, encoding, seed, "encoded and back")
    return descend_blocks(stack, hidden, seed)


def score_stack(
    stack: RBMStack, starts: list[WideStart], where: SceneOf, encoding: Encoding
) -> dict[str, dict[str, Any]]:
    """Scores on the test partition by the driven protocol, three seeds: of every depth, and of `encoded and back`.

    Args:
        stack: layers from the bottom up.
        starts: moments of each layer's training rows.
        where: what is compared on.
        encoding: with which the layers were trained.
    """
    scene, evaluation = where.open(), where.evaluation
    table: dict[str, dict[str, Any]] = {}
    for name, (cut, start) in depths(stack, starts).items():

        def draw(seed: int, cut: RBMStack = cut, start: WideStart = start) -> torch.Tensor:
            return scene.compared(draw_stack_samples(cut, start, DRIVEN, len(scene.test), seed))

        table[name] = dict(score_draws(scene, draw, evaluation.num_neighbors))
        if isinstance(scene, Scene):
            many = draw_stack_samples(cut, start, DRIVEN, FACE_SAMPLES, SEEDS[0]).visible_mean
            table[name]["face_share"] = detected_faces(scene.pixels(many))
    if len(stack) > 1:

        def back(seed: int) -> torch.Tensor:
            return scene.compared(encoded_and_back(stack, scene, encoding, seed))

        table["encoded and back"] = dict(score_draws(scene, back, evaluation.num_neighbors))
    return table
