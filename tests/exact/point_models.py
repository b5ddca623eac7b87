"""Tiny packaged BEAMs of points, with a whitening that is not the identity where the units are real."""

import torch
from small import small_rbm

from pipeline.config import RunConfig
from pipeline.data.whitening import Whitening
from pipeline.packages.models import PackagedBeam
from pipeline.samplers.gibbs import ChainState
from pipeline.samplers.protocols import WideStart


def point_model(
    visible: str = "gaussian", hidden: str = "bernoulli", dtype: torch.dtype = torch.float64
) -> PackagedBeam:
    """A model of rows without autoencoder: 2 Gaussian or 5 discrete visible units, 3 discrete or 1 Gaussian hidden ones."""
    rbm = small_rbm(visible, hidden, seed=4, centered=True).to(dtype).requires_grad_(False)
    width, num_hidden = rbm.weights.shape
    ones, zeros = torch.ones(width, dtype=dtype), torch.zeros(width, dtype=dtype)
    whitening = Whitening(zeros, ones)
    if visible == "gaussian":
        whitening = Whitening(torch.linspace(-1, 3, width, dtype=dtype), torch.linspace(0.3, 2, width, dtype=dtype))
    start = WideStart(zeros, ones) if visible == "gaussian" else WideStart(ones / 2, ones / 2)
    chains = ChainState(torch.zeros(7, width, dtype=dtype), torch.zeros(7, num_hidden, dtype=dtype), torch.ones(7, 1))
    run = RunConfig("points", model=rbm.config)
    return PackagedBeam(rbm, run, whitening, start, chains, None, "ring", {"kl_forward": 0.25})
