"""docs/speed.md and its pictures from benchmarks/results: `python -m benchmarks.speed_page`; measures nothing."""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpus import RESULT as RESULT_OF_GPUS
from benchmarks.gpus import all_cases
from benchmarks.scaling_pictures import speed_bars
from benchmarks.updates import ROUNDED

RESULTS = Path("benchmarks/results")
UPDATES_OF_TABLE_III = 50 * 1272
"""The CelebA BEAM of Table III: 50 epochs of the training partition in batches of 128."""
HEAD = """# Speed

Written by `python -m benchmarks.speed_page` from `benchmarks/results/*.json`; do not edit by hand. What the models learn is not
in these figures. Scaling over workers: [scaling.md](scaling.md). Start-up and what equal bits cost: [results.md](results.md).
"""


def cpu() -> list[str]:
    """One thread of a CPU, beside peers."""
    record = json.loads((RESULTS / "updates_cpu.json").read_text())
    elsewhere = json.loads((RESULTS / "updates_amx.json").read_text())["cases"]
    cases: dict[str, Any] = record["cases"]
    bars = {
        name: {who: (row["updates_per_cpu_second"], *row["range"]) for who, row in case["contenders"].items()}
        for name, case in cases.items()
    }
    speed_bars(bars, "docs/speed_cpu.png", "updates per second of processor time", "One thread")
    first = next(iter(cases.values()))
    lines = [
        "## One thread of a CPU",
        "",
        f"`{record['command']}`; {first['processor']}, {first['capability']}, torch {first['versions']['torch']}; "
        f"median of at least {min(case['rounds'] for case in cases.values())} "
        "rounds in turns; bernoulli: 784-200, batch and chains 100; gaussian: 1024-512, 128 chains unless named. The "
        "floor: products and random numbers alone and the bytes of Adam and the batch, at the rates of torch measured in the "
        "same run. The last column is of a machine with AMX, and earlier code (`updates_amx.json`), where this processor has "
        "no float32 products with bfloat16 operands.",
        "",
        "| case | ours, updates/s | of the floor | times a plain torch loop | a tuned torch loop | rbms | "
        "scikit-learn | cost of the adversary | "
        "of 4 blocks | gain of bfloat16 sweeps |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        found = case["contenders"]
        ours = found["ours"]["updates_per_cpu_second"]

        def times(who: str, found: dict[str, Any] = found) -> str:
            return f"{found[who]['ours_is_times_faster']:.2f}" if who in found else ""

        share = f"{100 * found['ours']['share_of_floor']:.0f} %"
        columns = ("torch, plain", "torch, tuned", "rbms", "scikit-learn", "ours, with the adversary", "ours, 4 blocks")
        rounded = next((c[ROUNDED] for c in (found, elsewhere[name]["contenders"]) if ROUNDED in c), None)
        gain = f"{1 / rounded['ours_is_times_faster']:.2f}" if rounded else ""
        lines.append(f"| {name} | {ours:.3g} | {share} | {' | '.join(map(times, columns))} | {gain} |")
    return [
        *lines,
        "",
        "Behind the tuned loop by 8 %: one sweep of a small model, where .2 ms of fixed work weigh most (Python's, the check "
        "of the sums, copies). With 4 blocks the gradients of few rows and the sums in float64 that make the number of "
        "workers irrelevant cost 5 % at k = 100 and most where sweeps are few or small (a run of one block needs none). With "
        "many chains ours is ahead: the gradient of the variances needs no product of its own, rows are taken in parts, and "
        "uniform numbers take half of the generator's bits, so that a row may be beyond the floor. Ranges are in the JSON.",
        "",
        "![CPU](speed_cpu.png)",
        "",
    ]


def gpu() -> list[str]:
    """A CUDA device."""
    record = json.loads((RESULTS / "sweeps_gpu.json").read_text())
    cases, limits = record["cases"], record["limits"]
    bars = {
        name: {who: (row["median_ms"], *row["range_ms"]) for who, row in case.items()} for name, case in cases.items()
    }
    speed_bars(
        bars, "docs/speed_gpu.png", "milliseconds", f"{record['device']}, 1024-512, driven, Gaussian visible units"
    )
    lines = [
        "## A GPU",
        "",
        f"`{record['command']}`; {record['device']}, torch {record['torch']}, triton {record['triton']}; medians of 7 "
        f"rounds in turns. 1024-512, "
        "driven sampler. `torch`: the project's torch path; `fused`: its Triton "
        "kernels, float32 by "
        "three products of tf32; `fused_bfloat16`: bfloat16 operands, float32 sums. The plain loop is likelihood "
        "alone, float32.",
        "",
        "| case | what | ms (range) | million particle-sweeps a second | times the plain loop's update |",
        "|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        plain = case["plain torch loop, float32: update"]["median_ms"]
        for who, row in case.items():
            low, high = row["range_ms"]
            lines.append(
                f"| {name} | {who} | {row['median_ms']:.3f} ({low:.3f} to {high:.3f}) | "
                f"{row['particle_sweeps_per_second'] / 1e6:.1f} | {plain / row['median_ms']:.2f} |"
            )
    few = cases["128 chains, k = 100"]
    seconds = {
        kernel: few[f"{kernel}: update with the adversary"]["median_ms"] * UPDATES_OF_TABLE_III / 1e3
        for kernel in ("torch", "fused", "fused_bfloat16")
    }
    operations = 2 * 2 * 1024 * 512
    floors = {
        name: (
            operations * chains * sweeps / limits["bfloat16_teraflops"] / 1e9,
            operations * chains * sweeps / limits["float32_teraflops"] / 1e9,
        )
        for name, chains, sweeps in (("128 chains, k = 100", 128, 100), ("65 536 chains, k = 10", 65_536, 10))
    }
    many = {who: row["median_ms"] for who, row in cases["65 536 chains, k = 10"].items()}
    plain = many["plain torch loop, float32: update"]
    sweeps, update = many["fused: bare sweeps"], many["fused: update, likelihood alone"]
    products = floors["65 536 chains, k = 10"][1] * 11 / 10  # hidden means and the gradient are as many as a sweep's
    said = "; ".join(f"{name}: {b:.2f} ms in bfloat16, {f:.1f} ms in float32" for name, (b, f) in floors.items())
    return [
        *lines,
        "",
        f"- Measured limits: copies {limits['copy_terabytes_per_second']:.2f} TB/s, products of 8192 squared "
        f"{limits['bfloat16_teraflops']:.0f} "
        f"TFLOP/s in bfloat16 and {limits['float32_teraflops']:.0f} in float32, 200 dependent launches that do nothing "
        f"{limits['milliseconds_of_200_empty_launches']:.2f} ms. The products alone would take {said}.",
        f"- A whole CelebA run of Table III ({UPDATES_OF_TABLE_III} updates with the adversary), projected from these rates: "
        + ", ".join(f"{kernel} {s:.0f} s" for kernel, s in seconds.items())
        + ".",
        "- An update with few chains is two graphs, up to the gradient and from there: some 20 launches beside the sweeps', "
        "which read parameters, draw temperatures, take means, distances, votes and the gradient. The largest times in the "
        "ranges are of rounds in which a graph was made. With the adversary it takes "
        + ", ".join(
            f"{few[f'{kernel}: update with the adversary']['median_ms'] / few[f'{kernel}: bare sweeps']['median_ms']:.2f}"
            for kernel in ("fused", "fused_bfloat16")
        )
        + " times its bare sweeps (fused, fused_bfloat16).",
        "- What stands between 128 chains' sweeps and the launches' limit is reading 1 MB of weights from the L2 cache in "
        "every half sweep. Weights that stay in the registers of clusters of 16 blocks were tried in CUDA C++ on an H200: "
        "4.1 microseconds a sweep for up to 112 chains, half of the time here, but only 7 such clusters fit, so 128 chains "
        "take two rounds, .83 ms. Clusters of 8 would fit 128 chains.",
        f"- With 65 536 chains at equal precision, likelihood alone: the sweeps are {plain / sweeps:.2f} and the update "
        f"{plain / update:.2f} times as fast as the plain loop's update. Twice would be {plain / 2:.1f} ms, while the products "
        f"of sweeps and gradient alone take {products:.1f} ms at the measured rate of float32: what is faster is tf32. Of the "
        f"{update - sweeps:.1f} ms beside the sweeps {products / 11:.1f} are the two products over all particles, by torch in "
        "float32, the others passes over 268 MB of states.",
        "- With 65 536 chains the adversary is nearly all the time: every particle searches all others. That is "
        "where a sharded memory or fewer "
        "rows are needed (scaling.md).",
        f"- These figures are of revision {record['revision']}; later ones have not been measured on a GPU.",
        "- The same chains as 1, 2 and 4 slabs on one GPU have equal bits where the tile is the same "
        "(`tests/gpu/test_fused.py`).",
        "",
        "![GPU](speed_gpu.png)",
        "",
    ]


def gpus() -> list[str]:
    """Several CUDA devices, and faiss-gpu: what has been measured, and what has not."""
    record: dict[str, Any] = json.loads(RESULT_OF_GPUS.read_text()) if RESULT_OF_GPUS.exists() else {"cases": {}}
    where = f"{record['devices']} x {record['device']}, torch {record['torch']}" if record["cases"] else "not run yet"
    lines = [
        "## Several GPUs over nccl, and faiss-gpu",
        "",
        f"`python -m benchmarks.gpus`, on a machine with the GPUs and the extra `gpu`; {where}. 1024-512, driven, k = 100, "
        "fused sweeps in bfloat16; 128 chains and data rows of all GPUs (strong) or of each (weak). The command runs what the "
        "machine has; with `--try` it runs on two processes of a CPU, which says nothing of GPUs. What to expect is calculated "
        "in [scaling.md](scaling.md).",
        "",
        "| case | updates/s (range) |",
        "|---|---|",
    ]
    for case in all_cases():
        row = record["cases"].get(case.name)
        said = "not measured"
        if row:
            said = f"{row['updates_per_second']:.4g} ({row['range'][0]:.4g} to {row['range'][1]:.4g})"
        lines.append(f"| {case.name} | {said} |")
    return lines


def main() -> None:
    """Write the page."""
    Path("docs/speed.md").write_text("\n".join([HEAD, *cpu(), *gpu(), *gpus()]) + "\n")


if __name__ == "__main__":
    main()
