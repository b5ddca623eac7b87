"""Schedules: phases, the two power laws at hand-computed steps, and the cosine's ends, middle and warm-up."""

import pytest

from pipeline.config import Cosine, DataNoise, Phase, PowerLaw, Schedules
from pipeline.learning.schedule import At, Schedule, learning_rate


def test_power_law_steps_down_once_per_decay_unit() -> None:
    rule = PowerLaw(initial=1e-3, decay=0.5)
    rates = [learning_rate(rule, step, 100, 4) for step in (0, 3, 4, 7, 8)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3 / 1.5, 1e-3 / 1.5, 1e-3 / 2])


def test_paysage_decays_by_decay_times_initial() -> None:
    rule = PowerLaw(initial=0.01, decay=2.0, convention="paysage")
    assert learning_rate(rule, 50, 100, 1) == pytest.approx(0.01 / (1 + 2.0 * 0.01 * 50))


def test_cosine_warms_up_then_falls_to_zero() -> None:
    rule = Cosine(initial=2.0, warmup_updates=10)
    assert [learning_rate(rule, step, 110, 1) for step in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert learning_rate(rule, 60, 110, 1) == pytest.approx(1.0)
    rates = [learning_rate(rule, step, 110, 1) for step in range(10, 110)]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_a_phase_shorter_than_the_warmup_still_rises_and_falls(num_steps: int) -> None:
    rates = [learning_rate(Cosine(initial=1.0, warmup_updates=50), step, num_steps, 1) for step in range(num_steps)]
    assert max(rates) == 1.0
    assert min(rates) > 0


def test_no_warmup_starts_at_the_initial_rate() -> None:
    assert learning_rate(Cosine(initial=0.3, warmup_updates=0), 0, 5, 1) == 0.3


def test_lengths_and_decay_units_are_scaled_alike() -> None:
    """1 000 updates with a decay unit of 100, at a tenth: 100 updates with a unit of 10, in both phases."""
    rule = PowerLaw(initial=1.0, decay=1.0, decay_updates=100)
    phases = Schedules(Phase(updates=1000, learning_rate=rule), Phase(updates=500, gamma=0.3, learning_rate=rule))
    schedule = Schedule(phases, steps_per_epoch=7, epochs_scale=0.1)
    assert (schedule.switch_step, schedule.total_steps) == (100, 150)
    assert schedule.at(9) == At("likelihood", 1.0, 1.0, 0.0)
    assert schedule.at(10).rate == 1 / 2 and schedule.at(99).rate == 1 / 10
    assert schedule.at(100) == At("adversarial", 0.3, 1.0, 0.0) and schedule.at(149).rate == 1 / 5


def test_without_a_unit_of_its_own_a_power_law_decays_once_per_epoch() -> None:
    phase = Phase(epochs=3, learning_rate=PowerLaw(initial=1.0, decay=1.0))
    schedule = Schedule(Schedules(phase, Phase(updates=0)), steps_per_epoch=7, epochs_scale=1.0)
    assert schedule.total_steps == 21 and [schedule.at(s).rate for s in (6, 7, 20)] == [1.0, 1 / 2, 1 / 3]


def test_noise_is_the_runs_and_not_a_phases() -> None:
    phases = Schedules(Phase(updates=2), Phase(updates=6, gamma=0.5), noise=DataNoise(1.0, 0.25, 1, 4))
    schedule = Schedule(phases, steps_per_epoch=7, epochs_scale=1.0)
    assert [schedule.at(s).noise for s in range(6)] == pytest.approx([1, 1, 4**-0.25, 0.5, 4**-0.75, 0])
