"""The model registry. MLflow names this package as `loader_module` of every registered model, so it stays importable."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.registry.fetch import load_model as load_model
    from pipeline.registry.register import _load_pyfunc as _load_pyfunc

_HOME = {"load_model": "fetch", "_load_pyfunc": "register"}


def __getattr__(name: str) -> Any:
    """Import late, since mlflow takes seconds: `load_model` for people, `_load_pyfunc` for MLflow."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
