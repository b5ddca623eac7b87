"""The precision of products: float32, or operands of bfloat16 with sums of float32, by the processor or emulated.

bfloat16 is float32 with 8 significant bits instead of 24. It is an approximation that a setting asks for, never the default of
a sampler: what it changes is the model that is sampled (by rounded weights), not the law of the draws.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.comm import Comm

Precision = Literal["float32", "bfloat16"]
PrecisionSetting = Literal["auto", "float32", "bfloat16"]
Products = Literal["float32", "bfloat16", "emulated"]
"""The way in which a Gibbs step's products are computed; `emulated`: bfloat16 where the processor does not have it."""
_LEAST_UNITS = 64
"""Smallest layer for Gibbs steps with rounded operands: in smaller ones rounding errors do not average out, and on a CPU
nothing would be faster."""
_log = logging.getLogger(__name__)


def choose_precision(setting: PrecisionSetting, device: torch.device | str) -> Precision:
    """The precision of products on `device`: the setting itself, or for `auto` bfloat16 where it is native."""
    if setting != "auto":
        return setting
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and _cpu_has_bfloat16()
    return "bfloat16" if native else "float32"


def choose_for_sweeps(
    setting: PrecisionSetting, fewest_units: int, fused: bool, exchanges: bool, comm: Comm
) -> tuple[Precision, Products]:
    """Precision of a sweep's normal numbers on a CPU, and of its products; asks what all workers have, so collective.

    Args:
        setting: sampler.precision.
        fewest_units: of the smaller layer.
        fused: whether the sweeps are fused kernels; on a GPU others have no bfloat16.
        exchanges: whether replicas are exchanged, by exact energies, which are not those that rounded weights sample.
        comm: the workers.

    Raises:
        ValueError: bfloat16 by name on a GPU without fused kernels.
    """
    if setting == "float32":
        return "float32", "float32"
    on_gpu, is_small = comm.device.type == "cuda", fewest_units < _LEAST_UNITS
    native = fused if on_gpu else rounds_natively()
    if setting == "bfloat16" and on_gpu and not native:
        raise ValueError('sampler.precision = "bfloat16" on a GPU needs sampler.kernel = "fused"')
    everywhere = bool(comm.gather(torch.tensor([native], device=comm.device), [1] * comm.world_size).all())
    if setting == "auto":
        chosen = choose_together(setting, comm) if everywhere and not is_small and not exchanges else "float32"
        return chosen, chosen
    if not is_small and everywhere:
        return "bfloat16", "bfloat16"
    if comm.is_first:
        small = f"products of a layer of fewer than {_LEAST_UNITS} units stay float32"
        slow = "emulated, slower than float32, as not all processors have such products"
        _log.warning('sampler.precision = "bfloat16": %s', small if is_small else slow)
    return "bfloat16", "float32" if is_small else "emulated"


def choose_together(setting: PrecisionSetting, comm: Comm) -> Precision:
    """`choose_precision` of the first worker, for all of the group."""
    chosen = choose_precision(setting, comm.device)
    return "bfloat16" if comm.from_first(int(chosen == "bfloat16")) else "float32"


@functools.cache
def _cpu_has_bfloat16() -> bool:
    """True when this processor multiplies bfloat16 natively; by a stopwatch where torch cannot tell."""
    if hasattr(torch.cpu, "get_capabilities"):  # older versions of torch lack it
        known = torch.cpu.get_capabilities()
        return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    layer = nn.Conv2d(64, 64, 4, 2, 1)
    images = torch.zeros(32, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    seconds = {}
    for precision in ("float32", "bfloat16", "float32", "bfloat16"):  # the first of each warms up
        start = time.perf_counter()
        with torch.no_grad(), computing_in(precision, "cpu"):
            layer(images)
        seconds[precision] = time.perf_counter() - start
    return seconds["bfloat16"] < 0.9 * seconds["float32"]  # emulated, it is slower


@contextlib.contextmanager
def computing_in(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Convolutions inside compute in `precision`, with kernels that give the same bits each time (cuDNN has others)."""
    kind = torch.device(device).type
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        yield


@functools.cache
def rounds_natively() -> bool:
    """True when this processor and torch round operands by themselves: by trying, since otherwise they leave them."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # from torch 2.9
    if matmul is None:
        return False
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    exact = x @ x
    with _natively_rounded():
        return not torch.equal(x @ x, exact)


@contextlib.contextmanager
def rounding_operands(products: Products) -> Iterator[None]:
    """Unless float32, the factors of `torch.addmm` inside are rounded, of float32 tensors on the CPU; sums stay float32.

    `bfloat16` leaves it to the processor (see `rounds_natively`), which rounds those of every other product, too. `emulated`
    rounds before each `torch.addmm`, whose arguments have to be positional: the same law by other sums, slower than float32.
    """
    if products == "float32":
        yield
    else:
        with _natively_rounded() if products == "bfloat16" else _RoundedFactors():
            yield


@contextlib.contextmanager
def _natively_rounded() -> Iterator[None]:
    matmul = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009  # mypy knows no such name
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class _RoundedFactors(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.addmm:
            total, *factors = args
            args = (total, *(_rounded(x) for x in factors))
        return function(*args, **(kwargs or {}))


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype) if x.dtype == torch.float32 and x.device.type == "cpu" else x
