"""A model card: one page of Markdown that says what a registered model is, from plain values.

It is written for somebody who finds the model without this repository at hand: what the data were, what each number was
measured on, which code made it, how to load it, and what it does not say.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.provenance import environment_tags, without_secrets

DRIVEN_MEANS = "driven protocol, E[v|h]"
RECONSTRUCTION = "reconstruction of held-out rows"
STAND_IN = "synthetic-faces"

_VARIANTS = {"fresh_": "fresh protocol, E[v|h]", "sample_": "driven protocol, v with its noise"}
"""Prefixes of the metrics that pipeline/evaluation/scores.py measures otherwise, on its first seed alone."""
_KINDS = {
    "beam": "a BEAM: a restricted Boltzmann machine trained by likelihood and against a critic (`critic.*` below)",
    "autoencoder": "a convolutional autoencoder between pixels uint8 [64, 64, 3] and 1024 features",
}


class Measured(NamedTuple):
    """A number with what is behind it; None where that is not known."""

    value: float | None
    spread: float | None = None
    """Standard deviation over the seeds."""
    num_rows: int | None = None
    num_seeds: int | None = None
    protocol: str = ""


def measured(
    metrics: Mapping[str, float | None],
    *,
    num_rows: int | None = None,
    num_seeds: int | None = None,
    protocol: str = DRIVEN_MEANS,
) -> dict[str, Measured]:
    """Flat metrics as pipeline/evaluation/scores.py writes them, each with what is behind it.

    `<metric>_spread` becomes the spread of <metric>; `fresh_*` and `sample_*` get their own protocols and one seed.
    """
    result = {}
    for key, value in metrics.items():
        if key.endswith("_spread") and key.removesuffix("_spread") in metrics:
            continue
        variant = next((text for prefix, text in _VARIANTS.items() if key.startswith(prefix)), None)
        seeds = num_seeds if variant is None else num_seeds and 1
        result[key] = Measured(value, metrics.get(f"{key}_spread"), num_rows, seeds, variant or protocol)
    return result


def model_card(
    *,
    name: str,
    kind: str,
    dataset: str,
    data_hash: str,
    recipe: str,
    metrics: Mapping[str, Measured],
    score_name: str = "",
    settings: Mapping[str, object] | None = None,
    comparison: Mapping[str, Mapping[str, float | None]] | None = None,
    comparison_note: str = "",
    baselines: Mapping[str, Mapping[str, float | None]] | None = None,
    pictures: Sequence[str] = (),
    run_id: str = "",
    num_visible: int | None = None,
    limits: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> str:
    """The card as Markdown; what is empty is left out.

    Args:
        name: in the registry.
        kind: `beam` or `autoencoder`.
        dataset: label of the data set; stand-in faces and CelebA are said to be what they are.
        data_hash: of the manifest of the data.
        recipe: its name.
        metrics: by name; see `measured`.
        score_name: the metric that decides between versions.
        settings: by dotted key, those that matter.
        comparison: variants by name (the sweep's winner, the recipe), with their metrics; `<metric>_spread` is shown as the
            spread of <metric>.
        comparison_note: what the comparison rests on and says (training seeds, verdict).
        baselines: models that were not trained, by name, with their metrics.
        pictures: names of the files beside the card.
        run_id: of the MLflow run that trained it.
        num_visible: numbers per row of a model of points; None for pictures.
        limits: sentences that are added to the ones that always hold.
        provenance: which code made it; None: `environment_tags()`.
    """
    parts = [
        f"# {name}",
        f"This is {_KINDS.get(kind, f'a model of kind {kind}')}.",
        _data(dataset, data_hash),
        f"## Recipe\n\n`{recipe}`" + (f", MLflow run `{run_id}`" if run_id else ""),
    ]
    if settings:
        rows = [[f"`{key}`", f"`{value}`"] for key, value in settings.items()]
        parts.append(_table(["setting", "value"], rows))
    parts.append(_metrics(metrics, score_name))
    if comparison:
        parts.append("## Comparison\n\n" + (f"{comparison_note}\n\n" if comparison_note else "") + _columns(comparison))
    if baselines:
        parts.append("## Baselines\n\nMeasured the same way.\n\n" + _columns(baselines))
    if pictures:
        parts.append("## Pictures\n\n" + "\n\n".join(f"![{picture}](<{picture}>)" for picture in pictures))
    parts.append(_code(environment_tags() if provenance is None else provenance))
    parts.append(_loading(name, kind, num_visible))
    parts.append("## Limits\n\n" + "\n".join(f"- {text}" for text in [*_limits(dataset, kind), *limits]))
    return without_secrets("\n\n".join(parts) + "\n")


def _data(dataset: str, data_hash: str) -> str:
    lines = [f"## Data\n\nData set `{dataset}`, hash of its manifest `{data_hash}`."]
    if dataset.startswith(STAND_IN):
        lines.append("**These are drawn stand-in faces, not photographs.**")
    if dataset.startswith("celeba"):
        lines.append(
            "CelebA is available from its authors for non-commercial research only and may not be passed on; the same holds "
            "for models trained on it."
        )
    return "\n\n".join(lines)


def _metrics(metrics: Mapping[str, Measured], score_name: str) -> str:
    rows = []
    for key in sorted(metrics, key=lambda key: key != score_name):  # the score first, the others as they came
        m = metrics[key]
        counts = ["-" if count is None else str(count) for count in (m.num_rows, m.num_seeds)]
        rows.append(
            [key + (" (the score)" if key == score_name else ""), _value(m.value, m.spread), *counts, m.protocol]
        )
    head = (
        "## Metrics\n\nRows: of the data, and as many of the model. Seeds: of sampling; ± is their standard deviation."
    )
    return head + "\n\n" + _table(["metric", "value", "rows", "seeds", "protocol"], rows)


def _columns(variants: Mapping[str, Mapping[str, float | None]]) -> str:
    """Variants as columns, metrics as rows."""
    keys = list(dict.fromkeys(key for values in variants.values() for key in values))
    keys = [key for key in keys if not (key.endswith("_spread") and key.removesuffix("_spread") in keys)]
    rows = [[key, *(_value(v.get(key), v.get(f"{key}_spread")) for v in variants.values())] for key in keys]
    return _table(["metric", *variants], rows)


def _code(provenance: Mapping[str, str]) -> str:
    changed = {"True": ", with changes that were not committed", "unknown": ", perhaps with changes"}
    commit = provenance.get("mlflow.source.git.commit")
    lines = [f"Commit `{commit}`{changed.get(provenance.get('git.dirty', ''), '')}." if commit else "Commit not known."]
    versions = {k.removeprefix("version."): v for k, v in provenance.items() if k.startswith("version.")}
    if versions:
        lines.append(_table(["library", "version"], [[k, v] for k, v in versions.items()]))
    return "## Code\n\n" + "\n\n".join(lines)


def _loading(name: str, kind: str, num_visible: int | None) -> str:
    uri = f"models:/{name}@champion"
    if kind == "autoencoder":
        numpy, given = "import numpy as np\n", "np.zeros((1, 64, 64, 3), np.uint8)"
        output = "reconstructions, for pictures uint8 [n, 64, 64, 3]"
        by_mlflow, directly = f"model.predict({given})", f"model.reconstruct({given})"
    else:
        numpy, output = "", "uint8 [36, 64, 64, 3]" if num_visible is None else f"float32 [36, {num_visible}]"
        asked = {"n_samples": 36, "gibbs_steps": 100, "seed": 0, "protocol": "driven"}
        by_mlflow = f"model.predict(None, params={json.dumps(asked)})"
        directly = f"model.sample({', '.join(f'{key}={json.dumps(value)}' for key, value in asked.items())})"
    return f"""## How to load

The model is safetensors and JSON and holds no code: this project has to be installed where it is loaded. `@champion` is the
version that was promoted last; `/NUMBER` is a certain one.

With MLflow:

```python
import mlflow
{numpy}model = mlflow.pyfunc.load_model("{uri}")
rows = {by_mlflow}  # {output}
```

With this project, which checks the loader, the hash of every file and the format's version before anything is used:

```python
{numpy}from pipeline.registry import load_model
model = load_model("{uri}")
rows = {directly}  # {output}
```

Without a network: `python -m jobs.models pull {uri} --out FOLDER` once; the folder's path then stands in either call."""


def _limits(dataset: str, kind: str) -> list[str]:
    limits = ["Scores compare only at the same data hash, number of rows and protocol."]
    if dataset.startswith(STAND_IN):
        limits.append("Drawn faces show that the pipeline runs; nothing here says anything about photographs.")
    if dataset.startswith("celeba"):
        limits.append(
            "For non-commercial research; celebrities are no sample of people, and samples are nobody's portrait."
        )
    if kind == "beam" and dataset.startswith((STAND_IN, "celeba")):
        limits.append("Pictures are 64x64 and no sharper than the autoencoder that the model carries.")
    return limits


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in line) + " |" for line in lines
    )


def _value(value: float | None, spread: float | None = None) -> str:
    """Four digits; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4g}" + ("" if spread is None or not math.isfinite(spread) else f" ± {spread:.2g}")
