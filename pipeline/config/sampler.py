"""Settings of the chains."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.validation import require, settings
from pipeline.config.values import Count, CountOrZero, Inner, Precision, Share, Whole


@settings("sampler.")
class SamplerConfig:
    """Persistent chains and how they move (Algorithms 1 and 2)."""

    num_chains: Annotated[Whole, Field(ge=2)] = 128
    gibbs_steps: Count = 100
    """Steps of block Gibbs per update (k)."""
    beta_std: Share = 0.95
    """Standard deviation of the inverse temperature's stationary law; 0 is plain Gibbs, bit for bit."""
    beta_momentum: Share = 0.9
    """Lag-1 autocorrelation (phi) of the inverse temperature."""
    min_beta: Inner = 1e-3
    """Smallest inverse temperature in use: a Gibbs step takes max(beta, min_beta), since a Gaussian unit
    has variance sigma^2 / beta. The process itself is not touched, so the law in use is the Gamma law
    clipped from below."""
    statistics_sweeps: CountOrZero = 1
    """Gibbs steps at beta = 1 on a copy of the chains before the statistics are taken; 0 is the paper, 1
    removes the bias of a learned sigma."""
    num_temperatures: Count = 1
    """Temperatures of each chain. 1: chains at drifting temperatures (above). More: replica exchange;
    each of the num_chains chains is at beta = 1 and has num_temperatures - 1 hotter replicas that trade
    places (pipeline/samplers/exchange.py); beta_std must be 0."""
    lowest_beta: Inner = 0.05
    """Inverse temperature of the hottest replicas; those between lie at equal ratios."""
    num_blocks: Annotated[Whole, Field(ge=1, description="at most sampler.num_chains")] = 4
    """Fixed blocks, from 1 to num_chains, into which chains and batches are dealt; at most this many
    workers have work. More blocks are smaller and cost some speed of the matrix products; the number is
    part of what defines the run."""
    kernel: Literal["torch", "fused"] = "torch"
    """Code that runs the Gibbs steps of training: torch, the reference; on a CUDA device also fused
    Triton kernels in one graph (pipeline/fused/sweeps.py). The kernels agree with torch in law, not in
    bits. With one worker, standard Adam, up to 8192 chains and data rows and, if there is a critic,
    neighbors among hidden means or visible states (above 1024 rows by torch's search), all else of an
    update is fused, too (pipeline/fused/update.py)."""
    precision: Precision = "float32"
    """Numbers in those Gibbs steps: float32, or products with operands of bfloat16 and sums of float32,
    faster on processors that have it and, with kernel = "fused", on GPUs; on a CPU also coarse normal
    numbers. `auto`: bfloat16 where it is native on all workers and no layer has fewer than 64 units.
    Asked for by name it is emulated on other CPUs, slowly, and products of such a layer are float32 all
    the same. Rounded weights are another model: where energies are large, as with a sigma that is small
    against the distance of modes, the modes' weights may move (docs/results.md). Gradients and
    evaluation are float32."""
    initial_chains: Literal["data", "wide"] = "data"
    """Start of the chains: random rows of the data, or wide: Gaussian with the data's mean and standard
    deviation per unit (Bernoulli units: the data's mean)."""

    def __post_init__(self) -> None:
        require(self.num_blocks <= self.num_chains, "num_blocks", self.num_blocks, "1 to sampler.num_chains")
        if self.num_temperatures > 1:
            exact = "auto or float32 with replica exchange (num_temperatures > 1), which compares exact energies"
            require(self.precision != "bfloat16", "precision", self.precision, exact)
            require(self.beta_std == 0, "beta_std", self.beta_std, "0 with replica exchange (num_temperatures > 1)")
            # exchanges alternate between even and odd pairs of temperatures, beginning anew at each update
            require(self.gibbs_steps >= 2, "gibbs_steps", self.gibbs_steps, "at least 2 with replica exchange")
