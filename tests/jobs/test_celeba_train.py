"""The main job's command line and its stages. The whole chain runs in .ci/run (`make celeba-train QUICK=1`, twice)."""

import pytest

from jobs.celeba_train import main
from pipeline.runs.stages import Stages

NAMES = ("first", "second", "third")


def run_all(folder, redo_from=None, inputs=1, there=True) -> list[bool]:
    """Run three stages; which of them were skipped."""
    stages = Stages(folder, NAMES, redo_from)
    for name in NAMES:
        value = inputs if name == "second" else 0
        out = stages.run(name, {"value": value}, lambda name=name: {"made": name}, lambda _: there)
        assert out == {"made": name}
    return [report.skipped for report in stages.reports]


def test_stages_run_once(tmp_path):
    assert run_all(tmp_path) == [False, False, False]
    assert run_all(tmp_path) == [True, True, True]


def test_a_stage_runs_again_when_its_inputs_change_or_its_result_is_gone(tmp_path):
    run_all(tmp_path)
    assert run_all(tmp_path, inputs=2) == [True, False, True]
    assert run_all(tmp_path, inputs=2, there=False) == [False, False, False]


def test_from_redoes_a_stage_and_all_after_it(tmp_path):
    run_all(tmp_path)
    assert run_all(tmp_path, redo_from="second") == [True, False, False]
    with pytest.raises(ValueError, match="first, second, third"):
        Stages(tmp_path, NAMES, "fourth")


def test_a_killed_stage_leaves_no_record_and_a_damaged_record_is_none(tmp_path):
    stages = Stages(tmp_path, NAMES, None)

    def killed() -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.run("first", {"value": 0}, killed)
    assert run_all(tmp_path) == [False, False, False]
    (tmp_path / "stages" / "second.json").write_text('{"fingerprint": ')
    assert run_all(tmp_path) == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--celeba", "nowhere"], "nowhere"),
        (["--recipe", "celeba_bean"], "unknown recipe"),
        (["--recipe", "celeba_autoencoder"], "not a BEAM"),
        (["--from", "beams"], "--from 'beams': the stages are data, pixels"),
        (["--workers", "0"], "at least 1"),
        (["--set", "sampler.gibbs_step=3"], "sampler.gibbs_steps"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(arguments, message, capsys, tmp_path):
    where = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--local"]
    assert main([*arguments, *where]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
