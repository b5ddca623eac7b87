"""Which tiles are fastest on this CUDA device: the measurements behind choose_tile in fused/sweeps.py.

`python -m benchmarks.gpu_tiles [--out FILE]`; 1024-512, Gaussian visible units, driven. A tile that does not fit the device is
named with its error.
"""

import argparse
import functools
import json
import statistics
import sys
from pathlib import Path

import torch

from benchmarks.gpu_sweeps import milliseconds
from pipeline.config import RBMConfig
from pipeline.fused.sweeps import FusedGibbs, Tile
from pipeline.models.rbm import RBM
from pipeline.samplers.driven import DrivenGibbs, GammaProcess
from pipeline.samplers.gibbs import ChainState

FEW = {
    torch.float32: [(16, 32, 64, 4, 4), (16, 32, 128, 4, 3), (32, 32, 64, 4, 4)],
    torch.bfloat16: [(16, 32, 128, 4, 4), (16, 32, 256, 4, 3), (16, 64, 128, 4, 4)],
}
MANY = {
    torch.float32: [(128, 64, 32, 4, 3), (64, 64, 32, 4, 3)],
    torch.bfloat16: [(128, 128, 64, 8, 3), (64, 128, 64, 4, 4), (64, 64, 64, 4, 4)],
}
CASES = {"128 chains, k = 100": (128, 100, FEW), "65 536 chains, k = 10": (65_536, 10, MANY)}
ROUNDS = 5


def main() -> int:
    """Measure, print, write JSON; 2 without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tiles_gpu.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured", file=sys.stderr)
        return 2
    rbm = RBM(RBMConfig(1024, 512)).cuda()
    with torch.no_grad():
        rbm.weights.normal_(std=0.02)
    record = {
        "command": "python -m benchmarks.gpu_tiles",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    found: dict[str, dict[str, list[float] | str]] = {}
    for name, (rows, sweeps, tiles) in CASES.items():
        sampler = DrivenGibbs(GammaProcess(0.95, 0.9), sweeps)
        chains = ChainState(torch.randn(rows, 1024).cuda(), torch.zeros(rows, 512).cuda(), torch.ones(rows, 1).cuda())
        found[name] = {}
        for precision, choices in tiles.items():
            for choice in choices:
                label = f"{str(precision).removeprefix('torch.')} {choice}"
                try:
                    fused = FusedGibbs(rbm, sampler, rows, 0, 1, precision, tile=Tile(*choice))
                    fused.hold([chains])
                    for step in range(3):
                        fused.sweep(step)
                    torch.cuda.synchronize()
                    sweep = functools.partial(fused.sweep, 3)
                    times = [milliseconds(sweep, 20 if rows < 1000 else 3) for _ in range(ROUNDS)]
                    found[name][label] = times
                    print(f"{name:24s} {label:40s} {statistics.median(times):9.4f} ms for all sweeps", flush=True)
                except Exception as e:  # triton's errors have no common base
                    found[name][label] = f"{type(e).__name__}: {str(e).splitlines()[0][:200]}"
                    print(f"{name:24s} {label:40s} {found[name][label]}", flush=True)
                fused = None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**record, "milliseconds": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
