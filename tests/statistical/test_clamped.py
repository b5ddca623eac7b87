"""Gibbs with clamped visible units against p(v_free, h | v_clamped) by enumeration; bounds as in laws.py."""

import pytest
import torch
from laws import Table, assert_follows, assert_histogram, cell_of, seeded, single, start_at
from point_models import point_model
from small import small_rbm

from pipeline.models.units import Gaussian
from pipeline.samplers.clamped import run_clamped

ROWS = 30_000


def held_at(table: Table, row: int, clamped: list[int]) -> Table:
    """The joint law given that the visible units in `clamped` are as in state number `row`."""
    same = (table.v[:, clamped] == table.v[row, clamped]).all(1)
    p = table.p * same[:, None]
    return Table(table.v, table.h, p / p.sum())


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("hidden", ["bernoulli", "gaussian", "onehot"])
@pytest.mark.parametrize("sweeps", [1, 60])
@pytest.mark.parametrize("centered", [False, True])
def test_the_law_given_the_clamped_units_is_exact(visible: str, hidden: str, sweeps: int, centered: bool) -> None:
    rbm, g = small_rbm(visible, hidden, seed=5, centered=centered), seeded(5)
    table = Table.of(rbm)
    clamped = [1] if isinstance(rbm.visible, Gaussian) else [0, 3]
    row = len(table.v) // 2 + 5 if isinstance(rbm.visible, Gaussian) else 18  # 1 0 0 1 0
    given = held_at(table, row, clamped)
    law = given.after(given.only(row), sweeps)
    if sweeps == 60:
        assert (law - given.p).abs().sum() < 1e-6  # so that what follows is a comparison with the conditional law
        assert (given.p - table.p).abs().sum() > 0.1  # which is not the model's own
    mask = torch.zeros(ROWS, len(rbm.visible.bias), dtype=torch.bool)
    mask[:, clamped] = True
    start = start_at(table.v[row].expand(ROWS, -1), len(rbm.hidden.bias))
    chains = run_clamped(single(rbm), start, mask, sweeps, g)
    assert torch.equal(chains.visible[mask], start.visible[mask])
    assert_follows(rbm, chains, table, law)


def test_rows_with_different_masks_keep_their_own_units() -> None:
    rbm, g = small_rbm("bernoulli", "bernoulli", seed=6), seeded(6)
    table = Table.of(rbm)
    masks = torch.tensor([[True, False, False, True, False], [False, True, True, False, False]]).repeat(ROWS, 1)
    start = start_at(table.v[18].expand(2 * ROWS, -1), 3)
    chains = run_clamped(single(rbm), start, masks, 60, g)
    for half, clamped in ((0, [0, 3]), (1, [1, 2])):
        part = type(chains)(*(x[half::2] for x in chains))
        assert_follows(rbm, part, table, held_at(table, 18, clamped).p)


def test_a_packaged_model_fills_in_by_the_conditional_law() -> None:
    beam = point_model("bernoulli", "bernoulli")
    table = Table.of(beam.rbm)
    rows = table.v[18].expand(10_000, -1)
    filled = beam.inpaint(rows, [0, 3], gibbs_steps=30, seed=1)
    assert_histogram(cell_of(beam.rbm.visible, filled), held_at(table, 18, [0, 3]).p.sum(1))


def test_a_part_of_a_one_hot_layer_cannot_be_clamped() -> None:
    with pytest.raises(ValueError, match="one-hot, a single variable"):
        point_model("onehot").inpaint([[0, 1, 0, 0, 0]], [2])
