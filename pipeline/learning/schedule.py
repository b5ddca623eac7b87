"""The schedule of a run: from the number of an update to its phase, gamma, learning rate and noise."""

import math
from typing import NamedTuple

from pipeline.config import Cosine, DataNoise, PowerLaw, Schedules


class At(NamedTuple):
    """The schedule's values for one update."""

    phase: str
    """Name of the phase, "likelihood" or "adversarial"."""
    gamma: float
    """Weight of the likelihood, in [0, 1] (Eq. 9)."""
    rate: float
    """Learning rate."""
    noise: float
    """Standard deviation of the noise on the data rows."""


class Schedule:
    """Two phases, one after the other; every objective reads its length and its rates here."""

    def __init__(self, schedules: Schedules, steps_per_epoch: int, epochs_scale: float):
        """Resolve lengths in epochs and decay units to updates; all of them times epochs_scale."""
        self.schedules, self.steps_per_epoch, self.epochs_scale = schedules, steps_per_epoch, epochs_scale
        self.switch_step = schedules.likelihood.num_updates(steps_per_epoch, epochs_scale)
        """First update of the adversarial phase."""
        self.total_steps = self.switch_step + schedules.adversarial.num_updates(steps_per_epoch, epochs_scale)
        """Number of updates of the whole run."""

    def at(self, step: int) -> At:
        """The values of update `step`, from 0."""
        phase, name, first, end = self.schedules.likelihood, "likelihood", 0, self.switch_step
        if step >= self.switch_step:
            phase, name, first, end = self.schedules.adversarial, "adversarial", self.switch_step, self.total_steps
        rule = phase.learning_rate
        unit = (rule.decay_updates if isinstance(rule, PowerLaw) else None) or self.steps_per_epoch
        rate = learning_rate(rule, step - first, end - first, max(1, round(unit * self.epochs_scale)))
        return At(name, phase.gamma, rate, noise_std(self.schedules.noise, step, self.epochs_scale))


def learning_rate(rule: PowerLaw | Cosine, step: int, num_steps: int, decay_updates: int) -> float:
    """Learning rate of update `step` (from 0) of a phase of `num_steps` updates.

    PowerLaw: initial / (1 + decay t), or in paysage's convention initial / (1 + decay initial t), where t counts whole
    decay units of `decay_updates` updates. Cosine: linear from initial / warmup to initial over the warm-up, then
    initial (1 + cos(pi s)) / 2 with s from 0 to 1 over the rest; the last update is the last one above zero. The
    warm-up takes at most half of the phase.

    Args:
        rule: the phase's rule; `rule.decay_updates` of a PowerLaw is the caller's to resolve.
        step: update within the phase, in [0, num_steps).
        num_steps: updates of the phase.
        decay_updates: updates in one decay unit, at least 1; without a meaning for Cosine.
    """
    if isinstance(rule, PowerLaw):
        units = step // decay_updates
        rate = rule.decay * rule.initial if rule.convention == "paysage" else rule.decay
        return rule.initial / (1 + rate * units)
    warmup = min(rule.warmup_updates, num_steps // 2)
    if step < warmup:
        return rule.initial * (step + 1) / warmup
    return rule.initial * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))


def noise_std(rule: DataNoise | None, step: int, epochs_scale: float) -> float:
    """Standard deviation of the noise on the rows of update `step` (from 0, of the run); 0 without a rule, and at its end.

    initial (final / initial)^u, u from 0 to 1 over fall_updates after hold_updates, both times epochs_scale; then 0.
    """
    if rule is None:
        return 0.0
    share = (step - rule.hold_updates * epochs_scale) / (rule.fall_updates * epochs_scale)
    return 0.0 if share >= 1 else rule.initial * (rule.final / rule.initial) ** max(0.0, share)
