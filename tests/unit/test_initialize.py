"""Starting values: biases and scales from the data's moments, floors for units that never move, one stream per seed."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import RBMConfig, RunConfig, SamplerConfig
from pipeline.models.initialize import initialize_rbm
from pipeline.models.rbm import RBM


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_data(rows: int = 997, size: int = 7) -> Tensor:
    return torch.randn(rows, size, generator=seeded(1)) * torch.linspace(0.2, 3.0, size) + torch.arange(size)


def binary_data(rows: int = 997, size: int = 7) -> Tensor:
    """Unit 0 is never on, the last one always."""
    return (torch.rand(rows, size, generator=seeded(2)) < torch.linspace(0, 1, size)).float()


def onehot_data(rows: int = 997, size: int = 7) -> Tensor:
    """Unit 0 never wins."""
    return torch.eye(size)[torch.randint(1, size, (rows,), generator=seeded(3))]


DATA = {"gaussian": gaussian_data, "bernoulli": binary_data, "onehot": onehot_data}
KINDS = pytest.mark.parametrize("kind", DATA)


def initialized(kind: str, seed: int = 0, **settings: object) -> tuple[RBM, Tensor]:
    data = DATA[kind]()
    config = RBMConfig(data.shape[1], 5, visible_units=kind, **settings)  # type: ignore[arg-type]
    return initialize_rbm(config, data, seed), data


def test_gaussian_units_start_at_the_mean_with_a_share_of_the_deviation() -> None:
    rbm, data = initialized("gaussian", initial_std=0.3)
    torch.testing.assert_close(rbm.visible.bias, data.mean(0))
    variance = rbm.visible.variance()
    assert variance is not None
    torch.testing.assert_close(variance.sqrt(), 0.3 * data.std(0))


def test_a_constant_gaussian_unit_starts_at_the_floor() -> None:
    data = gaussian_data()
    data[:, 2] = 4.0
    rbm = initialize_rbm(RBMConfig(7, 5, min_std=0.05), data, 0)
    std = rbm.visible.variance().sqrt()  # type: ignore[union-attr]
    assert std[2].item() == pytest.approx(0.05)
    assert (std[[0, 1, 3, 4, 5, 6]] > 0.05).all()


def test_bernoulli_units_start_at_the_logit_of_their_mean_cut_at_one_percent() -> None:
    rbm, data = initialized("bernoulli")
    expected = torch.logit(data.mean(0).clamp(0.01, 0.99))
    torch.testing.assert_close(rbm.visible.bias, expected)
    assert rbm.visible.bias[0].item() == pytest.approx(math.log(0.01 / 0.99), rel=1e-5)
    assert rbm.visible.bias[-1].item() == pytest.approx(-math.log(0.01 / 0.99), rel=1e-5)
    # without weights the model's marginals are then those of the data
    assert (torch.sigmoid(rbm.visible.bias) - data.mean(0)).abs().max() < 0.011


def test_one_hot_units_start_at_the_log_of_their_share_with_a_floor() -> None:
    rbm, data = initialized("onehot")
    torch.testing.assert_close(rbm.visible.bias[1:], data.mean(0)[1:].log())
    assert rbm.visible.bias[0].item() == pytest.approx(math.log(0.01 / 7), rel=1e-5)
    assert (torch.softmax(rbm.visible.bias, 0) - data.mean(0)).abs().max() < 0.0015


@KINDS
def test_hidden_units_start_without_bias_and_offsets_are_zero_unless_centered(kind: str) -> None:
    rbm, _ = initialized(kind)
    assert not rbm.hidden.bias.any()
    assert not rbm.visible.offset.any() and not rbm.hidden.offset.any()


@KINDS
def test_centered_layers_have_the_mean_of_data_and_of_hidden_activations_as_offsets(kind: str) -> None:
    rbm, data = initialized(kind, center_visible=True, center_hidden=True)
    torch.testing.assert_close(rbm.visible.offset, data.mean(0))
    s = rbm.visible.variance()
    scaled = (data - data.mean(0)) / (1.0 if s is None else s)
    torch.testing.assert_close(rbm.hidden.offset, torch.sigmoid(scaled @ rbm.weights).mean(0))
    only_hidden, _ = initialized(kind, center_hidden=True)
    assert not only_hidden.visible.offset.any() and only_hidden.hidden.offset.all()


def test_hidden_offsets_use_the_first_4096_rows() -> None:
    data = gaussian_data(5003)
    rbm = initialize_rbm(RBMConfig(7, 5, center_hidden=True), data, 0)
    activations = rbm.hidden_mean(data)  # without the offset, which does not enter it
    torch.testing.assert_close(rbm.hidden.offset, activations[:4096].mean(0))
    assert (rbm.hidden.offset - activations.mean(0)).abs().max() > 1e-4


@pytest.mark.parametrize(("num_visible", "num_hidden"), [(101, 67), (7, 211)])
def test_weights_have_the_deviation_of_glorot_s_rule(num_visible: int, num_hidden: int) -> None:
    """sqrt(2 / (V + H)); the deviation of n normal draws has a relative error of 1 / sqrt(2 n), and 6 of them are allowed."""
    data = gaussian_data(11, num_visible)
    weights = initialize_rbm(RBMConfig(num_visible, num_hidden), data, 0).weights.double()
    expected, n = math.sqrt(2 / (num_visible + num_hidden)), weights.numel()
    assert weights.shape == (num_visible, num_hidden)
    assert weights.std().item() == pytest.approx(expected, rel=6 / math.sqrt(2 * n))
    assert abs(weights.mean().item()) < 6 * expected / math.sqrt(n)


@KINDS
def test_a_seed_fixes_every_value_and_another_seed_moves_the_weights_alone(kind: str) -> None:
    first, again, other = (initialized(kind, seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert {name for name in first if not torch.equal(first[name], other[name])} == {"weights"}


def test_the_weights_depend_on_the_seed_and_the_sizes_not_on_the_data() -> None:
    config = RBMConfig(7, 5)
    models = [initialize_rbm(config, data, 3) for data in (gaussian_data(), 5 * gaussian_data(101))]
    assert torch.equal(models[0].weights, models[1].weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_model_has_the_data_s_precision_and_no_autograd(dtype: torch.dtype) -> None:
    rbm = initialize_rbm(RBMConfig(7, 5, center_visible=True), gaussian_data().to(dtype), 0)
    assert all(value.dtype == dtype for value in rbm.state_dict().values())
    assert not any(p.requires_grad for p in rbm.parameters())


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    initialized("gaussian", center_hidden=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_wrong_number_of_columns_is_refused_with_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"model\.num_visible = 8, but the data have 7 columns"):
        initialize_rbm(RBMConfig(8, 5), gaussian_data(), 0)


def test_a_variance_of_its_own_is_smoothed_or_fixed():
    data = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.0, 1.0, 2.0])
    smooth = initialize_rbm(RBMConfig(3, 2, initial_std=0.5, initial_smoothing=0.01, min_std=1e-3), data, 0)
    expected = 0.5 * (0.99 * data.var(0) + 0.01).sqrt()
    torch.testing.assert_close(smooth.visible.variance().sqrt(), expected)
    fixed = initialize_rbm(RBMConfig(3, 2, fixed_std=0.07), data, 0)
    torch.testing.assert_close(fixed.visible.variance().sqrt(), torch.full((3,), 0.07))


def test_a_fixed_variance_stays():
    data = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    sampler = SamplerConfig(num_chains=8, gibbs_steps=1)
    config = RunConfig("fixed", model=RBMConfig(3, 2, fixed_std=0.07), sampler=sampler)
    objective = build_beam(config, data, data, Comm())
    before = {name: p.clone() for name, p in objective.rbm.named_parameters()}
    for step in range(3):
        objective.step(step, measure=False)
    after = dict(objective.rbm.named_parameters())
    assert torch.equal(after["visible.log_variance"], before["visible.log_variance"])
    assert not torch.equal(after["weights"], before["weights"])


def test_thresholds_at_rows_of_the_data() -> None:
    """Each hidden unit is undecided at a row; v has the data's mean over all hidden states; weights and scales stay."""
    rbm, data = initialized("gaussian", initial_thresholds="data")
    plain, _ = initialized("gaussian")
    assert torch.equal(rbm.weights, plain.weights) and torch.equal(rbm.visible.log_variance, plain.visible.log_variance)
    logits = (rbm.hidden.bias + rbm.hidden_field(data)).abs()
    assert (logits.min(0).values < 1e-4).all()
    assert len(set(logits.argmin(0).tolist())) > 1, "not one row for all units"
    halves = torch.full((1, 5), 0.5)
    torch.testing.assert_close(rbm.visible_mean(halves)[0], data.mean(0))
    other, _ = initialized("gaussian", seed=1, initial_thresholds="data")
    assert not torch.equal(other.hidden.bias, rbm.hidden.bias)
