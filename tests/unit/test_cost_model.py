"""The cost model's formulas against cases counted by hand, its limits, and the fits that give it its numbers."""

import dataclasses
import math

import pytest

from benchmarks.cost_model import (
    Job,
    Machine,
    Rates,
    bytes_per_update,
    candidate_bytes,
    critic_bytes,
    largest_share,
    search_seconds,
    update_seconds,
)
from benchmarks.links import Link, exchange_seconds, gather_seconds, sum_seconds
from benchmarks.projection import (
    MACHINES,
    ONE_GPU,
    STRONG,
    WORKERS,
    curve,
    rows_where_search_equals_sweeps,
    strong_curve,
    turning_points,
)
from benchmarks.rates import fit_line, link_of
from benchmarks.scaling_page import fill, table
from pipeline.comm import Comm, split_rows

LINK = Link(latency=1e-3, bandwidth=1e6)
FREE = Link(0.0, math.inf)
RATES = Rates(
    flops=1e9, outer_flops=1e9, call=0.0, visible_draws=1e9, hidden_draws=1e9, beta_draws=1e9, bytes=1e9, selected=1e9
)
ONLY_PRODUCTS = Rates(1e9, 1e9, 0.0, math.inf, math.inf, math.inf, math.inf, math.inf)
SHARDED = dataclasses.replace(ONE_GPU, memory="sharded")
COUNTS = (1, 2, 3, 4, 8, 64, 1000, 1024)


def test_collectives_of_known_bytes() -> None:
    """4 workers, 1 ms a step, 1 MB/s."""
    assert gather_seconds(2000, 4, LINK) == pytest.approx(3 * (1e-3 + 2e-3))
    assert exchange_seconds(8000, 4, LINK) == pytest.approx(3 * (1e-3 + 2e-3))
    assert sum_seconds(8000, 4, LINK) == pytest.approx(6 * (1e-3 + 2e-3))
    assert sum_seconds(8, 64, LINK, LINK) == pytest.approx(2 * 6 * 1e-3 + 2 * 8e-6), "few bytes go along trees"
    assert sum_seconds(10**9, 2, LINK, LINK) == sum_seconds(10**9, 2, LINK), "many bytes along the ring"


@pytest.mark.parametrize("job", [ONE_GPU, SHARDED, dataclasses.replace(SHARDED, candidates="all-gather")])
def test_one_worker_talks_to_nobody(job: Job) -> None:
    assert bytes_per_update(job, 1) == {}
    parts = update_seconds(job, 1, Machine(RATES, LINK, LINK, trees=True))
    assert parts.gather == parts.queries == parts.scores == parts.sum == 0
    assert sum(parts) == pytest.approx(parts.own)


def test_bytes_of_the_face_sized_run() -> None:
    """P = 1024 * 512 + 2 * 1024 + 512 in float64; 64 + 64 rows of 512 floats; one score."""
    summed = 8 * 526_848
    assert bytes_per_update(Job(), 2) == {"sum": summed + 8, "gather": 4 * 512 * 128}
    assert bytes_per_update(Job(wire="bits"), 2)["gather"] == 64 * 128
    assert bytes_per_update(Job(wire="bfloat16"), 2)["gather"] == 2 * 512 * 128
    assert bytes_per_update(Job(adversary=False), 4) == {"sum": summed}
    # sharded: 64 queries, and for all 128 five candidates
    sharded = {"sum": summed + 8, "gather": 4 * 512 * 64, "exchange": 16 * 5 * 128}
    assert bytes_per_update(Job(memory="sharded"), 2) == sharded
    gathered = Job(memory="sharded", candidates="all-gather")
    assert bytes_per_update(gathered, 2)["gather"] == 4 * 512 * 64 + 16 * 5 * 128
    assert candidate_bytes(Job()) == 16 * 5 * 128


