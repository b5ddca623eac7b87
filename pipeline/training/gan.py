"""Training a generator and a critic in turn, on any number of workers with the same bits.

A step: `critic_steps` updates of the critic, each on a batch of data and as many generated rows, then one of the generator
on the rows of the last of them. Batches and noise are dealt in fixed blocks; each block has a gradient of its own, the
gradients are summed exactly in one all-reduce per network and update, then everybody makes the same Adam step. Batch
normalization adds its own exact sums, forward and backward (models/batch_norm.py).

Data and generated rows are two batches with statistics of their own.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.comm import Comm, ExactSum
from pipeline.config import EvaluationConfig, GANConfig, RunConfig
from pipeline.data.batches import Batches
from pipeline.device.precision import choose_together, computing_in
from pipeline.learning.adam import build_optimizer, load_optimizer_state, optimizer_shapes, optimizer_state
from pipeline.learning.schedule import Schedule
from pipeline.metrics.images import PrincipalSpace, fit_wide_principal_space, project
from pipeline.models.batch_norm import Moments
from pipeline.models.gan import (
    Gan,
    Network,
    draw_noise,
    forward_blocks,
    generate,
    replicate,
    track_moments_,
)
from pipeline.streams import stream
from pipeline.training.guard import SumGuard
from pipeline.training.monitors import NUM_SHOWN, SEED, Monitors
from pipeline.training.objective import Evaluation, NonFinite, part_of, prefixed, require_fit, saved

SPACE_ROWS = 1000
"""Training images, evenly spaced in their order, that the monitors' principal space is fitted to."""


def critic_loss(loss: str, values: Tensor, is_data: bool) -> Tensor:
    """The critic's loss per row: its values are to be high on data and low on generated rows.

    gan: softplus(-C) on data, softplus(C) on generated rows; wgan: -C and C.
    """
    signed = -values if is_data else values
    return F.softplus(signed) if loss == "gan" else signed


def generator_loss(loss: str, values: Tensor) -> Tensor:
    """The generator's loss per row, from the critic's values of its rows. gan: softplus(-C); wgan: -C."""
    return critic_loss(loss, values, is_data=True)


class _Trained:
    """One network in training: replicas for this worker's blocks, optimizer, and the sums of an update."""

    def __init__(self, name: str, network: Network, config: RunConfig, count: int, sums: tuple[str, ...], comm: Comm):
        self.name, self.network, self.comm = name, network, comm
        self.replicas = replicate(network, count)
        self.optimizer = build_optimizer(network, config.optimizer, maximize=False)
        self.parameters = dict(network.named_parameters())
        shapes = {name: p.shape for name, p in self.parameters.items()}
        self.sums = ExactSum({**shapes, **{name: () for name in sums}}, comm.device)
        self.guard = SumGuard(self.sums, comm, list(self.parameters), owner=f"the {name}'s ")

    def add_gradients(self, losses: list[Tensor]) -> None:
        """Add each block's gradient of the sum of `losses`, which replicas made, to the sums."""
        leaves = [p for replica in self.replicas for p in replica.parameters()]
        gradients = iter(torch.autograd.grad(sum(losses[1:], losses[0]), leaves))
        for _ in self.replicas:
            self.sums.add_(dict(zip(self.parameters, gradients, strict=False)))

    def update(self, rate: float, step: int) -> dict[str, Tensor]:
        """Reduce the sums, make the optimizer's step, return the sums. Raises NonFinite before the network changes."""
        sums = self.sums.reduce(self.comm)
        self.guard.watch(step, now=True)
        self.optimizer.step_along(sums, rate)
        return sums

    def gradient_norm(self) -> float:
        """Norm of the gradient of the last update."""
        return sum(float(self.sums.parts[name].square().sum()) for name in self.parameters) ** 0.5


