"""GANs: losses, sizes, one step against plain autograd, clamping, generating, resuming, what is refused."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.recipes import recipe
from jobs.recipes.gans import GANS
from pipeline.comm import Comm
from pipeline.config import (
    ConfigError,
    CriticConfig,
    DataConfig,
    EvaluationConfig,
    GANConfig,
    OptimizerConfig,
    Phase,
    PowerLaw,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
)
from pipeline.models.gan import Gan, draw_noise, generate
from pipeline.streams import stream
from pipeline.training.gan import GanObjective, critic_loss, generator_loss
from pipeline.training.objective import NonFinite

DENSE = GANConfig("gan", "dense", 5, 3, (7,), (11,), num_blocks=3)


def config_of(model: GANConfig, batch_size: int = 9, rate: float = 1e-2) -> RunConfig:
    return RunConfig(
        name="tiny",
        data=DataConfig(batch_size=batch_size),
        model=model,
        sampler=None,
        critic=None,
        optimizer=OptimizerConfig(0.5, 0.9),
        schedules=Schedules(likelihood=Phase(updates=50, learning_rate=PowerLaw(rate, 0.0))),
        evaluation=EvaluationConfig(num_rows=40, num_components=4),
    )


def rows_of(width: int = 5, count: int = 90) -> Tensor:
    return torch.rand(count, width, generator=stream(0, "rows"))


def objective_of(model: GANConfig, rows: Tensor | None = None, **settings: float) -> GanObjective:
    rows = rows_of(model.num_visible) if rows is None else rows
    return GanObjective(config_of(model, **settings), rows[:50], rows[50:], Comm())  # type: ignore[arg-type]


def test_the_losses_are_those_of_the_paper_and_of_wasserstein() -> None:
    values = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
    p = torch.sigmoid(values)  # the critic's probability of data
    torch.testing.assert_close(critic_loss("gan", values, True), -p.log())
    torch.testing.assert_close(critic_loss("gan", values, False), -(1 - p).log())
    torch.testing.assert_close(generator_loss("gan", values), -p.log())
    assert torch.equal(critic_loss("wgan", values, True) + critic_loss("wgan", values, False), torch.zeros(3).double())
    assert torch.equal(generator_loss("wgan", values), -values)


@pytest.mark.parametrize("loss", ["gan", "wgan"])
def test_a_step_is_two_adam_steps_along_the_gradients_of_the_losses(loss: str) -> None:
    model = dataclasses.replace(DENSE, loss=loss, clamp=0.15)
    objective = objective_of(model)
    twin = Gan(model).initialize_(stream(0, "initial weights"))
    data = torch.cat([objective.batches.block(0, b) for b in range(3)])
    noise = torch.cat([draw_noise(3, model, stream(0, "noise", 0, 0, b)) for b in range(3)])
    adam = {"lr": 1e-2, "betas": (0.5, 0.9)}
    critic_adam = torch.optim.Adam(twin.critic.parameters(), **adam)  # type: ignore[arg-type]
    generator_adam = torch.optim.Adam(twin.generator.parameters(), **adam)  # type: ignore[arg-type]
    samples = twin.generator(noise)
    on_data, on_samples = twin.critic(data), twin.critic(samples.detach())
    if loss == "gan":
        bce = F.binary_cross_entropy_with_logits
        value = bce(on_data, torch.ones(9, 1)) + bce(on_samples, torch.zeros(9, 1))
    else:
        value = on_samples.mean() - on_data.mean()
    value.backward()
    critic_adam.step()
    if loss == "wgan":
        for p in twin.critic.parameters():
            p.data.clamp_(-0.15, 0.15)
    again = twin.critic(samples)
    second = F.binary_cross_entropy_with_logits(again, torch.ones(9, 1)) if loss == "gan" else -again.mean()
    generator_adam.zero_grad()
    second.backward()
    generator_adam.step()

    report = objective.step(0, measure=True)
    assert report["critic_loss"] == pytest.approx(value.item(), abs=1e-6)
    assert report["generator_loss"] == pytest.approx(second.item(), abs=1e-6)
    assert report["critic_on_data"] == pytest.approx(on_data.mean().item(), abs=1e-6)
    assert report["critic_on_samples"] == pytest.approx(on_samples.mean().item(), abs=1e-6)
    for (name, mine), theirs in zip(objective.model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_the_weights_of_a_wasserstein_critic_stay_clamped_and_the_generators_do_not() -> None:
    model = dataclasses.replace(DENSE, loss="wgan", clamp=0.05)
    objective = objective_of(model)
    for step in range(3):
        objective.step(step, measure=False)
    assert max(float(p.detach().abs().max()) for p in objective.model.critic.parameters()) == pytest.approx(0.05)
    assert max(float(p.detach().abs().max()) for p in objective.model.generator.parameters()) > 0.3


def test_more_critic_steps_take_further_batches() -> None:
    objective = objective_of(dataclasses.replace(DENSE, critic_steps=3))
    asked: list[int] = []
    block = objective.batches.block
    objective.batches.block = lambda step, b: (asked.append(step), block(step, b))[1]  # type: ignore[method-assign]
    objective.step(2, measure=False)
    assert sorted(set(asked)) == [6, 7, 8]
    assert objective.schedule.total_steps == 50 and objective.state()["optimizer.critic.layers.0.weight.step"] == 3


@pytest.mark.parametrize("values", [784, 12288])
def test_convolutional_networks_have_the_sizes_of_the_tables(values: int) -> None:
    model = Gan(GANConfig("gan", "convolutional", values, 100, (), (), output="sigmoid", batch_norm=True))
    shapes = [tuple(p.shape) for p in model.critic.parameters() if p.ndim > 1]
    if values == 784:
        assert shapes == [(32, 1, 4, 4), (64, 32, 4, 4), (1, 3136)]
    else:  # the autoencoder's: 3x64^2 -> 32x32^2 -> 64x16^2 -> 64x8^2 -> 64x4^2 = 1024
        assert shapes == [(32, 3, 4, 4), (64, 32, 4, 4), (64, 64, 4, 4), (64, 64, 4, 4), (1, 1024)]
    rows = model.generator(torch.zeros(2, 100))
    assert rows.shape == (2, values) and model.critic(rows).shape == (2, 1)
    assert 0 <= float(rows.detach().min()) and float(rows.detach().max()) <= 1


def test_generated_rows_do_not_depend_on_how_many_there_are() -> None:
    model = Gan(DENSE).initialize_(stream(0, "initial weights"))
    many, few = generate(model.generator, 300, 7, Comm()), generate(model.generator, 150, 7, Comm())
    assert many.shape == (300, 5) and torch.equal(many[:150], few)
    assert not torch.equal(generate(model.generator, 150, 8, Comm()), few)


def test_evaluation_changes_nothing_and_has_the_monitors_of_samples() -> None:
    objective = objective_of(dataclasses.replace(DENSE, batch_norm=True, critic_hidden=(11, 6)))
    objective.step(0, measure=False)
    before = objective.state()
    found = objective.evaluate(1)
    assert {"kl_forward", "kl_reverse", "kl_sum", "frechet_latent", "precision", "recall"} <= found.metrics.keys()
    assert found.samples is not None and found.samples.shape == (36, 5)
    assert all(torch.equal(before[name], value) for name, value in objective.state().items())


def test_a_run_goes_on_from_its_state_with_the_same_bits() -> None:
    model = dataclasses.replace(DENSE, batch_norm=True, critic_hidden=(11, 6))
    whole, first = objective_of(model), objective_of(model)
    for step in range(8):
        whole.step(step, measure=False)
    for step in range(4):
        first.step(step, measure=False)
    second = objective_of(model)
    second.step(0, measure=False)  # what it has done before is forgotten
    second.load_state(first.state())
    for step in range(4, 8):
        second.step(step, measure=False)
    reference = whole.state()
    assert all(torch.equal(reference[name], value) for name, value in second.state().items())


def test_a_diverging_run_stops_before_the_network_changes() -> None:
    objective = objective_of(DENSE)
    with torch.no_grad():
        objective.model.critic.layers[0].weight.fill_(1e8)  # type: ignore[union-attr, operator]
    before = objective.state()
    with pytest.raises(NonFinite, match="critic"):
        objective.step(0, measure=False)
    assert all(torch.equal(before[name], value) for name, value in objective.state().items())
    normalized = objective_of(dataclasses.replace(DENSE, batch_norm=True))
    with torch.no_grad():
        normalized.model.generator.layers[0].weight.fill_(1e8)  # type: ignore[union-attr, operator]
    with pytest.raises(NonFinite):  # moments beyond the range of exact sums
        normalized.step(0, measure=False)


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model\.num_visible = 5: a row of the data has 4"):
        objective_of(DENSE, rows_of(4))
    with pytest.raises(ValueError, match=r"model\.output = 'sigmoid'"):
        objective_of(dataclasses.replace(DENSE, output="sigmoid"), rows_of() * 2)
    with pytest.raises(ValueError, match="not a GAN: its model is RBMConfig"):
        GanObjective(RunConfig("beam", model=RBMConfig(5, 3)), rows_of(), rows_of(), Comm())
    state = objective_of(DENSE).state()
    with pytest.raises(ValueError, match="does not fit this run"):
        objective_of(dataclasses.replace(DENSE, generator_hidden=(8,))).load_state(state)
    base = config_of(DENSE)
    for change, name in (
        ({"sampler": SamplerConfig()}, "sampler"),
        ({"critic": CriticConfig()}, "critic"),
        ({"schedules": Schedules(adversarial=Phase(updates=1))}, "schedules.adversarial"),
        ({"evaluation": EvaluationConfig(selection_metric="reconstruction_mse")}, "evaluation.selection_metric"),
    ):
        with pytest.raises(ConfigError, match=f"^{name} = "):
            dataclasses.replace(base, **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model\.num_visible = 100: must be 784"):
        GANConfig("gan", "convolutional", 100, 5, (), ())
    with pytest.raises(ConfigError, match=r"model\.critic_hidden .*: must be empty"):
        GANConfig("gan", "convolutional", 784, 5, ())


def test_widths_are_a_setting_like_others() -> None:
    base = config_of(DENSE)
    for value in ("[12, 9]", [12, 9], (12, 9)):
        changed = base.override({"model.generator_hidden": value})
        assert isinstance(changed.model, GANConfig) and changed.model.generator_hidden == (12, 9)
        assert RunConfig.from_dict(changed.to_dict()) == changed
        assert changed.to_dict()["model"]["generator_hidden"] == [12, 9]
    for wrong in ("12", "[1.5]", "[0]", '["a"]'):
        with pytest.raises(ConfigError, match=r"model\.generator_hidden"):
            base.override({"model.generator_hidden": wrong})


def test_the_recipes_say_what_the_tables_say() -> None:
    literal = [r() for r in GANS if not r.__name__.endswith("_recommended")]
    assert len(literal) == len(GANS) - 3 and all(config.optimizer == OptimizerConfig(0.5, 0.9) for config in literal)
    rows = {
        "mixture_bimodal_wgan": (1, (32,), (32,), 0.1, 0.2, 0.2, 100, 100, 0.002),
        "mixture_ring_wgan": (2, (64, 64), (64, 64), 0.1, 0.2, 0.2, 100, 300, 0.001),
        "mixture_grid_wgan": (2, (128,) * 3, (128,) * 3, 0.1, 0.2, 0.2, 1000, 300, 0.00001),
        "mnist_wgan": (100, (164, 164), (164, 164), 0.01, 0.1, 0.02, 100, 55, 0.001),
        "celeba_dcwgan": (100, (), (), 0.01, 0.02, 0.02, 128, 10, 0.0002),
    }
    for name, expected in rows.items():
        for one, loss in ((name, "wgan"), (name.replace("wgan", "gan"), "gan")):
            config = recipe(one)
            model, phase = config.model, config.schedules.likelihood
            assert isinstance(model, GANConfig) and isinstance(phase.learning_rate, PowerLaw) and model.loss == loss
            stds = (model.clamp, model.generator_initial_std, model.critic_initial_std)
            widths = (model.noise_size, model.generator_hidden, model.critic_hidden)
            lengths = (config.data.batch_size, phase.epochs, phase.learning_rate.initial)
            assert (*widths, *stds, *lengths) == expected and phase.learning_rate.decay == 0
