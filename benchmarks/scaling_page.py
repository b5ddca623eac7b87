"""Writes the picture and the tables of docs/scaling.md from the figures of `benchmarks.scaling`; the words are the page's own.

`python -m benchmarks.scaling_page`. A table stands between `<!-- NAME -->` and `<!-- end -->`.
"""

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.cost_model import Job, Machine, Rates, critic_bytes, update_seconds
from benchmarks.links import Link
from benchmarks.projection import (
    H100_BYTES,
    H200_BYTES,
    JOBS,
    MACHINES,
    ONE_GPU,
    STRONG,
    curve,
    strong_curve,
    turning_points,
)
from benchmarks.scaling import RESULT
from benchmarks.scaling_pictures import Panel, scaling_panels

PAGE, PICTURE = Path("docs/scaling.md"), Path("docs/scaling.png")
QUIET_STRETCH = 1.1
SHOWN = (1, 8, 64, 256, 1024)
POWERS = tuple(2**i for i in range(11))
Record = dict[str, Any]


def measured_machine(record: Record, busy: bool) -> Machine:
    """The machine of a record, as the model saw it: with one worker, or with all cores busy."""
    rates = Rates(**record["rates"]["busy" if busy else "alone"])
    links = {kind: Link(**values) for kind, values in record["links"].items()}
    return Machine(rates, links["sum"], links["gather"], cores=record["cores"], overlap=0.0)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown; all columns but the first to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def conditions(record: Record) -> str:
    """Command, machine and versions, and whether one worker had a core to itself."""
    alone = [case for case in record["cases"].values() if case["workers"] == 1]
    stretch = max(case["ms_per_update"] / case["cpu_ms_per_worker"] for case in alone)
    text = (
        f"`{record['command']}` on {record['cores']} cores ({record['processor']}, {record['capability']}), torch "
        f"{record['versions']['torch']}; load before the start {record['load_before']:.1f}; one worker's wall time is up to "
        f"{stretch:.2f} of its CPU time."
    )
    if stretch > QUIET_STRETCH:
        text += (
            "\n**Other work ran on these cores: the wall times below, and what follows from them, are not results. They "
            "show that the benchmark runs, and are to be measured again on an idle machine.**"
        )
    return text


def measured_table(record: Record) -> str:
    """Updates, processor time, waits and bytes of each case whose gathers overlap."""
    cases = record["cases"]
    alone = {(c["sweeps"], c["adversary"]): c["updates_per_second"] for c in cases.values() if c["workers"] == 1}
    rows = []
    for name, case in cases.items():
        if not case["overlap"]:
            continue
        linear = alone[case["sweeps"], case["adversary"]] * (case["workers"] if case["mode"] == "strong" else 1)
        low, high = case["range"]
        waits, sent = case["ms_in_collectives"], case["bytes_per_update"]
        rows.append(
            [
                name,
                f"{case['updates_per_second']:.3g} ({low:.3g} to {high:.3g})",
                f"{case['updates_per_second'] / linear:.2f}",
                f"{case['cpu_ms_per_worker']:.0f}",
                f"{waits['sum']:.1f}",
                f"{waits['scores']:.1f}",
                f"{waits['gather_start'] + waits['gather_wait']:.1f}",
                f"{sent.get('sum', 0):,.0f}",
                f"{sent.get('gather', 0):,.0f}",
            ]
        )
    header = ["", "updates/s (range)", "of linear", "CPU ms per worker", "ms in sum", "ms in scores", "ms in gather"]
    return table([*header, "bytes summed", "bytes gathered"], rows)


def overlap_table(record: Record) -> str:
    """What the sweeps hide of the gather."""
    rows = [
        [
            row["case"],
            f"{row['ms_blocking']:.2f}",
            f"{row['ms_started']:.2f}",
            f"{row['ms_waited_after_sweeps']:.2f}",
            f"{100 * row['hidden']:.0f} %",
            f"{row['updates_per_second']:.3g}",
            f"{row['updates_per_second_blocking']:.3g}",
        ]
        for row in record["overlap"]
    ]
    header = ["", "ms, awaited at once", "ms to start", "ms left after the sweeps", "hidden"]
    return table([*header, "updates/s", "updates/s, awaited at once"], rows)


