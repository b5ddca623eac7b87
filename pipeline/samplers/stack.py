"""Rows drawn from a stack of RBMs: the fixed protocols in its top RBM, then passes down.

The top's chains start wide (from the means of its training rows) and move by the protocol, so what the protocol promises
of an RBM it promises of p_L(h_{L-1}). The last drawn visible state of the top goes down the stack.
"""

import torch
from torch import Tensor

from pipeline.comm import Comm, split_rows
from pipeline.models.stack import Encoding, RBMStack, descend
from pipeline.samplers.protocols import ROWS_PER_BLOCK, Protocol, Samples, WideStart, draw_samples
from pipeline.streams import stream


def draw_stack_samples(
    stack: RBMStack,
    start: WideStart,
    protocol: Protocol,
    num_rows: int,
    seed: int,
    comm: Comm | None = None,
    middle: Encoding = "sample",
) -> Samples:
    """`num_rows` samples of a stack by `protocol`, the same on all workers; a stack of one layer gives its RBM's samples.

    Args:
        stack: one or more layers.
        start: moments of the *top* layer's training rows.
        protocol: how the top's chains move.
        num_rows: rows to draw.
        seed: fixes every number.
        comm: workers that share the top's sweeps; the passes down are made by each of them.
        middle: see `descend`.

    Returns:
        v with its noise and E[v | h_1], where h_1 is a draw (from the top, or through the layers between).
    """
    top = draw_samples(stack.layer(-1), start, protocol, num_rows, seed, comm)
    if len(stack) == 1:
        return top
    return descend_blocks(stack, top.visible, seed, middle)


def descend_blocks(stack: RBMStack, hidden: Tensor, seed: int, middle: Encoding = "sample") -> Samples:
    """Passes down from states [n, .] of the top's visible units, in blocks of 32 rows with a stream each."""
    visible, means = [], []
    blocks = hidden.split(split_rows(len(hidden), max(1, -(-len(hidden) // ROWS_PER_BLOCK))))
    for block, states in enumerate(blocks):
        v, mean = descend(stack, states, stream(seed, "stack descent", block, device=states.device), middle)
        visible.append(v)
        means.append(mean)
    return Samples(torch.cat(visible), torch.cat(means))
