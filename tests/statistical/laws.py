"""Exact laws of Gibbs chains on small RBMs as tables over (v, h), and the comparison of drawn states with them."""

import copy
import math
from typing import NamedTuple

import torch
from scipy import stats
from small import axis_states
from torch import Tensor

from pipeline.models.rbm import RBM
from pipeline.models.units import Gaussian, Units
from pipeline.samplers.gibbs import ChainState

P_VALUE = 1e-7
"""Of each chi-square test: with some tens of them per file, a correct sampler fails one with probability below 1e-5."""
SIGMAS = 6.0
"""Allowed deviation of an average, in exact standard errors: 2e-9 for a normal law; there are up to 44 per comparison."""


class Table(NamedTuple):
    """All states of both layers, and p(v, h)^beta / Z_beta over them as a matrix [n, m] that sums to 1."""

    v: Tensor
    h: Tensor
    p: Tensor

    @classmethod
    def of(cls, rbm: RBM, beta: float = 1.0) -> "Table":
        """By enumeration, and by the trapezoid rule for Gaussian layers (their grid ends 5 standard deviations out)."""
        v, _ = axis_states(rbm.visible, points=121, half_width=14.0)
        h, _ = axis_states(rbm.hidden, points=121, half_width=14.0)
        with torch.no_grad():
            pairs = v.repeat_interleave(len(h), 0), h.repeat(len(v), 1)
            log_p = -beta * rbm.energy(*pairs).view(len(v), len(h))
        return cls(v, h, torch.softmax(log_p.flatten(), 0).view_as(log_p))

    def after(self, law_of_v: Tensor, sweeps: int) -> Tensor:
        """Joint law [n, m] of (v, h) after `sweeps` sweeps (h given v, then v given h) from `law_of_v` [n].

        Written with the joint table alone, so it shares nothing with the code that draws.
        """
        h_given_v = self.p / self.p.sum(1, keepdim=True).clamp(min=1e-300)
        v_given_h = self.p / self.p.sum(0, keepdim=True).clamp(min=1e-300)
        joint = self.p
        for _ in range(sweeps):
            joint = v_given_h * (law_of_v @ h_given_v)
            law_of_v = joint.sum(1)
        return joint

    def only(self, index: int) -> Tensor:
        """The law [n] of a start at the visible state of this index."""
        law = torch.zeros(len(self.v), dtype=torch.float64)
        law[index] = 1
        return law

    def fixed_start(self, rbm: RBM) -> int:
        """Index of some visible state: zeros when Gaussian, the first one otherwise."""
        return len(self.v) // 2 if isinstance(rbm.visible, Gaussian) else 0


def seeded(seed: int) -> torch.Generator:
    """A generator with this seed."""
    return torch.Generator().manual_seed(seed)


def single(rbm: RBM) -> RBM:
    """A float32 copy, the precision of production."""
    return copy.deepcopy(rbm).float()


def start_at(v: Tensor, num_hidden: int) -> ChainState:
    """Float32 chains at `v`; the hidden states are NaN, since a sweep must not look at them."""
    return ChainState(v.float(), torch.full((len(v), num_hidden), torch.nan), torch.ones(len(v), 1))


def exact_visible_draws(rbm: RBM, table: Table, beta: float, rows: int, generator: torch.Generator) -> Tensor:
    """Independent draws of v [rows, V] from the table's law; h is drawn first when v has no table of states."""
    if not isinstance(rbm.visible, Gaussian):
        return table.v[torch.multinomial(table.p.sum(1), rows, True, generator=generator)]
    h = table.h[torch.multinomial(table.p.sum(0), rows, True, generator=generator)]
    if isinstance(rbm.hidden, Gaussian):  # the grid's draws, spread over their cells by a sweep of the caller
        return table.v[torch.multinomial(table.p.sum(1), rows, True, generator=generator)]
    noise = torch.randn(rows, len(rbm.visible.bias), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return rbm.visible_mean(h) + noise * (rbm.visible.variance() / beta).sqrt()


def cell_of(units: Units, states: Tensor) -> Tensor:
    """Index [rows] of each discrete state in the order of `layer_states`."""
    if not bool(((states == 0) | (states == 1)).all()):
        raise AssertionError("a discrete unit is neither 0 nor 1")
    if type(units).__name__ == "OneHot":
        assert bool((states.sum(1) == 1).all())
        return states.argmax(1)
    return (states.long() * 2 ** torch.arange(states.shape[1] - 1, -1, -1)).sum(1)


def assert_histogram(cells: Tensor, probabilities: Tensor) -> None:
    """Independent `cells` [rows] follow `probabilities` [cells], by chi-square; cells below 5 expected are pooled."""
    expected = probabilities * len(cells)
    observed = torch.bincount(cells, minlength=len(expected)).double()
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    if expected[-1] < 5:  # too little for a cell of its own even when pooled: it joins the smallest one
        smallest = expected[:-1].argmin()
        expected[smallest] += expected[-1]
        observed[smallest] += observed[-1]
        expected, observed = expected[:-1], observed[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    assert stats.chi2.sf(statistic, len(expected) - 1) > P_VALUE


def assert_follows(rbm: RBM, chains: ChainState, table: Table, law: Tensor) -> None:
    """Independent chains follow the joint `law` [n, m]: histogram of the discrete states, all first and second moments."""
    v, h = chains.visible.double(), chains.hidden.double()
    discrete_v, discrete_h = not isinstance(rbm.visible, Gaussian), not isinstance(rbm.hidden, Gaussian)
    if discrete_v and discrete_h:
        assert_histogram(cell_of(rbm.visible, v) * len(table.h) + cell_of(rbm.hidden, h), law.flatten())
    elif discrete_v:
        assert_histogram(cell_of(rbm.visible, v), law.sum(1))
    elif discrete_h:
        assert_histogram(cell_of(rbm.hidden, h), law.sum(0))
    p_v, p_h = law.sum(1), law.sum(0)

    def check(drawn: Tensor, mean: float, mean_square: float) -> None:
        error = SIGMAS * math.sqrt(max(mean_square - mean**2, 0.0) / len(drawn)) + 1e-6  # 1e-6: float32 states
        assert abs(drawn.mean().item() - mean) < error

    for states, x, p in ((table.v, v, p_v), (table.h, h, p_h)):
        for i in range(x.shape[1]):
            check(x[:, i], float(p @ states[:, i]), float(p @ states[:, i] ** 2))
            for j in range(i + 1):
                product = states[:, i] * states[:, j]
                check(x[:, i] * x[:, j], float(p @ product), float(p @ product**2))
    for i in range(v.shape[1]):
        for j in range(h.shape[1]):
            a, b = table.v[:, i], table.h[:, j]
            check(v[:, i] * h[:, j], float(a @ law @ b), float(a**2 @ law @ b**2))
