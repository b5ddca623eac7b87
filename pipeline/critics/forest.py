"""A random forest as the critic (Fig. 10, 11): fitted anew at each step. The only file here that imports scikit-learn."""

from typing import Any

import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from pipeline.config import ForestCriticConfig
from pipeline.critics.critic import score_of
from pipeline.critics.memory import Memory, class_shares
from pipeline.streams import stream_seed


class ForestCritic:
    """T from p(data | features) of a forest that tells the memory's data rows from its particles.

    Every worker fits the same forest: it is a function of the memory, the seed and the step, so it needs no state and a
    resumed run has it again. It runs on the CPU, on one thread, in float32 (scikit-learn's trees), wherever the features
    are.
    """

    def __init__(self, config: ForestCriticConfig, seed: int):
        """A critic that has seen nothing yet; `seed` is the run's."""
        self.config, self.seed = config, seed
        self.forest: RandomForestClassifier | None = None

    def observe(self, memory: Memory, step: int) -> None:
        """Fit the trees to data = 1, particles = 0, rows weighted by 1/count of their class; their stream is the step's."""
        rows = torch.arange(len(memory.features))
        labels = (rows < memory.num_data).numpy()
        weights = class_shares(rows, memory.num_data, memory.num_particles, memory.features.dtype).abs().double()
        self.forest = RandomForestClassifier(
            self.config.num_trees,
            max_depth=self.config.max_depth,
            min_samples_leaf=self.config.min_leaf,
            n_jobs=1,
            random_state=stream_seed(self.seed, "critic forest", step) % 2**32,
        )
        self.forest.fit(_array(memory.features), labels, weights.numpy())

    def score(self, queries: Tensor, memory: Memory, first_particle: int | None = None) -> Tensor:
        """T [q] of queries [q, F]; p is the mean over trees of the data's weight in the leaf, in [0, 1].

        The queries are the present particles (or batch), the trees were grown on the previous ones: out of sample, except
        that a chain which did not move meets its own row. T is NaN where a feature is not finite, as in a run that
        diverges: scikit-learn would raise, and end this worker alone.
        """
        assert self.forest is not None, "observe the memory first"
        if len(queries) == 0:
            return queries.new_zeros(0)
        finite = queries.float().isfinite().all(1)
        rows = torch.where(finite[:, None], queries, 0.0)
        probability = torch.from_numpy(self.forest.predict_proba(_array(rows))[:, 1]).to(queries)
        return score_of(torch.where(finite, probability, torch.nan), self.config)

    def state(self) -> dict[str, Tensor]:
        """Nothing: see the class."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Does nothing: see the class."""


def _array(features: Tensor) -> Any:
    return features.detach().float().cpu().numpy()