def test_uneven_shares_are_those_of_the_first_worker() -> None:
    """13 rows in blocks of 4, 3, 3, 3: two blocks of 7 rows on the first of two workers and of three; nobody waits longer."""
    for blocks in (1, 3, 4, 7):
        job = Job(chains=13, batch=9, num_blocks=blocks)
        for n in (1, 2, 3, 4, 9):
            comm = Comm(0, n)
            rows = [comm.rows_per_rank(split_rows(size, blocks)) for size in (13, 9)]
            assert largest_share(job, n) == (rows[0][0], rows[1][0], len(comm.my_blocks(blocks)))
            assert [max(r) for r in rows] == [r[0] for r in rows]
    job = Job(chains=13, batch=9, num_blocks=4)
    assert largest_share(job, 1) == (13, 9, 4)
    assert largest_share(job, 2) == largest_share(job, 3) == (7, 5, 2)
    assert largest_share(job, 4) == largest_share(job, 9) == (4, 3, 1)


def test_sweeps_are_two_products_and_the_draws() -> None:
    parts = update_seconds(Job(chains=10, batch=10, sweeps=3, num_blocks=1), 1, Machine(RATES, FREE, FREE))
    assert parts.sweeps == pytest.approx(3 * 10 * (2 * 2 * 1024 * 512 + 1024 + 512 + 1) / 1e9)
    called = dataclasses.replace(RATES, call=1.0)
    again = update_seconds(Job(chains=10, batch=10, sweeps=3, num_blocks=1), 1, Machine(called, FREE, FREE))
    assert again.sweeps - parts.sweeps == pytest.approx(6.0)


def test_a_gather_costs_what_the_sweeps_do_not_hide() -> None:
    job = Job(chains=8, batch=8, sweeps=1, num_blocks=2)
    whole = gather_seconds(4 * 512 * 8, 2, LINK) + LINK.latency
    hidden = update_seconds(job, 2, Machine(RATES, LINK, LINK, overlap=1.0))
    open_ = update_seconds(job, 2, Machine(RATES, LINK, LINK, overlap=0.0))
    assert open_.gather == pytest.approx(whole)
    assert hidden.gather == pytest.approx(whole - hidden.sweeps)
    longer = dataclasses.replace(job, sweeps=10)
    assert update_seconds(longer, 2, Machine(RATES, LINK, LINK, overlap=1.0)).gather == 0
    # queries of a sharded memory are this step's particles: nothing hides them
    sharded = update_seconds(dataclasses.replace(longer, memory="sharded"), 2, Machine(RATES, LINK, LINK))
    asked = gather_seconds(4 * 512 * 4, 2, LINK) + exchange_seconds(16 * 5 * 8, 2, LINK)
    assert sharded.queries == pytest.approx(asked) and sharded.gather == 0


def test_workers_that_share_cores_take_turns() -> None:
    few, many = (update_seconds(Job(), 4, Machine(RATES, LINK, LINK, cores=cores)) for cores in (2, 4))
    assert few.own == pytest.approx(2 * many.own)
    assert few.sum == pytest.approx(2 * many.sum)


def test_both_searches_do_the_same_products() -> None:
    """M * n and M * (b + m) pairs: m (b + m) W F each, growing with W; without them the sharded one's parts are constant."""
    for n in (2, 64, 1024):
        job, sharded = ONE_GPU.weak(n), SHARDED.weak(n)
        seconds = search_seconds(job, n, ONLY_PRODUCTS)
        assert seconds == pytest.approx(search_seconds(sharded, n, ONLY_PRODUCTS))
        assert seconds == pytest.approx(n * 2 * 128 * 256 * 512 / 1e9)


@pytest.mark.parametrize("sweeps", [10, 100])
def test_where_the_search_takes_over(sweeps: int) -> None:
    """With products alone the search equals the sweeps at n = 2 k V: 200 sweeps of 1024 units are 204 800 rows for k = 100."""
    job = dataclasses.replace(ONE_GPU, sweeps=sweeps)
    assert rows_where_search_equals_sweeps(job) == 2048 * sweeps
    workers = int(rows_where_search_equals_sweeps(job) / 256)
    parts = update_seconds(job.weak(workers), workers, Machine(ONLY_PRODUCTS, FREE, FREE))
    assert parts.search == pytest.approx(parts.sweeps)


