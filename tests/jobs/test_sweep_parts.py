"""The parts of a sweep that need no Ray: folders and lineages, what a trial continues from, the verdict, the definition."""

import dataclasses
import json
import threading
from pathlib import Path

import pytest
import torch
from latents import write_latents

from jobs.recipes import recipe
from jobs.search import first_rung, own_values
from jobs.spaces import space_of
from jobs.sweep import variants_of
from jobs.sweep_progress import keep_known, read_trials
from jobs.sweep_result import best_of, draw_pictures, judge, pareto_front, score_variants, trial_table
from jobs.train_job import TrainJob, describe_folder, train_local
from jobs.trial import (
    CLAIM,
    Segment,
    SweepPlan,
    claim,
    continue_from,
    evaluated_rows,
    folder_of,
    forget_claims,
    is_done,
    seeded,
    train_lineage,
)
from jobs.tune import main, parse_objectives, refuse_another_sweep
from pipeline.config import ConfigError, RunConfig
from pipeline.training.checkpoint import load_latest
from pipeline.training.loop import read_history

SETTINGS = {
    "model.num_visible": 23,
    "model.num_hidden": 11,
    "data.batch_size": 20,
    "sampler.num_chains": 16,
    "sampler.gibbs_steps": 3,
    "critic.search": "torch",
    "schedules.likelihood.updates": 12,
    "schedules.adversarial.updates": 12,
    "evaluation.every_updates": 6,
    "evaluation.num_rows": 40,
    "evaluation.num_components": 5,
    "checkpoint.every_updates": 6,
    "checkpoint.log_every_updates": 3,
}
GAMMA = "schedules.adversarial.gamma"


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    manifest = write_latents(tmp_path / "data")
    config = recipe("faces_toy", SETTINGS).to_dict()
    return SweepPlan(config, str(tmp_path / "data"), manifest.hash, str(tmp_path / "sweep"), workers=1, use_gpu=False)


NOTHING_IN_FLIGHT = [
    text
    for key in (GAMMA, "schedules.adversarial.learning_rate.initial", "schedules.likelihood.learning_rate.initial")
    for text in ("--space", f"{key}=-")
] + ["--space", "sampler.beta_std=-"]


def train_in(plan: SweepPlan, folder: Path, config: RunConfig, until: int | None = None) -> None:
    """Train in this process."""
    job = TrainJob(config.to_dict(), plan.data_dir, plan.data_hash, str(folder), until=until)
    describe_folder(job, 1)
    list(train_local(job))


def train(plan: SweepPlan, settings: dict, until: int | None = None) -> Path:
    """Train a trial's settings; its folder."""
    folder = folder_of(plan, [Segment(settings)])
    train_in(plan, folder, plan.resolve(settings), until)
    return folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    found = load_latest(folder / "checkpoints")
    assert found is not None
    return found.tensors


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_equal_settings_have_one_folder_and_others_another(plan: SweepPlan) -> None:
    own = own_values(RunConfig.from_dict(plan.config), space_of(RunConfig.from_dict(plan.config), []))
    recipes_own = folder_of(plan, [Segment({})])
    assert folder_of(plan, [Segment(own)]) == recipes_own
    assert folder_of(plan, seeded([Segment({})], 0)) == recipes_own
    others = [
        [Segment({GAMMA: 0.2})],
        [Segment({"seed": 1})],
        [Segment({}, 6)],  # a part of a lineage that ends there is no recipe that goes on
        [Segment({}, 6), Segment({GAMMA: 0.2})],
        [Segment({}, 12), Segment({GAMMA: 0.2})],
        [Segment({GAMMA: 0.3}, 6), Segment({GAMMA: 0.2})],
    ]
    folders = {recipes_own, *(folder_of(plan, lineage) for lineage in others)}
    owned = {folder_of(plan, [Segment({})], owner) for owner in ("a", "b")}
    assert len(folders | owned) == 9


