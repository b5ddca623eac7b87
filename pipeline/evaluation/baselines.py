"""Baselines that know no model: Gaussians fitted to the training latents, and training rows themselves."""

import torch
from torch import Tensor

from pipeline.evaluation.scene import Scene
from pipeline.metrics.gaussians import sample_full_gaussian, sample_independent_gaussian, sample_principal_gaussian
from pipeline.streams import stream

SEEDS = (101, 102, 103)
FACE_SAMPLES = 1000
TEST_ROWS = 1000
"""At most so many test rows: a fixed count keeps values comparable, and the full set's 19 962 would take an hour."""
MEMORIZATION_ROWS = 6400


def baselines(scene: Scene) -> dict[str, Tensor]:
    """Rows [n, 1024] of baselines with as many rows as the test set: Gaussians fitted to the training latents, and
    training rows themselves (the floor of every distance at this count).
    """
    n = len(scene.test)
    generator = stream(0, "baselines", device=scene.train.device)
    picks = torch.randperm(len(scene.train), generator=stream(0, "training rows"))[:n]
    floor = {"training rows": scene.train[picks]} if len(scene.train) >= n else {}
    return {
        **floor,
        "full Gaussian": sample_full_gaussian(scene.train, n, generator),
        "top-component Gaussian": sample_principal_gaussian(scene.train, n, generator, scene.space.components.shape[1]),
        "independent Gaussian": sample_independent_gaussian(scene.train, n, generator),
    }
