"""Nearest-neighbor critics: the searches agree, the scores are Eq. 15 and 16 written out, and errors say what to do."""

import logging
import math
import subprocess
import sys

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from pipeline.comm import Comm
from pipeline.config import CriticConfig
from pipeline.critics.memory import Memory
from pipeline.critics.neighbors import BACKENDS, NeighborCritic, choose_backend, mixed_order
from pipeline.critics.search import search_torch

EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def critic(backend: str = "torch", **settings: object) -> NeighborCritic:
    return NeighborCritic(CriticConfig(**settings), BACKENDS[backend])  # type: ignore[arg-type]


def distances_of(queries: Tensor, rows: Tensor, found: Tensor) -> Tensor:
    return (rows[found].double() - queries[:, None].double()).norm(dim=2)


@EVERY_BACKEND
@pytest.mark.parametrize(("num_queries", "num_rows", "size"), [(1, 7, 1), (13, 101, 2), (31, 257, 17), (61, 211, 67)])
@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_searches_find_the_neighbors_that_scikit_learn_finds(
    backend: str, num_queries: int, num_rows: int, size: int, k: int
) -> None:
    queries, rows = randn(num_queries, size, seed=1), randn(num_rows, size, seed=2)
    found = BACKENDS[backend](queries, rows, k)
    expected = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows.double().numpy())
    distances, indices = (torch.from_numpy(x) for x in expected.kneighbors(queries.double().numpy()))
    assert found.dtype == torch.int64
    torch.testing.assert_close(distances_of(queries, rows, found), distances, rtol=1e-5, atol=1e-6)
    # random rows have no ties at the k-th place that float32 could not tell apart, so the sets are the same
    assert torch.equal(found.sort(1).values, indices.sort(1).values)


@EVERY_BACKEND
def test_near_duplicates_far_from_the_origin_cost_no_more_than_float32_can_tell(backend: str) -> None:
    """Rows in tight clusters around 100: what is found is as near as the true neighbors, within float32's resolution.

    Searches expand the square; at |x|^2 of size S their squared distances are off by about 2^-23 S times a small factor
    (S is what is left after centering for torch, the whole for faiss).
    """
    centers = 100 + 5 * randn(11, 13, seed=3)
    rows = (centers.repeat(9, 1) + 1e-3 * randn(99, 13, seed=4)).contiguous()
    queries = centers + 1e-3 * randn(11, 13, seed=5)
    found = distances_of(queries, rows, BACKENDS[backend](queries, rows, 9))
    best = torch.cdist(queries.double(), rows.double()).sort(1).values[:, :9]
    norm = (rows - rows.mean(0) if backend == "torch" else rows).double().square().sum(1).max().item()
    assert ((found.square().sum(1) - best.square().sum(1)).abs() < 9 * 8 * 2**-23 * norm).all()


def test_the_torch_search_keeps_its_digits_far_from_the_origin() -> None:
    """A cloud of width 1 around 1000 in 31 dimensions: uncentered, ||x||^2 - 2 q.x would have lost the distances."""
    rows, queries = 1000 + randn(101, 31, seed=6), 1000 + randn(23, 31, seed=7)
    found = distances_of(queries, rows, search_torch(queries, rows, 5))
    best = torch.cdist(queries.double(), rows.double()).sort(1).values[:, :5]
    torch.testing.assert_close(found, best, rtol=1e-3, atol=0)


def slow_score(config: CriticConfig, query: list[float], memory: Memory, own: int | None = None) -> float:
    """T of one query by Eq. 15 or 16, in plain Python: sort all rows by distance, take k, weigh, divide."""
    rows = []
    for i, row in enumerate(memory.features.tolist()):
        if config.exclude_own_chain and own is not None and i == memory.num_data + own:
            continue
        rows.append((math.dist(row, query), i < memory.num_data))
    from_data = from_all = 0.0
    for distance, is_data in sorted(rows)[: config.num_neighbors]:
        weight = 1.0 if config.weighting == "uniform" else 1 / (distance + config.epsilon)
        weight /= memory.num_data if is_data else memory.num_particles
        from_all += weight
        from_data += weight if is_data else 0.0
    p = from_data / from_all
    return 2 * p - 1 if config.form == "linear" else math.log(2) + math.log(max(p, config.min_probability))


