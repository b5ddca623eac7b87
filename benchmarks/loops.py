"""Two honest baselines: PCD as a plain torch loop, without tricks, and as one tuned in place. Both end in fused Adam.

Each is a function that returns `update()`, one update of the same mathematics as ours with gamma = 1: hidden means of the data
and of the particles, k sweeps, for Gaussian visible units a learned log variance. `beta_std` > 0 drives the temperatures.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Update = Callable[[], None]


class Problem(NamedTuple):
    """What is trained: sizes, kind of visible units, sweeps per update, standard deviation of beta, data rows [N, V], on
    whose device everything is.
    """

    visible: int
    hidden: int
    chains: int
    batch: int
    sweeps: int
    gaussian: bool
    beta_std: float
    rows: Tensor


class _Model(NamedTuple):
    weights: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor
    log_variance: Tensor


def _start(p: Problem) -> tuple[_Model, torch.optim.Adam, Tensor, Tensor]:
    """Parameters, optimizer, particles [M, V] at rows of the data, beta [M, 1]."""
    device = p.rows.device
    generator = torch.Generator(device=device).manual_seed(0)
    model = _Model(
        0.01 * torch.randn(p.visible, p.hidden, generator=generator, device=device),
        p.rows.mean(0),
        torch.zeros(p.hidden, device=device),
        torch.zeros(p.visible, device=device),
    )
    learned = model if p.gaussian else model[:3]
    for parameter in learned:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.Adam(list(learned), 1e-3, fused=True, maximize=True)
    picked = torch.randint(len(p.rows), (p.chains,), generator=generator, device=device)
    return model, optimizer, p.rows[picked].clone(), torch.ones(p.chains, 1, device=device)


def _next_beta(beta: Tensor, std: float) -> Tensor:
    """Algorithm 1 of the paper at momentum .9."""
    scale = 0.1 * std**2
    return torch._standard_gamma(torch.poisson(beta * (0.9 / scale)) + 1 / std**2) * scale


def plain_loop(p: Problem) -> Update:
    """As one would write it: `torch.bernoulli`, `torch.randn_like`, fresh tensors everywhere."""
    model, optimizer, particles, beta = _start(p)
    state = {"v": particles, "beta": beta}

    def hidden_mean(v: Tensor, beta: Tensor | float) -> Tensor:
        scaled = v / model.log_variance.exp() if p.gaussian else v
        return torch.sigmoid((scaled @ model.weights + model.hidden_bias) * beta)

    @torch.no_grad()
    def update() -> None:
        data = p.rows[torch.randint(len(p.rows), (p.batch,), device=p.rows.device)]
        v, beta = state["v"], state["beta"]
        for _ in range(p.sweeps):
            if p.beta_std:
                beta = _next_beta(beta, p.beta_std)
            h = torch.bernoulli(hidden_mean(v, beta))
            field = h @ model.weights.T + model.visible_bias
            if p.gaussian:
                v = field + torch.randn_like(field) * (model.log_variance.exp() / beta).sqrt()
            else:
                v = torch.bernoulli(torch.sigmoid(field * beta))
        state["v"], state["beta"] = v, beta
        gradients = []
        for rows in (data, v):
            h = hidden_mean(rows, 1.0)
            if p.gaussian:
                s = model.log_variance.exp()
                deviation = rows - model.visible_bias
                of_log = (0.5 * deviation**2 - rows * (h @ model.weights.T)) / s
                gradients.append(((rows / s).T @ h / len(rows), (deviation / s).mean(0), h.mean(0), of_log.mean(0)))
            else:
                gradients.append((rows.T @ h / len(rows), rows.mean(0), h.mean(0)))
        for parameter, data_part, model_part in zip(model, *gradients):
            parameter.grad = data_part - model_part
        optimizer.step()

    return update


def tuned_loop(p: Problem) -> Update:
    """For the CPU. Buffers made once, everything in place, uniform numbers compared instead of `torch.bernoulli`, one product
    for both gradients, 1 / s folded into the weights once per update.
    """
    model, optimizer, v, beta = _start(p)
    h, uniform = torch.empty(p.chains, p.hidden), torch.empty(p.chains, p.hidden)
    noise = torch.empty(p.chains, p.visible)
    rows = torch.empty(p.batch + p.chains, p.visible)
    signs = torch.cat([torch.full((p.batch, 1), 1 / p.batch), torch.full((p.chains, 1), -1 / p.chains)])
    hidden = torch.empty(p.batch + p.chains, p.hidden)
    folded, scale, deviation = torch.empty_like(model.weights), torch.ones(p.visible), torch.empty_like(rows)
    state = {"beta": beta}

    @torch.no_grad()
    def update() -> None:
        to_hidden = model.weights
        if p.gaussian:
            torch.exp(model.log_variance, out=scale)
            torch.div(model.weights, scale[:, None], out=folded)
            to_hidden, std = folded, scale.sqrt()
        beta = state["beta"]
        for _ in range(p.sweeps):
            if p.beta_std:
                beta = _next_beta(beta, p.beta_std)
            torch.addmm(model.hidden_bias, v, to_hidden, out=h)
            if p.beta_std:
                h.mul_(beta)
            torch.lt(uniform.uniform_(), h.sigmoid_(), out=h)
            torch.addmm(model.visible_bias, h, model.weights.T, out=v)
            if p.gaussian:
                noise.normal_().mul_(std)
                v.add_(noise.mul_(beta.rsqrt()) if p.beta_std else noise)
            else:
                if p.beta_std:
                    v.mul_(beta)
                torch.lt(noise.uniform_(), v.sigmoid_(), out=v)
        state["beta"] = beta
        torch.index_select(p.rows, 0, torch.randint(len(p.rows), (p.batch,)), out=rows[: p.batch])
        rows[p.batch :] = v
        torch.addmm(model.hidden_bias, rows, to_hidden, out=hidden).sigmoid_()
        weights_grad, visible_grad, hidden_grad = (x.grad for x in model[:3])
        torch.mm(signs.T, hidden, out=hidden_grad[None])
        if p.gaussian:
            torch.sub(rows, model.visible_bias, out=deviation)
            torch.mm(signs.T, deviation, out=visible_grad[None]).div_(scale)
            deviation.square_().mul_(0.5).addcmul_(rows, hidden @ model.weights.T, value=-1)
            torch.mm(signs.T, deviation, out=model.log_variance.grad[None]).div_(scale)
            rows.div_(scale)
        else:
            torch.mm(signs.T, rows, out=visible_grad[None])
        torch.mm(rows.mul_(signs).T, hidden, out=weights_grad)
        optimizer.step()

    return update
