"""Adam over a module's parameters, its state as named tensors. Gradients are set by the caller; no autograd is needed.

The arithmetic is torch's own fused kernel. `torch.optim.Adam` around it would import torch's compiler at its first use, which
takes longer than everything else between the command and the first update, and spends as long on a small model as the kernel.
"""

import torch
from torch import Tensor, nn

from pipeline.config import AnyOptimizerConfig, ConfigError, OptimizerConfig


class Adam:
    """Standard Adam over all parameters of a module; with `maximize` it ascends along `p.grad`.

    `state` holds for each parameter that has had a gradient the moments `exp_avg` and `exp_avg_sq`, of the parameter's shape,
    and `step`, the number of updates as a float32 scalar on the parameter's device. Set `learning_rate` before a step.
    """

    def __init__(self, module: nn.Module, betas: tuple[float, float], epsilon: float, maximize: bool):
        self.named = dict(module.named_parameters())
        self.parameters = list(self.named.values())
        self.betas, self.epsilon, self.maximize = betas, epsilon, maximize
        self.learning_rate: float | Tensor = 0.0
        """A scalar tensor on the parameters' device where the step is captured as a graph."""
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        with_gradient = [p for p in self.parameters if p.grad is not None]
        if not with_gradient:
            return
        for p in with_gradient:
            if p not in self.state:
                self.state[p] = self.first_state(p)
        self.update([(p, p.grad, self.state[p]) for p in with_gradient])  # type: ignore[misc]

    def step_along(self, sums: dict[str, Tensor], rate: float | Tensor) -> None:
        """One update at learning rate `rate` with the gradients `sums`, by parameter name; other sums are passed over."""
        for name, p in self.named.items():
            p.grad = sums[name].to(p.dtype)  # valid until the next step, like the sums
        self.learning_rate = rate
        self.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    def first_state(self, p: Tensor) -> dict[str, Tensor]:
        """A parameter's state before its first update."""
        moments = {key: torch.zeros_like(p, memory_format=torch.preserve_format) for key in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), dtype=torch.float32, device=p.device), **moments}

    def update(self, of: list[tuple[Tensor, Tensor, dict[str, Tensor]]]) -> None:
        """Move parameters (parameter, gradient, state) in place, and their states; all of one device and type."""
        steps = [state["step"] for _, _, state in of]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            [p for p, _, _ in of],
            [gradient for _, gradient, _ in of],
            [state["exp_avg"] for _, _, state in of],
            [state["exp_avg_sq"] for _, _, state in of],
            [],
            steps,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.learning_rate,  # type: ignore[arg-type]  # a tensor is the op's other form
            weight_decay=0.0,
            eps=self.epsilon,
            maximize=self.maximize,
        )


class PaysageAdam(Adam):
    """Adam as the authors' library has it: moments start at the first gradient, bias corrections are constants.

    m <- b1 m + (1 - b1) g,  s <- b2 s + (1 - b2) g^2  (m = g, s = g^2 at the first step), and
    theta <- theta -+ lr (m / (1 - b1)) / sqrt(eps + s / (1 - b2)). On a constant gradient a step is
    lr sqrt(1 - b2) / (1 - b1): 0.316 lr at (0.9, 0.999), 0.632 lr at (0.5, 0.9).
    """

    def first_state(self, p: Tensor) -> dict[str, Tensor]:
        """See Adam.first_state; `step` is on the CPU."""
        return {"step": torch.zeros((), dtype=torch.float32)}

    def update(self, of: list[tuple[Tensor, Tensor, dict[str, Tensor]]]) -> None:
        """See Adam.update."""
        (b1, b2), sign = self.betas, 1 if self.maximize else -1
        for p, gradient, state in of:
            if "exp_avg" not in state:
                state["exp_avg"], state["exp_avg_sq"] = gradient.clone(), gradient.square()
            else:
                state["exp_avg"].lerp_(gradient, 1 - b1)
                state["exp_avg_sq"].mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
            state["step"] += 1
            denominator = (state["exp_avg_sq"] / (1 - b2) + self.epsilon).sqrt_()
            p.addcdiv_(state["exp_avg"], denominator, value=sign * float(self.learning_rate) / (1 - b1))


def build_optimizer(module: nn.Module, config: AnyOptimizerConfig, maximize: bool) -> Adam:
    """The configured Adam over all parameters of `module`; with `maximize` it ascends along `p.grad`.

    Raises ConfigError for a natural gradient, which is not an optimizer over gradients alone (natural_gradient.py).
    """
    if not isinstance(config, OptimizerConfig):
        raise ConfigError(f"optimizer.kind = {type(config).__name__!r}: must be OptimizerConfig for this model")
    kind = PaysageAdam if config.convention == "paysage" else Adam
    return kind(module, (config.beta1, config.beta2), config.epsilon, maximize)


def optimizer_state(optimizer: Adam, module: nn.Module) -> dict[str, Tensor]:
    """The moments and step counts by `<parameter>.<what>`; empty before the first step."""
    state: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}.{key}"] = value
    return state


def optimizer_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Shapes of what `optimizer_state` returns after the first step."""
    scalar = torch.Size()
    return {
        f"{name}.{key}": scalar if key == "step" else p.shape
        for name, p in module.named_parameters()
        for key in ("exp_avg", "exp_avg_sq", "step")
    }


def load_optimizer_state(optimizer: Adam, module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` returned."""
    optimizer.state.clear()
    for name, parameter in module.named_parameters():
        mine = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        if mine:
            # "step" of a fused Adam lives on the parameter's device, as float32
            optimizer.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in mine.items()}
