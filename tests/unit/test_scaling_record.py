"""From turns to the page: a machine that is the model comes out with its own rates, no error, and every table filled."""

import json
from pathlib import Path

import pytest

from benchmarks import scaling, scaling_page
from benchmarks.cost_model import Machine, Rates, bytes_per_update, update_seconds
from benchmarks.links import Link, gather_seconds, sum_seconds
from benchmarks.rates import GATHER_SIZES, SUM_SIZES, kernels
from benchmarks.scaling_cases import Case, Turn, build_cases

RATES = Rates(
    flops=5e10,
    outer_flops=4e10,
    call=2e-5,
    visible_draws=1e8,
    hidden_draws=2e8,
    beta_draws=5e6,
    bytes=1e10,
    selected=3e8,
)
LINKS = {"sum": Link(1e-4, 1e9), "gather": Link(2e-4, 5e8)}
MACHINE = Machine(RATES, LINKS["sum"], LINKS["gather"], cores=2, overlap=0.0)


def ideal_kernels() -> dict[str, float]:
    """Seconds per call of each kernel at RATES."""
    found = {}
    for name, (_, work) in kernels(*scaling.SIZES).items():
        product = name.startswith("product")
        found[name] = 2 * RATES.call + work / RATES.flops if product else work / getattr(RATES, name)
    return found


def ideal_collectives() -> scaling.Collectives:
    """Seconds of each collective over LINKS; four workers take turns on two cores."""
    return {
        n: {
            "sum": {size: n / 2 * sum_seconds(size, n, LINKS["sum"]) for size in SUM_SIZES},
            "gather": {size: n / 2 * gather_seconds(size, n, LINKS["gather"]) for size in GATHER_SIZES},
        }
        for n in (2, 4)
    }


def ideal_turns(case: Case, stretch: float) -> list[list[Turn]]:
    """Two rounds, one of which takes `stretch` times as long as the model says."""
    job, n = case.job(), case.workers
    parts = update_seconds(job, n, MACHINE)
    waits = dict.fromkeys(("sum", "scores", "gather_start", "gather_wait"), 0.0)
    waits |= {"sum": parts.sum, "scores": parts.scores, "gather_start": parts.gather / (4 if case.overlap else 1)}
    traffic = {kind: float(size) for kind, size in bytes_per_update(job, n).items()}
    cpu = parts.own / max(1.0, n / 2)
    return [[Turn(s * sum(parts), cpu, waits, traffic, True)] * n for s in (1.0, stretch)]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setattr(scaling, "usable_cores", lambda: 2)
    turns = {case: ideal_turns(case, 1.0) for case in build_cases()}
    found = scaling.as_record(turns, {1: ideal_kernels(), 2: ideal_kernels()}, ideal_collectives())
    about = {
        "command": "c",
        "cores": 2,
        "processor": "p",
        "capability": "a",
        "versions": {"torch": "t"},
        "load_before": 0.0,
    }
    return json.loads(json.dumps({**about, **found}))


def test_a_machine_that_is_the_model_is_predicted_without_error(record: dict) -> None:
    for kind in ("alone", "busy"):
        assert record["rates"][kind] == pytest.approx(vars(RATES))
    for kind, link in LINKS.items():
        assert record["links"][kind] == pytest.approx(vars(link))
    assert len(record["cases"]) == 28
    for name, case in record["cases"].items():
        assert case["model"]["relative_error"] == pytest.approx(0, abs=1e-6), name
        assert case["model"]["cpu_relative_error"] == pytest.approx(0, abs=1e-6), name
        assert case["bytes_per_update"] == case["bytes_predicted"], name
    assert len(record["overlap"]) == 8
    assert all(row["hidden"] == pytest.approx(0.75) for row in record["overlap"])


def test_medians_and_ranges_are_over_rounds() -> None:
    case = Case(2, "weak", 10, True)
    rounds = ideal_turns(case, 3.0)
    found = scaling.record_of_case(case, rounds, {False: MACHINE, True: MACHINE})
    rate = 1 / rounds[0][0].wall
    assert found["range"] == pytest.approx([rate / 3, rate])
    assert found["updates_per_second"] == pytest.approx(rate / 2)
    assert found["model"]["relative_error"] == pytest.approx(-0.5)


def test_the_page_has_a_place_for_every_table(record: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, picture, figures = tmp_path / "page.md", tmp_path / "picture.png", tmp_path / "figures.json"
    page.write_text(scaling_page.PAGE.read_text())
    for stretch, warned in ((1.0, False), (1.5, True)):
        cases = {
            name: {**case, "ms_per_update": stretch * case["ms_per_update"]} for name, case in record["cases"].items()
        }
        figures.write_text(json.dumps({**record, "cases": cases}))
        arguments = ["--figures", str(figures), "--page", str(page), "--picture", str(picture)]
        monkeypatch.setattr("sys.argv", ["scaling_page", *arguments])
        scaling_page.main()
        text = page.read_text()
        assert ("are not results" in text) is warned
        assert text.count("<!-- end -->") == 7 and "<!-- measured -->\n|  | updates/s" in text
        assert "| k = 10, with the adversary, 4 workers, weak |" in text and picture.stat().st_size > 10_000