def test_a_cut_trial_that_is_trained_on_ends_with_the_bits_of_one_that_was_not(plan: SweepPlan, tmp_path: Path) -> None:
    folder, config = train(plan, {}, until=6), plan.resolve({})
    assert is_done(plan, folder, config, 6) and not is_done(plan, folder, config)
    assert [row["step"] for row in evaluated_rows(folder)] == [0, 6]
    assert train(plan, {}) == folder and is_done(plan, folder, config)
    whole = dataclasses.replace(plan, folder=str(tmp_path / "whole"))
    assert same_bits(state(folder), state(train(whole, {})))
    assert [row["step"] for row in evaluated_rows(folder)] == [0, 6, 12, 18, 24]
    assert [row["step"] for row in evaluated_rows(folder, 12)] == [0, 6, 12]


def test_settings_changed_in_flight_go_on_from_where_they_changed_beside_a_run_that_did_not(plan: SweepPlan) -> None:
    """The recipe in full, and a lineage that begins with it: neither takes the other's checkpoints."""
    recipes = train(plan, {})
    lineage = [Segment({}, until=18), Segment({GAMMA: 0.9})]
    parts = list(train_lineage(plan, lineage, lambda folder, config, until: train_in(plan, folder, config, until)))
    (first, _), (second, whole) = parts
    assert whole == lineage and len({recipes, first, second}) == 3
    found = load_latest(first / "checkpoints")
    assert found is not None and found.step == 18
    rows = read_history(second)
    assert [row["gamma"] for row in rows if row["step"] in (18, 24) and "gamma" in row] == [0.1, 0.9]
    assert not same_bits(state(recipes), state(second))
    same = [row for row in read_history(recipes) if row["step"] < 18 and "updates_per_second" not in row]
    assert same == [row for row in rows if row["step"] < 18 and "updates_per_second" not in row]
    continue_from(second, found, [], plan.resolve({GAMMA: 0.9}))  # what has begun is not begun again
    assert read_history(second) == rows
    again = list(train_lineage(plan, lineage, lambda folder, config, until: train_in(plan, folder, config, until)))
    assert again == parts and read_history(second) == rows


