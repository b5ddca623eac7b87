"""Nothing points up: every import of pipeline/, jobs/ and data_prep/, lazy ones too, against a table of who may."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("pipeline", "jobs", "data_prep")

ONLY_IN: dict[str, tuple[str, ...]] = {
    "ray": ("jobs",),
    "mlflow": ("pipeline.tracking", "pipeline.registry"),
    "faiss": ("pipeline.critics.faiss_search",),
    "pydantic": ("pipeline.config",),
    "triton": ("pipeline.fused",),
    "sklearn": ("pipeline.critics.forest", "pipeline.metrics.divergences", "data_prep.mnist"),
    "webdataset": ("pipeline.data.shards", "data_prep"),
    "torch.distributed": ("pipeline.comm",),
    "torch.nn.parallel": ("pipeline.training.gan", "pipeline.training.autoencoder"),
    "matplotlib": ("pipeline.pictures",),
    "optuna": ("pipeline.pictures.trials", "pipeline.pictures.sweep", "jobs"),
    "cv2": ("pipeline.metrics.faces",),
    "pyarrow": ("pipeline.storage", "jobs.node_facts"),
}
"""A package -> the modules (with all below them) that may import it; everybody else may not."""

_BASE = ("config", "comm", "streams", "files")
_MODELS = (*_BASE, "device", "models")
_MATHEMATICS = (*_MODELS, "learning", "data", "samplers", "metrics", "critics")
_ROOMS: dict[str, tuple[str, ...]] = {
    "config": (),
    "comm": (),
    "streams": (),
    "files": (),
    "provenance": (),
    "device": ("comm",),
    "models": (*_BASE, "device"),
    "learning": _MODELS,
    "data": _BASE,
    "samplers": _MODELS,
    "metrics": (*_MODELS, "data", "samplers"),
    "critics": (*_MODELS, "learning"),
    "pictures": _BASE,
    "training": _MATHEMATICS,
    "fused": (*_MATHEMATICS, "training"),
    "build": (*_MATHEMATICS, "training", "fused"),
    "storage": (*_BASE, "data"),
    "tracking": (*_BASE, "provenance"),
    "packages": (*_MODELS, "data", "samplers"),
    "registry": (*_BASE, "provenance", "packages", "tracking", "storage"),
    "evaluation": (*_MATHEMATICS, "packages", "registry"),
    "runs": (*_MATHEMATICS, "training", "build", "tracking"),
}
"""A room of pipeline/ -> the rooms from which it may import besides itself."""
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    **{f"pipeline.{room}": tuple(f"pipeline.{r}" for r in (*below, room)) for room, below in _ROOMS.items()},
    "pipeline.data.batches": ("pipeline.comm", "pipeline.streams"),
    "pipeline": ("pipeline",),
    "data_prep": ("pipeline", "data_prep"),
    "jobs": FOLDERS,
}
"""A module (with all below it; the longest match counts) -> what it may import of ours."""


def is_within(module: str, parents: tuple[str, ...]) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def imports_of(module: str, source: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, imported name) of every import anywhere in the source: statements at any depth, by name, and attributes.

    `from a import b` counts as a.b, since b may be a module; `torch.distributed.x` counts without an import of its own.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ONLY_IN:
            yield node.lineno, ast.unparse(node)


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of `module`, one line each; empty when nothing is."""
    found = []
    layer = max((layer for layer in MAY_IMPORT if is_within(module, (layer,))), key=len)
    for line, name in imports_of(module, source, is_package):
        for package, places in ONLY_IN.items():
            if is_within(name, (package,)) and not is_within(module, places):
                found.append(f"{module}:{line} imports {name}; only {', '.join(places)} may import {package}")
        ours = name.split(".")[0] in FOLDERS
        if ours and not is_within(name, MAY_IMPORT[layer]):
            found.append(
                f"{module}:{line} imports {name}; {layer} may import only {', '.join(MAY_IMPORT[layer]) or 'nothing'}"
            )
    return found


