"""Coarse random numbers: one of 2^16 equally likely values each, with the moments and the independence of the fine ones."""

import pytest
import torch
from scipy import stats

from pipeline.streams import RowStreams, normal_, stream, uniform_

COUNT = 2**20


def coarse(purpose: str) -> RowStreams:
    return RowStreams([stream(0, purpose)], [COUNT], coarse=True)


def test_coarse_uniform_numbers_take_every_value_equally_often() -> None:
    x = uniform_(torch.empty(COUNT), coarse("uniform"))
    values = x.double() * 2**16 - 0.5
    assert torch.equal(values, values.round()) and values.min() >= 0 and values.max() < 2**16
    counts = torch.bincount(values.long(), minlength=2**16)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-7


def test_coarse_normal_numbers_have_the_normal_moments_and_quantiles() -> None:
    x = normal_(torch.empty(COUNT), coarse("normal")).double()
    for power, exact, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - exact) < 6 * (variance / COUNT) ** 0.5 + 1e-3 * (power == 4)
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-7
    assert 4.2 < float(x.abs().max()) < 4.4


@pytest.mark.parametrize("draw", [uniform_, normal_])
def test_coarse_numbers_of_one_word_are_independent(draw) -> None:
    """Four numbers come of 64 random bits: they, and those of neighboring words, are uncorrelated in value and in square."""
    x = draw(torch.empty(COUNT), coarse("words")).double().view(-1, 8)
    for y in (x, (x - x.mean()) ** 2):
        correlations = torch.corrcoef(y.T) - torch.eye(8, dtype=torch.float64)
        assert float(correlations.abs().max()) < 6 / len(y) ** 0.5


@pytest.mark.parametrize("shape", [(0, 5), (1, 3), (3, 3), (2, 2, 7)])
@pytest.mark.parametrize("draw", [uniform_, normal_])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coarse_numbers_fill_any_shape(shape: tuple[int, ...], draw, dtype: torch.dtype) -> None:
    x = draw(torch.full(shape, torch.nan, dtype=dtype), RowStreams([stream(1, "shape")], [shape[0]], coarse=True))
    assert x.isfinite().all() and len(x.unique()) == x.numel()
