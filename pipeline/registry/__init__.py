"""The model registry. MLflow names this package as `loader_module` of every registered model, so it stays importable."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.registry.fetch import load_model as load_model


def __getattr__(name: str) -> Any:
    """Import late, since mlflow takes seconds: `load_model` for people, `_load_pyfunc` for MLflow."""
    if name == "load_model":
        from pipeline.registry.fetch import load_model

        return load_model
    if name == "_load_pyfunc":
        from pipeline.registry.register import _load_pyfunc

        return _load_pyfunc
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
