"""Trained models with all that it takes to use them, and what they do; files.py says how they lie on disk.

A BEAM of pictures carries its autoencoder, so one folder is all that sampling takes: `latents` below are whitened
features of a picture, and pixels are uint8 [n, 64, 64, 3]. A BEAM of points has none: its rows are float32 [n, V].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config import RBMConfig, RunConfig
from pipeline.data.whitening import Whitening
from pipeline.models.autoencoder import NUM_FEATURES
from pipeline.models.rbm import RBM
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.files import (
    FLOATS,
    PackageError,
    Tensors,
    check_shapes,
    finite,
    load_weights,
    naming,
    read_config,
    read_tensors,
    write_package,
)
from pipeline.packages.inputs import Data, as_clamped, as_pixels, as_points, check_parameters, clamped_pixels
from pipeline.samplers.build import chains_at_one
from pipeline.samplers.clamped import draw_clamped
from pipeline.samplers.driven import DrivenGibbs, GammaProcess
from pipeline.samplers.gibbs import ChainState
from pipeline.samplers.protocols import DRIVEN, FRESH, ROWS_PER_BLOCK, Protocol, Samples, WideStart, draw_samples
from pipeline.streams import stream


@dataclass(frozen=True)
class PackagedBeam:
    """A trained BEAM. Results are on the CPU; with the same seed, device and number of threads they are the same."""

    rbm: RBM
    run: RunConfig
    whitening: Whitening
    """Whitening of the visible units; mean 0 and standard deviation 1 where the data were used as they are."""
    wide_start: WideStart
    chains: ChainState
    """The persistent chains of all workers, [M, .] in order; of replica exchange those at beta = 1."""
    autoencoder: PackagedAutoencoder | None
    """The one whose latents it was trained on; None for a model of points."""
    dataset: str
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    def sample_latents(
        self, n_samples: int = 36, gibbs_steps: int = 100, seed: int = 0, protocol: str = "driven"
    ) -> Tensor:
        """E[v | h] of the last sweep, whitened latents [n_samples, V], on the model's device.

        Args:
            n_samples: rows, 1 to 10 000; at most the number of chains for `persistent`.
            gibbs_steps: sweeps of the main stage, 1 to 100 000; 100 are the evaluation protocols themselves.
            seed: 0 to 2^31 - 1.
            protocol: `driven` or `fresh` (samplers/protocols.py) start from noise; `persistent`: the chains of training
                go on with their own sampler (of replica exchange those at beta = 1, by Gibbs) for gibbs_steps sweeps, then
                5 at beta = 1.

        Raises:
            ValueError: a value out of its range.
        """
        return self._draw(n_samples, gibbs_steps, seed, protocol).visible_mean

    def sample(self, n_samples: int = 36, gibbs_steps: int = 100, seed: int = 0, protocol: str = "driven") -> Tensor:
        """Samples: pixels uint8 [n_samples, 64, 64, 3], decoded from E[v | h]; of a model of points v, with its noise.

        Arguments and errors are those of `sample_latents`.
        """
        return self._picture(self._draw(n_samples, gibbs_steps, seed, protocol))

    @torch.no_grad()
    def reconstruct(self, data: Data) -> Tensor:
        """Return what the model keeps of its input, shaped as the input: E[v | h] at h = E[h | v], decoded. Nothing is drawn.

        For Gaussian visible units that is the exact mean of v after one sweep of Gibbs from the input.

        Raises:
            ValueError: an input of another kind.
        """
        return self._decode(self.rbm.visible_mean(self.rbm.hidden_mean(self.latents(data))))

    @torch.no_grad()
    def encode(self, data: Data) -> Tensor:
        """Hidden activations E[h | v], float32 [n, H]. Raises ValueError on an input of another kind."""
        return self.rbm.hidden_mean(self.latents(data)).float().cpu()

    @torch.no_grad()
    def free_energy(self, data: Data) -> Tensor:
        """F(v) = -log sum_h exp(-E(v, h)) of each row, [n] in nats; lower is more probable under the model.

        p(v) = exp(-F(v)) / Z, and Z is not known: differences between rows of one model mean something (their
        log-probability ratio), values of two models do not compare. It is a density of whitened latents and not of
        pixels, and it is no test for faces: smooth pictures score low, an evenly gray one lower than most photographs.

        Raises:
            ValueError: an input of another kind.
        """
        return self.rbm.free_energy(self.latents(data)).cpu()

    def inpaint_latents(self, data: Data, clamped: Any, gibbs_steps: int = 100, seed: int = 0) -> Samples:
        """Return what `inpaint` shows, as whitened latents [n, V] on the model's device; arguments and errors are its.

        `visible` has a draw from p(v_free | v_clamped) in the free units, `visible_mean` E[v | h] of the last sweep; both
        have the input's values in the clamped ones, bit for bit.
        """
        check_parameters(gibbs_steps=gibbs_steps, seed=seed)
        latents = self.latents(data)
        mask = as_clamped(clamped, latents.shape, self.autoencoder is not None).to(latents.device)
        return draw_clamped(self.rbm, self.wide_start, latents, mask, gibbs_steps, seed)

    def inpaint(self, data: Data, clamped: Any, gibbs_steps: int = 100, seed: int = 0, paste: bool = False) -> Tensor:
        """The input with its free units drawn anew given the clamped ones, shaped as the input.

        Block Gibbs at beta = 1 from noise, with the clamped units held in every sweep: with enough sweeps a draw from
        p(v_free | v_clamped). On real faces with half of a picture held, F has settled within 100 sweeps.

        Pictures are decoded from the clamped latents and E[v | h] of the others. The decoder's output is not touched, so
        the kept part is a reconstruction too. The latents of a cell see the 46x46 pixels around its patch of 16x16, 15
        beyond each side: what is kept still knows a little of what is replaced. Rows of a model of points keep their
        clamped values bit for bit, and have v with its noise in the others.

        Args:
            data: pictures, or rows.
            clamped: what is kept: booleans [V] or [n, V] over visible units, for pictures also [4, 4] over cells of
                16x16 pixels; or a list of cells (0 to 15, row by row), for models of points of units.
            gibbs_steps: sweeps, 1 to 100 000.
            seed: 0 to 2^31 - 1.
            paste: copy the pixels of wholly clamped cells from the input over the result (seams show).

        Raises:
            ValueError: an input of another kind, a value out of its range, nothing is clamped, or one-hot visible units.
        """
        drawn = self.inpaint_latents(data, clamped, gibbs_steps, seed)
        result = self._picture(drawn)
        mask = as_clamped(clamped, drawn.visible.shape, self.autoencoder is not None)
        if self.autoencoder is None:  # whitening and back may change the last bit
            return torch.where(mask, self._input(data), result)
        return torch.where(clamped_pixels(mask), self._input(data), result) if paste else result

    @torch.no_grad()
    def interpolate(self, data: Data, steps: int = 10, space: str = "latent") -> Tensor:
        """`steps` rows on the straight way from the first row of the input to the second, both ends included.

        With t from 0 to 1 in equal steps, `latent`: v = (1 - t) v_1 + t v_2, decoded (the BEAM itself has no part in it);
        `hidden`: h = (1 - t) E[h | v_1] + t E[h | v_2], decoded from E[v | h], so that the ends are those of `reconstruct`.

        Args:
            data: two pictures [2, 64, 64, 3], or two rows [2, V].
            steps: 2 to 1000.
            space: `latent` or `hidden`.

        Raises:
            ValueError: an input of another kind or not of two rows, or a value out of its range.
        """
        check_parameters(steps=steps, space=space)
        latents = self.latents(data)
        if len(latents) != 2:
            raise ValueError(f"the input has {len(latents)} rows: interpolation goes between two")
        ends = latents if space == "latent" else self.rbm.hidden_mean(latents)
        t = torch.linspace(0, 1, steps, dtype=ends.dtype, device=ends.device)[:, None]
        between = torch.lerp(ends[:1], ends[1:], t)
        return self._decode(between if space == "latent" else self.rbm.visible_mean(between))

    def latents(self, data: Data) -> Tensor:
        """The visible units of an input: whitened latents [n, V] in the model's type, on its device.

        Raises:
            ValueError: an input of another kind.
        """
        checked, weights = self._input(data), self.rbm.weights
        raw = checked if self.autoencoder is None else self.autoencoder.encode(checked)
        return self.whitening.apply(raw.to(weights.device)).to(weights.dtype)

    def save(self, folder: str | Path) -> str:
        """Write the package into `folder` (made when missing), and return the hash that stands for its content.

        Raises:
            PackageError: a tensor with values that are not finite.
        """
        statistics = {
            "whitening.mean": self.whitening.mean,
            "whitening.std": self.whitening.std,
            "wide_start.mean": self.wide_start.mean,
            "wide_start.std": self.wide_start.std,
        }
        files: dict[str, Mapping[str, Tensor]] = {
            "rbm.safetensors": self.rbm.state_dict(),
            "statistics.safetensors": statistics,
            "chains.safetensors": self.chains._asdict(),
        }
        config = {"run": self.run.to_dict(), "autoencoder": None, "metrics": finite(self.metrics)}
        if self.autoencoder is not None:
            files["autoencoder.safetensors"] = self.autoencoder.model.state_dict()
            config["autoencoder"] = self.autoencoder.settings()
        return write_package(Path(folder), "beam", {"dataset": self.dataset, **config}, files)

    @staticmethod
    def _read(config: Mapping[str, Any], tensors: Tensors) -> "PackagedBeam":
        run = RunConfig.from_dict(config["run"])
        if not isinstance(run.model, RBMConfig):
            raise PackageError(f"run.model is {type(run.model).__name__}: a BEAM has an RBMConfig")
        weights = tensors["rbm.safetensors"]
        found, said = tuple(weights["weights"].shape), (run.model.num_visible, run.model.num_hidden)
        if found != said:  # before a module of the said size is made: settings could claim any
            raise PackageError(f"weights of rbm.safetensors has shape {found}, its settings say {said}")
        if (dtype := weights["weights"].dtype) not in FLOATS:
            raise PackageError(f"weights of rbm.safetensors is {dtype}: a model has real numbers")
        rbm = RBM(run.model, dtype)
        load_weights(rbm, weights, "rbm.safetensors")
        moments, chains = tensors["statistics.safetensors"], tensors["chains.safetensors"]
        width, num_chains = run.model.num_visible, len(chains.get("beta", ()))
        autoencoder = None
        if config["autoencoder"] is not None:
            autoencoder = PackagedAutoencoder.read({**config, "metrics": {}}, tensors)
            if width != NUM_FEATURES:
                raise PackageError(f"run.model.num_visible is {width}: the decoder takes {NUM_FEATURES} features")
        names = ("whitening.mean", "whitening.std", "wide_start.mean", "wide_start.std")
        check_shapes("statistics.safetensors", moments, {name: (width,) for name in names})
        shapes = {"visible": width, "hidden": run.model.num_hidden, "beta": 1}
        check_shapes("chains.safetensors", chains, {name: (num_chains, size) for name, size in shapes.items()})
        states, s = ChainState(**chains), run.sampler
        if s is not None and s.num_temperatures > 1 and num_chains == s.num_chains * s.num_temperatures:
            states = chains_at_one(states, s)  # packages once held the hotter replicas, too
        return PackagedBeam(
            rbm,
            run,
            Whitening(moments["whitening.mean"], moments["whitening.std"]),
            WideStart(moments["wide_start.mean"], moments["wide_start.std"]),
            states,
            autoencoder,
            config["dataset"],
            config["metrics"],
        )

    def _input(self, data: Data) -> Tensor:
        """The checked input on the CPU: pixels uint8 [n, 64, 64, 3], or rows float32 [n, V]."""
        if self.autoencoder is not None:
            return as_pixels(data)
        return as_points(data, len(self.rbm.visible.bias), self.rbm.visible.in_unit_interval)

    def _decode(self, latents: Tensor) -> Tensor:
        raw = self.whitening.invert(latents)
        return raw.float().cpu() if self.autoencoder is None else self.autoencoder.decode(raw).cpu()

    def _picture(self, samples: Samples) -> Tensor:
        """Select what people see of samples: a density has its noise, a picture is clean."""
        return self._decode(samples.visible if self.autoencoder is None else samples.visible_mean)

    def _draw(self, n_samples: int, gibbs_steps: int, seed: int, protocol: str) -> Samples:
        check_parameters(n_samples=n_samples, gibbs_steps=gibbs_steps, seed=seed, protocol=protocol)
        if protocol == "persistent":
            return self._continue_chains(n_samples, gibbs_steps, seed)
        return draw_samples(self.rbm, self.wide_start, _stages(protocol, gibbs_steps), n_samples, seed)

    @torch.no_grad()
    def _continue_chains(self, n_samples: int, gibbs_steps: int, seed: int) -> Samples:
        settings = self.run.sampler
        assert settings is not None
        if n_samples > len(self.chains.beta):
            raise ValueError(
                f"n_samples = {n_samples}: protocol 'persistent' goes on with the {len(self.chains.beta)} chains of "
                "training; ask for at most as many, or use protocol 'driven'"
            )
        process = GammaProcess(settings.beta_std, settings.beta_momentum)
        stages = (DrivenGibbs(process, gibbs_steps, settings.min_beta), DRIVEN.stages[-1])
        visible, means = [], []
        for block, start in enumerate(range(0, n_samples, ROWS_PER_BLOCK)):
            part = slice(start, min(start + ROWS_PER_BLOCK, n_samples))
            chains = ChainState(*(state[part] for state in self.chains))
            generator = stream(seed, "sample persistent", block, device=self.rbm.weights.device)
            for stage in stages:
                chains = stage.run(self.rbm, chains, generator)
            visible.append(chains.visible)
            means.append(self.rbm.visible_mean(chains.hidden))
        return Samples(torch.cat(visible), torch.cat(means))


Packaged = PackagedAutoencoder | PackagedBeam
_READERS: dict[str, Callable[[Mapping[str, Any], Tensors], Packaged]] = {
    "autoencoder": PackagedAutoencoder.read,
    "beam": PackagedBeam._read,
}


def load_package(folder: str | Path, device: torch.device | str = "cpu") -> Packaged:
    """The model in a package, on `device`.

    Raises:
        PackageError: a file is missing, differs from its recorded hash, or holds something unknown; the folder was
            written by another version of the format.
    """
    folder = Path(folder)
    with naming(folder):
        config = read_config(folder)
        return _READERS[config["kind"]](config, read_tensors(folder, config, device))


def verify_package(folder: str | Path) -> str:
    """The hash that stands for the content of a package, once every file fits it. Raises PackageError."""
    with naming(Path(folder)):
        return read_config(Path(folder))["hash"]


def _stages(protocol: str, gibbs_steps: int) -> Protocol:
    """A fixed protocol with another number of sweeps in its main stage."""
    fixed = DRIVEN if protocol == "driven" else FRESH
    return Protocol(fixed.name, (replace(fixed.stages[0], num_sweeps=gibbs_steps), *fixed.stages[1:]))
