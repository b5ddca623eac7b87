"""The sampler that a run's settings name, and its chains that are samples."""

import torch

from pipeline.comm import split_rows
from pipeline.config import SamplerConfig
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