def validation_table(record: Record) -> str:
    """Measured and predicted milliseconds of every case."""
    rows = []
    for name, case in record["cases"].items():
        model = case["model"]
        rows.append(
            [
                name,
                f"{case['ms_per_update']:.1f}",
                f"{model['ms_per_update']:.1f}",
                f"{100 * model['relative_error']:+.0f} %",
                f"{case['cpu_ms_per_worker']:.1f}",
                f"{model['cpu_ms']:.1f}",
                f"{100 * model['cpu_relative_error']:+.0f} %",
            ]
        )
    return table(["", "wall ms", "model", "error", "CPU ms", "model", "error"], rows)


def rates_table(record: Record) -> str:
    """What the model was given, and how far its links are from the collectives."""
    names = {
        "flops": "products, Gflop/s",
        "outer_flops": "the gradient's product, Gflop/s",
        "visible_draws": "Gaussian draws, million/s",
        "hidden_draws": "Bernoulli draws, million/s",
        "beta_draws": "temperatures, million/s",
        "bytes": "passes, GB/s",
        "selected": "selection, million/s",
    }
    scale = dict.fromkeys(("flops", "outer_flops", "bytes"), 1e9)
    alone, busy = (record["rates"][kind] for kind in ("alone", "busy"))
    rows = [[text, *(f"{rates[k] / scale.get(k, 1e6):.3g}" for rates in (alone, busy))] for k, text in names.items()]
    rows.append(["a product's call, us", *(f"{1e6 * rates['call']:.0f}" for rates in (alone, busy))])
    for kind, link in record["links"].items():
        errors = [abs(row["model_ms"] / row["ms"] - 1) for row in record["collectives"] if row["kind"] == kind]
        text = f"{1e6 * link['latency']:.0f} us, {link['bandwidth'] / 1e9:.2f} GB/s (errors up to {100 * max(errors):.0f} %)"
        rows.append([f"step of a{'n all-gather' if kind == 'gather' else 'n all-reduce'}", "", text])
    return table(["", "one worker", "all cores busy"], rows)


def projection_table() -> str:
    """Milliseconds of an update on GPUs, by where the memory is."""
    rows = []
    for name, job in JOBS.items():
        kinds = {
            "replicated": job,
            "sharded": dataclasses.replace(job, memory="sharded"),
            "sharded, candidates gathered by all": dataclasses.replace(job, memory="sharded", candidates="all-gather"),
        }
        for kind, one in kinds.items():
            for fabric in ("float32", "float32, one adapter per node"):
                found = curve(one, MACHINES[fabric], SHOWN)
                text = f"{name}; {kind}" + ("; one adapter per node" if "adapter" in fabric else "")
                rows.append([text, *(f"{1e3 * sum(parts):.2f}" for parts in found.values())])
    strong = strong_curve(STRONG, MACHINES["float32"], SHOWN)
    rows.append(["65 536 chains in all, k = 100; replicated", *(f"{1e3 * sum(p):.2f}" for p in strong.values())])
    return table(["ms per update", *(f"{n} GPU{'s' * (n > 1)}" for n in SHOWN)], rows)


def turns_table() -> str:
    """From how many GPUs on something happens."""
    rows = []
    for machine in MACHINES:
        for name, job in JOBS.items():
            for wire in ("float32", "bits") if machine == "float32" else ("float32",):
                points = turning_points(dataclasses.replace(job, wire=wire), MACHINES[machine])  # type: ignore[arg-type]
                text = f"{name}; {machine}" + ("; features as bits" if wire == "bits" else "")
                rows.append([text, *("-" if point is None else str(point) for point in points)])
    header = ["from this number of GPUs on", "gather exposed", "search > sweeps", "update twice as long"]
    return table([*header, "sharded 5 % faster", "over 80 GB"], rows)


