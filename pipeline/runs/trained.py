"""The trained model that a run's checkpoint holds."""

from pipeline.config import RBMConfig, RunConfig
from pipeline.models.rbm import RBM
from pipeline.samplers.build import chains_at_one
from pipeline.samplers.gibbs import ChainState
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.objective import part_of


def read_beam(found: Checkpoint, config: RunConfig) -> tuple[RBM, ChainState]:
    """Read the RBM, without gradients, and its chains that are samples, [num_chains, .], from a BEAM's checkpoint.

    Args:
        found: the checkpoint.
        config: of the run; it has an RBM and a sampler.
    """
    assert isinstance(config.model, RBMConfig) and config.sampler is not None
    rbm = RBM(config.model)
    rbm.load_state_dict(part_of(found.tensors, "model."))
    rbm.requires_grad_(False)
    return rbm, chains_at_one(ChainState(**part_of(found.tensors, "chains.")), config.sampler)
