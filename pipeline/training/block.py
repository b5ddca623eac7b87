"""One block's share of an update: its data rows and its particles, the critic's features of both, and their gradient."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pipeline.comm import Comm, ExactSum
from pipeline.learning.weights import data_weights, particle_weights
from pipeline.models.rbm import RBM, Couplings, Hidden


class Particles(NamedTuple):
    """A block's chains at one update, at beta = 1."""

    visible: Tensor
    """[m, V]"""
    hidden: Hidden
    """Sampled or mean hidden states [m, H]."""
    features: Tensor
    """The critic's features [m, F]."""
    beta: Tensor
    """Inverse temperatures [m, 1] of the chains themselves."""


class Block(NamedTuple):
    """The rows of one block at one update."""

    data: Tensor
    """[b, V]"""
    data_hidden: Hidden
    """Conditional means [b, H]."""
    data_features: Tensor
    """The critic's features [b, F]."""
    particles: Particles
    scores: Tensor | None
    """T of the particles [m]; None without a memory."""


class Counts(NamedTuple):
    """Global numbers of rows of an update."""

    data: int
    particles: int


class Rows(NamedTuple):
    """Blocks of one worker at one update, and the numbers of rows of all blocks of the run."""

    blocks: list[Block]
    data_rows: list[int]
    chain_rows: list[int]

    @property
    def counts(self) -> Counts:
        """Global numbers of rows."""
        return Counts(sum(self.data_rows), sum(self.chain_rows))

    def features(self) -> tuple[list[Tensor], list[Tensor]]:
        """The critic's features of the data rows and of the particles, by block."""
        return [block.data_features for block in self.blocks], [block.particles.features for block in self.blocks]

    def tensors(self) -> list[Tensor]:
        """All visible states."""
        return [rows for block in self.blocks for rows in (block.data, block.particles.visible)]


Features = Callable[[RBM, Block, Generator], Block]
"""Gives a block, whose features are hidden means, those that the critic sees."""


def look(rbm: RBM, data: Tensor, visible: Tensor, beta: Tensor, couplings: Couplings) -> Block:
    """Make a block of its data rows [b, V] and the visible states [m, V] of its chains; its features are E[h given v]."""
    data_hidden, hidden = rbm.hidden_statistics(data, couplings), rbm.hidden_statistics(visible, couplings)
    return Block(data, data_hidden, data_hidden.states, Particles(visible, hidden, hidden.states, beta), None)


def hidden_means(rbm: RBM, block: Block, generator: Generator) -> Block:
    """Features E[h given v]: the block as it is."""
    return block


def visible_states(rbm: RBM, block: Block, generator: Generator) -> Block:
    """Features v."""
    particles = block.particles._replace(features=block.particles.visible)
    return block._replace(data_features=block.data, particles=particles)


def hidden_samples(rbm: RBM, block: Block, generator: Generator) -> Block:
    """Features h, drawn from p(h given v); the particles' statistics use the same draws."""
    visible = block.particles.visible
    hidden, data = (_draw_hidden(rbm, rows, generator) for rows in (visible, block.data))
    return block._replace(
        data_features=data, particles=Particles(visible, Hidden(hidden, None), hidden, block.particles.beta)
    )


def _draw_hidden(rbm: RBM, visible: Tensor, generator: Generator) -> Tensor:
    return rbm.hidden.sample_(rbm.hidden.bias + rbm.hidden_field(visible), None, generator)


FEATURES: dict[str, Features] = {
    "hidden_mean": hidden_means,
    "hidden_sample": hidden_samples,
    "visible": visible_states,
}
"""By critic.feature."""


_MOST_ROWS = 4096
"""Rows of one product: to copy more into one tensor costs more than a second product; on a CPU new memory for what lies between
costs as much as the product, so that more are taken in parts.
"""


