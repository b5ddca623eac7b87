"""What a packaged model says about rows, against enumeration: F(v), E[h | v], E[v | h]; and what its methods promise."""

import numpy as np
import pytest
import torch
from point_models import point_model
from small import joint_table

from pipeline.metrics.exact import layer_states, log_partition
from pipeline.packages.models import PackagedBeam


def whitened(beam: PackagedBeam, rows: torch.Tensor) -> torch.Tensor:
    return (rows - beam.whitening.mean) / beam.whitening.std


def rows_of(beam: PackagedBeam) -> torch.Tensor:
    """Some rows as people hand them in: float32, not whitened."""
    if beam.rbm.config.visible_units == "gaussian":
        return torch.randn(6, 2, generator=torch.Generator().manual_seed(0)) * 2 + 1
    return layer_states(beam.rbm.visible).float()


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian", "onehot"])
@pytest.mark.parametrize("hidden", ["bernoulli", "onehot"])
def test_free_energy_activations_and_reconstruction_by_enumeration(visible: str, hidden: str) -> None:
    beam = point_model(visible, hidden)
    rows, h = rows_of(beam), layer_states(beam.rbm.hidden)
    v = whitened(beam, rows.double())
    energy = torch.stack([beam.rbm.energy(v, state.expand(len(v), -1)) for state in h], 1)  # [rows, states of h]
    torch.testing.assert_close(beam.free_energy(rows), -torch.logsumexp(-energy, 1))
    h_mean = torch.softmax(-energy, 1) @ h
    torch.testing.assert_close(beam.encode(rows), h_mean.float())
    assert beam.encode(rows).dtype == torch.float32
    if visible != "gaussian":  # all rows there are: their probabilities sum to 1
        log_p = -beam.free_energy(rows) - log_partition(beam.rbm)
        assert log_p.exp().sum().item() == pytest.approx(1)
        v_all, h_all, _ = joint_table(beam.rbm)
        assert log_partition(beam.rbm).item() == pytest.approx(
            torch.logsumexp(-beam.rbm.energy(v_all, h_all), 0).item()
        )
    again = beam.reconstruct(rows)
    if visible == "gaussian":  # linear in h: the exact mean of v after one sweep
        means = torch.stack([beam.rbm.visible_mean(state[None])[0] for state in h])  # E[v | h] per state
        exact = torch.softmax(-energy, 1) @ means
    else:
        exact = beam.rbm.visible_mean(h_mean)
    torch.testing.assert_close(again, (exact * beam.whitening.std + beam.whitening.mean).float())
    assert again.shape == rows.shape and torch.equal(again, beam.reconstruct(rows))


def test_points_have_the_noise_of_their_units_and_pictures_of_latents_do_not() -> None:
    beam = point_model("bernoulli")
    drawn = beam.sample(500, 5, seed=1)
    assert drawn.shape == (500, 5) and drawn.dtype == torch.float32
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    means = beam.sample_latents(500, 5, seed=1)
    assert bool(((means > 0) & (means < 1)).all())
    assert torch.equal(drawn, beam.sample(500, 5, seed=1)) and not torch.equal(drawn, beam.sample(500, 5, seed=2))
    assert beam.sample(7, 5, protocol="persistent").shape == (7, 5)


def test_samples_of_real_units_come_back_in_the_units_of_the_data() -> None:
    beam = point_model("gaussian")
    drawn = beam.sample(4000, 100, protocol="fresh", seed=3)
    v, h, _ = joint_table(beam.rbm)
    p = torch.softmax(-beam.rbm.energy(v, h), 0)
    mean, second = p @ v, p @ v**2
    error = 6 * ((second - mean**2) / len(drawn)).sqrt()
    assert bool(((whitened(beam, drawn.double()).mean(0) - mean).abs() < error).all())


def test_clamped_values_stay_bit_for_bit_and_the_seed_decides_the_rest() -> None:
    beam = point_model("gaussian", dtype=torch.float32)
    rows = torch.randn(70, 2) * 3  # three blocks of chains
    mask = torch.rand(70, 2, generator=torch.Generator().manual_seed(1)) < 0.4
    filled = beam.inpaint(rows, mask, gibbs_steps=3, seed=2)
    assert torch.equal(filled[mask], rows[mask]) and not bool((filled == rows)[~mask].any())
    assert torch.equal(filled, beam.inpaint(rows, mask, 3, 2))
    assert not torch.equal(filled, beam.inpaint(rows, mask, 3, 3))
    assert torch.equal(beam.inpaint(rows, [1], 3)[:, 1], rows[:, 1])
    one = beam.inpaint_latents(rows, [False, True], 3)
    assert torch.equal(one.visible[:, 1], beam.latents(rows)[:, 1]) and torch.equal(
        one.visible_mean[:, 1], one.visible[:, 1]
    )


@pytest.mark.parametrize("space", ["latent", "hidden"])
def test_interpolation_starts_and_ends_at_its_rows(space: str) -> None:
    beam = point_model("gaussian")
    rows = torch.tensor([[0.0, 1.0], [2.0, -3.0]])
    way = beam.interpolate(rows, 5, space)
    ends = rows if space == "latent" else beam.reconstruct(rows)
    torch.testing.assert_close(way[[0, -1]], ends)
    steps = way.diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand(4, -1))  # with Gaussian visible units both ways are straight


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0, 3.0]], r"shape \[1, 3\]: must be rows \[n, 2\]"),
        ([1.0, 2.0], r"shape \[2\]"),
        (np.zeros((0, 2)), "at least one"),
        ([[1.0, float("nan")]], "NaN or infinite"),
        ([[1.0, 1e300]], "too large for float32"),
        ([["a", "b"]], "holds text"),
        ([[1.0], [2.0, 3.0]], "unequal length"),
        ([[True, False]], "holds bool values"),
        (None, "there is no input"),
        ({"x": [1.0], "y": [2.0]}, r"named parts \(x, y\)"),
    ],
)
def test_rows_of_another_kind_are_refused(rows: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        point_model().encode(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clamped": []}, "nothing is clamped"),
        ({"clamped": [False, False]}, "nothing is clamped"),
        ({"clamped": [2]}, "units has 2: must be whole numbers from 0 to 1"),
        ({"clamped": [0.5]}, "units has 0.5"),
        ({"clamped": [True]}, r"clamped has shape \[1\]: must be booleans \[2\] or \[1, 2\]"),
        ({"clamped": np.ones((4, 4), bool)}, r"clamped has shape \[4, 4\]"),
        ({"clamped": [0], "gibbs_steps": 0}, "gibbs_steps = 0: must be a whole number from 1 to 100000"),
        ({"clamped": [0], "seed": -1}, "seed = -1"),
    ],
)
def test_what_cannot_be_inpainted_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        point_model().inpaint([[1.0, 2.0]], **arguments)


def test_discrete_rows_lie_in_the_unit_interval_and_interpolation_takes_two() -> None:
    with pytest.raises(ValueError, match="below 0 or above 1"):
        point_model("bernoulli").encode([[0, 1, 0, 2, 0]])
    beam = point_model()
    with pytest.raises(ValueError, match="has 3 rows: interpolation goes between two"):
        beam.interpolate(torch.zeros(3, 2))
    for wrong in ({"steps": 1}, {"steps": 1001}, {"space": "pixel"}):
        with pytest.raises(ValueError, match=r"steps = 1|space = 'pixel': must be one of latent, hidden"):
            beam.interpolate(torch.zeros(2, 2), **wrong)  # type: ignore[arg-type]
