"""The page of the paper's results, pictures embedded, and the same text as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.paper.bars import Bar
from jobs.paper.claims import Verdict
from jobs.report_page import Block, Heading, Note, Section, Table, photographs, plot, render
from pipeline.files import replacing

TITLE = "The paper, claim by claim"
READING = (
    "Commands: photographs of faces need FACES=runs/NAME (a finished main job), MNIST needs MNIST=folder; what is "
    "there already is skipped, and REDO=name runs it again.",
    "KL: k-nearest-neighbor estimates, forward from the data to the model, reverse from the model to the data; for "
    "mixtures in nats, for digits and faces in nats per dimension. An estimate can be below 0 by its error. `noisy` "
    "are states v, `mean` are E[v given h]: literal models, whose noise is small, are judged by the former, "
    "recommended ones, whose noise is not, by the latter too.",
    "Points: `modes` that have at least a fifth of their share, `precision` the share within 3 sd of a mode, "
    "`total_variation` of the modes' weights.",
    "Pictures, in fixed features (oriented gradients): `mmd` squared, 0 for real ones, with `mmd_error`; `precision` "
    "and `recall` by nearest neighbors; `two_sample`: how often a nearest neighbor tells real from generated, .5 for "
    "real ones; `generated_accuracy` the same of generated ones alone, high where they repeat one another; `novelty`: "
    "distance to the nearest training picture over that of real ones, 0 for copies; `sharpness` and `variance_ratio` "
    "against real ones; `face_share` that a face detector finds.",
    "Log-likelihoods by annealing: trust an error bar only where the effective sample size is a good part of the "
    "chains.",
)
"""What a reader of the tables has to know."""
QUICK = "Quick form: toy sizes that prove that the code runs. None of these figures means anything."


def write_page(
    path: Path,
    records: dict[str, dict[str, Any]],
    verdicts: Sequence[Verdict],
    bars: Sequence[Bar],
    homes: Mapping[str, Sequence[Path]],
    quick: bool,
) -> Path:
    """Write the HTML page; pictures come from the folders in `homes`, and one that is not there is said to be missing."""
    claims: list[Block] = [
        Table(
            ("claim", "verdict", "numbers"),
            [[f"{v.number}. {v.claim}", v.verdict, " | ".join(v.evidence)] for v in verdicts],
        )
    ]
    claims += [Note(f"{v.number}: {command}") for v in verdicts for command in v.commands]
    sections = [
        Section("reading", "How to read it", [Note(line) for line in READING]),
        Section("claims", "Claims", claims),
    ]
    if bars:
        sections.append(Section("bars", "Bars", [Table(_BAR_HEAD, [_bar_cells(bar) for bar in bars])]))
    for name, record in records.items():
        blocks: list[Block] = [
            Note(f"{record['figure']}. `{record['command']}`, {record['seconds']} s, {record['machine']}.")
        ]
        for entry in record["pictures"]:
            file, _, caption = entry.partition(": ")
            found = next((home / file for home in homes[name] if (home / file).exists()), None)
            if found is None:
                blocks.append(
                    Note(f"{caption}: the picture {file} is not here; run the experiment again to draw it", True)
                )
                continue
            faces = name == "faces"  # pictures of many colors
            blocks.append(photographs(found, caption, caption) if faces else plot(found, caption, caption))
        for table in record["tables"]:
            blocks.append(Table(table["head"], table["rows"], table["title"]))
        blocks.append(Heading("How"))
        blocks += [Note(note) for note in record["notes"]]
        sections.append(Section(name, record["title"], blocks))
    return _write(path, render(TITLE, sections, QUICK if quick else "", [path.parent]))


def write_markdown(
    path: Path, records: dict[str, dict[str, Any]], verdicts: Sequence[Verdict], bars: Sequence[Bar]
) -> Path:
    """Write claims and tables as Markdown."""
    lines = [
        f"# {TITLE}",
        "",
        "Written by `make paper` from `docs/results/*.json`; do not edit by hand.",
        "",
        *(f"- {line}" for line in READING),
        "",
        "## Claims",
        "",
    ]
    for v in verdicts:
        lines += [f"### {v.number}. {v.claim}", "", f"**{v.verdict}**", ""]
        lines += [f"- {line}" for line in v.evidence] + [f"- `{c}`" for c in v.commands] + [""]
    if bars:
        lines += ["## Bars", "", *_markdown_table(_BAR_HEAD, [_bar_cells(bar) for bar in bars])]
    for name, record in records.items():
        lines += [f"## {record['title']}", "", f"{record['figure']}. `{record['command']}`, {record['seconds']} s.", ""]
        for note in record["notes"]:
            lines += [note.strip(), ""]
        for entry in record["pictures"]:
            file, _, caption = entry.partition(": ")
            if (path.parent / "results" / name / file).exists():
                lines += [f"![{caption}](results/{name}/{file})", "", f"*{caption}*", ""]
        for table in record["tables"]:
            lines += [f"**{table['title']}**", ""]
            lines += ["| " + " | ".join(table["head"]) + " |", "|" + "---|" * len(table["head"])]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table["rows"]] + [
                ""
            ]
    return _write(path, "\n".join(lines).rstrip() + "\n")


_BAR_HEAD = ("what", "bar", "came out", "reached")


def _bar_cells(bar: Bar) -> list[str]:
    return [bar.what, bar.bar, bar.found, "yes" if bar.met else "NO"]


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body, ""]


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())
    return path
