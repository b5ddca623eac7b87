"""Fig. 8: the RBM is the mixture exactly; the driven sampler's computed law, its simulation and closed forms agree."""

import json
import math

import pytest
import torch
from scipy import stats

from jobs.paper.driven_law import driven_law
from jobs.paper.sampling import GEOMETRIES, READINGS, Modes, encode_modes, mixing_experiment, true_quantities
from pipeline.metrics.exact import log_partition
from pipeline.samplers.driven import GammaProcess

DRIVEN = GammaProcess(0.9, 0.9)
LOPSIDED = Modes((-1.0, 4.0, 2.0), 0.3, (0.5, 0.2, 0.3))


@pytest.mark.parametrize("modes", [*GEOMETRIES.values(), LOPSIDED])
def test_the_rbm_is_the_mixture(modes):
    rbm = encode_modes(modes)
    v = torch.linspace(-9, 9, 501, dtype=torch.float64)
    density = torch.exp(-rbm.free_energy(v[:, None]) - log_partition(rbm))
    components = (torch.from_numpy(stats.norm(m, modes.std).pdf(v.numpy())) for m in modes.means)
    by_hand = sum(w * component for w, component in zip(modes.weights, components))
    assert float((density - by_hand).abs().max()) < 1e-10
    assert torch.allclose(modes.density(v), by_hand, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("modes", [*GEOMETRIES.values(), LOPSIDED])
def test_the_truth_is_the_integral_of_the_density(modes):
    v = torch.linspace(-15, 15, 600_001, dtype=torch.float64)
    p = modes.density(v) * float(v[1] - v[0])
    truth, nearest = true_quantities(modes), modes.nearest(v)
    mean = float((p * v).sum())
    distance = (v - torch.tensor(modes.means, dtype=torch.float64)[nearest]).abs()
    assert truth["mean"] == pytest.approx(mean, abs=1e-9)
    assert truth["variance"] == pytest.approx(float((p * (v - mean) ** 2).sum()), abs=1e-9)
    for k in range(3):
        assert truth[f"weight_{k + 1}"] == pytest.approx(float(p[nearest == k].sum()), abs=1e-4)
    assert truth["tail_mass"] == pytest.approx(float(p[distance > 3 * modes.std].sum()), abs=1e-4)


def test_the_law_of_a_single_mode_is_students_t():
    """One mode: h tells nothing, and v / sd has Student's law with 2 / Var degrees of freedom, above the guard."""
    law = driven_law((0.0,), 1.0, (1.0,), DRIVEN, min_beta=1e-6)
    exact = stats.gamma(1 / 0.81, scale=0.81)
    for cut in (0.01, 0.1, 0.5, 1.0, 2.0, 4.0):
        assert float(law.weights[0, law.betas < cut].sum()) == pytest.approx(exact.cdf(cut), abs=0.08)  # a bin's width
    assert float(law.weights.sum()) == pytest.approx(1, abs=1e-12)
    v = torch.linspace(-6, 6, 25, dtype=torch.float64)
    expected = torch.from_numpy(stats.t(2 / 0.81).logpdf(v.numpy()))
    assert float((law.log_density(v, torch.zeros(25, dtype=torch.int64)) - expected).abs().max()) < 0.02


def test_modes_of_equal_weight_far_apart_keep_it_nearly_and_unequal_ones_do_not():
    law = driven_law((-6.0, 0.0, 6.0), 0.5, (1 / 3, 1 / 3, 1 / 3), DRIVEN)
    assert float((law.weights.sum(1) - 1 / 3).abs().max()) < 0.015
    unequal = driven_law(*GEOMETRIES["6 sd apart, unequal"], DRIVEN).weights.sum(1)
    assert float(unequal[0]) < 0.45 < 0.6 and float(unequal[2]) > 0.2 > 0.1


@pytest.fixture(scope="module")
def found():
    chosen = {name: GEOMETRIES[name] for name in ("6 sd apart", "6 sd apart, unequal")}
    return mixing_experiment(seed=1, sweeps=1500, num_chains=100, geometries=chosen)


def test_the_result_is_json_and_complete(found):
    again = json.loads(json.dumps(found))
    for one in again["geometries"].values():
        assert set(one["readings"]) == set(READINGS) and set(one["samplers"]) == {"gibbs", "driven"}
        assert set(one["samplers"]["gibbs"]["trace"]["beta"]) == {1.0}
        assert len(one["samplers"]["driven"]["trace"]["v"]) == 1000
        for reading in one["readings"].values():
            assert set(reading) == {*one["truth"], "effective_share"}


def deviation(found, name, reading, key, truth="truth"):
    value = found["geometries"][name]["readings"][reading][key]
    return abs(value["value"] - found["geometries"][name][truth][key]) / value["error"]


@pytest.mark.parametrize("name", ["6 sd apart", "6 sd apart, unequal"])
def test_simulation_agrees_with_the_computed_law(found, name):
    """Five standard errors; errors are over 100 chains."""
    for key in found["geometries"][name]["truth"]:
        assert deviation(found, name, "gibbs", key) < 5
        assert deviation(found, name, "weighted by the exact law", key) < 5
        assert deviation(found, name, "driven", key, "exact_driven_law") < 5, key


def test_what_the_driven_sampler_buys_and_costs(found):
    one = found["geometries"]["6 sd apart"]
    gibbs, driven = (one["samplers"][s]["switches_per_1000"]["hidden"]["value"] for s in ("gibbs", "driven"))
    assert driven > 10 * gibbs > 0
    tails = {reading: one["readings"][reading]["tail_mass"]["value"] for reading in READINGS}
    assert tails["driven"] > 15 * one["truth"]["tail_mass"]
    assert tails["v at beta 1"] == pytest.approx(one["truth"]["tail_mass"], rel=0.3)
    # unequal weights are flattened, and no reading at beta = 1 brings them back
    for reading in ("driven", "v at beta 1", "sweep at beta 1"):
        assert deviation(found, "6 sd apart, unequal", reading, "weight_1") > 10


def test_a_seed_fixes_every_number_and_too_little_is_refused():
    few = {"4 sd apart": GEOMETRIES["4 sd apart"]}
    one, again, other = (mixing_experiment(seed, 100, 8, few) for seed in (0, 0, 1))
    assert one == again and one["geometries"] != other["geometries"]
    with pytest.raises(ValueError, match="at least 100 sweeps of 8 chains"):
        mixing_experiment(0, 99)
    assert math.isfinite(one["geometries"]["4 sd apart"]["samplers"]["driven"]["sweeps_per_independent_sample"])
