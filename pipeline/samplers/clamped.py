"""Block Gibbs with some visible units held: samples of p(v_free | v_clamped), which is what filling in a picture is."""

import torch
from torch import Tensor

from pipeline.models.rbm import RBM
from pipeline.models.units import OneHot
from pipeline.samplers.gibbs import ChainState, gibbs_sweep
from pipeline.samplers.protocols import ROWS_PER_BLOCK, Samples, WideStart
from pipeline.streams import stream


@torch.no_grad()
def run_clamped(
    rbm: RBM, chains: ChainState, clamped: Tensor, num_sweeps: int, generator: torch.Generator
) -> ChainState:
    """The chains after `num_sweeps` sweeps at beta = 1, the visible units in `clamped` [M, V] (bool) held at their values.

    A sweep draws h ~ p(h | v_clamped, v_free), then v_free ~ p(v_free | h). Visible units are independent given h, so
    drawing all of them and putting the held ones back is that draw. The stationary law is p(v_free, h | v_clamped).

    Raises:
        ValueError: one-hot visible units; they are one variable, of which no part can be held alone.
    """
    if isinstance(rbm.visible, OneHot):
        raise ValueError("the visible units are one-hot, a single variable: a part of it cannot be clamped")
    couplings, held = rbm.couplings(), chains.visible
    for _ in range(num_sweeps):
        chains = gibbs_sweep(rbm, couplings, chains, None, generator)
        chains = chains._replace(visible=torch.where(clamped, held, chains.visible))
    return chains


@torch.no_grad()
def draw_clamped(rbm: RBM, start: WideStart, held: Tensor, clamped: Tensor, num_sweeps: int, seed: int) -> Samples:
    """One draw for each row of `held` [n, V]: the units in `clamped` [n, V] (bool) keep their values there.

    The others start wide. `visible` has them with their noise, `visible_mean` their E[v | h]; both have the clamped
    values bit for bit. `seed` fixes every number. Raises ValueError as `run_clamped`.
    """
    visible, means = [], []
    for block, first in enumerate(range(0, len(held), ROWS_PER_BLOCK)):
        values, where = held[first : first + ROWS_PER_BLOCK], clamped[first : first + ROWS_PER_BLOCK]
        generator = stream(seed, "inpaint", block, device=held.device)
        chains = start.draw(rbm, len(values), generator)
        chains = chains._replace(visible=torch.where(where, values, chains.visible))
        chains = run_clamped(rbm, chains, where, num_sweeps, generator)
        visible.append(chains.visible)
        means.append(torch.where(where, values, rbm.visible_mean(chains.hidden)))
    return Samples(torch.cat(visible), torch.cat(means))
