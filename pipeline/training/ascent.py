"""The move of a BEAM's parameters along its summed gradient, under torch.no_grad(): Adam's step, and what follows any step."""

from torch import Tensor

from pipeline.learning.adam import Adam, set_learning_rate
from pipeline.models.rbm import RBM


class Ascent:
    """Steps of `rbm` by `optimizer`, which maximizes."""

    def __init__(self, rbm: RBM, optimizer: Adam):
        self.rbm, self.optimizer = rbm, optimizer
        self._parameters = dict(rbm.named_parameters())

    def step(self, sums: dict[str, Tensor], rate: float | Tensor) -> None:
        """Move along `sums`, the ascent direction by parameter; see Terms. A fixed sigma's part is set to zero there."""
        if self.rbm.config.fixed_std is not None:
            sums["visible.log_variance"].zero_()
        for name, parameter in self._parameters.items():
            # valid until the next step, like the sums
            parameter.grad = sums[name].to(parameter.dtype)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        settle(self.rbm, sums)


def settle(rbm: RBM, sums: dict[str, Tensor]) -> None:
    """Clamp the scales; where hidden units are centered, move their offsets towards the data's mean states in `sums`."""
    config = rbm.config
    if config.fixed_std is None:
        rbm.visible.clamp_(config.min_std)
    rbm.hidden.clamp_(config.min_std)
    if config.center_hidden:
        mean = sums["hidden_mean"].to(rbm.hidden.offset.dtype)
        rbm.move_hidden_offset_(rbm.hidden.offset.lerp(mean, config.centering_rate))
