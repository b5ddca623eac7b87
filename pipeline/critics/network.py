"""A dense network as the critic (the hidden DNN of Fig. 10): trained on, step by step, on the memory."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.comm import Comm
from pipeline.config import NetworkCriticConfig, OptimizerConfig
from pipeline.critics.critic import score_of
from pipeline.critics.memory import Memory
from pipeline.learning.adam import build_optimizer, load_optimizer_state, optimizer_state
from pipeline.streams import stream


def build_network(config: NetworkCriticConfig, num_features: int, seed: int, dtype: torch.dtype) -> nn.Sequential:
    """Dense layers with ReLU between them, [n, F] -> logit of p [n, 1].

    Weights of hidden layers ~ N(0, 2 / fan in), from a stream of their own; the last layer and all biases are 0, so that
    p = 1/2 and T = 0 before anything was learned.
    """
    sizes = [num_features, *config.hidden, 1]
    generator = stream(seed, "critic network")
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(fan_in, fan_out, dtype=dtype)
        nn.init.zeros_(layer.bias)
        nn.init.zeros_(layer.weight)
        if i < len(config.hidden):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in), generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def logistic_loss(network: nn.Module, memory: Memory) -> Tensor:
    """Mean over the data of -log p plus mean over the particles of -log(1 - p), halved: [], nats; log 2 at p = 1/2.

    Its minimum over all functions is at p = p_data / (p_data + p_model) (Eq. 6), whatever the numbers of rows.
    """
    logits = network(memory.features)[:, 0]
    return (F.softplus(-logits[: memory.num_data]).mean() + F.softplus(logits[memory.num_data :]).mean()) / 2


class NetworkCritic:
    """T from p(data | features) of a network that goes on learning from each step's memory.

    Every worker makes the same updates on the same memory; the first worker's parameters are then copied to all, so that
    workers on unlike machines, whose products may differ in the last bits, keep one critic.
    """

    def __init__(self, config: NetworkCriticConfig, num_features: int, seed: int, comm: Comm, dtype: torch.dtype):
        """A network for features [n, num_features] that has learned nothing yet; `seed` is the run's."""
        self.config, self.comm = config, comm
        self.network = build_network(config, num_features, seed, dtype).to(comm.device)
        self.optimizer = build_optimizer(self.network, OptimizerConfig(), maximize=False)
        self.optimizer.learning_rate = config.learning_rate

    def observe(self, memory: Memory, step: int) -> None:
        """Adam's updates on the memory's logistic loss, critic.updates of them."""
        with torch.enable_grad():
            for _ in range(self.config.updates):
                self.optimizer.zero_grad()
                logistic_loss(self.network, memory).backward()
                self.optimizer.step()
        for parameter in self.network.parameters():
            self.comm.copy_from_first_(parameter.data)

    @torch.no_grad()
    def score(self, queries: Tensor, memory: Memory, first_particle: int | None = None) -> Tensor:
        """T [q] of queries [q, F]; p = sigmoid of the network."""
        return score_of(self.network(queries)[:, 0].sigmoid(), self.config)

    def state(self) -> dict[str, Tensor]:
        """Parameters, and Adam's moments once it has learned."""
        moments = optimizer_state(self.optimizer, self.network)
        return {**self.network.state_dict(), **{f"adam.{name}": value for name, value in moments.items()}}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on learning from there. Raises ValueError on sizes that do not fit."""
        mine = {name: state[name] for name in self.network.state_dict() if name in state}
        if not mine:
            return
        try:
            self.network.load_state_dict(mine)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint's critic does not fit critic.hidden = {self.config.hidden}") from error
        moments = {k.removeprefix("adam."): v for k, v in state.items() if k.startswith("adam.")}
        load_optimizer_state(self.optimizer, self.network, moments)
