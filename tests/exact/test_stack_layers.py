"""Stacks of RBMs against their definition: what fits, how rows go up, and the layer turned around."""

import pytest
import torch
from small import PAIRINGS, joint_table, small_rbm

from pipeline.config import RBMConfig
from pipeline.metrics.exact import layer_states, log_partition
from pipeline.models.rbm import RBM
from pipeline.models.stack import ENCODING_ROWS, RBMStack, descend, encode, encode_rows, parameters_hash, transpose
from pipeline.samplers.protocols import DRIVEN, WideStart, draw_samples
from pipeline.samplers.stack import draw_stack_samples
from pipeline.streams import stream


def random_rbm(num_visible: int, num_hidden: int, visible: str = "bernoulli", seed: int = 0) -> RBM:
    """A float64 RBM with random parameters and centered hidden units."""
    rbm = RBM(RBMConfig(num_visible, num_hidden, visible, "bernoulli"), torch.float64)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in rbm.parameters():
            p.copy_(0.7 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        rbm.hidden.offset.copy_(0.4 * torch.rand(num_hidden, generator=generator, dtype=torch.float64))
    return rbm


@pytest.mark.parametrize(("visible", "hidden"), PAIRINGS)
def test_a_transposed_layer_has_the_same_joint_law(visible, hidden):
    """E'(h, v) = E(v, h) on all states, and so the same Z; offsets and scales included."""
    rbm = small_rbm(visible, hidden, centered=True)
    turned = transpose(rbm)
    v, h, _ = joint_table(rbm)
    v, h = v[:: max(1, len(v) // 997)], h[:: max(1, len(h) // 997)]
    assert torch.allclose(turned.energy(h, v), rbm.energy(v, h), rtol=1e-12, atol=1e-12)
    if (visible, hidden) != ("gaussian", "gaussian"):
        assert torch.allclose(log_partition(turned), log_partition(rbm), rtol=1e-12)
    assert (turned.config.num_visible, turned.config.hidden_units) == (rbm.config.num_hidden, visible)


def test_a_layer_that_began_with_thresholds_at_data_rows_can_be_turned():
    """That is a start of Bernoulli units on Gaussian ones alone, and the turned layer has them the other way around."""
    rbm = RBM(RBMConfig(7, 5, initial_thresholds="data", fixed_std=0.6))
    turned = transpose(rbm)
    assert (turned.config.initial_thresholds, turned.config.fixed_std) == ("origin", None)
    assert torch.equal(turned.weights, rbm.weights.T)


def test_a_tied_stack_is_the_single_layer():
    """Sum over h of p_turned(h) p(v | h) = p(v) of the bottom, on every v."""
    bottom = random_rbm(5, 3)
    turned = transpose(bottom)
    v, h = layer_states(bottom.visible), layer_states(bottom.hidden)
    prior = torch.exp(-turned.free_energy(h) - log_partition(turned))
    mean = bottom.visible_mean(h)  # [8, 5]
    conditional = torch.where(v[:, None, :] == 1, mean, 1 - mean).prod(2)  # p(v | h) [32, 8]
    assert torch.allclose(conditional @ prior, torch.exp(-bottom.free_energy(v) - log_partition(bottom)), rtol=1e-10)
    assert prior.sum().item() == pytest.approx(1, abs=1e-12)


def test_encode_goes_up_layer_by_layer():
    layers = [random_rbm(7, 5, "gaussian", 1), random_rbm(5, 3, seed=2), random_rbm(3, 2, seed=3)]
    stack = RBMStack(layers)
    rows = torch.randn(ENCODING_ROWS + 3, 7, generator=stream(0, "rows"), dtype=torch.float64)
    assert encode(stack, rows, 0) is rows
    assert [encode(stack, rows, n).shape[1] for n in (1, 2, 3)] == [5, 3, 2]
    expected = rows
    for rbm in layers:
        expected = torch.sigmoid(rbm.hidden.bias + (expected - rbm.visible.offset) / _variance(rbm) @ rbm.weights)
    assert torch.allclose(encode(stack, rows, encoding="mean"), expected, rtol=1e-12)
    drawn = encode(stack, rows, 2, seed=4)
    assert bool(((drawn == 0) | (drawn == 1)).all())
    assert torch.equal(drawn, encode_rows(layers[1], encode(stack, rows, 1, seed=4), "sample", 4, 2, "rows"))
    assert torch.equal(drawn, encode(stack, rows, 2, seed=4))
    assert not torch.equal(drawn, encode(stack, rows, 2, seed=5))
    with pytest.raises(ValueError, match="choose 0 to 3"):
        encode(stack, rows, 4)


def _variance(rbm: RBM) -> torch.Tensor | float:
    s = rbm.visible.variance()
    return 1.0 if s is None else s


def test_a_part_of_a_split_has_the_bits_of_the_whole():
    """Whoever encodes which shards: a part that starts at a block's row is drawn from that block's stream."""
    rbm = random_rbm(7, 5, "gaussian")
    rows = torch.randn(3 * ENCODING_ROWS + 11, 7, generator=stream(0, "rows"), dtype=torch.float64)
    whole = encode_rows(rbm, rows, "sample", 0, 1, "train")
    for first in (ENCODING_ROWS, 3 * ENCODING_ROWS):
        assert torch.equal(encode_rows(rbm, rows[first:], "sample", 0, 1, "train", first), whole[first:])
    assert not torch.equal(encode_rows(rbm, rows, "sample", 0, 1, "valid"), whole)
    assert encode_rows(rbm, rows[:0], "sample", 0, 1, "train").shape == (0, 5)


def test_a_stack_of_one_layer_is_its_rbm():
    rbm = random_rbm(7, 5, "gaussian").float()
    start = WideStart(torch.zeros(7), torch.ones(7))
    alone = draw_samples(rbm, start, DRIVEN, 37, 3)
    stacked = draw_stack_samples(RBMStack([rbm]), start, DRIVEN, 37, 3)
    assert torch.equal(alone.visible, stacked.visible) and torch.equal(alone.visible_mean, stacked.visible_mean)
    with pytest.raises(ValueError, match="nothing below"):
        descend(RBMStack([rbm]), alone.visible, stream(0, "x"))


def test_no_samples_of_a_stack_are_an_empty_result():
    stack = RBMStack([random_rbm(7, 5, "gaussian", 1).float(), random_rbm(5, 3, seed=2).float()])
    out = draw_stack_samples(stack, WideStart(torch.full((5,), 0.5), torch.ones(5)), DRIVEN, 0, 3)
    assert out.visible.shape == out.visible_mean.shape == (0, 7)


def test_means_through_the_middle():
    stack = RBMStack([random_rbm(7, 5, "gaussian", 1), random_rbm(5, 3, seed=2), random_rbm(3, 2, seed=3)])
    hidden = layer_states(stack.layer(1).hidden)
    _, mean = descend(stack, hidden, stream(0, "x"), middle="mean")
    assert torch.equal(mean, stack.layer(0).visible_mean(stack.layer(1).visible_mean(hidden)))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one layer"),
        ([small_rbm("gaussian", "bernoulli"), random_rbm(4, 2)], "has 3 hidden units"),
        ([random_rbm(5, 3), small_rbm("gaussian", "bernoulli")], "layer 2 has gaussian visible units"),
        ([small_rbm("bernoulli", "onehot"), random_rbm(3, 2)], "on onehot hidden units"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        RBMStack(layers)


def test_the_hash_names_parameters_and_offsets():
    a, b = random_rbm(5, 3), random_rbm(5, 3)
    assert parameters_hash(a) == parameters_hash(b)
    b.hidden.offset[0] += 1e-9
    assert parameters_hash(a) != parameters_hash(b)