def panels(record: Record) -> list[Panel]:
    """The picture: measured beside the model, the projected update by part, the critic's cost, and its memory."""
    counts = sorted({case["workers"] for case in record["cases"].values()})
    lines: dict[str, dict[int, float]] = {}
    points: dict[str, dict[int, tuple[float, float, float]]] = {}
    for case in record["cases"].values():
        if case["overlap"] and (case["mode"] == "strong" or case["workers"] == 1):
            name = f"k = {case['sweeps']}, {'with the adversary' if case['adversary'] else 'likelihood alone'}"
            points.setdefault(name, {})[case["workers"]] = (case["updates_per_second"], *case["range"])
            job = Job(sweeps=case["sweeps"], adversary=case["adversary"])
            lines[name] = {n: 1 / sum(update_seconds(job, n, measured_machine(record, n > 1))) for n in counts}
    machine, one = MACHINES["float32"], MACHINES["float32, one adapter per node"]
    parts = curve(ONE_GPU, machine, POWERS)
    shown = ("sweeps", "search", "gather", "scores", "sum", "parameters")
    names = {"gather": "gather not hidden", "scores": "sum of scores", "parameters": "optimizer and the rest"}
    by_part = {names.get(k, k): {n: 1e3 * getattr(p, k) for n, p in parts.items()} for k in shown}
    sharded = dataclasses.replace(ONE_GPU, memory="sharded")
    to_all = dataclasses.replace(sharded, candidates="all-gather")
    critics = {
        "replicated": (ONE_GPU, machine),
        "sharded": (sharded, machine),
        "sharded, candidates gathered by all": (to_all, machine),
        "replicated, one adapter per node": (ONE_GPU, one),
        "sharded, one adapter per node": (sharded, one),
    }
    cost = {name: {n: 1e3 * p.critic for n, p in curve(job, on, POWERS).items()} for name, (job, on) in critics.items()}
    cost = {"sweeps": by_part["sweeps"], **cost}
    big = JOBS["4 096 chains per GPU, k = 100"]
    memory = {}
    for chains, job in (("128", ONE_GPU), ("4 096", big)):
        for kind in ("replicated", "sharded"):
            found = {n: critic_bytes(dataclasses.replace(job, memory=kind).weak(n), n) for n in POWERS}  # type: ignore[arg-type]
            memory[f"{kind}, {chains} chains per GPU, in a search"] = {n: found[n].peak / 1e9 for n in POWERS}
            memory[f"{kind}, {chains} chains per GPU, between updates"] = {n: found[n].held / 1e9 for n in POWERS}
    return [
        Panel("Measured here (points) and the model (lines), strong scaling", "updates per second", lines, points),
        Panel("Assumed GPUs, 128 chains each, k = 100, replicated memory", "ms of an update", by_part),
        Panel("Assumed GPUs: what the critic adds to an update", "ms of an update", cost),
        Panel(
            "The critic's memory on one GPU", "GB", memory, limits={"H100": H100_BYTES / 1e9, "H200": H200_BYTES / 1e9}
        ),
    ]


def fill(page: str, tables: dict[str, str]) -> str:
    """The page with each named table in its place.

    Raises:
        ValueError: a table has no place.
    """
    for name, text in tables.items():
        found = re.search(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", page, re.DOTALL)
        if not found:
            raise ValueError(f"the page has no place for the table {name!r}: <!-- {name} --> and <!-- end -->")
        page = f"{page[: found.start()]}{text}\n{page[found.end() :]}"
    return page


def main() -> None:
    """Read the figures, write the picture and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()
    record = json.loads(args.figures.read_text())
    tables = {
        "machine": conditions(record),
        "measured": measured_table(record),
        "overlap": overlap_table(record),
        "rates": rates_table(record),
        "validation": validation_table(record),
        "projection": projection_table(),
        "turns": turns_table(),
    }
    args.page.write_text(fill(args.page.read_text(), tables))
    print(args.page, scaling_panels(panels(record), args.picture))


if __name__ == "__main__":
    main()