class GanObjective:
    """A GAN or WGAN; implements training.objective.Objective."""

    def __init__(self, config: RunConfig, train: Tensor, heldout: Tensor, comm: Comm):
        """Build both networks and keep the data resident on the device.

        Args:
            config: with a GANConfig; schedules.likelihood is the one phase.
            train: rows float32 [N, num_visible], or pixels uint8 [N, 64, 64, 3]; the same on all workers.
            heldout: the same kind of rows, held out; `evaluate` compares with the first evaluation.num_rows.
            comm: this worker's group; its device is the model's.

        Raises:
            ValueError: the config is of another kind of run, or the data do not fit it.
        """
        model = config.model
        if not isinstance(model, GANConfig):
            raise ValueError(f"recipe {config.name!r} is not a GAN: its model is {type(model).__name__}")
        for rows in (train, heldout):
            if rows[0].numel() != model.num_visible:
                raise ValueError(
                    f"model.num_visible = {model.num_visible}: a row of the data has {rows[0].numel()} values; set it to that"
                )
        if model.output == "sigmoid" and train.dtype != torch.uint8 and (train.min() < 0 or train.max() > 1):
            raise ValueError(
                f"model.output = 'sigmoid': the data go from {float(train.min()):.3g} to {float(train.max()):.3g}, which it "
                "cannot reach; scale them to [0, 1] or choose 'linear'"
            )
        self.config, self.model_config, self.comm = config, model, comm
        train = train.to(comm.device)
        self.batches = Batches(train, config.data.batch_size, config.seed, model.num_blocks)
        self.blocks: list[int | None] = list(comm.my_blocks(model.num_blocks)) or [None]
        """This worker's; a worker without any takes part in all sums with a block of no rows."""
        self.monitors = _Monitors(config.evaluation, train, heldout.to(comm.device))
        self.precision = choose_together(model.precision if model.architecture == "convolutional" else "float32", comm)
        """Precision of products: the first worker's choice."""

        self.model = Gan(model).initialize_(stream(config.seed, "initial weights")).to(comm.device)
        count, loss = len(self.blocks), "loss"
        self.generator = _Trained("generator", self.model.generator, config, count, (loss,), comm)
        self.critic = _Trained(
            "critic", self.model.critic, config, count, (loss, "mean on data", "mean on samples"), comm
        )
        self.schedule = Schedule(config.schedules, self.batches.steps_per_epoch, config.epochs_scale)
        if self.schedule.switch_step < self.schedule.total_steps:
            raise ValueError(
                f"schedules.adversarial = {config.schedules.adversarial}: a GAN has one phase, schedules.likelihood; set its "
                "length to 0"
            )

    # --- one step -----------------------------------------------------------------------------------------------------

    def step(self, step: int, measure: bool) -> dict[str, float]:
        """One update of the generator and those of the critic before it; see Objective.step.

        Losses and the critic's mean values are of the last update of each, over the global batch, before it. NonFinite is
        raised before the network concerned changes; when it is the generator, the critic has made its step.
        """
        rate, last = self.schedule.at(step).rate, self.model_config.critic_steps - 1
        for i in range(last + 1):
            batch = step * self.model_config.critic_steps + i
            with torch.set_grad_enabled(i == last):  # the generator learns from the last ones
                generated, moments = self._generate_blocks(step, i, batch)
            sums = self._update_critic(step, batch, generated, rate)
        report = {
            "learning_rate": rate,
            "epoch": step / self.batches.steps_per_epoch,
            "critic_loss": float(sums["loss"]),
            "critic_on_data": float(sums["mean on data"]),
            "critic_on_samples": float(sums["mean on samples"]),
            "generator_loss": self._update_generator(step, batch, generated, moments, rate),
        }
        if measure:
            report["critic_gradient_norm"] = self.critic.gradient_norm()
            report["generator_gradient_norm"] = self.generator.gradient_norm()
        return report

    def _block_rows(self, batch: int) -> list[int]:
        sizes = self.batches.block_rows(batch)
        return [0 if block is None else sizes[block] for block in self.blocks]

    def _generate_blocks(self, step: int, critic_step: int, batch: int) -> tuple[list[Tensor], list[Moments]]:
        """Generated rows, as many as each block of the batch has, and their statistics."""
        seed, config = self.config.seed, self.model_config
        noise = [
            draw_noise(n, config, stream(seed, "noise", step, critic_step, -1 if block is None else block))
            for n, block in zip(self._block_rows(batch), self.blocks)
        ]
        with self._computing():
            blocks = [z.to(self.comm.device) for z in noise]
            return forward_blocks(self.generator.replicas, blocks, self.batches.size(batch), self.comm)

    def _update_critic(self, step: int, batch: int, generated: list[Tensor], rate: float) -> dict[str, Tensor]:
        """One update on the data of `batch` and generated rows; the sums of losses and values before it."""
        config, critic = self.model_config, self.critic
        data = [self._data_block(batch, block) for block in self.blocks]
        samples = [block.detach() for block in generated]
        counts, none = [len(rows) for rows in data], [0] * len(data)
        critic.sums.zero_()
        if config.batch_norm:  # two batches, each with statistics of its own
            found = [self._critic_pass(batch, data, counts), self._critic_pass(batch, samples, none)]
        else:  # rows do not see one another: one larger product is faster
            found = [self._critic_pass(batch, [torch.cat(pair) for pair in zip(data, samples)], counts)]
        sums = critic.update(rate, step)
        if config.loss == "wgan":
            with torch.no_grad():
                for parameter in critic.parameters.values():
                    parameter.clamp_(-config.clamp, config.clamp)
        for moments in found:
            track_moments_(self.model.critic, moments)
        return sums

    def _critic_pass(self, batch: int, blocks: list[Tensor], num_data: list[int]) -> list[Moments]:
        """Add losses, values and gradients of blocks to the critic's sums; the first num_data rows of each are data."""
        kind, total = self.model_config.loss, self.batches.size(batch)
        with self._computing():
            values, moments = forward_blocks(self.critic.replicas, blocks, total, self.comm)
            parts = [(v[:n], v[n:]) for v, n in zip(values, num_data)]
            losses = [
                (critic_loss(kind, data, True).sum() + critic_loss(kind, samples, False).sum()) / total
                for data, samples in parts
            ]
            self.critic.add_gradients(losses)
        for loss, (data, samples) in zip(losses, parts):
            means = {"mean on data": data.detach().sum() / total, "mean on samples": samples.detach().sum() / total}
            self.critic.sums.add_({"loss": loss.detach(), **means})
        return moments

    def _update_generator(
        self, step: int, batch: int, generated: list[Tensor], moments: list[Moments], rate: float
    ) -> float:
        """One update by the critic as it is now; the loss before it."""
        generator, total = self.generator, self.batches.size(batch)
        generator.sums.zero_()
        with self._computing():
            values, _ = forward_blocks(self.critic.replicas, generated, total, self.comm)
            losses = [generator_loss(self.model_config.loss, v).sum() / total for v in values]
            generator.add_gradients(losses)
        for loss in losses:
            generator.sums.add_({"loss": loss.detach()})
        sums = generator.update(rate, step)
        track_moments_(self.model.generator, moments)
        return float(sums["loss"])

    def _computing(self) -> AbstractContextManager[None]:
        """Around one forward and backward, never around an update: it holds converted weights."""
        convolutional = self.model_config.architecture == "convolutional"
        return computing_in(self.precision, self.comm.device) if convolutional else nullcontext()

    def _data_block(self, batch: int, block: int | None) -> Tensor:
        """Rows float32 of a block of data; images in [0, 1]."""
        rows = self.batches.rows[:0] if block is None else self.batches.block(batch, block)
        return _as_rows(rows, self.model_config.num_visible)

    # --- evaluation and state ---------------------------------------------------------------------------------------

    def evaluate(self, step: int) -> Evaluation:
        """Distances of as many generated as held-out rows, by one seed (monitors.Monitors.compare); see Objective.evaluate.

        Images of pixels are compared in the leading principal components of training images.
        """
        with self._computing():
            rows = generate(self.model.generator, self.monitors.num_rows, SEED, self.comm)
        if not bool(torch.isfinite(rows).all()):
            raise NonFinite("a generated row", step)
        return Evaluation(self.monitors.compare(rows), rows[:NUM_SHOWN])

    def state(self) -> dict[str, Tensor]:
        """See Objective.state."""
        state = prefixed("model.", self.model.state_dict())
        for trained in (self.generator, self.critic):
            moments = optimizer_state(trained.optimizer, trained.network)
            state |= prefixed(f"optimizer.{trained.name}.", moments)
        return saved(state)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See Objective.load_state."""
        expected = {f"model.{name}": value.shape for name, value in self.model.state_dict().items()}
        if any(name.startswith("optimizer.") for name in state):  # none before the first update
            for trained in (self.generator, self.critic):
                shapes = optimizer_shapes(trained.network)
                expected |= {f"optimizer.{trained.name}.{name}": shape for name, shape in shapes.items()}
        require_fit(state, expected)
        self.model.load_state_dict(part_of(state, "model."))  # in place: the replicas share this memory
        for trained in (self.generator, self.critic):
            load_optimizer_state(trained.optimizer, trained.network, part_of(state, f"optimizer.{trained.name}."))


class _Monitors:
    """Monitors of rows; of pixels, of their coordinates in a principal space of training images."""

    def __init__(self, config: EvaluationConfig, train: Tensor, heldout: Tensor):
        self.num_rows = min(config.num_rows, len(heldout))
        self.space: PrincipalSpace | None = None
        heldout = _as_rows(heldout[: self.num_rows], heldout[0].numel())
        if train.dtype == torch.uint8:
            few = _as_rows(train[:: max(1, len(train) // SPACE_ROWS)][:SPACE_ROWS], heldout.shape[1])
            self.space = fit_wide_principal_space(few, min(config.num_components, len(few) - 1))
            train, heldout = project(self.space, few).float(), project(self.space, heldout).float()
        self.monitors = Monitors(config, train, heldout)

    def compare(self, rows: Tensor) -> dict[str, float]:
        """See Monitors.compare."""
        return self.monitors.compare(rows if self.space is None else project(self.space, rows).float())


def _as_rows(rows: Tensor, width: int) -> Tensor:
    """Float rows [n, width]; pixels become images in [0, 1]."""
    flat = rows.reshape(len(rows), width)
    return flat.float() / 255 if rows.dtype == torch.uint8 else flat
