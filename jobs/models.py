"""The model registry from a shell: `python -m jobs.models list | show | compare | promote | rollback | pull`.

A REF names one version: models:/NAME@ALIAS, models:/NAME/NUMBER, the same without `models:/`, NAME alone for its champion,
run:ID or runs:/ID/NAME for what a run produced. With --json one JSON document goes to standard output. What a user can get
wrong is one line on standard error and exit code 2.
"""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline.config import flatten
from pipeline.packages.models import PackagedBeam
from pipeline.provenance import without_secrets
from pipeline.registry.fetch import load_model, pull_model
from pipeline.registry.mlflow_folder import CARD_NAME
from pipeline.registry.promotion import Change, champion_history, promote, promote_if_better, rollback
from pipeline.registry.scores import larger_spread, not_comparable, read_number
from pipeline.registry.versions import CHAMPION, ModelVersionInfo, find_model, list_versions
from pipeline.runs.summary import as_table
from pipeline.tracking.server import tracking_uri

_VARIANTS = ("fresh_", "sample_")
"""Metrics by other protocols: in the JSON, not in the table for people."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage text."""
        raise ValueError(f"{message} (--help lists the options)")


class Answer:
    """What a command says: to people, to programs, and whether it did what was asked (`error` says why not)."""

    def __init__(self, text: str, document: Any, error: str = ""):
        self.text, self.document, self.error = text, document, error


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    shared = _Parser(add_help=False)
    shared.add_argument("--tracking", metavar="URI", help="tracking server or database (default: MLFLOW_TRACKING_URI)")
    shared.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser = _Parser(
        prog="jobs.models", allow_abbrev=False, description="List, compare, promote and copy registered models."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], Answer], help: str, *refs: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[shared], help=help, description=help, allow_abbrev=False)
        command.set_defaults(run=run)
        for ref in refs:
            what = "name of a registered model" if ref == "name" else "NAME@ALIAS, NAME/NUMBER, NAME or run:ID"
            command.add_argument(ref, metavar=ref.upper(), help=what)
        return command

    add("list", list_command, "all versions, with their scores").add_argument(
        "--name", metavar="PATTERN", help="only models of such names, as in a shell: 'celeba-*'"
    )
    show = add("show", show_command, "one version and the history of its model's champions", "ref")
    show.add_argument("--verify", action="store_true", help="check every file of it")
    show.add_argument("--card", action="store_true", help="print the model card instead")
    add("compare", compare_command, "two versions: scores, metrics, and settings that differ", "ref", "other")
    forced = add(
        "promote", promote_command, "make a version the champion, if its score is better on the same data", "ref"
    )
    forced.add_argument("--force", action="store_true", help="whatever the scores say; needs --why")
    forced.add_argument("--why", metavar="TEXT", help="the reason, kept with the version")
    add("rollback", rollback_command, "make the champion before this one the champion again", "name")
    pull = add("pull", pull_command, "copy a version, verified, to use without a network", "ref")
    pull.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder")
    return parser


def list_command(args: argparse.Namespace) -> Answer:
    """All versions."""
    versions = list_versions(args.name, tracking=args.tracking)
    if not versions:
        return Answer(f"no models at {without_secrets(args.tracking or tracking_uri())}", [])
    head = ["model", "version", "aliases", "data set", "data hash", "recipe", "score", "value", "rows", "registered"]
    rows = [
        [
            v.name,
            v.version,
            ", ".join(v.aliases),
            v.tags.get("dataset", "-"),
            _hash(v, "data_hash"),
            v.tags.get("recipe", "-"),
            v.tags.get("score_name", "-"),
            _score(v),
            v.tags.get("score_rows", "-"),
            _time(v.created),
        ]
        for v in versions
    ]
    return Answer(_grid(head, rows), [_document(v) for v in versions])


