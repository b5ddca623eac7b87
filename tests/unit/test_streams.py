"""Random numbers of few bits: uniform ones with the law of torch's own, normal ones of 2^16 equally likely values."""

import pytest
import torch
from scipy import stats

from pipeline.streams import RowStreams, normal_, stream, uniform_

COUNT = 2**20


def coarse(purpose: str) -> RowStreams:
    return RowStreams([stream(0, purpose)], [COUNT], coarse=True)


def bits_of(x: torch.Tensor) -> torch.Tensor:
    """The 24 bits of uniform numbers, as integers."""
    values = x.double() * 2**24
    assert torch.equal(values, values.round()) and values.min() >= 0 and values.max() < 2**24
    return values.long()


def test_many_uniform_numbers_have_the_law_of_24_random_bits() -> None:
    rows = bits_of(uniform_(torch.empty(2**17, 8), stream(0, "uniform")))
    assert torch.equal(rows & 255, (rows[:, :1] & 255).expand_as(rows)), "a row shares the lower bits"
    for bits, size in ((rows >> 8, 2**16), (rows[:, 0] & 255, 2**8), (rows[:, 0] >> 14 << 8 | rows[:, 0] & 255, 2**18)):
        counts = torch.bincount(bits.flatten(), minlength=size)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-7
    # the last of them says that lower and upper bits are independent, these that neighbors in a row are
    for column in range(1, 8):
        pairs = torch.bincount((rows[:, 0] >> 18) * 64 + (rows[:, column] >> 18), minlength=2**12)
        assert stats.chisquare(pairs.numpy()).pvalue > 1e-7


def test_shared_lower_bits_leave_states_of_a_row_all_but_independent() -> None:
    """By enumeration of the shared bits: given them, [u < p] has a probability that is a multiple of 2^-16."""
    p = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = (p * 2**24).floor()  # what torch's own uniform numbers tell apart
    given = ((p[:, None] - torch.arange(2**8)) / 2**8).ceil() / 2**16
    mean = given.mean(1)
    assert torch.equal(mean, p / 2**24)
    assert float((given @ given.T / 2**8 - mean[:, None] * mean).abs().max()) <= 2.0**-34


def test_sums_over_a_row_have_the_variance_of_independent_states() -> None:
    p = torch.rand(784, generator=torch.Generator().manual_seed(0))
    rows = 20_000
    states = uniform_(torch.empty(rows, 784), stream(0, "rows")) < p
    sums, variance = states.sum(1).double(), float((p * (1 - p)).sum())
    assert float(sums.mean()) == pytest.approx(float(p.sum()), abs=6 * (variance / rows) ** 0.5)
    assert float(sums.var()) == pytest.approx(variance, rel=6 * (2 / rows) ** 0.5)
    means = states.double().mean(0)
    assert float(((means - p) / (p * (1 - p) / rows).sqrt()).abs().max()) < 5.5


@pytest.mark.parametrize(("shape", "dtype"), [((50, 300), torch.float32), ((100, 300), torch.float64)])
def test_few_or_double_uniform_numbers_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    expected = torch.empty(shape, dtype=dtype).uniform_(generator=stream(0, "few"))
    assert torch.equal(uniform_(torch.empty(shape, dtype=dtype), stream(0, "few")), expected)


def test_coarse_normal_numbers_have_the_normal_moments_and_quantiles() -> None:
    x = normal_(torch.empty(COUNT), coarse("normal")).double()
    for power, exact, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - exact) < 6 * (variance / COUNT) ** 0.5 + 1e-3 * (power == 4)
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-7
    assert 4.2 < float(x.abs().max()) < 4.4


@pytest.mark.parametrize("draw", [uniform_, normal_])
def test_numbers_of_one_word_are_independent(draw) -> None:
    """Four numbers come of 64 random bits: they, and those of neighboring words, are uncorrelated in value and in square."""
    x = draw(torch.empty(COUNT // 8, 8), RowStreams([stream(0, "words")], [COUNT // 8], coarse=True)).double()
    for y in (x, (x - x.mean()) ** 2):
        correlations = torch.corrcoef(y.T) - torch.eye(8, dtype=torch.float64)
        assert float(correlations.abs().max()) < 6 / len(y) ** 0.5


@pytest.mark.parametrize("shape", [(0, 5), (1, 3), (3, 3), (2, 2, 7), (3, 5, 1201)])
@pytest.mark.parametrize("draw", [uniform_, normal_])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_fill_any_shape(shape: tuple[int, ...], draw, dtype: torch.dtype) -> None:
    x = draw(torch.full(shape, torch.nan, dtype=dtype), RowStreams([stream(1, "shape")], [shape[0]], coarse=True))
    assert x.isfinite().all() and len(x.unique()) >= 0.85 * x.numel()
