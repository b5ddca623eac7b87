"""Ray Train's TorchTrainer with less to wait for until the workers run.

Its controller starts further actors, each a process that imports Ray for a second or two. What is used here has no public
switch; where another Ray has it elsewhere, training only begins later.
"""

import contextlib
from typing import Any

from ray.train.torch import TorchTrainer


class LeanTorchTrainer(TorchTrainer):
    """Without the actor that deals out Ray Data's data sets, of which jobs here have none."""

    alone = False
    """Nothing else is in this Ray session, which ends with the command: no actor that gives a dead controller's room back."""

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback", *(["PlacementGroupCleanerCallback"] if self.alone else [])}
        every = super()._create_default_callbacks()  # type: ignore[misc]  # Ray's annotations are those of an older one
        return [callback for callback in every if type(callback).__name__ not in unused]


def begin_coordinator() -> None:
    """Start the actor that a controller asks for room, and waits for, so that it comes up beside the controller."""
    with contextlib.suppress(ImportError, AttributeError, TypeError):
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        get_or_create_autoscaling_coordinator()