def test_settings_that_come_up_twice_are_trained_by_one_trial_at_a_time(plan: SweepPlan) -> None:
    folder = folder_of(plan, [Segment({})])
    claim(plan, folder, "a")
    claim(plan, folder, "a")
    waiting = threading.Thread(target=claim, args=(plan, folder, "b"), daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive() and (folder / CLAIM).read_text() == "a"
    plan.notes.mkdir(parents=True)
    (plan.notes / "a.ended").write_text("complete")
    waiting.join(10)
    assert not waiting.is_alive() and (folder / CLAIM).read_text() == "b"
    forget_claims(plan)
    claim(plan, folder, "c")


def note(
    plan: SweepPlan, trial: str, started: float, settings: dict, ended: str | None = None, **values: object
) -> None:
    plan.notes.mkdir(parents=True, exist_ok=True)
    folder = folder_of(plan, [Segment(settings)]).name
    lineage = [{"settings": settings, "until": None}]
    record = {"trial": trial, "settings": settings, "started": started, "folder": folder, "lineage": lineage, **values}
    (plan.notes / f"{trial}.json").write_text(json.dumps(record))
    if ended:
        (plan.notes / f"{trial}.ended").write_text(ended)


def test_the_table_tells_finished_stopped_and_failed_trials_apart(plan: SweepPlan) -> None:
    train(plan, {GAMMA: 0.1})
    train(plan, {GAMMA: 0.2}, until=6)
    note(plan, "b", 2.0, {GAMMA: 0.2}, "complete", error="the driver was killed", final=False)
    note(plan, "a", 1.0, {GAMMA: 0.1}, "complete")
    note(plan, "c", 3.0, {GAMMA: 0.3}, "error", error="training has diverged", final=True)
    rows = trial_table(plan, "frechet_latent", {GAMMA: 0.1})
    assert [(row["trial"], row["status"], row["recipe"]) for row in rows] == [
        ("a", "finished", True),
        ("b", "stopped", False),
        ("c", "failed", False),
    ]
    assert [row["updates"] for row in rows] == [24, 6, 0]
    assert rows[1]["reason"] == "" and rows[2]["reason"] == "training has diverged" and rows[2]["score"] is None
    assert rows[0]["score"] == evaluated_rows(folder_of(plan, [Segment({})]))[-1]["frechet_latent"]
    assert [record.trial for record in read_trials(plan)] == ["a", "b", "c"]
    assert [record.diverged for record in read_trials(plan)] == [False, False, True]
    keep_known(plan, {"a", "c"})
    assert [record.trial for record in read_trials(plan)] == ["a", "c"]
    assert {file.name for file in plan.notes.iterdir()} == {"a.json", "a.ended", "c.json", "c.ended"}


def test_the_best_may_be_a_cut_trial_and_is_never_a_failed_one() -> None:
    rows = [{"id": "a", "score": 5.0}, {"id": "b", "score": 4.0}, {"id": "c", "score": None}]
    best = best_of(rows)
    assert best is not None and best["id"] == "b"
    assert best_of([{"id": "c", "score": None}]) is None


def test_the_winner_is_compared_unless_it_is_the_recipe() -> None:
    row = {"score": 1.0, "reason": "", "recipe": False, "lineage": [{"settings": {GAMMA: 0.2}, "until": None}]}
    own = {**row, "score": 2.0, "recipe": True, "lineage": [{"settings": {}, "until": None}]}
    assert set(variants_of([own, row])) == {"recipe", "winner"}
    assert set(variants_of([own, {**row, "score": 3.0}])) == {"recipe"}
    with pytest.raises(RuntimeError, match="no trial came to a score: it diverged"):
        variants_of([{**row, "score": None, "reason": "it diverged"}])


@pytest.mark.parametrize(("winner", "better"), [(7.0, True), (8.5, False), (11.0, False)])
def test_better_means_by_more_than_the_spread_between_training_seeds(winner: float, better: bool) -> None:
    scored = {
        "recipe": {"mean": {"m": 10.0}, "spread": {"m": 1.0}, "runs": [0, 0, 0]},
        "winner": {"mean": {"m": winner}, "spread": {"m": 2.0}, "runs": [0, 0, 0]},
    }
    found = judge(scored, "m")
    assert found["better"] is better and found["difference"] == 10 - winner and found["spread"] == 2.0
    assert not judge({"recipe": scored["recipe"]}, "m")["better"]
    lost = judge(scored, "m", [{"variant": "winner", "seed": 2, "reason": "it diverged"}])
    assert not lost["better"] and "seed 2 it diverged" in lost["verdict"]


def test_mean_and_spread_are_over_training_seeds(plan: SweepPlan, tmp_path: Path) -> None:
    from jobs.evaluate import PointScene
    from pipeline.data.rows import load_rows
    from pipeline.metrics.images import fit_principal_space

    train_rows, test = load_rows(tmp_path / "data", "train"), load_rows(tmp_path / "data", "test")
    scene = PointScene(train_rows, test, fit_principal_space(train_rows, 5))
    for seed in (0, 1):
        train(plan, {"seed": seed})
    variants = {"recipe": [Segment({})], "winner": [Segment({GAMMA: 0.9})]}
    scored = score_variants(plan, variants, {"recipe": [0, 1], "winner": []}, scene)
    assert set(scored) == {"recipe"}
    scored = scored["recipe"]
    values = [run["scores"]["frechet_latent"] for run in scored["runs"]]
    assert values[0] != values[1]
    assert scored["mean"]["frechet_latent"] == pytest.approx(sum(values) / 2)
    assert scored["spread"]["frechet_latent"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_a_value_a_rounding_outside_of_its_range_is_drawn(plan: SweepPlan, tmp_path: Path) -> None:
    """Ray draws the end of a range as exp(log(end)), which may lie beyond it."""
    from jobs.evaluate import PointScene
    from pipeline.data.rows import load_rows
    from pipeline.metrics.images import fit_principal_space

    rows = load_rows(tmp_path / "data", "train")
    space = space_of(RunConfig.from_dict(plan.config), [f"{GAMMA}=loguniform(0.03,0.9)"])
    own = own_values(RunConfig.from_dict(plan.config), space)
    trials = [
        {"id": f"t{n}", "status": "finished", "recipe": n == 0, "settings": {**own, GAMMA: gamma}, "score": 3.0 - n}
        | {"folder": f"trials/{n}", "updates": 6, "lineage": [{"settings": {}, "until": None}]}
        for n, gamma in enumerate((own[GAMMA], 0.9000000000000001))
    ]
    (tmp_path / "sweep" / "trials" / "1").mkdir(parents=True)
    history = [json.dumps({"step": step, "m": 1.0 + step}) for step in (0, 6, 12)]
    (tmp_path / "sweep" / "trials" / "1" / "metrics.jsonl").write_text("\n".join(history))
    scored = {"recipe": {"runs": [{"scores": {"m": 3.0}}]}}
    scene = PointScene(rows, rows, fit_principal_space(rows, 5))
    made = draw_pictures(plan, trials, space, scored, "m", 3, scene, "ring")
    assert list(made) == ["parallel", "slices", "curves", "final"]
    assert all(Path(path).parent == tmp_path / "sweep" / "pictures" and Path(path).exists() for path in made.values())


def test_the_pareto_front_is_what_no_other_trial_beats() -> None:
    points = {"a": (1.0, 0.1), "b": (2.0, 0.5), "c": (2.0, 0.4), "d": (3.0, 0.5)}
    rows = [{"id": k, "score": d, "metrics": {"frechet_latent": d, "recall": r}} for k, (d, r) in points.items()]
    rows.append({"id": "failed", "score": None, "metrics": {}})
    assert pareto_front(rows, {"frechet_latent": "min", "recall": "max"}) == ["a", "b"]


def test_objectives() -> None:
    config = recipe("celeba_beam")
    assert parse_objectives(None, config) == {"frechet_latent": "min"}
    assert parse_objectives("frechet_latent:min, recall:max", config) == {"frechet_latent": "min", "recall": "max"}
    for text, message in [
        ("kl_reverse:min", "noise lowers"),
        ("frechet_latent", "METRIC:min"),
        ("persistent_kl_forward:min", "one of"),
        ("recall:max", "has to be one of them"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_objectives(text, config)


def test_the_first_cut_comes_at_an_evaluation() -> None:
    assert first_rung(4000, 500) == 1000
    assert first_rung(400, 100) == 100
    assert first_rung(2400, 600) == 600
    assert first_rung(100, 60) == 60
    assert first_rung(3, 60) == 3


def test_a_folder_of_another_sweep_is_refused_by_what_differs(plan: SweepPlan, tmp_path: Path) -> None:
    definition = {"config": plan.config, "trials": 4, "space": {"a": "uniform(0,1)"}}
    refuse_another_sweep(tmp_path, definition)
    (tmp_path / "sweep.json").write_text(json.dumps(definition))
    refuse_another_sweep(tmp_path, definition)
    with pytest.raises(ConfigError, match="another sweep: trials differ"):
        refuse_another_sweep(tmp_path, {**definition, "trials": 5})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "celeba_bean"], "unknown recipe"),
        (["--recipe", "celeba_autoencoder"], "not a BEAM"),
        (["--quick", "--trials", "-1"], "at least 1"),
        (["--quick", "--trials", "0"], "at least 1"),
        (["--quick", "--from", "serch"], "the stages are search"),
        (
            ["--quick", "--scheduler", "pbt", "--space", "optimizer.beta1=uniform(0,0.5)", *NOTHING_IN_FLIGHT],
            "none of them",
        ),
        (["--quick", "--set", "schedules.adversarial.gamma=0"], "gamma=- to leave the key out"),
        (["--quick", "--scheduler", "pbt", "--trials", "2"], "at least 4 members"),
        (["--quick", "--interval", "5"], "--scheduler pbt only"),
        (["--quick", "--space", "sampler.betastd=uniform(0,1)"], "sampler.beta_std"),
        (["--quick", "--objectives", "kl_reverse:min"], "noise lowers"),
        (["--quick", "--data", "nowhere"], "nowhere"),
        (["--celeba", "nowhere"], "nowhere"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(arguments, message, tmp_path, capsys) -> None:
    status = main([*arguments, "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--no-tracking"])
    assert status == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "Traceback" not in error


def test_show_prints_the_space(capsys) -> None:
    assert main(["--quick", "--show", "--space", "critic.num_neighbors=choice(1,2)"]) == 0
    out = capsys.readouterr().out
    assert "critic.num_neighbors = choice(1, 2, 5)" in out and "sampler.beta_std = uniform(0.3,0.97)" in out