def our_files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_nothing_imports_what_it_may_not() -> None:
    files = our_files()
    assert len(files) > 20
    wrong = [
        text
        for path in files
        for text in violations(module_of(path), path.read_text(encoding="utf-8"), path.name == "__init__.py")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_one_another_in_a_circle() -> None:
    """At any depth of a file: an import that comes late hides a circle, and does not undo it."""
    modules = {module_of(path): path for path in our_files()}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = (name for _, name in imports_of(module, path.read_text(encoding="utf-8"), path.name == "__init__.py"))
        found = {next((m for m in (name, name.rpartition(".")[0]) if m in modules), "") for name in names}
        graph[module] = found - {"", module}
    TopologicalSorter(graph).prepare()  # raises CycleError with the modules


def test_every_room_has_a_floor() -> None:
    TopologicalSorter(_ROOMS).prepare()
    rooms = {module.split(".")[1] for module in map(module_of, our_files()) if module.startswith("pipeline.")}
    assert rooms == set(_ROOMS)


def test_every_named_place_is_within_a_folder_of_ours() -> None:
    places = [place for group in (*ONLY_IN.values(), *MAY_IMPORT.values()) for place in group]
    assert all(is_within(place, FOLDERS) for place in [*places, *MAY_IMPORT])


def test_the_table_fits_the_files() -> None:
    """A renamed file would leave its rule without effect: every layer of ours that exists as a rule exists as code."""
    modules = [module_of(path) for path in our_files()]
    for layer in MAY_IMPORT:
        assert any(is_within(module, (layer,)) for module in modules), layer


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pipeline.comm", "import ray"),
        ("pipeline.training.loop", "def f():\n    import ray.train"),
        ("data_prep.celeba", "from ray import data"),
        ("jobs.train", "import mlflow"),
        ("pipeline.training.loop", "if True:\n    from mlflow.tracking import MlflowClient"),
        ("pipeline.critics.neighbors", "import faiss.contrib.torch_utils"),
        ("pipeline.critics.neighbors", "from sklearn.ensemble import RandomForestClassifier"),
        ("pipeline.data.batches", "try:\n    import webdataset as wds\nexcept ImportError:\n    pass"),
        ("pipeline.learning.weights", "import torch.distributed as dist"),
        ("pipeline.learning.weights", "from torch import distributed"),
        ("pipeline.learning.weights", "import torch\ntorch.distributed.all_reduce(x)"),
        ("pipeline.training.beam", "from torch.nn.parallel import DistributedDataParallel"),
        ("pipeline.training.beam", "import importlib\nimportlib.import_module('matplotlib.pyplot')"),
        ("pipeline.training.beam", "plt = __import__('matplotlib')"),
        ("pipeline.metrics.images", "class A:\n    def f(self):\n        import cv2"),
        ("pipeline.models.rbm", "from pipeline.samplers.gibbs import gibbs_sweep"),
        ("pipeline.models.rbm", "from pipeline import samplers"),
        ("pipeline.models.rbm", "from ..samplers import gibbs"),
        ("pipeline.samplers.driven", "from pipeline.critics.memory import Memory"),
        ("pipeline.critics.neighbors", "from pipeline.training.beam import Beam"),
        ("pipeline.metrics.exact", "import pipeline.tracking"),
        ("pipeline.learning.weights", "from pipeline import registry"),
        ("pipeline.config", "from pipeline.models.rbm import RBM"),
        ("pipeline.comm", "from . import config"),
        ("pipeline.training.loop", "from pydantic import Field"),
        ("pipeline.streams", "import pipeline.comm"),
        ("pipeline.data.batches", "from pipeline.config import DataConfig"),
        ("pipeline.training.loop", "from jobs.recipes import RECIPES"),
        ("pipeline.training.loop", "import data_prep.tasks"),
        ("data_prep.celeba", "from jobs import train"),
    ],
)
def test_the_checker_sees_a_forbidden_import(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jobs.train", "import ray\nfrom pipeline.training import loop\nfrom data_prep import celeba"),
        ("pipeline.registry", "import mlflow.pyfunc"),
        ("pipeline.critics.faiss_search", "def f():\n    import faiss"),
        ("data_prep.celeba", "import webdataset\nfrom pipeline.data.shards import Manifest"),
        ("pipeline.comm", "import torch.distributed as dist"),
        ("pipeline.training.gan", "from torch.nn.parallel import DistributedDataParallel"),
        (
            "pipeline.models.rbm",
            "import rays\nfrom torch import nn\nfrom . import units\nfrom pipeline.config import A",
        ),
        ("pipeline.training.beam", "from pipeline.critics.neighbors import NeighborCritic\nfrom .. import comm"),
    ],
)
def test_the_checker_lets_an_allowed_import_pass(module: str, source: str) -> None:
    assert violations(module, source) == []
