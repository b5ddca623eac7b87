"""The autoencoder's contracts: shapes, pixels, starting variance, learning on tiny images, resuming, refusals."""

import dataclasses

import pytest
import torch
from torch import Tensor

from pipeline.comm import Comm
from pipeline.config import (
    AutoencoderConfig,
    Cosine,
    DataConfig,
    EvaluationConfig,
    Phase,
    PowerLaw,
    RBMConfig,
    RunConfig,
    Schedules,
)
from pipeline.device.precision import choose_precision
from pipeline.models.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_pixels,
    from_pixels,
    to_pixels,
)
from pipeline.streams import stream
from pipeline.training.autoencoder import AutoencoderObjective
from pipeline.training.objective import NonFinite


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def discs(num_images: int) -> Tensor:
    """Pixels of colored discs on colored grounds [n, 64, 64, 3]: structure that a few updates can learn."""
    g = stream(7, "discs")
    x = torch.linspace(-1, 1, 64)
    center, radius = (
        torch.rand(2, num_images, 1, 1, generator=g) - 0.5,
        0.3 + 0.4 * torch.rand(num_images, 1, 1, generator=g),
    )
    inside = ((x[:, None] - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2)[..., None]
    ink, ground = torch.rand(2, num_images, 1, 1, 3, generator=g)
    return (torch.where(inside, ink, ground) * 255).to(torch.uint8)


def small_config(**model: object) -> RunConfig:
    """Batches of 10 of 24 images, so that blocks are uneven and the last batch is partial."""
    return RunConfig(
        name="tiny",
        seed=3,
        data=DataConfig(batch_size=10),
        model=AutoencoderConfig(**{"precision": "float32", "num_blocks": 4, **model}),  # type: ignore[arg-type]
        schedules=Schedules(likelihood=Phase(updates=12, learning_rate=Cosine(initial=3e-3, warmup_updates=2))),
        evaluation=EvaluationConfig(num_rows=9),
    )


def objective_of(config: RunConfig) -> AutoencoderObjective:
    return AutoencoderObjective(config, discs(24), discs(35)[24:], Comm())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_shapes_and_types() -> None:
    model = Autoencoder(AutoencoderConfig()).initialize_(stream(0, "initial weights"))
    images = from_pixels(discs(3))
    assert images.shape == (3, 3, 64, 64)
    assert images.dtype == torch.float32
    latents = model.encode(images)
    assert latents.shape == (3, 1024)
    assert latents.dtype == torch.float32
    assert model.decode(latents).shape == (3, 3, 64, 64)
    shapes = [tuple(layer.weight.shape) for layer in model.modules() if hasattr(layer, "weight")]
    assert shapes == [
        *[(32, 3, 4, 4), (64, 32, 4, 4), (64, 64, 4, 4), (64, 64, 4, 4)],
        *[(64, 64, 4, 4), (64, 64, 4, 4), (64, 32, 4, 4), (32, 3, 4, 4)],
    ]
    assert all(value.is_contiguous() for value in model.state_dict().values())


def test_latents_are_in_the_order_channel_row_column() -> None:
    model = Autoencoder(AutoencoderConfig()).initialize_(stream(0, "initial weights"))
    images = from_pixels(discs(2))
    with torch.no_grad():
        grid = model.encoder(images * 2 - 1)
        assert torch.equal(model.encode(images).view(2, 64, 4, 4), grid)
        assert torch.allclose(model.decode(grid.flatten(1)), (model.decoder(grid) + 1) / 2, atol=1e-6)


def test_pixels_survive_the_round_trip_and_are_clamped() -> None:
    pixels = discs(2)
    pixels[0, :16, :16] = torch.arange(256, dtype=torch.uint8).view(16, 16, 1)
    assert torch.equal(to_pixels(from_pixels(pixels)), pixels)
    assert to_pixels(torch.tensor([-0.2, 1.3]).view(2, 1, 1, 1).expand(2, 3, 64, 64))[:, 0, 0, 0].tolist() == [0, 255]


def test_channels_and_range_of_images() -> None:
    pixels = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    pixels[0, 0, 1, 2] = 255
    images = from_pixels(pixels)
    assert images[0, 2, 0, 1] == 1 and images.sum() == 1


@pytest.mark.parametrize("pixels", [torch.zeros(2, 64, 64, 3), torch.zeros(2, 3, 64, 64, dtype=torch.uint8)])
def test_other_pixels_are_refused(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be torch.uint8 \[n, 64, 64, 3\]"):
        from_pixels(pixels)


def test_initial_weights_keep_the_variance() -> None:
    model = Autoencoder(AutoencoderConfig()).initialize_(stream(0, "initial weights"))
    with torch.no_grad():
        latents = model.encode(torch.rand(8, 3, 64, 64, generator=stream(1, "noise")))
        hidden = model.decoder[:-1](torch.randn(8, 64, 4, 4, generator=stream(2, "noise")))
    input_square = 1 / 3  # of uniform numbers on [-1, 1]
    assert 0.3 < latents.square().mean() / input_square / 2 < 3
    assert 0.3 < hidden.square().mean() < 3


def test_training_lowers_the_error() -> None:
    schedules = Schedules(likelihood=Phase(epochs=20, learning_rate=Cosine(initial=3e-3, warmup_updates=4)))
    config = dataclasses.replace(small_config(flip=False), data=DataConfig(batch_size=4), schedules=schedules)
    objective = AutoencoderObjective(config, discs(4), discs(4), Comm())
    assert objective.schedule.total_steps == 20
    start = objective.evaluate(0).metrics
    reports = [objective.step(step, measure=step == 19) for step in range(20)]
    end = objective.evaluate(20).metrics
    assert end["reconstruction_mse"] < 0.5 * start["reconstruction_mse"]
    assert end["psnr"] - start["psnr"] > 3.0
    assert reports[0]["batch_mse"] == pytest.approx(start["reconstruction_mse"], rel=1e-4)
    assert reports[0]["learning_rate"] == pytest.approx(3e-3 / 4)
    assert reports[-1]["gradient_norm"] > 0


def test_decay_updates_are_scaled_with_the_run() -> None:
    """Once the unit kept its length while the run was shortened, so that the rate hardly fell."""
    rule = PowerLaw(initial=1e-3, decay=1.0, decay_updates=4)
    phases = Schedules(likelihood=Phase(updates=4, learning_rate=rule), adversarial=Phase(updates=0))
    objective = objective_of(dataclasses.replace(small_config(), epochs_scale=0.5, schedules=phases))
    rates = [objective.step(step, measure=False)["learning_rate"] for step in range(2)]
    assert objective.schedule.total_steps == 2 and rates == [1e-3, 1e-3]
    phases = dataclasses.replace(phases, likelihood=dataclasses.replace(phases.likelihood, updates=8))
    longer = objective_of(dataclasses.replace(small_config(), epochs_scale=0.5, schedules=phases))
    assert [longer.schedule.at(step).rate for step in range(4)] == [1e-3, 1e-3, 5e-4, 5e-4]


def test_the_step_is_the_gradient_of_the_batch_mean() -> None:
    config = small_config(flip=False)
    objective = objective_of(config)
    objective.step(2, measure=False)  # the partial batch: 4 rows, one in each block
    reference = Autoencoder(AutoencoderConfig()).initialize_(stream(config.seed, "initial weights"))
    images = from_pixels(torch.cat([objective.batches.block(2, b) for b in range(4)]))
    assert len(images) == 4
    torch.nn.functional.mse_loss(reference(images), images).backward()
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(objective.parameters[name].grad, parameter.grad, rtol=1e-3, atol=1e-6), name


def test_evaluate_is_the_mean_over_the_first_rows_and_changes_nothing() -> None:
    objective = objective_of(small_config())
    before = objective.state()
    report = objective.evaluate(0).metrics
    images = from_pixels(discs(35)[24:][:9])
    with torch.no_grad():
        mse = torch.nn.functional.mse_loss(objective.model(images), images)
    assert report["reconstruction_mse"] == pytest.approx(float(mse), rel=1e-5)
    assert same(before, objective.state())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_resumes_with_the_same_bits(precision: str) -> None:
    config = small_config(precision=precision)
    whole = objective_of(config)
    for step in range(3):
        whole.step(step, measure=False)
    saved = whole.state()
    kept = {name: value.clone() for name, value in saved.items()}
    for step in range(3, 6):
        whole.step(step, measure=False)
    assert same(saved, kept)  # a state is a copy

    resumed = objective_of(config)
    resumed.step(0, measure=False)  # what was there before does not matter
    resumed.load_state(saved)
    for step in range(3, 6):
        resumed.step(step, measure=True)  # nor does measuring
    assert same(whole.state(), resumed.state())
    assert same(saved, kept)


def test_a_state_before_the_first_step_resumes_too() -> None:
    config = small_config()
    fresh, other = objective_of(config), objective_of(dataclasses.replace(config, seed=4))
    other.step(0, measure=False)
    other.load_state(fresh.state())
    assert same(fresh.state(), other.state())


def test_a_foreign_state_is_refused() -> None:
    objective = objective_of(small_config())
    state = objective.state()
    state["model.encoder.0.weight"] = torch.zeros(32, 3, 5, 5)
    with pytest.raises(ValueError, match=r"model\.encoder\.0\.weight is .*5, 5.*expected"):
        objective.load_state(state)
    objective.step(0, measure=False)
    state = objective.state()
    del state["optimizer.decoder.0.bias.exp_avg"]
    with pytest.raises(ValueError, match=r"optimizer\.decoder\.0\.bias\.exp_avg is None"):
        objective.load_state(state)


def test_divergence_is_raised_before_the_parameters_change() -> None:
    objective = objective_of(small_config())
    with torch.no_grad():
        objective.parameters["decoder.6.bias"].fill_(float("nan"))
    before = {name: value for name, value in objective.state().items() if "decoder.6.bias" not in name}
    with pytest.raises(NonFinite, match="at step 1"):
        objective.step(1, measure=False)
    assert all(torch.equal(objective.state()[name], value) for name, value in before.items())


def test_other_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="not an autoencoder"):
        objective_of(dataclasses.replace(small_config(), model=RBMConfig()))
    config = small_config()
    adversarial = dataclasses.replace(config.schedules, adversarial=Phase(updates=5, gamma=0.1))
    with pytest.raises(ValueError, match=r"schedules\.adversarial"):
        objective_of(dataclasses.replace(config, schedules=adversarial))


def test_encoding_and_decoding_do_not_depend_on_the_batch_size() -> None:
    model = Autoencoder(AutoencoderConfig()).initialize_(stream(0, "initial weights"))
    pixels = discs(5)
    latents = encode_pixels(model, pixels, "float32", batch_size=2)
    assert latents.shape == (5, 1024)
    assert torch.allclose(latents, encode_pixels(model, pixels, "float32"), atol=1e-5)
    decoded = decode_latents(model, latents, "float32", batch_size=3)
    assert decoded.shape == (5, 64, 64, 3)
    assert decoded.dtype == torch.uint8
    with torch.no_grad():
        expected = to_pixels(model(from_pixels(pixels)))
    assert (decoded.int() - expected.int()).abs().max() <= 1
    with pytest.raises(ValueError, match=r"must be \[n, 1024\]"):
        decode_latents(model, torch.zeros(2, 512), "float32")


def test_bfloat16_is_near_float32() -> None:
    model = Autoencoder(AutoencoderConfig()).initialize_(stream(0, "initial weights"))
    full, half = (encode_pixels(model, discs(4), precision) for precision in ("float32", "bfloat16"))
    assert 0 < (full - half).square().mean() < 1e-3 * full.square().mean()


def test_precision_is_as_set_or_what_the_device_has() -> None:
    assert choose_precision("float32", "cpu") == "float32"
    assert choose_precision("bfloat16", "cpu") == "bfloat16"
    assert choose_precision("auto", "cpu") in ("float32", "bfloat16")
