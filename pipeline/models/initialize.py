"""Starting values of an RBM from data: biases and scales from moments, weights from Glorot's rule."""

import math

import torch
from torch import Tensor

from pipeline.config import RBMConfig
from pipeline.models.rbm import RBM
from pipeline.streams import stream

_ROWS_FOR_OFFSETS = 4096


@torch.no_grad()
def initialize_rbm(config: RBMConfig, data: Tensor, seed: int, device: torch.device | str = "cpu") -> RBM:
    """An RBM on `device` with data-driven starting values.

    Weights ~ N(0, 2 / (V + H)); hidden biases 0. Gaussian visible units: bias = mean, standard deviation =
    initial_std sqrt((1 - f) Var + f) with the data's variance and f = initial_smoothing (at least min_std). Bernoulli:
    bias = logit(mean); one-hot: bias = log(mean).
    initial_thresholds = data: hidden unit i has logit 0 at a random row x_i, so bias -x_i W_i / s; the visible bias is
    mean - W 1 / 2, the mean of v over uniform hidden states then the data's.
    Centered layers: visible offset = data mean, hidden offset = mean of E[h | v] on (the first 4096 rows of) the data.

    Args:
        config: sizes and kinds.
        data: training rows [N, V]; whitened where they are latents.
        seed: of the run; the weights have a stream of their own.
        device: where the model lives.
    """
    if data.shape[1] != config.num_visible:
        raise ValueError(
            f"model.num_visible = {config.num_visible}, but the data have {data.shape[1]} columns; set it to that"
        )
    rbm = RBM(config, dtype=data.dtype)
    noise = torch.empty(rbm.weights.shape, dtype=data.dtype).normal_(generator=stream(seed, "initial weights"))
    rbm.weights.copy_(noise * math.sqrt(2 / (config.num_visible + config.num_hidden)))
    mean = data.double().mean(0)
    rbm.visible.fit_(mean, data.double().var(0), config)
    if config.center_visible:
        rbm.visible.offset.copy_(mean)
    if config.initial_thresholds == "data":
        picks = torch.randint(len(data), (config.num_hidden,), generator=stream(seed, "initial thresholds"))
        rows = data[picks.to(data.device)].to(rbm.weights)
        rbm.hidden.bias.copy_(-(rbm.visible.scaled(rows) * rbm.weights.T).sum(1))
        rbm.visible.bias.sub_(rbm.weights.sum(1) / 2)
    if config.center_hidden:
        rbm.hidden.offset.copy_(rbm.hidden_mean(data[:_ROWS_FOR_OFFSETS].cpu()).mean(0))
    rbm.requires_grad_(False)
    return rbm.to(device)
