"""The sampler that a run's settings name, and the trained RBM and its samples that a run's checkpoint holds."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.comm import split_rows
from pipeline.config import RBMConfig, RunConfig, SamplerConfig
from pipeline.models.rbm import RBM
from pipeline.samplers.driven import DrivenGibbs, GammaProcess
from pipeline.samplers.exchange import ExchangeGibbs, geometric_betas
from pipeline.samplers.gibbs import ChainState


def build_sampler(config: SamplerConfig) -> DrivenGibbs | ExchangeGibbs:
    """Build the sampler of training: replica exchange when there is more than one temperature, else driven Gibbs."""
    if config.num_temperatures > 1:
        return ExchangeGibbs(geometric_betas(config.num_temperatures, config.lowest_beta), config.gibbs_steps)
    return DrivenGibbs(GammaProcess(config.beta_std, config.beta_momentum), config.gibbs_steps, config.min_beta)


def chains_at_one(chains: ChainState, config: SamplerConfig) -> ChainState:
    """Select the chains that are samples, [num_chains, .] in block order, from all chain states of a run.

    Args:
        chains: of all blocks, [num_chains num_temperatures, .] as in a checkpoint: with replica exchange each block has its
            chains at beta = 1 first and then their hotter replicas.
        config: of the run.
    """
    sampler = build_sampler(config)
    rows = [count * config.num_temperatures for count in split_rows(config.num_chains, config.num_blocks)]
    blocks = [sampler.at_one(ChainState(*columns)) for columns in zip(*(column.split(rows) for column in chains))]
    return ChainState(*(torch.cat(columns) for columns in zip(*blocks)))


def read_trained(tensors: Mapping[str, Tensor], config: RunConfig) -> tuple[RBM, ChainState]:
    """Read the RBM, without gradients, and its chains that are samples, [num_chains, .], from a BEAM's checkpoint.

    Args:
        tensors: of the checkpoint, `model.*` and `chains.*` among them.
        config: of the run; it has an RBM and a sampler.
    """
    assert isinstance(config.model, RBMConfig) and config.sampler is not None
    rbm = RBM(config.model)
    rbm.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    rbm.requires_grad_(False)
    chains = ChainState(**{name: tensors[f"chains.{name}"] for name in ChainState._fields})
    return rbm, chains_at_one(chains, config.sampler)