@EVERY_BACKEND
@pytest.mark.parametrize("weighting", ["distance", "uniform"])
@pytest.mark.parametrize("form", ["linear", "log"])
@pytest.mark.parametrize(("num_data", "num_particles"), [(37, 37), (61, 13), (11, 53)])
@pytest.mark.parametrize("exclude", [False, True])
def test_scores_are_the_formulas_written_out(
    backend: str, weighting: str, form: str, num_data: int, num_particles: int, exclude: bool
) -> None:
    """Queries are chains that hardly moved, chains that moved far, in one batch; the first is particle 4 of the run."""
    memory = Memory(torch.cat([randn(num_data, 5), 0.5 + randn(num_particles, 5, seed=8)]), num_data)
    queries = memory.features[num_data + 4 : num_data + 13].clone()
    queries[::2] += 1e-3 * randn(5, 5, seed=9)
    queries[1::2] += 3 * randn(4, 5, seed=10)
    it = critic(backend, weighting=weighting, form=form, num_neighbors=4, exclude_own_chain=exclude)
    expected = [slow_score(it.config, q, memory, own=4 + i) for i, q in enumerate(queries.tolist())]
    torch.testing.assert_close(it.score(queries, memory, first_particle=4), torch.tensor(expected), rtol=0, atol=2e-6)


def on_a_line(data: list[float], particles: list[float]) -> Memory:
    return Memory(torch.tensor([*data, *particles])[:, None], len(data))


def test_scores_by_hand() -> None:
    """Neighbors of 0: data at 1 and 3, a particle at 2. Eq. 15: p = 2/3. Eq. 16, eps 1: weights 1/2, 1/4, 1/3."""
    memory, zero = on_a_line([1.0, 3.0, 50.0], [-2.0, 60.0, 70.0]), torch.zeros(1, 1)
    assert critic(weighting="uniform", num_neighbors=3).score(zero, memory).item() == pytest.approx(1 / 3)
    weighted = critic(weighting="distance", num_neighbors=3, epsilon=1.0).score(zero, memory).item()
    assert weighted == pytest.approx(2 * (0.75 / (0.75 + 1 / 3)) - 1)


def test_each_class_as_a_whole_weighs_the_same() -> None:
    """4 data rows and 2 particles, all among the neighbors at equal distance: T = 0, not (4 - 2) / 6."""
    memory = on_a_line([1.0, -1.0, 1.0, -1.0], [1.0, -1.0])
    for weighting in ("uniform", "distance"):
        it = critic(weighting=weighting, num_neighbors=6)
        assert it.score(torch.zeros(1, 1), memory).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("weighting", ["uniform", "distance"])
def test_only_data_scores_one_and_only_particles_minus_one(weighting: str) -> None:
    memory = on_a_line([0.1, 0.2, 0.3], [10.0, 10.1])
    t = critic(weighting=weighting, num_neighbors=2).score(torch.tensor([[0.0], [10.0]]), memory)
    assert t.tolist() == [1.0, -1.0]


def test_the_log_form_has_a_floor_and_its_top_is_log_two() -> None:
    memory = on_a_line([0.1, 0.2, 0.3], [10.0, 10.1])
    it = critic(form="log", num_neighbors=2, min_probability=0.01)
    t = it.score(torch.tensor([[0.0], [10.0]]), memory)
    assert t.tolist() == pytest.approx([math.log(2), math.log(2) + math.log(0.01)], rel=1e-6)


def test_an_identical_row_has_weight_one_over_epsilon() -> None:
    """Distances come from differences: that of a row to itself is exactly 0 however large the features are."""
    memory = Memory(torch.cat([1000 + randn(3, 29), 1000 + randn(3, 29, seed=11)]), 3)
    t = critic(num_neighbors=6, epsilon=1e-6).score(memory.features, memory)
    assert (t[:3] > 1 - 1e-5).all() and (t[3:] < -1 + 1e-5).all()


@EVERY_BACKEND
@pytest.mark.parametrize("form", ["linear", "log"])
def test_scores_are_bounded_constants(backend: str, form: str) -> None:
    memory = Memory(randn(83, 3), 41)
    queries = randn(500, 3, seed=12).requires_grad_()
    t = critic(backend, form=form, num_neighbors=7).score(queries, memory)
    assert t.shape == (500,) and t.dtype == torch.float32
    assert not t.requires_grad
    low, high = (-1, 1) if form == "linear" else (math.log(2) + math.log(0.05) - 1e-6, math.log(2) + 1e-6)
    assert low <= t.min().item() and t.max().item() <= high


