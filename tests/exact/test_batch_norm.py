"""The block-wise batch normalization is torch's over the concatenated batch: values, gradients, running moments."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.comm import Comm
from pipeline.config import GANConfig
from pipeline.models.batch_norm import GlobalBatchNorm, normalize_blocks
from pipeline.models.gan import Critic, Gan, Generator, forward_blocks, replicate, track_moments_

BLOCKS = (5, 0, 3, 1)
"""Rows of each block: also none, and one."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def torch_twin(layer: GlobalBatchNorm, ndim: int) -> nn.Module:
    twin = (nn.BatchNorm1d if ndim == 2 else nn.BatchNorm2d)(len(layer.scale))
    twin.load_state_dict(
        {
            "weight": layer.scale.detach().clone(),
            "bias": layer.shift.detach().clone(),
            "running_mean": layer.running_mean.clone(),
            "running_var": layer.running_variance.clone(),
            "num_batches_tracked": torch.tensor(0),
        }
    )
    return twin


@pytest.mark.parametrize("shape", [(7,), (3, 4, 2)], ids=["dense", "images"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_layer_equals_torchs_over_the_whole_batch(shape: tuple[int, ...], offset: float) -> None:
    x = torch.randn(sum(BLOCKS), *shape, generator=generator()) * 1.7 + offset
    if len(shape) == 3:
        x = x.contiguous(memory_format=torch.channels_last)
    weights = torch.randn(x.shape, generator=generator(1))  # of the loss, so that no gradient is trivial
    layer = GlobalBatchNorm(shape[0])
    with torch.no_grad():
        layer.scale.uniform_(0.5, 2, generator=generator(2))
        layer.shift.normal_(generator=generator(3))
    twin = torch_twin(layer, x.ndim).double()
    layers = [GlobalBatchNorm(shape[0]) for _ in BLOCKS]
    for one in layers:
        one.load_state_dict(layer.state_dict())

    blocks = [block.clone().requires_grad_() for block in x.split(BLOCKS)]
    out, moments = normalize_blocks(layers, blocks, len(x), Comm())
    loss = sum((y.square() * w).sum() for y, w in zip(out, weights.split(BLOCKS)))
    assert isinstance(loss, Tensor)
    loss.backward()
    layer.track_(moments)

    theirs = x.double().requires_grad_()
    expected = twin(theirs)
    (expected.square() * weights).sum().backward()
    tolerance = 1e-6 if offset == 0 else 1e-4  # float32 at 100 +- 2
    close: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(torch.cat(out), expected, **close)
    torch.testing.assert_close(torch.cat([b.grad for b in blocks]), theirs.grad, **close)
    for mine, theirs_ in (("scale", "weight"), ("shift", "bias")):
        gradient = torch.stack([getattr(one, mine).grad for one in layers]).sum(0)
        sums = {**close, "atol": 10 * tolerance}  # of terms of either sign
        torch.testing.assert_close(gradient, getattr(twin, theirs_).grad, **sums)
    torch.testing.assert_close(layer.running_mean, twin.running_mean, **close)
    torch.testing.assert_close(layer.running_variance, twin.running_var, **close)
    torch.testing.assert_close(layer(x), twin.eval()(x.double()), **close)


def test_a_single_row_and_values_out_of_range() -> None:
    out, moments = normalize_blocks([GlobalBatchNorm(2)], [torch.tensor([[3.0, -1.0]])], 1, Comm())
    assert torch.equal(out[0], torch.zeros(1, 2)) and torch.equal(moments.variance, torch.zeros(2))
    for bad in (float("nan"), float("inf"), 1e6):  # seen as NaN by whoever sums the gradients
        rows = torch.tensor([[bad, 0.0], [0.0, 1.0]])
        out, _ = normalize_blocks([GlobalBatchNorm(2)], [rows], 2, Comm())
        assert out[0][:, 0].isnan().all() and out[0][:, 1].isfinite().all()


def reference(network: Generator | Critic) -> nn.Sequential:
    """The same network of torch's own layers."""
    layers: list[nn.Module] = []
    for layer in network.layers:
        if isinstance(layer, GlobalBatchNorm):
            layers.append(torch_twin(layer, 2 if network.config.architecture == "dense" else 4))
        elif isinstance(layer, nn.ReLU):
            layers.append(nn.ReLU())
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_a_whole_network_over_blocks_has_the_gradient_of_the_whole_batch(architecture: str) -> None:
    dense = architecture == "dense"
    config = GANConfig(
        architecture=architecture,  # type: ignore[arg-type]
        num_visible=11 if dense else 784,
        noise_size=6,
        generator_hidden=(9, 7) if dense else (),
        critic_hidden=(9, 7) if dense else (),
        batch_norm=True,
    )
    model = Gan(config).initialize_(generator())
    noise = torch.randn(sum(BLOCKS), 6, generator=generator(1))
    for network, rows in ((model.generator, noise), (model.critic, torch.rand(sum(BLOCKS), config.num_visible))):
        replicas = replicate(network, len(BLOCKS))
        out, moments = forward_blocks(replicas, list(rows.split(BLOCKS)), len(rows), Comm())
        loss = torch.cat(out).square().mean() + torch.cat(out).mean()
        names = [name for name, _ in network.named_parameters()]
        mine = torch.autograd.grad(loss, [p for replica in replicas for p in replica.parameters()])
        twin = reference(network)
        expected = twin(rows)
        theirs = torch.autograd.grad(expected.square().mean() + expected.mean(), list(twin.parameters()))
        torch.testing.assert_close(torch.cat(out), expected, rtol=1e-5, atol=1e-5)
        for i, (name, value) in enumerate(zip(names, theirs, strict=True)):
            total = torch.stack(list(mine[i :: len(names)])).sum(0)
            torch.testing.assert_close(total, value, rtol=1e-4, atol=1e-5 * float(value.abs().max() + 1), msg=name)
        track_moments_(network, moments)
        torch.testing.assert_close(network(rows), twin.eval()(rows), rtol=1e-5, atol=1e-5)
