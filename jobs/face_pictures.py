"""The pictures of a face run: samples beside their baselines, reconstructions, training curves."""

from pathlib import Path
from typing import Any

import torch

from pipeline.data.shards import load_split
from pipeline.evaluation.scene import Scene
from pipeline.evaluation.scores import SEEDS
from pipeline.metrics.gaussians import sample_full_gaussian, sample_principal_gaussian
from pipeline.models.rbm import RBM
from pipeline.pictures.curves import training_curves
from pipeline.pictures.grids import compare_grids, image_grid, reconstruction_rows
from pipeline.samplers.protocols import DRIVEN, FRESH, WideStart, draw_samples
from pipeline.streams import stream

PANELS = {
    "KL divergence per dimension, held out": [
        "kl_forward",
        "kl_reverse",
        "persistent_kl_forward",
        "persistent_kl_reverse",
    ],
    "Frechet distance, top components": ["frechet_latent", "fresh_frechet_latent"],
    "critic: mean T": ["score_particles", "score_data"],
    "gradient norms": ["gradient_norm_likelihood", "gradient_norm_adversarial"],
    "reconstruction error": ["reconstruction_error"],
    "inverse temperature": ["beta_mean", "beta_std"],
}


def make_pictures(
    scene: Scene,
    models: dict[str, RBM],
    start: WideStart,
    history: list[dict[str, Any]],
    switch_step: int,
    pixel_dir: Path,
    folder: Path,
    dataset: str,
) -> dict[str, Path]:
    """Write all pictures of a run into `folder`; returns them by name.

    Samples are E[v | h] by the driven protocol (the noise of v alone ruins a picture), with the seed of the scores.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def drawn(rbm: RBM, protocol: Any = DRIVEN) -> torch.Tensor:
        return scene.pixels(draw_samples(rbm, start, protocol, 36, SEEDS[0]).visible_mean)

    grids = {name: drawn(rbm) for name, rbm in models.items()}
    generator = stream(0, "pictures")
    components = scene.space.components.shape[1]
    baselines = {
        "full-covariance Gaussian": scene.pixels(sample_full_gaussian(scene.train, 36, generator)),
        f"Gaussian, top {components} components": scene.pixels(
            sample_principal_gaussian(scene.train, 36, generator, components)
        ),
        "BEAM, fresh chains": drawn(models["BEAM"], FRESH),
    }
    originals = load_split(pixel_dir, "test")[:20]
    return {
        "samples": image_grid(
            grids["BEAM"], 6, folder / "samples.png", "BEAM: driven 100 + 5 sweeps, E[v|h] decoded", dataset=dataset
        ),
        "comparison": compare_grids(
            {**grids, **baselines}, folder / "comparison.png", suptitle="Samples", dataset=dataset
        ),
        "reconstructions": reconstruction_rows(
            originals,
            scene.autoencoder.decode(scene.autoencoder.encode(originals)),
            folder / "reconstructions.png",
            "Autoencoder, test partition",
            dataset=dataset,
        ),
        "curves": training_curves(
            history, folder / "curves.png", PANELS, switch_step, "BEAM training", dataset=dataset
        ),
    }