@EVERY_BACKEND
def test_an_own_row_among_the_neighbors_is_hidden_and_elsewhere_the_farthest_is_dropped(backend: str) -> None:
    """Particle 1 is at home (its row the nearest), particle 2 far from home (its row not among k + 1 = 3)."""
    memory = on_a_line([1.0, 100.1], [100.2, 0.0, 50.0])
    queries = torch.tensor([[0.0], [100.0]])  # chains 1 and 2, whose own rows lie at 0 and at 50
    settings = {"weighting": "uniform", "num_neighbors": 2}
    shown = critic(backend, **settings).score(queries, memory, first_particle=1)
    hidden = critic(backend, exclude_own_chain=True, **settings).score(queries, memory, first_particle=1)
    # neighbors of 0: [own, data] shown, [data, chain 2's] hidden: the same mix; of 100: [data, particle] in both
    mix = 2 * (1 / 2) / (1 / 2 + 1 / 3) - 1
    assert shown.tolist() == pytest.approx([mix, mix])
    assert hidden.tolist() == pytest.approx([mix, mix])
    one = {"weighting": "uniform", "num_neighbors": 1}
    assert critic(backend, **one).score(queries, memory, 1).tolist() == [-1.0, 1.0]
    assert critic(backend, exclude_own_chain=True, **one).score(queries, memory, 1).tolist() == [1.0, 1.0]
    # without a particle's number there is nothing to hide
    assert critic(backend, exclude_own_chain=True, **one).score(queries, memory).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("num_data", "num_particles"), [(1, 1), (7, 7), (61, 13), (13, 61), (1, 40)])
def test_the_order_of_the_search_mixes_the_classes(num_data: int, num_particles: int) -> None:
    """Every row once; in the first t rows each class has its share of t, to within one row of each class."""
    order = mixed_order(num_data, num_particles, torch.device("cpu"))
    total = num_data + num_particles
    assert sorted(order.tolist()) == list(range(total))
    count = (order < num_data).cumsum(0)
    assert ((count - num_data / total * torch.arange(1, total + 1)).abs() <= 1).all()


def test_too_small_a_memory_is_refused_by_the_setting_s_name() -> None:
    memory = Memory(randn(5, 2), 2)
    critic(num_neighbors=5).score(randn(3, 2), memory)
    with pytest.raises(ValueError, match=r"critic\.num_neighbors = 6.*5 rows"):
        critic(num_neighbors=6).score(randn(3, 2), memory)
    with pytest.raises(ValueError, match=r"critic\.num_neighbors = 5.*5 rows"):
        critic(num_neighbors=5, exclude_own_chain=True).score(randn(3, 2), memory, first_particle=0)


def test_no_queries_get_no_scores() -> None:
    assert critic().score(torch.zeros(0, 3), Memory(randn(11, 3), 5), first_particle=0).shape == (0,)


@pytest.mark.parametrize("search", ["torch", "faiss"])
def test_a_named_backend_is_taken(search: str) -> None:
    assert choose_backend(CriticConfig(search=search), 7, 31, 3, Comm()) == search  # type: ignore[arg-type]


def test_auto_takes_a_backend_and_says_which_and_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        chosen = choose_backend(CriticConfig(search="auto"), 7, 31, 3, Comm())
    assert chosen in BACKENDS
    assert f"critic.search = auto: {chosen}" in caplog.text
    assert all(f"{name} " in caplog.text for name in BACKENDS) and " ms" in caplog.text


def test_choosing_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    choose_backend(CriticConfig(search="auto"), 7, 31, 3, Comm())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("search", ["torch", "faiss", "auto"])
def test_more_neighbors_than_rows_are_refused_at_the_start(search: str) -> None:
    with pytest.raises(ValueError, match=r"critic\.num_neighbors = 5.*4 rows"):
        choose_backend(CriticConfig(search=search, num_neighbors=5), 3, 4, 2, Comm())  # type: ignore[arg-type]


def test_without_faiss_auto_takes_torch_and_a_named_faiss_says_what_to_install() -> None:
    script = """
import sys
sys.modules["faiss"] = None  # what an import finds when the package is not there
from pipeline.comm import Comm
from pipeline.config import CriticConfig
from pipeline.critics.neighbors import choose_backend
from pipeline.critics.faiss_search import MissingFaiss
assert choose_backend(CriticConfig(), 7, 31, 3, Comm()) == "torch"
try:
    choose_backend(CriticConfig(search="faiss"), 7, 31, 3, Comm())
except MissingFaiss as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert out.returncode == 0, out.stderr
    assert "extra `cpu` or `gpu`" in out.stdout and "critic.search=torch" in out.stdout
