"""A deep stack of RBMs: every layer is an RBM whose visible units are the hidden units of the layer below.

With layers 1 (bottom) to L (top), the stack is the directed model with an undirected top (a deep belief network)

    p(v, h_1, ..., h_{L-1}) = p_1(v | h_1) p_2(h_1 | h_2) ... p_L(h_{L-1}),

where p_L(h_{L-1}) is the marginal of the top RBM's visible units and p_l(x | y) the conditional of layer l's visible units.
Only the top keeps a prior of its own: it replaces what layer L-1 says about its hidden units by a model of what data
look like there. The top is sampled in pipeline/samplers/stack.py; this file has the passes up and down.

Training rows of layer l+1 are the rows of layer l encoded, either

- `sample` (the default): h ~ p(h | v), binary as the next layer's particles are, so data and particles have the same
  statistics, with the units' own noise; or
- `mean`: E[h | v] in [0, 1], the usual mean-field shortcut. The next layer's visible units are still binary in its
  chains; its data are not, so they lack that noise, and the layer learns somewhat too sharp probabilities.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.config import RBMConfig
from pipeline.models.rbm import RBM
from pipeline.streams import stream

Encoding = Literal["sample", "mean"]
"""The way in which a row enters the next layer."""
DEFAULT_ENCODING: Encoding = "sample"
ENCODING_ROWS = 256
"""Rows of one product and of one random stream: who encodes a row never changes its bits."""


class RBMStack(nn.Module):
    """RBMs from the bottom up; `layers[l]`'s visible units are `layers[l - 1]`'s hidden units, Bernoulli."""

    def __init__(self, layers: Sequence[RBM]):
        """Refuses layers that do not fit onto each other (ValueError)."""
        super().__init__()
        if not layers:
            raise ValueError("a stack has at least one layer; give the bottom RBM")
        for number, (below, above) in enumerate(itertools.pairwise(layers), start=2):
            check_fit(below.config, above.config, number)
        self.layers = nn.ModuleList(layers)

    def __len__(self) -> int:
        return len(self.layers)

    def layer(self, index: int) -> RBM:
        """The RBM at `index`, 0 the bottom, -1 the top."""
        rbm = self.layers[index]
        assert isinstance(rbm, RBM)
        return rbm


def check_fit(lower: RBMConfig, upper: RBMConfig, number: int) -> None:
    """Raise ValueError when `upper`, layer `number` counted from 1, cannot stand on `lower`."""
    if (upper.visible_units, lower.hidden_units) != ("bernoulli", "bernoulli"):
        raise ValueError(
            f"layer {number} has {upper.visible_units} visible units on {lower.hidden_units} hidden units; both must be "
            f"bernoulli: set model.visible_units of layer {number} and model.hidden_units of layer {number - 1}"
        )
    if upper.num_visible != lower.num_hidden:
        raise ValueError(
            f"layer {number} has model.num_visible = {upper.num_visible}, but layer {number - 1} has "
            f"{lower.num_hidden} hidden units; set it to that"
        )


@torch.no_grad()
def encode_block(rbm: RBM, rows: Tensor, generator: torch.Generator | None) -> Tensor:
    """E[h | v] [n, H] of rows [n, V], or with a generator a draw from p(h | v)."""
    if generator is None:
        return rbm.hidden_mean(rows)
    return rbm.hidden.sample_(rbm.hidden.bias + rbm.hidden_field(rows), None, generator)


def encode_rows(
    rbm: RBM, rows: Tensor, encoding: Encoding, seed: int, layer: int, split: str, first_row: int = 0
) -> Tensor:
    """One layer's encoding of rows [n, V]: [n, H].

    Rows are encoded 256 at a time, and a draw's stream is named by (seed, split, layer, the block's first row).

    Args:
        rbm: the layer.
        rows: [n, V] as the layer was trained on.
        encoding: "sample" or "mean" (see the module's docstring).
        seed: of the draws.
        layer: number of the layer, from 1 (the bottom).
        split: name of the split the rows belong to; splits have streams of their own.
        first_row: position of rows[0] in its split; a part that starts at a multiple of 256 has the bits of the whole.
    """
    parts = []
    for start in range(0, len(rows), ENCODING_ROWS):
        generator = None
        if encoding == "sample":
            generator = stream(seed, f"stack encoding {split}", layer, first_row + start, device=rows.device)
        parts.append(encode_block(rbm, rows[start : start + ENCODING_ROWS], generator))
    return torch.cat(parts) if parts else rows.new_zeros(0, rbm.config.num_hidden)


def encode(
    stack: RBMStack,
    rows: Tensor,
    upto: int | None = None,
    encoding: Encoding = DEFAULT_ENCODING,
    seed: int = 0,
    split: str = "rows",
) -> Tensor:
    """Rows [n, V] encoded by the lowest `upto` layers (None: all): [n, hidden units of that layer]; 0 gives the rows.

    "sample" draws h_1 ~ p(h_1 | v), h_2 ~ p(h_2 | h_1), ...; "mean" passes means on: E[h_2 | E[h_1 | v]].

    Raises:
        ValueError: `upto` outside 0..len(stack).
    """
    upto = len(stack) if upto is None else upto
    if not 0 <= upto <= len(stack):
        raise ValueError(f"upto = {upto}: the stack has {len(stack)} layers; choose 0 to {len(stack)}")
    for index in range(upto):
        rows = encode_rows(stack.layer(index), rows, encoding, seed, index + 1, split)
    return rows


@torch.no_grad()
def descend(
    stack: RBMStack, hidden: Tensor, generator: torch.Generator, middle: Encoding = "sample"
) -> tuple[Tensor, Tensor]:
    """A pass down from states of the highest hidden layer but one: (v with its noise, E[v | h_1]), each [n, V].

    Args:
        stack: of at least two layers.
        hidden: states of the top RBM's visible units [n, hidden units of the layer below the top].
        generator: of the draws.
        middle: "sample": h_l ~ p(h_l | h_{l+1}) in the layers between, the model's law; "mean": E[h_l | h_{l+1}], which
            is smoother than the model. The bottom always gives both.

    Raises:
        ValueError: a stack of one layer, which has nothing below its top.
    """
    if len(stack) < 2:
        raise ValueError("a stack of one layer has nothing below its top; sample that RBM itself")
    for index in range(len(stack) - 2, 0, -1):
        rbm = stack.layer(index)
        if middle == "mean":
            hidden = rbm.visible_mean(hidden)
        else:
            hidden = rbm.visible.sample_(rbm.visible.bias + rbm.visible_field(hidden), None, generator)
    bottom = stack.layer(0)
    mean = bottom.visible_mean(hidden)
    total = bottom.visible.bias + bottom.visible_field(hidden)
    return bottom.visible.sample_(total, None, generator), mean


@torch.no_grad()
def transpose(rbm: RBM, center_hidden: bool | None = None) -> RBM:
    """The same joint law with the layers' roles exchanged: E'(h, v) = E(v, h).

    On top of `rbm` it makes a stack whose prior of h is p(h) of `rbm` itself: as a model the stack equals the single
    layer, which is where a `tied` top starts.

    Args:
        rbm: V visible and H hidden units.
        center_hidden: of the new model's config; None: as `rbm` centers its visible units.
    """
    c = rbm.config
    config = replace(
        c,
        num_visible=c.num_hidden,
        num_hidden=c.num_visible,
        visible_units=c.hidden_units,
        hidden_units=c.visible_units,
        initial_thresholds="origin",  # these two are of Gaussian visible units alone
        fixed_std=None,
        center_visible=c.center_hidden,
        center_hidden=c.center_visible if center_hidden is None else center_hidden,
    )
    turned = RBM(config, rbm.weights.dtype).to(rbm.weights.device)
    turned.visible.load_state_dict(rbm.hidden.state_dict())
    turned.hidden.load_state_dict(rbm.visible.state_dict())
    turned.weights.copy_(rbm.weights.T)
    turned.requires_grad_(False)
    return turned


def parameters_hash(rbm: RBM) -> str:
    """Sha256 (hex) of a layer's parameters and offsets, by name, shape and bytes: what its encodings depend on."""
    digest = hashlib.sha256()
    for name, value in sorted(rbm.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