def show_command(args: argparse.Namespace) -> Answer:
    """One version."""
    found = find_model(args.ref, tracking=args.tracking)
    if args.verify:
        load_model(found.uri, tracking=args.tracking)
    history = champion_history(found.name, tracking=args.tracking)
    document = {
        **_document(found),
        "card": without_secrets(found.card),
        "champions": [change._asdict() for change in history],
        "verified": True if args.verify else None,
    }
    if args.card:
        return Answer(found.card or f"{found.uri} has no card: it was registered before there were any", document)
    rows: dict[str, Any] = {
        "model": found.uri,
        "aliases": ", ".join(found.aliases) or "-",
        "registered": _time(found.created),
        "run": found.run_id or "-",
        "score": f"{found.tags.get('score_name', '-')} {_score(found)}, {found.tags.get('score_rows', '-')} rows",
    }
    shown = ("score_name", "score", "score_rows", "score_spread")
    rows |= {key.replace("_", " "): value for key, value in sorted(found.tags.items()) if key not in shown}
    rows["card"] = f"--card prints it; {CARD_NAME} beside the model" if found.card else "-"
    if args.verify:
        rows["verified"] = "the loader, every file's hash and the versions of format and settings are as they should be"
    text = as_table(rows)
    if history:
        text += f"\n\nchampions of {found.name}, the last is the present one:\n" + _history(history)
    return Answer(text, document)


def compare_command(args: argparse.Namespace) -> Answer:
    """Two versions, by what the registry and the verified packages say."""
    a, b = (find_model(ref, tracking=args.tracking) for ref in (args.ref, args.other))
    metrics, settings = [], []
    for version in (a, b):
        model = load_model(version.uri, tracking=args.tracking)
        metrics.append(dict(model.metrics))
        settings.append(
            flatten(model.run.to_dict()) if isinstance(model, PackagedBeam) else {"precision": model.precision}
        )
    differ = {
        key: [tree.get(key) for tree in settings]
        for key in dict.fromkeys([*settings[0], *settings[1]])
        if settings[0].get(key) != settings[1].get(key)
    }
    verdict = _verdict(a, b)
    keys = list(dict.fromkeys([*metrics[0], *metrics[1]]))
    head = ["", *(f"{v.name}/{v.version}" for v in (a, b))]
    facts = {
        "aliases": [", ".join(v.aliases) or "-" for v in (a, b)],
        "registered": [_time(v.created) for v in (a, b)],
        "data hash": [_hash(v, "data_hash") for v in (a, b)],
        "recipe": [v.tags.get("recipe", "-") for v in (a, b)],
        "score": [f"{v.tags.get('score_name', '-')} {_score(v)}" for v in (a, b)],
        "rows": [v.tags.get("score_rows", "-") for v in (a, b)],
    }
    text = _grid(head, [[key, *values] for key, values in facts.items()]) + f"\n\n{verdict['verdict']}"
    shown = [key for key in keys if not key.endswith("_spread") and not key.startswith(_VARIANTS)]
    if shown:
        text += "\n\n" + _grid(["metric", *head[1:]], [[key, *(_number(m.get(key)) for m in metrics)] for key in shown])
    rows = [[key, *(json.dumps(value) for value in values)] for key, values in differ.items()]
    text += "\n\n" + (_grid(["setting", *head[1:]], rows) if rows else "their settings are the same")
    both = {"versions": [_document(v) for v in (a, b)], **verdict, "metrics": metrics, "settings": differ}
    return Answer(text, both)


def promote_command(args: argparse.Namespace) -> Answer:
    """Make a version the champion."""
    if args.force != (args.why is not None):
        missing = "--force needs --why TEXT" if args.force else "--why goes with --force"
        raise ValueError(f"{missing}: a promotion against the scores is kept with its reason")
    found = find_model(args.ref, tracking=args.tracking)
    already = CHAMPION in found.aliases
    if args.force:
        result = promote(found.name, found.version, why=args.why, tracking=args.tracking)
    else:
        result = promote_if_better(found.name, found.version, tracking=args.tracking)
    document = {"name": found.name, "version": found.version, **result._asdict(), "forced": args.force}
    if not result.promoted:
        return Answer(
            "", document, f"{found.uri} is not promoted: {result.reason}; --force --why TEXT promotes it anyway"
        )
    done = "already" if already else result.reason
    return Answer(f"champion of {found.name}: version {found.version}: {done}", document)


