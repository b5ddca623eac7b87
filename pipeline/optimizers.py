"""Adam over a module's parameters, its state as named tensors. Gradients are set by the caller; no autograd is needed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.config import AnyOptimizerConfig, ConfigError, OptimizerConfig


class PaysageAdam(torch.optim.Optimizer):
    """Adam as the authors' library has it: moments start at the first gradient, bias corrections are constants.

    m <- b1 m + (1 - b1) g,  s <- b2 s + (1 - b2) g^2  (m = g, s = g^2 at the first step), and
    theta <- theta -+ lr (m / (1 - b1)) / sqrt(eps + s / (1 - b2)). On a constant gradient a step is
    lr sqrt(1 - b2) / (1 - b1): 0.316 lr at (0.9, 0.999), 0.632 lr at (0.5, 0.9).
    """

    def __init__(self, params, lr: float, betas: tuple[float, float], eps: float, maximize: bool):  # type: ignore[no-untyped-def]
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients that the caller has set."""
        for group in self.param_groups:
            b1, b2 = group["betas"]
            sign = 1 if group["maximize"] else -1
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"], state["exp_avg_sq"] = p.grad.clone(), p.grad.square()
                else:
                    state["exp_avg"].lerp_(p.grad, 1 - b1)
                    state["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                state["step"] += 1
                denominator = (state["exp_avg_sq"] / (1 - b2) + group["eps"]).sqrt_()
                p.addcdiv_(state["exp_avg"], denominator, value=sign * group["lr"] / (1 - b1))


def build_optimizer(module: nn.Module, config: AnyOptimizerConfig, maximize: bool) -> torch.optim.Optimizer:
    """The configured Adam over all parameters of `module`; with `maximize` it ascends along `p.grad`.

    Raises ConfigError for a natural gradient, which is no optimizer over gradients alone (pipeline/natural_gradient.py).
    """
    if not isinstance(config, OptimizerConfig):
        raise ConfigError(f"optimizer.kind = {type(config).__name__!r}: must be OptimizerConfig for this model")
    parameters = list(module.parameters())
    betas = (config.beta1, config.beta2)
    if config.convention == "paysage":
        return PaysageAdam(parameters, 0.0, betas, config.epsilon, maximize)
    return torch.optim.Adam(parameters, 0.0, betas, config.epsilon, maximize=maximize, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use `value` in the next steps."""
    for group in optimizer.param_groups:
        group["lr"] = value


def optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The moments and step counts by `<parameter>.<what>`; empty before the first step."""
    state: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}.{key}"] = value
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` returned."""
    for name, parameter in module.named_parameters():
        mine = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        if mine:
            # "step" of a fused Adam lives on the parameter's device, as float32
            optimizer.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in mine.items()}
