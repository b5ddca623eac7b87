"""Training the autoencoder on pixels by squared error, on any number of workers with the same bits.

A step, with the batch dealt in fixed blocks: each block's gradient by autograd, summed over blocks and workers exactly in
one all-reduce, then the same Adam step everywhere. The sums do not depend on which worker had which block, and the
mirrored images not either; so one worker and four give equal parameters (CPU, equal thread counts).
"""

import torch
from torch import Tensor

from pipeline.comm import Comm, ExactSum, split_rows
from pipeline.config import AutoencoderConfig, RunConfig
from pipeline.data.batches import Batches
from pipeline.device.precision import choose_together, computing_in
from pipeline.learning.adam import build_optimizer, load_optimizer_state, optimizer_shapes, optimizer_state
from pipeline.learning.schedule import Schedule
from pipeline.models.autoencoder import IMAGE_SIZE, Autoencoder, from_pixels
from pipeline.streams import stream
from pipeline.training.guard import SumGuard
from pipeline.training.objective import Evaluation, part_of, prefixed, require_fit, saved

ERROR = "squared error"
"""Name of the summed error among the sums; no parameter's name holds a space."""
VALUES = 3 * IMAGE_SIZE**2
"""Numbers in one image."""
_EVALUATION_ROWS = 128  # of one forward pass of `evaluate`


class AutoencoderObjective:
    """The mean squared error of reconstructed pixels; implements training.objective.Objective."""

    def __init__(self, config: RunConfig, train_pixels: Tensor, valid_pixels: Tensor, comm: Comm):
        """Build the model and keep the pixels resident on the device.

        Args:
            config: with an AutoencoderConfig; schedules.likelihood is the one phase, schedules.adversarial has length 0.
            train_pixels: uint8 [N, 64, 64, 3], the same on all workers.
            valid_pixels: uint8 [n, 64, 64, 3] held out; `evaluate` takes the first evaluation.num_rows.
            comm: this worker's group; its device is the model's.

        Raises:
            ValueError: the config is of another kind of run, or the pixels have another shape or type.
        """
        if not isinstance(config.model, AutoencoderConfig):
            raise ValueError(
                f"recipe {config.name!r} is not an autoencoder: its model is {type(config.model).__name__}"
            )
        self.config, self.comm = config, comm
        self.model_config = config.model
        self.heldout = valid_pixels[: config.evaluation.num_rows].to(comm.device)
        for pixels in (train_pixels, self.heldout):
            from_pixels(pixels[:1])  # refuses a wrong shape or type
        self.batches = Batches(
            train_pixels.to(comm.device), config.data.batch_size, config.seed, config.model.num_blocks
        )
        self.precision = choose_together(config.model.precision, comm)
        """Precision of convolutions: the first worker's choice."""
        model = Autoencoder(config.model).initialize_(stream(config.seed, "initial weights"))
        self.model = model.to(comm.device)
        self.optimizer = build_optimizer(self.model, config.optimizer, maximize=False)
        self.parameters = dict(self.model.named_parameters())
        self.sums = ExactSum({**{name: p.shape for name, p in self.parameters.items()}, ERROR: ()}, comm.device)
        self.error_sum = ExactSum({ERROR: ()}, comm.device)
        self.guard = SumGuard(self.sums, comm, list(self.parameters))
        self.schedule = Schedule(config.schedules, self.batches.steps_per_epoch, config.epochs_scale)
        if self.schedule.switch_step < self.schedule.total_steps:
            raise ValueError(
                f"schedules.adversarial = {config.schedules.adversarial}: an autoencoder has no adversary; set its length to 0"
            )

    def step(self, step: int, measure: bool) -> dict[str, float]:
        """One update; see Objective.step. `batch_mse` is the mean over the global batch, before the update."""
        self.sums.zero_()
        with computing_in(self.precision, self.comm.device):  # around all blocks: weights are converted once
            for block in self.comm.my_blocks(self.model_config.num_blocks):
                self._add_block(step, block)
        sums = self.sums.reduce(self.comm)
        self.guard.watch(step, now=True)
        rate = self.schedule.at(step).rate
        self.optimizer.step_along(sums, rate)
        report = {"batch_mse": float(sums[ERROR]), "learning_rate": rate}
        if measure:
            squares = sum(float(sums[name].square().sum()) for name in self.parameters)
            report["gradient_norm"] = squares**0.5
        return report

    def _add_block(self, step: int, block: int) -> None:
        """Add one block's share of the batch's mean error and of its gradient to the sums."""
        pixels = self.batches.block(step, block)
        if not len(pixels):
            return
        images = from_pixels(pixels)
        if self.model_config.flip:
            draws = torch.rand(len(images), generator=stream(self.config.seed, "flip", step, block))
            mirrored = (draws < 0.5).to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        error = (self.model(images) - images).square().sum() / (VALUES * self.batches.size(step))
        gradients = torch.autograd.grad(error, list(self.parameters.values()))
        self.sums.add_({**dict(zip(self.parameters, gradients)), ERROR: error.detach()})

    @torch.no_grad()
    def evaluate(self, step: int) -> Evaluation:
        """`reconstruction_mse` per pixel value on [0, 1] and `psnr` in dB, over the held-out rows; see Objective.evaluate."""
        self.error_sum.zero_()
        rows = split_rows(len(self.heldout), self.model_config.num_blocks)
        blocks = self.heldout.split(rows)
        with computing_in(self.precision, self.comm.device):
            for block in self.comm.my_blocks(len(rows)):
                for pixels in blocks[block].split(_EVALUATION_ROWS):
                    images = from_pixels(pixels)
                    error = (self.model(images) - images).square().sum() / (VALUES * len(self.heldout))
                    self.error_sum.add_({ERROR: error})
        mse = self.error_sum.reduce(self.comm)[ERROR]
        return Evaluation({"reconstruction_mse": float(mse), "psnr": float(-10 * mse.log10())}, None)

    def state(self) -> dict[str, Tensor]:
        """See Objective.state."""
        moments = prefixed("optimizer.", optimizer_state(self.optimizer, self.model))
        return saved({**prefixed("model.", self.model.state_dict()), **moments})

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See Objective.load_state."""
        expected = {f"model.{name}": p.shape for name, p in self.parameters.items()}
        if any(name.startswith("optimizer.") for name in state):  # none before the first update
            expected |= {f"optimizer.{name}": shape for name, shape in optimizer_shapes(self.model).items()}
        require_fit(state, expected)
        self.model.load_state_dict(part_of(state, "model."))
        load_optimizer_state(self.optimizer, self.model, part_of(state, "optimizer."))