def rollback_command(args: argparse.Namespace) -> Answer:
    """Go back to the champion before."""
    name = args.name.removeprefix("models:/")
    if "/" in name or "@" in name:
        raise ValueError(f"{args.name!r}: rollback takes the name of a model; it knows itself which version was before")
    done = rollback(name, tracking=args.tracking)
    was = "there was none" if done.replaced is None else f"it was version {done.replaced}"
    return Answer(f"champion of {name}: version {done.version} again; {was}", {"name": name, **done._asdict()})


def pull_command(args: argparse.Namespace) -> Answer:
    """Copy a version."""
    fetched = pull_model(args.ref, args.out, tracking=args.tracking)
    place = str(fetched.folder.resolve())
    document = {
        "folder": place,
        "name": fetched.name,
        "version": fetched.version,
        "content_hash": fetched.content_hash,
    }
    lines = [
        f"{fetched.folder}: {fetched.name} version {fetched.version}, verified, content hash {fetched.content_hash[:12]}",
        "",
        "to load it, with no network:",
        f"    from pipeline.registry import load_model; model = load_model({place!r})",
        f"    import mlflow; model = mlflow.pyfunc.load_model({place!r})",
    ]
    if not fetched.name.endswith("-autoencoder"):
        lines.append(f"    python -m jobs.sample --model {shlex.quote(place)}")
    return Answer("\n".join(lines), document)


def _verdict(a: ModelVersionInfo, b: ModelVersionInfo) -> dict[str, Any]:
    """Which of the two has the better score, if that can be said, and by how much."""
    old, new, spread = read_number(a.tags, "score"), read_number(b.tags, "score"), larger_spread(a.tags, b.tags)
    reason = not_comparable(a.tags, b.tags)
    if reason or old is None or new is None:
        verdict = f"{a.uri} is not comparable with {b.uri}: {reason or 'a score is not a finite number'}"
        return {"comparable": False, "better": None, "difference": None, "spread": spread, "verdict": verdict}
    difference = new - old
    if difference == 0:
        return {"comparable": True, "better": None, "difference": 0.0, "spread": spread, "verdict": "equal scores"}
    better, worse = (b, a) if difference < 0 else (a, b)
    beyond = "no spread is known"
    if spread is not None:
        beyond = f"{'within' if abs(difference) <= spread else 'beyond'} the spread {spread:.3g}"
    verdict = f"{better.uri} is better than {worse.uri} by {abs(difference):.4g}, {beyond}"
    return {"comparable": True, "better": better.uri, "difference": difference, "spread": spread, "verdict": verdict}


def _document(version: ModelVersionInfo) -> dict[str, Any]:
    """A version as JSON, without its card."""
    return {
        "name": version.name,
        "version": version.version,
        "uri": version.uri,
        "aliases": list(version.aliases),
        "registered": version.created,
        "run_id": version.run_id,
        "score": read_number(version.tags, "score"),
        "spread": read_number(version.tags, "score_spread"),
        "tags": {key: without_secrets(value) for key, value in version.tags.items()},
    }


def _history(history: Sequence[Change]) -> str:
    rows = [
        [_time(c.time), c.version, c.kind + (", forced" if c.forced else ""), c.before or "-", c.why or "-"]
        for c in history
    ]
    return _grid(["time", "version", "change", "before", "why"], rows)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, as wide as they need to be; the last one ends each line."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join("  ".join(f"{c:{w}s}" for c, w in zip(row, widths)).rstrip() for row in [head, *rows])


def _score(version: ModelVersionInfo) -> str:
    spread = read_number(version.tags, "score_spread")
    return _number(read_number(version.tags, "score")) + ("" if spread is None else f" ± {spread:.2g}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _hash(version: ModelVersionInfo, key: str) -> str:
    return version.tags.get(key, "-")[:12]


def _time(text: str) -> str:
    """2026-01-31T12:00:00+00:00 for people."""
    return text[:16].replace("T", " ") or "-"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        args = build_parser().parse_args(argv)
        answer = args.run(args)
    except (ValueError, OSError) as error:
        return _fail(str(error))
    if args.json:
        print(json.dumps(answer.document, indent=1))
    elif answer.text:
        print(without_secrets(answer.text))
    return _fail(answer.error) if answer.error else 0


def _fail(message: str) -> int:
    print(f"jobs.models: {' '.join(without_secrets(message).split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends quietly
    sys.exit(main())
