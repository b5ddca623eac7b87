"""The loop and its checkpoints: a run that is stopped, killed or damaged anywhere ends with the bits it would have had."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from test_beam_invariance import rows_for, tiny
from torch import Tensor

from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import CheckpointConfig, EvaluationConfig, RunConfig
from pipeline.training.beam import BeamObjective
from pipeline.training.checkpoint import CheckpointError, load_checkpoint, load_latest, save_checkpoint
from pipeline.training.loop import Progress, StopRequest, read_history, train
from pipeline.training.objective import NonFinite

CONFIG = dataclasses.replace(
    tiny(search="torch"),
    checkpoint=CheckpointConfig(every_updates=4, log_every_updates=2),
    evaluation=EvaluationConfig(every_updates=10, num_rows=19, num_components=5),
)
META = {"data": "hash of the data"}


def objective(config: RunConfig = CONFIG) -> BeamObjective:
    rows = rows_for(config)
    return build_beam(config, rows[20:], rows[:20], Comm())


def run(folder: Path, stop: StopRequest | None = None, until: int | None = None) -> list[Progress]:
    """Train in `folder`; with `until`, abandon the generator (as a kill would) at the first row at or past that step."""
    rows = []
    for row in train(objective, CONFIG, folder, Comm(), stop or StopRequest(), META):
        rows.append(row)
        if until is not None and row.step >= until:
            break
    return rows


def final_state(folder: Path) -> dict[str, Tensor]:
    found = load_latest(folder / "checkpoints")
    assert found is not None and found.step == 20
    return found.tensors


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    return folder


def without_rates(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "updates_per_second"} for row in read_history(folder)]


@pytest.mark.parametrize("killed_at", [2, 5, 8, 10, 13, 19])
def test_a_killed_run_ends_with_the_same_bits_and_the_same_history(undisturbed, tmp_path, killed_at):
    run(tmp_path, until=killed_at)
    run(tmp_path)
    assert_same_bits(final_state(tmp_path), final_state(undisturbed))
    assert without_rates(tmp_path) == without_rates(undisturbed)


def test_a_requested_stop_writes_a_checkpoint_and_goes_on_later(undisturbed, tmp_path):
    stop = StopRequest()
    stop.requested = True
    rows = run(tmp_path, stop)
    assert rows[-1].stopped and rows[-1].step == 1 and rows[-1].checkpoint is not None
    assert load_checkpoint(rows[-1].checkpoint).meta["stopped"] is True
    run(tmp_path)
    assert_same_bits(final_state(tmp_path), final_state(undisturbed))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopRequest().on_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_a_finished_run_does_nothing_more(undisturbed):
    before = final_state(undisturbed)
    assert run(undisturbed) == []
    assert_same_bits(final_state(undisturbed), before)


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "meta"])
def test_a_damaged_checkpoint_is_passed_over_loudly(undisturbed, tmp_path, caplog, damage):
    run(tmp_path, until=13)
    newest = sorted((tmp_path / "checkpoints").glob("step_*"))[-1]
    tensors = newest / "state.safetensors"
    content = bytearray(tensors.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        tensors.write_bytes(content)
    elif damage == "truncate":
        tensors.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        tensors.unlink()
    else:
        (newest / "meta.json").write_text("{")
    with pytest.raises(CheckpointError, match=newest.name):
        load_checkpoint(newest)
    run(tmp_path)
    assert "going back to the checkpoint before it" in caplog.text and newest.name in caplog.text
    assert_same_bits(final_state(tmp_path), final_state(undisturbed))


def test_a_kill_while_writing_leaves_the_old_checkpoint_and_the_rest_is_cleaned(tmp_path):
    save_checkpoint(tmp_path, 3, {"x": torch.arange(5)}, {}, keep=2)
    half = tmp_path / ".writing-12345"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    found = load_latest(tmp_path)
    assert found is not None and found.step == 3
    save_checkpoint(tmp_path, 4, {"x": torch.arange(5)}, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, step, {"x": torch.zeros(2)}, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000010"]


def test_another_format_version_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"x": torch.zeros(2)}, {}, keep=2)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "format_version": 99}))
    with pytest.raises(CheckpointError, match="99"):
        load_checkpoint(path)


def test_a_checkpoint_holds_no_pickle(undisturbed):
    newest = sorted((undisturbed / "checkpoints").glob("step_*"))[-1]
    assert sorted(p.name for p in newest.iterdir()) == ["meta.json", "state.safetensors"]


def test_other_settings_or_other_data_are_refused_by_name(undisturbed):
    other = dataclasses.replace(CONFIG, seed=7)
    with pytest.raises(ValueError, match="seed is 0 there and 7 here"):
        next(train(lambda _: objective(other), other, undisturbed, Comm(), StopRequest(), META))
    with pytest.raises(ValueError, match="other data"):
        next(train(objective, CONFIG, undisturbed, Comm(), StopRequest(), {"data": "another hash"}))


def test_a_run_that_diverges_stops_by_name_and_leaves_the_last_checkpoint(tmp_path):
    built: list[BeamObjective] = []

    def poisoned(_: RunConfig) -> BeamObjective:
        built.append(objective())
        return built[0]

    steps = train(poisoned, CONFIG, tmp_path, Comm(), StopRequest(), META)
    for row in steps:
        if row.step == 6:
            break
    built[0].batches.rows[:, 3] = float("nan")
    before = {name: value.clone() for name, value in built[0].rbm.state_dict().items()}
    with pytest.raises(NonFinite, match="weights is not finite"):
        for _ in steps:
            pass
    assert_same_bits(dict(built[0].rbm.state_dict()), before)
    found = load_latest(tmp_path / "checkpoints")
    assert found is not None and found.step == 4
    assert all(bool(torch.isfinite(v).all()) for v in found.tensors.values() if v.is_floating_point())


def test_the_state_at_the_switch_is_kept(undisturbed):
    found = load_latest(undisturbed / "switch")
    assert found is not None and found.step == 10 and "memory.features" not in found.tensors


def test_a_cut_last_line_of_the_history_is_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [row["step"] for row in read_history(tmp_path)] == [1, 2]
