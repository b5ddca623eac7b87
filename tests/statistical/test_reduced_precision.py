"""Sweeps with rounded operands and coarse draws: the law that they sample, against the exact one of small models.

A processor that rounds by itself leaves products of few units as they are, so the small models have more units here, that
nothing is coupled to.
"""

import copy
import dataclasses

import pytest
import torch
from laws import Table, assert_follows, assert_histogram, cell_of, start_at
from small import small_rbm

from pipeline.device.precision import Products, rounding_operands, rounds_natively
from pipeline.models.rbm import RBM
from pipeline.models.units import Bernoulli
from pipeline.samplers.driven import plain_gibbs
from pipeline.samplers.gibbs import ChainState
from pipeline.streams import RowStreams, stream

ROWS = 30_000
SWEEPS = 8
UNITS = 24  # of either layer
ROUNDED = [
    pytest.param(
        "bfloat16",
        marks=pytest.mark.skipif(not rounds_natively(), reason="this processor or torch does not round factors"),
    ),
    "emulated",
]
PAIRINGS = pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])


def swept(rbm: RBM, start: torch.Tensor, rows: int, products: Products) -> ChainState:
    """Chains [rows] of `rbm` after the sweeps, without the added units."""
    num_visible, num_hidden = rbm.weights.shape
    wide = RBM(dataclasses.replace(rbm.config, num_visible=UNITS, num_hidden=UNITS))
    with torch.no_grad():
        wide.hidden.bias.fill_(-200.0)
        if isinstance(wide.visible, Bernoulli):
            wide.visible.bias.fill_(-200.0)
        for name, p in wide.named_parameters():
            own = rbm.get_parameter(name)
            p[tuple(slice(size) for size in own.shape)] = own.float()
    first = torch.zeros(UNITS)
    first[:num_visible] = start
    chains = start_at(first.expand(rows, -1), UNITS)
    half = rows // 2
    random = RowStreams([stream(0, "coarse", block) for block in (0, 1)], [half, rows - half], coarse=True)
    with rounding_operands(products):
        chains = plain_gibbs(SWEEPS).run(wide, chains, random)
    assert not chains.hidden[:, num_hidden:].any()
    return chains._replace(visible=chains.visible[:, :num_visible], hidden=chains.hidden[:, :num_hidden])


@PAIRINGS
@pytest.mark.parametrize("products", ["float32", *ROUNDED])
def test_the_law_of_the_sweeps_is_exact(visible: str, products: Products) -> None:
    rbm = small_rbm(visible, "bernoulli", seed=2)
    table = Table.of(rbm)
    start = table.fixed_start(rbm)
    law = table.after(table.only(start), SWEEPS)
    assert_follows(rbm, swept(rbm, table.v[start], ROWS, products), table, law)


@pytest.mark.parametrize("products", ROUNDED)
def test_rounding_changes_the_model_and_nothing_else(products: Products) -> None:
    """Weights that lie between two numbers of bfloat16, and many chains: the law is that of rounded weights."""
    rbm = small_rbm("bernoulli", "bernoulli", seed=2)
    with torch.no_grad():
        rbm.weights.copy_(2.0077 * rbm.weights.sign())
        rounded = copy.deepcopy(rbm)
        rounded.weights.copy_(rbm.weights.bfloat16())
    of_rounded, of_exact = (t.after(t.only(0), SWEEPS).flatten() for t in (Table.of(rounded), Table.of(rbm)))
    chains = swept(rbm, Table.of(rbm).v[0], 1_000_000, products)
    cells = cell_of(rbm.visible, chains.visible) * 2**3 + cell_of(rbm.hidden, chains.hidden)
    assert_histogram(cells, of_rounded)
    # 6.6 standard deviations apart at this count
    assert (of_rounded.log() - of_exact.log())[cells].sum() > 0
