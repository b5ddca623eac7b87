"""The sections of a report that only a sweep has: its trials, the final comparison, its pictures."""

import json
from pathlib import Path
from typing import Any

from jobs.report_page import Block, Note, Picture, Table, photographs, plot
from jobs.report_runs import Missing, Run
from jobs.report_tables import METRICS, data_name, ending, metric_name, number

_ORDER = {"finished": 0, "stopped": 1, "failed": 2}


def sweep_facts(run: Run) -> list[Block]:
    """What was searched, how the trials ended, and what came out."""
    summary = run.summary
    trials = summary.get("trials") or []
    counts = {status: sum(t.get("status") == status for t in trials) for status in _ORDER}
    rows = [
        ["Sweep", run.name],
        ["Recipe", str(summary.get("recipe"))],
        ["Data", data_name(summary.get("dataset"))],
        ["Decided by", metric_name(str(summary.get("metric")))],
        ["Trials", f"{len(trials)}: " + ", ".join(f"{count} {status}" for status, count in counts.items())],
    ]
    final = summary.get("final") or {}
    if final.get("verdict"):
        rows.append(["Verdict", str(final["verdict"])])
    model = summary.get("model") or {}
    if "name" in model:
        aliases = f" ({', '.join(model['aliases'])})" if model.get("aliases") else ""
        rows.append(
            ["Registered model", f"models:/{model['name']}/{model.get('version')}{aliases}: {model.get('promotion')}"]
        )
    space = summary.get("space") or {}
    searched = (
        [Table(["setting", "searched"], [[k, str(v)] for k, v in space.items()], "Search space")] if space else []
    )
    return [Table((), rows), *searched]


def unfinished_facts(run: Run) -> list[Block]:
    """What there is of a sweep before its summary is written: how far each trial is."""
    said = (
        f"The sweep has no readable summary.json: it is not finished. Its folder holds {len(run.parts)} trials so far, "
        "which are compared below; a trial's folder can be reported on by itself."
    )
    rows = [[part.name, ending(part, None)] for part in run.parts.values()]
    return [
        Note(said, missing=True),
        Table((), [["Sweep", run.name]]),
        *([Table(["trial", "state"], rows)] if rows else []),
    ]


def final_comparison(run: Run) -> list[Block]:
    """Recipe and winner trained with several seeds: mean, spread, and every run's score."""
    final, metric = run.summary.get("final") or {}, str(run.summary.get("metric"))
    variants: dict[str, dict[str, Any]] = final.get("variants") or {}
    if not variants:
        raise Missing("there is no final comparison: the sweep ended before it")
    found = {key for v in variants.values() for key in v.get("mean") or {}}
    keys = [metric] * (metric in found) + [k for k in (*METRICS, *sorted(found)) if k in found and k != metric]
    keys = list(dict.fromkeys(keys))
    rows = [
        [
            metric_name(key),
            *(number((v.get("mean") or {}).get(key), (v.get("spread") or {}).get(key)) for v in variants.values()),
        ]
        for key in keys
    ]
    seeds = [len(v.get("runs") or []) for v in variants.values()]
    caption = (
        f"Mean ± deviation over training seeds ({', '.join(f'{n}: {s}' for n, s in zip(variants, seeds))}); "
        f"test partition, {number(final.get('num_rows'))} rows and as many samples"
    )
    blocks: list[Block] = [Table(["", *variants], rows, caption)]
    difference = final.get("difference")
    if difference is not None:
        said = f"Difference in {metric} (positive: the winner is better): {number(difference)}, spread between seeds "
        said += f"{number(final.get('spread'))}."
        blocks.append(Note(said))
    each = [
        [name, str(one.get("seed")), number((one.get("scores") or {}).get(metric)), str(one.get("folder"))]
        for name, variant in variants.items()
        for one in variant.get("runs") or []
    ]
    blocks.append(Table(["variant", "seed", metric, "folder"], each, "Every run of the final comparison"))
    changed = [[name, *_settings(v.get("settings") or {})] for name, v in variants.items()]
    blocks.append(Table(["variant", "settings that differ from the recipe"], changed))
    return blocks


def _settings(values: dict[str, Any]) -> list[str]:
    return [", ".join(f"{k} = {json.dumps(v)}" for k, v in values.items()) or "none"]


def trials_table(run: Run) -> list[Block]:
    """All trials, the best first."""
    trials = run.summary.get("trials") or []
    if not trials:
        raise Missing("there are no trials in summary.json")
    keys = list(dict.fromkeys(key for trial in trials for key in trial.get("settings") or {}))

    def rank(trial: dict[str, Any]) -> tuple[int, bool, float]:
        score = trial.get("score")
        return _ORDER.get(str(trial.get("status")), 3), score is None, score if score is not None else 0.0

    rows = []
    for trial in sorted(trials, key=rank):
        values = trial.get("settings") or {}
        updates = f"{number(trial.get('updates'))} of {number(trial.get('total_updates'))}"
        name = f"{trial.get('id')} (the recipe)" if trial.get("recipe") else str(trial.get("id"))
        cells = [name, str(trial.get("status")), number(trial.get("score")), updates]
        cells += [number(trial.get("seconds")), *(number(values[key]) if key in values else "recipe" for key in keys)]
        rows.append([*cells, str(trial.get("reason") or "")])
    head = ["trial", "status", str(run.summary.get("metric")), "updates", "seconds", *keys, "reason"]
    return [Table(head, rows, "The best first; a setting that a trial did not change is the recipe's")]


def sweep_pictures(run: Run) -> list[Block]:
    """The pictures that the sweep drew."""
    named = {name: Path(str(path)) for name, path in (run.summary.get("pictures") or {}).items()}
    found: dict[str, Path] = {}
    for name, path in named.items():
        places = (run.folder / path, run.folder / "pictures" / path.name)  # an absolute path stays itself
        if (place := next((p for p in places if p.is_file()), None)) is not None:
            found[name] = place
    found = found or {path.stem: path for path in sorted((run.folder / "pictures").glob("*.png"))}
    if not found:
        raise Missing("the sweep's folder has no pictures")
    missing = [name for name in named if name not in found]
    notes = [Note(f"Not here: {', '.join(missing)}.", missing=True)] if missing else []
    return [*[_titled(name, path) for name, path in found.items()], *notes]


def _titled(name: str, path: Path) -> Picture:
    words = name.replace("_", " ")
    draw = photographs if name.startswith("samples") else plot
    return draw(path, f"{words}: a picture of the sweep", words)
