"""Held-out monitors: how far samples are from held-out rows; of a BEAM by the fixed protocols, of a GAN its own samples.

All comparisons use E[v | h] of the last sweep (what a picture shows) or, as evaluation.samples says, v with its noise (what
a density has); equal numbers of data and model rows, and one seed. KL divergences are per dimension (nats / V), per
minibatch and averaged, as in the paper. Nothing but `evaluation` decides how a model is measured.

| key | samples |
|---|---|
| kl_forward, kl_reverse, kl_sum, frechet_latent, precision, recall, duplicates, variance_ratio | `driven` protocol |
| fresh_kl_forward, fresh_kl_reverse, fresh_kl_sum, fresh_frechet_latent | `fresh` protocol |
| persistent_kl_forward, persistent_kl_reverse, persistent_kl_sum | the training chains, if more than num_neighbors |
"""

import torch
from torch import Tensor

from pipeline.comm import Comm
from pipeline.config import EvaluationConfig
from pipeline.metrics.divergences import forward_reverse_kl
from pipeline.metrics.images import fit_principal_space, frechet_distance, project, score_latents
from pipeline.models.rbm import RBM
from pipeline.samplers.gibbs import ChainState
from pipeline.samplers.protocols import DRIVEN, FRESH, WideStart, draw_samples
from pipeline.training.objective import Evaluation

SEED = 20_180_424
"""Seed of every evaluation of every run: two models are compared on the same random numbers."""
NUM_SHOWN = 36
"""Number of samples that each evaluation saves for people to look at."""


class Monitors:
    """Distances between a model's samples and held-out rows; fitted to the training rows once."""

    def __init__(self, config: EvaluationConfig, train: Tensor, heldout: Tensor):
        self.config = config
        self.heldout = heldout[: config.num_rows]
        components = min(config.num_components, train.shape[1], len(train) - 1, len(self.heldout) - 1)
        self.space = fit_principal_space(train, components)

    @torch.no_grad()
    def measure(self, rbm: RBM, start: WideStart, chains: ChainState | None, comm: Comm) -> Evaluation:
        """The monitors of `rbm`; workers share the sampling. `chains` are the persistent ones of all workers, if any."""
        noisy = self.config.samples == "noisy"
        count = len(self.heldout)
        driven, fresh = (
            drawn.visible if noisy else drawn.visible_mean
            for drawn in (draw_samples(rbm, start, protocol, count, SEED, comm) for protocol in (DRIVEN, FRESH))
        )
        persistent = {}
        if chains is not None and len(chains.visible) > self.config.num_neighbors:
            rows = chains.visible if noisy else rbm.visible_mean(chains.hidden)
            persistent = self._divergences("persistent_", rows[:count])
        fresh_frechet = frechet_distance(project(self.space, self.heldout), project(self.space, fresh))
        metrics = {
            **self.compare(driven),
            **self._divergences("fresh_", fresh),
            "fresh_frechet_latent": fresh_frechet,
            **persistent,
        }
        return Evaluation(metrics, driven[:NUM_SHOWN])

    def compare(self, samples: Tensor) -> dict[str, float]:
        """The monitors of samples of any model: as many rows [n, V] as are held out.

        Keys: kl_forward, kl_reverse, kl_sum, frechet_latent, precision, recall, duplicates, variance_ratio.
        """
        scores = score_latents(self.space, self.heldout, samples)
        return {
            **self._divergences("", samples),
            "frechet_latent": scores.frechet,
            "precision": scores.precision,
            "recall": scores.recall,
            "duplicates": scores.duplicates,
            "variance_ratio": scores.variance_ratio,
        }

    def _divergences(self, prefix: str, samples: Tensor) -> dict[str, float]:
        if not bool(torch.isfinite(samples).all()):
            return {f"{prefix}{name}": float("inf") for name in ("kl_forward", "kl_reverse", "kl_sum")}
        rows = self.heldout[: len(samples)]
        size = min(self.config.minibatch_rows, len(rows))
        forward, reverse = forward_reverse_kl(rows, samples[: len(rows)], self.config.num_neighbors, size)
        total = forward.per_dimension + reverse.per_dimension
        return {
            f"{prefix}kl_forward": forward.per_dimension,
            f"{prefix}kl_reverse": reverse.per_dimension,
            f"{prefix}kl_sum": total,
        }
