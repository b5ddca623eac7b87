"""Values that are not finite: quantity, step and rank are named; on demand the run goes back and on with a smaller rate."""

import dataclasses
from pathlib import Path

import pytest
import torch
from groups import run_group
from latents import write_latents
from small_runs import assert_same_bits, final, job_in, run_job, run_until, small
from test_beam_invariance import rows_for, tiny

from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import ConfigError, DivergenceConfig, PowerLaw, RunConfig
from pipeline.runs.job import TrainJob, make_objective
from pipeline.training.beam import BeamObjective
from pipeline.training.checkpoint import load_latest
from pipeline.training.loop import StopRequest, read_history, train
from pipeline.training.objective import NonFinite, Objective


def diverging(restarts: int, factor: float = 0.01) -> RunConfig:
    """A run whose second phase has a learning rate of 1000."""
    config = small(20)
    adversarial = dataclasses.replace(config.schedules.adversarial, learning_rate=PowerLaw(1000.0, 0.0))
    return dataclasses.replace(
        config,
        schedules=dataclasses.replace(config.schedules, adversarial=adversarial),
        divergence=DivergenceConfig(restarts, factor),
    )


def test_a_run_that_diverges_stops_by_default(tmp_path: Path) -> None:
    data_hash = write_latents(tmp_path / "d").hash
    with pytest.raises(NonFinite, match=r"is not finite .* at step 2[0-9] .it began on rank 0.: training has diverged"):
        run_job(job_in(tmp_path / "run", tmp_path / "d", data_hash, diverging(0)))
    assert int(final(tmp_path / "run")["step"]) == 20


def test_a_restart_is_counted_logged_and_resumed_exactly(tmp_path: Path, caplog) -> None:
    """The run in one piece, and one stopped after the restart and finished by two workers: the same bits and rows."""
    data_hash = write_latents(tmp_path / "d").hash
    whole, parts = (job_in(tmp_path / n, tmp_path / "d", data_hash, diverging(2)) for n in ("whole", "parts"))
    assert run_job(whole) == 40
    assert "Restart 1 of 2 from the last checkpoint, learning rates times 0.01" in caplog.text
    assert run_until(parts, 26) == 26
    assert run_group(run_job, 2, parts) == [40, 40]
    assert_same_bits(final(tmp_path / "whole"), final(tmp_path / "parts"))
    for name in ("whole", "parts"):
        found = load_latest(tmp_path / name / "checkpoints")
        assert found is not None and found.meta["restarts"] == 1
        rows = {row["step"]: row for row in read_history(tmp_path / name) if row["step"]}
        assert [rows[step]["restarts"] for step in (20, 22, 40)] == [0, 1, 1]
        assert rows[22]["learning_rate"] == pytest.approx(10.0)


def test_restarts_end(tmp_path: Path, caplog) -> None:
    data_hash = write_latents(tmp_path / "d").hash
    with pytest.raises(NonFinite):
        run_job(job_in(tmp_path / "run", tmp_path / "d", data_hash, diverging(2, 0.999)))
    assert "Restart 2 of 2" in caplog.text and "Restart 3" not in caplog.text
    assert int(final(tmp_path / "run")["step"]) == 20


def _poison_rank_one(job: TrainJob) -> tuple[str, int, tuple[int, ...]]:
    comm, config = Comm.current(), RunConfig.from_dict(job.config)
    built: list[Objective] = []

    def build(_: RunConfig) -> Objective:
        built.append(make_objective(job, comm))
        return built[0]

    try:
        for row in train(build, config, Path(job.folder), comm, StopRequest(), {"data": job.data_hash}):
            if row.step == 6 and comm.rank == 1:
                built[0].batches.rows.fill_(float("inf"))  # type: ignore[attr-defined]
    except NonFinite as error:
        return str(error), error.step, error.ranks
    raise AssertionError("it went on")


def test_every_worker_names_the_rank_where_it_began(tmp_path: Path) -> None:
    data_hash = write_latents(tmp_path / "d").hash
    said = run_group(_poison_rank_one, 2, job_in(tmp_path / "run", tmp_path / "d", data_hash, small(20)))
    assert said[0] == said[1] and said[0][1:] == (6, (1,))
    assert "not finite (or beyond 32768) at step 6 (it began on rank 1)" in said[0][0]
    assert int(final(tmp_path / "run")["step"]) == 4


def test_settings_out_of_range_are_refused() -> None:
    for settings, key in (({"restarts": -1}, "restarts"), ({"rate_factor": 1.0}, "rate_factor")):
        with pytest.raises(ConfigError, match=rf"divergence\.{key}"):
            DivergenceConfig(**settings)


def steps_of(later: bool, poisoned: int | None) -> tuple[BeamObjective, list[int]]:
    """An objective after at most 14 steps, looking at sums at once or later; the data are infinite from `poisoned` on."""
    config = tiny(search="torch")
    rows = rows_for(config)
    objective = build_beam(config, rows[20:], rows[:20], Comm())
    objective.guard.later = later
    done = []
    try:
        for step in range(14):
            if step == poisoned:
                objective.batches.rows.fill_(float("inf"))
            objective.step(step, measure=step == 5)
            done.append(step)
    except NonFinite as error:
        assert error.step == poisoned and error.ranks == (0,)
    return objective, done


def test_sums_that_are_looked_at_later_are_found_bad_a_step_later() -> None:
    """As on a GPU, where the host would wait for them: before the next step uses them, or the state is asked for."""
    for poisoned in (3, 5, 12):
        assert steps_of(False, poisoned)[1] == list(range(poisoned))
        # step 5 is measured, which waits for everything
        assert steps_of(True, poisoned)[1] == list(range(poisoned + (poisoned != 5)))
    for ask in (BeamObjective.state, lambda objective: objective.evaluate(14)):
        objective, done = steps_of(True, 13)
        assert len(done) == 14
        with pytest.raises(NonFinite, match=r"the gradient of \S+ is not finite .* at step 13 .it began on rank 0."):
            ask(objective)
    found, expected = steps_of(True, None)[0].state(), steps_of(False, None)[0].state()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