def weighted_gradient(rbm: RBM, block: Block, on_data: Tensor, on_particles: Tensor) -> dict[str, Tensor]:
    """Sum of -dE/dtheta over a block's rows with weights [b] and [m]: one product where both have the same form and are few."""
    data, particles = block.data_hidden, block.particles.hidden
    visible = block.particles.visible
    few = len(on_data) + len(on_particles) <= _MOST_ROWS
    if few and (data.variance is None) == (particles.variance is None):
        both = Hidden(torch.cat([data.states, particles.states]), data.variance)
        return rbm.negative_energy_gradient(torch.cat([block.data, visible]), both, torch.cat([on_data, on_particles]))
    total = rbm.negative_energy_gradient(block.data, data, on_data)
    part = _MOST_ROWS if visible.device.type == "cpu" else len(visible)
    for v, h, w in zip(*(x.split(part) for x in (visible, particles.states, on_particles))):
        for name, value in rbm.negative_energy_gradient(v, Hidden(h, particles.variance), w).items():
            total[name] += value
    return total


def ascent_direction(
    rbm: RBM, block: Block, gamma: float, mean_score: float | Tensor, counts: Counts
) -> dict[str, Tensor]:
    """A block's share of gamma dL + (1 - gamma) dA; the sum over all blocks is the ascent direction."""
    on_data = data_weights(gamma, len(block.data), counts.data, block.data)
    visible = block.particles.visible
    on_particles = particle_weights(gamma, block.scores, mean_score, counts.particles, visible)
    return weighted_gradient(rbm, block, on_data, on_particles)


class Measurements:
    """The costlier numbers of an update: both gradients apart, T on the data, reconstruction error."""

    def __init__(self, rbm: RBM, device: torch.device):
        shapes = {name: p.shape for name, p in rbm.named_parameters()}
        parts = {f"{part} {name}": shape for part in ("likelihood", "adversarial") for name, shape in shapes.items()}
        scalars = ("score_data", "reconstruction", "beta", "beta_square")
        self.sums = ExactSum({**parts, **{name: () for name in scalars}}, device)

    def take(
        self, rbm: RBM, rows: Rows, mean_score: float, data_scores: list[Tensor] | None, comm: Comm
    ) -> dict[str, float]:
        """Global numbers of an update, the same on all workers; nothing of the run changes.

        Args:
            rbm: the model.
            rows: this worker's rows.
            mean_score: mean T of the particles of all workers.
            data_scores: T of the data rows [b] of each block; None without an adversary.
            comm: this worker's group.
        """
        counts = rows.counts
        self.sums.zero_()
        for i, block in enumerate(rows.blocks):
            likelihood = ascent_direction(rbm, block._replace(scores=None), 1.0, 0.0, counts)
            self.sums.add_({f"likelihood {k}": v for k, v in likelihood.items()})
            error = (rbm.visible_mean(block.data_hidden.states) - block.data).square().sum()
            beta = block.particles.beta.double()
            self.sums.add_(
                {
                    "reconstruction": error / (counts.data * block.data.shape[1]),
                    "beta": beta.sum() / counts.particles,
                    "beta_square": beta.square().sum() / counts.particles,
                }
            )
            if data_scores is not None:
                adversarial = ascent_direction(rbm, block, 0.0, mean_score, counts)
                self.sums.add_({f"adversarial {k}": v for k, v in adversarial.items()})
                self.sums.add_({"score_data": data_scores[i].sum() / counts.data})
        totals = self.sums.reduce(comm)
        likelihood_part = torch.cat([v.flatten() for k, v in totals.items() if k.startswith("likelihood ")])
        beta_mean = float(totals["beta"])
        report = {
            "beta_mean": beta_mean,
            "beta_std": max(0.0, float(totals["beta_square"]) - beta_mean**2) ** 0.5,
            "gradient_norm_likelihood": float(likelihood_part.norm()),
            "reconstruction_error": float(totals["reconstruction"]),
        }
        if (variance := rbm.visible.variance()) is not None:
            report["visible_std"] = float(variance.sqrt().median())
        if data_scores is not None:
            adversarial_part = torch.cat([v.flatten() for k, v in totals.items() if k.startswith("adversarial ")])
            report["gradient_norm_adversarial"] = float(adversarial_part.norm())
            report["gradient_cosine"] = float(torch.cosine_similarity(likelihood_part, adversarial_part, dim=0))
            report["score_data"] = float(totals["score_data"])
            report["score_particles"] = mean_score
        return report