def test_memory_of_both_kinds() -> None:
    """A replicated memory holds n rows and those under way; a sharded one its own, whatever the number of workers."""
    assert critic_bytes(ONE_GPU.weak(4), 4).held == 2 * 4 * 256 * 512 * 4
    assert {critic_bytes(SHARDED.weak(n), n).held for n in COUNTS} == {256 * 512 * 4}
    for job in (ONE_GPU, SHARDED):
        peaks = [critic_bytes(job.weak(n), n).peak for n in COUNTS]
        assert peaks == sorted(peaks) and peaks[-1] > 100 * peaks[0], "queries and distances grow in both"


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("job", [ONE_GPU, SHARDED], ids=["replicated", "sharded"])
def test_weak_scaling_never_speeds_up_and_one_worker_s_sweeps_stay(job: Job, machine: Machine) -> None:
    found = curve(job, machine, COUNTS)
    totals = [sum(parts) for parts in found.values()]
    assert totals == sorted(totals)
    assert len({round(parts.sweeps, 12) for parts in found.values()}) == 1
    assert len({round(parts.gradient, 12) for parts in found.values()}) == 1


def test_strong_scaling_shares_the_sweeps() -> None:
    free = Machine(ONLY_PRODUCTS, FREE, FREE)
    found = strong_curve(STRONG, free, (1, 4, 1024))
    assert found[1].sweeps == pytest.approx(4 * found[4].sweeps) == pytest.approx(1024 * found[1024].sweeps)
    assert found[1].search == pytest.approx(1024 * found[1024].search)


def test_turning_points_lie_where_the_curve_turns() -> None:
    machine = MACHINES["float32, one adapter per node"]
    points, found = turning_points(ONE_GPU, machine), curve(ONE_GPU, machine)
    assert points.exposed is not None and points.search is not None and points.sharded is not None
    before = WORKERS[WORKERS.index(points.exposed) - 1]
    assert found[before].gather == 0 < found[points.exposed].gather
    assert points.full is None, "128 chains per GPU fit on 1024"
    faster = curve(dataclasses.replace(ONE_GPU, memory="sharded"), machine)
    assert all(sum(faster[n]) < sum(found[n]) for n in WORKERS if n >= points.sharded)


def test_rings_that_leave_the_node() -> None:
    """Of 16 workers in 2 nodes two steps around the ring go between nodes; a node's ring knows nothing of them."""
    machine = Machine(RATES, Link(1.0, 100.0), Link(1.0, 100.0), Link(9.0, 50.0), node_workers=8)
    assert machine.link(machine.gather_link, 8) == Link(1.0, 100.0)
    assert machine.link(machine.gather_link, 16) == Link((14 * 1.0 + 2 * 9.0) / 16, 50.0)


def test_fits_find_the_numbers_that_made_the_points() -> None:
    points = [(n - 1.0, (n - 1.0) * size, gather_seconds(size, n, LINK)) for n in (2, 4) for size in (8, 10**4, 10**6)]
    found = link_of(points)
    assert found.latency == pytest.approx(1e-3) and found.bandwidth == pytest.approx(1e6)
    assert fit_line([(1, 1), (1, 2)], [1.0, 4.0])[0] == 0, "no negative latency"
    assert fit_line([(1, 1), (1, 2)], [4.0, 1.0])[1] == 0, "no negative time per byte"


def test_tables_go_where_the_page_has_them() -> None:
    page = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n"
    filled = fill(page, {"one": table(["", "x"], [["y", "1"]]), "two": "text \\1"})
    assert (
        filled
        == "a\n<!-- one -->\n|  | x |\n| --- | ---: |\n| y | 1 |\n<!-- end -->\nb\n<!-- two -->\ntext \\1\n<!-- end -->\n"
    )
    assert fill(filled, {"two": ""}).count("<!-- end -->") == 2
    with pytest.raises(ValueError, match="no place for the table 'three'"):
        fill(page, {"three": ""})
