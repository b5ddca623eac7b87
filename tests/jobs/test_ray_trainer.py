"""What jobs/ray_trainer.py uses of Ray without a public name is there: else training begins later, and nothing says so."""

from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client

from jobs.ray_trainer import LeanTorchTrainer

DATA, CLEANER = "DatasetsCallback", "PlacementGroupCleanerCallback"


def callbacks(kind: type[TorchTrainer], alone: bool = False) -> set[str]:
    trainer = kind(print, scaling_config=ScalingConfig(num_workers=1))
    trainer.alone = alone
    return {type(callback).__name__ for callback in trainer._create_default_callbacks()}


def test_unused_actors_are_left_out_and_nothing_else() -> None:
    every = callbacks(TorchTrainer)
    assert {DATA, CLEANER} < every
    assert callbacks(LeanTorchTrainer) == every - {DATA}
    assert callbacks(LeanTorchTrainer, alone=True) == every - {DATA, CLEANER}


def test_the_coordinator_is_the_one_that_the_controller_waits_for() -> None:
    begun = default_autoscaling_coordinator.get_or_create_autoscaling_coordinator
    assert autoscaling_coordinator_client.get_or_create_autoscaling_coordinator is begun
