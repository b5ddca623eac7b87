"""The paper's experiments: units are done once, a failure costs itself alone, and claims follow the figures, either way."""

import copy
import json
import multiprocessing
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.paper.__main__ import EXPERIMENTS, main
from jobs.paper.bars import Bar, compare
from jobs.paper.claims import CLAIMS, judge
from jobs.paper.experiments import Experiment, Finding, Plan, Table, read_record, run_experiment
from jobs.paper.mixtures import MODELS
from jobs.paper.page import write_markdown, write_page
from jobs.paper.training import read_measured, train_in
from jobs.paper.units import Unit, UnitFailed, read_result, run_units, start_pool
from jobs.recipes import RECIPES, recipe
from pipeline.training.checkpoint import load_latest


def count_up(folder: Path, cache: Path, value: int) -> dict[str, Any]:
    """A unit that says how often it ran."""
    note = folder / "times"
    times = int(note.read_text()) + 1 if note.exists() else 1
    note.write_text(str(times))
    if value < 0:
        raise ValueError(f"value = {value}: at least 0")
    return {"value": value, "times": times}


def finish(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
    rows = [[name, str(found["value"])] for name, found in figures.items()]
    return Finding([Table("values", ("unit", "value"), rows)], {"sum": sum(f["value"] for f in figures.values())})


@pytest.fixture(scope="module")
def pool():
    with start_pool(2) as found:
        yield found


def test_units_are_done_once_and_a_failure_costs_itself_alone(pool, tmp_path: Path) -> None:
    units = [Unit(f"u-{i}", count_up, {"value": value}) for i, value in enumerate((3, -1, 4))]
    for _ in range(2):
        with pytest.raises(UnitFailed, match=r"u-1: ValueError: value = -1"):
            run_units(units, tmp_path, tmp_path, pool, "test")
    done = [read_result(tmp_path, unit) for unit in units]
    assert done[1] is None and (tmp_path / "u-1" / "times").read_text() == "2", "tried again"
    assert [done[i]["figures"] for i in (0, 2)] == [{"value": 3, "times": 1}, {"value": 4, "times": 1}]
    changed = Unit("u-0", count_up, {"value": 5})
    assert read_result(tmp_path, changed) is None, "other settings are another unit"
    (tmp_path / "u-0" / "result.json").write_text('{"cut')
    assert read_result(tmp_path, units[0]) is None


def test_a_record_is_made_once_and_again_when_a_unit_changes(pool, tmp_path: Path) -> None:
    def experiment(value: int) -> Experiment:
        waves = [[Unit("a", count_up, {"value": 1})], [Unit("b", count_up, {"value": value})]]
        return Experiment("toy", "Fig. 0", "A toy", lambda plan: waves, finish)

    def run(value: int) -> bool:
        return run_experiment(experiment(value), Plan(), tmp_path / "runs", tmp_path, tmp_path, pool)

    assert run(2) and not run(2)
    record = read_record(tmp_path / "toy.json")
    assert record["numbers"] == {"sum": 3} and record["units"]["a"] == {"value": 1, "times": 1}
    assert record["command"] == "make paper ONLY=toy" and record["environment"]["version.torch"]
    assert run(5)
    record = read_record(tmp_path / "toy.json")
    assert record["numbers"] == {"sum": 6} and record["units"]["a"]["times"] == 1
    assert record["units"]["b"]["times"] == 1, "nothing is left of the unit with other settings"
    nothing = Experiment("none", "", "", lambda plan: [], finish, missing="give it data")
    assert not run_experiment(nothing, Plan(), tmp_path, tmp_path, tmp_path, pool)


def test_training_in_a_unit_goes_on_and_is_looked_at_once_per_checkpoint(tmp_path: Path) -> None:
    from data_prep.mixtures import draw_mixture

    draw_mixture("bimodal", tmp_path / "data", 1000)
    config = recipe(
        "mixture_toy", {"evaluation.num_rows": "50", "evaluation.minibatch_rows": "50", "epochs_scale": "0.5"}
    )
    looked: list[int] = []

    def measure(found: Any) -> dict[str, Any]:
        looked.append(found.step)
        return {"chains": len(found.tensors["chains.visible"])}

    whole = train_in(tmp_path / "whole", config, tmp_path / "data", measure_every=6, measure=measure)
    assert looked == [5, 6, 12, 18, 20] and whole.step == 20  # 5: the switch
    train_in(tmp_path / "cut", config, tmp_path / "data", until=12, measure_every=6, measure=measure)
    (tmp_path / "cut" / "measured.jsonl").write_text("")  # killed between a checkpoint and its look
    looked.clear()
    cut = train_in(tmp_path / "cut", config, tmp_path / "data", measure_every=6, measure=measure)
    assert looked == [12, 18, 20] and [row["step"] for row in read_measured(tmp_path / "cut")] == looked
    assert all(whole.tensors[name].equal(cut.tensors[name]) for name in whole.tensors)
    fork = train_in(
        tmp_path / "fork", config.override({"critic.sign": -1}), tmp_path / "data", fork=tmp_path / "whole" / "switch"
    )
    assert fork.step == 20 and not fork.tensors["model.weights"].equal(whole.tensors["model.weights"])
    switch = load_latest(tmp_path / "whole" / "switch")
    assert switch is not None and switch.step == 5


# --- claims -------------------------------------------------------------------------------------------------------------

PROTOCOLS = ("fresh noisy", "driven noisy", "persistent noisy", "fresh mean", "driven mean", "persistent mean")


def measured(values: dict[int, tuple[float, float]], classes: float = 9.0) -> dict[str, Any]:
    """A digits unit in which every protocol has the same (forward, reverse) at each step."""
    row = {"precision": 0.9, "recall": 0.4, "classes": classes, "confidence": 0.9, "floored": 0}
    rows = [
        {"step": step, **{p: {"forward": f, "reverse": r, **row} for p in (*PROTOCOLS, "generator mean")}}
        for step, (f, r) in values.items()
    ]
    return {"measured": rows, "updates_per_second": 100.0}


def digits(
    beam: tuple[float, float], control: tuple[float, float], late: float = 0.36, gan: tuple[float, float] = (0.1, 0.2)
) -> dict[str, Any]:
    """A record in which the likelihood phase takes the reverse KL from .07 to `late`, and the second phases end so."""
    units: dict[str, Any] = {}
    for reading in ("literal", "recommended"):
        for seed in (0, 1):
            units[f"{reading}-base-{seed}"] = measured({50: (0.4, 0.07), 250: (0.18, late)})
            units[f"{reading}-beam-{seed}"] = measured({300: beam, 350: beam, 400: beam})
            units[f"{reading}-control-{seed}"] = measured({300: control, 350: control, 400: control})
            units[f"{reading}-plain-{seed}"] = measured({400: (0.3, 0.3)})
            units[f"{reading}-flipped-{seed}"] = measured({300: (0.5, 5 * beam[1])}, classes=2)
    units |= {"GAN-0": measured({400: gan}), "WGAN-0": measured({400: (0.3, 0.5)})}
    return {"units": units, "numbers": {"epoch": 10, "switch": 250}, "command": "c", "seconds": 1, "machine": "m"}


def other(units: dict[str, Any], **numbers: Any) -> dict[str, Any]:
    """A record of these units."""
    return {"units": units, "numbers": numbers, "command": "c", "seconds": 1, "machine": "m"}


def mixture(**precision: list[float]) -> dict[str, Any]:
    """A record of a mixture in which every model has all modes, and these precisions over seeds, else .98."""
    units = {}
    for model in ("literal-GAN", "literal-WGAN", *(f"{k}-{m}" for k in ("literal", "recommended") for m in MODELS)):
        name = model.replace(" ", "_")
        for seed, value in enumerate(precision.get(name.replace("-", "_"), [0.98] * 3)):
            row = {"modes": 25, "precision": value, "forward": 0.1, "reverse": 0.05}
            units[f"{name}-{seed}"] = {p: row for p in ("fresh", "driven", "hot", "generator")}
    return other(units)


def verdict(number: int, **records: dict[str, Any]) -> str:
    return next(v for v in judge(records) if v.number == number).verdict


def test_the_verdict_on_a_rising_reverse_divergence_follows_the_figures() -> None:
    rises = digits((0.1, 0.1), (0.1, 0.3))
    assert verdict(1, digits_continuous=rises) == "holds"
    flat = digits((0.1, 0.1), (0.1, 0.3), late=0.06)
    assert verdict(1, digits_continuous=flat) == "does not hold"
    mixed = copy.deepcopy(rises)
    for seed in (0, 1):
        mixed["units"][f"recommended-base-{seed}"] = flat["units"]["recommended-base-0"]
    assert verdict(1, digits_continuous=mixed) == "holds where sigma shrinks"


@pytest.mark.parametrize(
    ("beam", "control", "expected", "counts"),
    [
        ((0.17, 0.1), (0.17, 0.3), "holds", (4, 4, 0)),
        ((0.17, 0.4), (0.17, 0.4), "does not hold", (0, 0, 0)),
        ((0.5, 0.1), (0.17, 0.3), "holds in part", (0, 4, 4)),  # the forward KL paid for it
        ((0.17, 0.297), (0.17, 0.3), "holds in part", (4, 0, 0)),  # hardly better than its control
        ((0.17, -0.2), (0.17, -0.1), "does not hold", (0, 0, 0)),  # below zero: noise, not quality
    ],
)
def test_the_verdict_on_the_beam_needs_both_divergences_and_the_control(beam, control, expected, counts) -> None:
    found = verdict(2, digits_continuous=digits(beam, control))
    assert found.startswith(f"{expected}: ")
    fell, lower, higher = counts
    assert f"fall after the switch in {fell} of 4" in found
    assert found.endswith(f"lower in {lower}, and the forward KL higher in {higher}")


MIXTURES = ("mixture_bimodal", "mixture_ring", "mixture_grid")


def test_the_verdict_on_gans_and_all_three_mixtures() -> None:
    def claim(gan: tuple[float, float], better: float = 0.2, **precision: list[float]) -> str:
        runs = {f"{m}-GAN-0": {"generator": {"modes": 25, "precision": better}} for m in ("bimodal", "ring", "grid")}
        mnist = digits((0.1, 0.15), (0.1, 0.3), gan=gan)
        records = {
            **{m: mixture(**precision) for m in MIXTURES},
            "mixture_gans": other(runs),
            "digits_continuous": mnist,
        }
        return verdict(3, **records)

    bad = {"literal_GAN": [0.2], "literal_WGAN": [0.2], "literal_RBM": [0.2], "literal_driven_RBM": [0.2]}
    bad |= {"recommended_RBM": [0.2], "recommended_driven_RBM": [0.2]}
    assert claim((0.1, 0.2)).endswith("only one on all three mixtures: does not hold")
    assert claim((0.1, 0.2), **bad) == (
        "comparable on MNIST, within .1 nats per dimension both ways: holds; only one on all three mixtures: holds"
    )
    assert claim((0.1, 0.2), 0.95, **bad).endswith("only one on all three mixtures: does not hold")
    assert "both ways: does not hold" in claim((0.1, 0.01))
    assert "both ways: does not hold" in claim((0.0, 0.2))


def test_the_verdict_on_stability_needs_every_kind_of_run_to_be_steady() -> None:
    records = {m: mixture() for m in MIXTURES}
    mnist = digits((0.1, 0.15), (0.1, 0.3))
    assert verdict(4, **records, digits_continuous=mnist) == "holds"
    records["mixture_ring"] = mixture(recommended_BEAM=[0.98, 0.6, 0.97])
    assert verdict(4, **records, digits_continuous=mnist) == "holds in part: 7 of 8 kinds of run are steady"
    mnist["units"]["literal-beam-1"] = measured({400: (0.1, 0.5)})
    assert verdict(4, **records, digits_continuous=mnist) == "holds in part: 6 of 8 kinds of run are steady"


@pytest.mark.parametrize(
    ("hidden", "visible", "expected"),
    [
        ((0.1, 0.1), (0.1, 0.2), "holds"),
        ((0.1, 0.2), (0.1, 0.2), "does not hold"),
        ((0.3, 0.1), (0.1, 0.2), "does not hold"),  # a lower reverse KL paid for by the forward: noise
    ],
)
def test_the_verdict_on_the_hidden_critic_looks_at_both_divergences(hidden, visible, expected) -> None:
    critics = {
        "hidden_neighbors": hidden,
        "visible_neighbors": visible,
        "hidden_forest": hidden,
        "hidden_network": hidden,
    }
    units = {
        f"literal-{name}-{seed}": measured({300: v, 350: v, 400: v}) for name, v in critics.items() for seed in (0, 1)
    }
    assert verdict(5, digits_critics=other(units, epoch=10, switch=250)) == expected


def test_the_verdict_on_cost_counts_plain_pcd_too() -> None:
    record = digits((0.1, 0.1), (0.1, 0.3))
    assert verdict(6, digits_continuous=record) == "holds"
    record["units"]["literal-plain-0"]["updates_per_second"] = 200.0
    assert verdict(6, digits_continuous=record) == "does not hold"
    for seed in (0, 1):
        record["units"][f"literal-beam-{seed}"]["updates_per_second"] = None
    assert verdict(6, digits_continuous=record) == "not tested"


def test_the_verdict_on_the_sampler_says_each_part() -> None:
    geometry = {"driven_switches": 20.0, "gibbs_switches": 5.0, "driven_tail": 0.01, "true_tail": 0.003}
    geometry |= {"driven_variance": 4.3, "true_variance": 4.2, "cooled_variance": 4.2}
    assert verdict(7, sampling=other({}, even=geometry)) == (
        "mixes faster: holds; fatter tails: holds; averages within 10 %: holds; "
        "no reweighting or sweep at beta = 1 needed: does not hold"
    )
    wrong = {**geometry, "driven_variance": 6.9, "driven_switches": 4.0}
    assert "mixes faster: does not hold" in (found := verdict(7, sampling=other({}, even=geometry, uneven=wrong)))
    assert "within 10 %: does not hold" in found


def faces(**changes: dict[str, float]) -> dict[str, Any]:
    """A record of faces; `changes` are on the scores of all models, by model."""
    latent = {"frechet_latent": 50.0, "recall": 0.4, "variance_ratio": 0.7, "kl_reverse": 0.1}
    units = {}
    for name in ("centered_BEAM", "BEAM_not_centered", "centered_gamma_.5", "two_layers_tied"):
        own = changes.get(name, {})
        for seed in (0, 1):
            scores = {k: v + own.get(k, 0) for k, v in latent.items()}
            pixels = {"mmd": 0.1, "sharpness": 0.8 + own.get("sharpness", 0)}
            units[f"{name}-{seed}"] = {"latent": scores, **({} if name.startswith("two") else {"pixels": pixels})}
    return other(units)


def test_the_verdicts_on_faces_follow_their_scores() -> None:
    worse = {"frechet_latent": 20.0, "recall": -0.1, "variance_ratio": -0.2, "sharpness": -0.2}
    assert verdict(8, faces=faces(BEAM_not_centered=worse)) == "centering: holds; two layers: does not hold"
    assert verdict(8, faces=faces(two_layers_tied={"recall": 0.1})) == "centering: does not hold; two layers: holds"
    mixed = faces(two_layers_tied={"recall": -0.1, "frechet_latent": -5.0})
    found = verdict(8, faces=mixed)
    assert found == "centering: does not hold; two layers: holds in part (better: frechet_latent; worse: recall)"
    consistent = "less consistent (a larger Frechet distance)"
    assert verdict(9, faces=faces()) == f"sharper: does not hold; {consistent}: does not hold"
    larger = {"sharpness": 0.1, "frechet_latent": 20.0}
    assert verdict(9, faces=faces(**{"centered_gamma_.5": larger})) == f"sharper: holds; {consistent}: holds"


def test_the_verdict_on_kinds_of_data_needs_a_gain_that_the_forward_divergence_does_not_pay_for() -> None:
    good, same, paid = (digits(beam, (0.17, 0.2)) for beam in ((0.17, 0.1), (0.17, 0.2), (0.4, 0.1)))
    holds, fails = "holds", "does not hold"
    good["units"]["classifier"] = {"accuracy": 0.9}
    for binary, word in ((good, holds), (same, fails), (paid, fails)):
        found = verdict(10, digits_continuous=good, digits_binary=binary)
        assert found.endswith(f"on binary data: {word}") and "on continuous data: holds; the adversary" in found


def test_bars_of_mnist_read_the_figures() -> None:
    def met(record: dict[str, Any]) -> dict[str, bool]:
        return {bar.what: bar.met for bar in compare({"digits_continuous": record})}

    good = met(digits((0.17, 0.1), (0.17, 0.3)))
    wrong = [what for what, reached in good.items() if not reached]
    # the base of this record is the same for both readings, and rises
    assert wrong == [f"MNIST, recommended likelihood phase, {p}" for p in PROTOCOLS[:3]]
    flat = met(digits((0.17, 0.29), (0.17, 0.3), late=0.06))
    assert not flat["MNIST, literal likelihood phase, fresh noisy"]
    assert flat["MNIST, recommended likelihood phase, fresh noisy"]
    assert not flat["MNIST, literal BEAM against the same-rate control, driven noisy"]


def test_a_claim_without_its_experiment_is_not_tested_and_says_what_it_needs() -> None:
    verdicts = judge({})
    assert [v.number for v in verdicts] == list(range(1, 11)) == [claim.number for claim in CLAIMS]
    assert all(v.verdict == "not tested" and "needs" in v.evidence[0] for v in verdicts)
    names = {experiment.name for experiment in EXPERIMENTS}
    assert {name for claim in CLAIMS for name in claim.needs} <= names


def test_the_page_and_the_text_show_verdicts_tables_and_missing_pictures(tmp_path: Path) -> None:
    record = {
        **digits((0.17, 0.1), (0.17, 0.3)), "title": "Digits <b>", "figure": "Fig. 5", "pictures": ["curves.png: curves"],
        "tables": [{"title": "scores", "head": ["model", "F"], "rows": [["a|b", "1"]]}], "notes": ["how"],
    }  # fmt: skip
    records = {"digits_continuous": record}
    bars = [Bar("a bar", "above 1", "2", True), Bar("another", "above 1", "0", False)]
    page = write_page(tmp_path / "index.html", records, judge(records), bars, {"digits_continuous": [tmp_path]}, True)
    text = page.read_text()
    assert "Digits &lt;b&gt;" in text and "toy sizes" in text and "curves.png is not here" in text
    assert "holds" in text and str(tmp_path) not in text
    markdown = write_markdown(tmp_path / "paper.md", records, judge(records), bars).read_text()
    assert "| another | above 1 | 0 | NO |" in markdown and "| a\\|b | 1 |" in markdown and "**holds**" in markdown


def test_every_experiment_names_recipes_that_exist_and_units_that_differ(tmp_path: Path) -> None:
    from data_prep.mnist import write_digits

    folder = tmp_path / "digits"
    write_digits(folder)
    for quick in (True, False):
        plan = Plan(quick, folder, folder, (folder, folder), {"pixels": str(folder), "latents": str(folder)})
        for experiment in EXPERIMENTS:
            units = [unit for wave in experiment.waves(plan) for unit in wave]
            assert units, experiment.name
            assert len({unit.name for unit in units}) == len(units), experiment.name
            for unit in units:
                name = unit.settings.get("recipe_name")
                assert name is None or name in RECIPES
                if name is not None:
                    recipe(name).override(unit.settings["settings"])
                json.dumps(unit.settings)
                assert unit.fingerprint not in unit.parents


def test_a_units_fingerprint_is_of_the_data_not_of_their_place_and_of_what_came_before(tmp_path: Path) -> None:
    from data_prep.mnist import write_digits

    places = [tmp_path / "here", tmp_path / "there", tmp_path / "binary"]
    for place, binary in zip(places, (False, False, True)):
        write_digits(place, binary)

    def prints(place: Path) -> dict[str, str]:
        plan = Plan(True, place, place, (place, place), None)
        experiments = [e for e in EXPERIMENTS if e.name == "digits_continuous"]
        return {u.name: u.fingerprint for e in experiments for wave in e.waves(plan) for u in wave}

    here, there, binary = (prints(place) for place in places)
    assert here == there and not set(here.values()) & set(binary.values())
    unit = Unit("a", wait_for_it, {"seconds": 1.0})
    assert unit._replace(parents=("x",)).fingerprint != unit.fingerprint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "mixture_rink"], "no experiment 'mixture_rink'; there are divergences"),
        (["--redo", "nothing"], "no experiment 'nothing'"),
        (["--processes", "0"], "at least 1"),
        (["--only", "divergences", "--mnist", "nowhere"], "nowhere"),
    ],
)
def test_a_users_error_is_one_line(arguments, words, tmp_path, capsys) -> None:
    assert main([*arguments, "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") <= 6


def test_the_command_runs_an_experiment_and_then_finds_it_done(tmp_path, capsys) -> None:
    arguments = ["--quick", "--only", "divergences", "--processes", "1"]
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    assert main([*arguments, *places]) == 0
    first = capsys.readouterr().out
    assert "divergences: done" in first and "not tested" in first
    assert main([*arguments, *places]) == 0
    assert "divergences: there already" in capsys.readouterr().out
    page = (tmp_path / "runs" / "paper-quick" / "index.html").read_text()
    assert "data:image/png;base64" in page and "Quick form" in page
    record = json.loads((tmp_path / "runs" / "paper-quick" / "results" / "divergences.json").read_text())
    assert record["numbers"]["holds"] and record["quick"]


def ring(**precision: list[float]) -> dict[str, Any]:
    """A record of the ring in which every model has 8 modes and these precisions over seeds."""
    units = {}
    for model in ("recommended-driven_RBM", "recommended-BEAM", "literal-RBM", "literal-driven_RBM"):
        for seed, value in enumerate(precision.get(model.replace("-", "_"), [0.98, 0.98, 0.98])):
            row = {"modes": 8, "precision": value, "forward": 0.1, "reverse": 0.05}
            units[f"{model}-{seed}"] = {"fresh": row, "hot": row}
    return {"units": units}


def test_bars_take_the_median_the_worst_seed_or_every_seed_as_they_say() -> None:
    def met(**precision: list[float]) -> list[bool]:
        return [bar.met for bar in compare({"mixture_ring": ring(literal_RBM=[0.2], **precision)})]

    assert met() == [True, True, True, True]
    assert met(recommended_driven_RBM=[0.98, 0.5, 0.97]) == [True, False, True, True]
    assert met(recommended_BEAM=[0.98, 0.5, 0.97]) == [True, True, False, True]
    assert met(literal_driven_RBM=[0.5, 0.6, 0.98]) == [True, True, True, False]


def draw_nothing(folder: Path, cache: Path) -> dict[str, Any]:
    """A unit that leaves a picture."""
    (folder / "drawn.png").write_bytes(b"picture")
    return {}


@pytest.mark.parametrize("photographs", [False, True])
def test_pictures_are_kept_beside_the_record_but_those_of_photographs(photographs: bool, tmp_path: Path) -> None:
    def finish(figures: dict[str, Any], folder: Path, plan: Plan) -> Finding:
        return Finding([], {}, ["a/drawn.png: faces or not"], [])

    units = [[Unit("a", draw_nothing, {})]]
    experiment = Experiment("e", "", "", lambda plan: units, finish, photographs=photographs)
    (tmp_path / "results").mkdir()
    with start_pool(1) as pool:
        assert run_experiment(experiment, Plan(), tmp_path / "runs", tmp_path / "results", tmp_path, pool)
    assert (tmp_path / "results" / "e" / "a" / "drawn.png").exists() != photographs
    assert all(e.photographs == (e.name == "faces") for e in EXPERIMENTS)


def wait_for_it(folder: Path, cache: Path, seconds: float) -> dict[str, Any]:
    """A unit that says that it began, and sleeps."""
    (folder / "began").touch()
    time.sleep(seconds)
    return {}


def test_an_interrupt_ends_what_runs_and_begins_nothing_more(tmp_path: Path) -> None:
    units = [Unit(f"w-{i}", wait_for_it, {"seconds": 60.0 + i}) for i in range(6)]
    interrupted: list[float] = []

    def interrupt() -> None:
        while not (tmp_path / "w-0" / "began").exists():
            time.sleep(0.05)
        time.sleep(0.3)
        interrupted.append(time.monotonic())  # a busy machine needs its time to begin
        signal.pthread_kill(main_thread, signal.SIGINT)

    main_thread = threading.main_thread().ident
    assert main_thread is not None
    thread = threading.Thread(target=interrupt)
    thread.start()
    # a shell's background job begins with it ignored
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), start_pool(1) as pool:
            run_units(units, tmp_path, tmp_path, pool, "test")
    finally:
        signal.signal(signal.SIGINT, previous)
    thread.join()
    assert time.monotonic() - interrupted[0] < 50, "it waited for a unit that had not begun"
    assert [unit.name for unit in units if (tmp_path / unit.name / "began").exists()] == ["w-0"]
    assert not any((tmp_path / unit.name / "result.json").exists() for unit in units)


def test_a_stop_that_came_before_a_training_had_its_handlers_is_not_lost(tmp_path: Path, monkeypatch) -> None:
    from data_prep.mnist import write_digits
    from jobs.paper import units

    folder = tmp_path / "digits"
    write_digits(folder)
    event = multiprocessing.get_context("spawn").Event()
    monkeypatch.setattr(units, "_stopping", event)
    event.set()
    config = recipe("digits_beam").override({"epochs_scale": 0.1, "checkpoint.log_every_updates": 2})
    with pytest.raises(units.Stopped):
        train_in(tmp_path / "run", config, folder)
    event.clear()
    assert train_in(tmp_path / "run", config, folder, until=10).step == 10
