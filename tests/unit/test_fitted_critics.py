"""Critics that learn: reproducible forests, a network's state, forms and floors, and what does not fit is refused."""

import pytest
import torch
from torch import Tensor

from pipeline.build import build_adversary
from pipeline.comm import Comm
from pipeline.config import AnyCriticConfig, CriticConfig, ForestCriticConfig, NetworkCriticConfig
from pipeline.critics.adversary import ReplicatedAdversary
from pipeline.critics.critic import Critic
from pipeline.critics.forest import ForestCritic
from pipeline.critics.memory import FeatureEncoding, Memory
from pipeline.critics.neighbors import BACKENDS, NeighborCritic
from pipeline.critics.network import NetworkCritic, logistic_loss

SIZE = 7


def memory_at(step: int, num_data: int = 29, dtype: torch.dtype = torch.float32) -> Memory:
    """Data around 0.4, particles around -0.4 in each feature, with sd 1."""
    rows = torch.randn(num_data + 31, SIZE, generator=torch.Generator().manual_seed(step), dtype=dtype)
    rows[:num_data] += 0.4
    rows[num_data:] -= 0.4
    return Memory(rows, num_data)


def queries(rows: int = 11, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(1000), dtype=dtype)


def build(config: AnyCriticConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Critic:
    """For 31 particles in 3 blocks and batches of 29, the smallest of 5."""
    recall = build_adversary(config, seed, Comm(), FeatureEncoding(SIZE, dtype, "float32"), [11, 10, 10], 29, 5)
    assert isinstance(recall, ReplicatedAdversary)
    return recall.critic


def make(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: object) -> Critic:
    config = {"forest": ForestCriticConfig, "network": NetworkCriticConfig}[kind](**settings)  # type: ignore[arg-type]
    return build(config, seed, dtype)


EVERY_KIND = pytest.mark.parametrize("kind", ["forest", "network"])


def test_the_settings_choose_the_critic() -> None:
    neighbors = build(CriticConfig(search="torch"))
    assert isinstance(neighbors, NeighborCritic) and neighbors.search is BACKENDS["torch"]
    assert isinstance(make("forest"), ForestCritic) and isinstance(make("network"), NetworkCritic)
    with pytest.raises(ValueError, match=r"critic\.num_neighbors = 37: the memory holds 36 rows after the smallest"):
        build(CriticConfig(num_neighbors=37, search="torch"))
    with pytest.raises(ValueError, match=r"critic\.num_neighbors = 36: the memory holds 36 rows"):
        build(CriticConfig(num_neighbors=36, exclude_own_chain=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_search_of_neighbors_is_their_state(backend: str) -> None:
    before = NeighborCritic(CriticConfig(), BACKENDS[backend])
    for first in BACKENDS.values():
        after = NeighborCritic(CriticConfig(), first)
        after.load_state(before.state())
        assert after.search is before.search
        after.load_state({})
        assert after.search is before.search


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_have_the_shape_and_type_of_the_features_and_the_right_sign(kind: str, dtype: torch.dtype) -> None:
    critic = make(kind, dtype=dtype)
    for step in range(40):
        critic.observe(memory_at(step, dtype=dtype), step)
    memory = memory_at(40, dtype=dtype)
    t = critic.score(memory.features, memory)
    assert t.shape == (60,) and t.dtype == dtype and not t.requires_grad
    assert float(t.abs().max()) <= 1
    assert t[:29].mean() > 0.15 and t[29:].mean() < -0.15  # rows that it has not seen
    assert critic.score(queries(0, dtype), memory, 0).shape == (0,)


@EVERY_KIND
def test_forms_are_functions_of_the_same_probability(kind: str) -> None:
    memory, scores = memory_at(0), {}
    for name, settings in {
        "linear": {},
        "log": {"form": "log", "min_probability": 0.25},
        "turned": {"sign": -1},
    }.items():
        critic = make(kind, **settings)
        critic.observe(memory, 3)
        scores[name] = critic.score(2 * queries(200), memory)
    p = (scores["linear"] + 1) / 2
    assert torch.equal(scores["turned"], -scores["linear"])
    torch.testing.assert_close(scores["log"], torch.log(2 * p.clamp(min=0.25)))
    assert p.min() < 0.25 if kind == "forest" else p.min() < 0.5


@EVERY_KIND
def test_what_is_learned_is_a_function_of_seed_step_and_memory(kind: str) -> None:
    def scores(seed: int, step: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        critic = make(kind, seed)
        critic.observe(memory_at(0), step)
        return critic.score(queries(), memory_at(0))

    reference = scores(0, 5, 1)
    assert torch.equal(scores(0, 5, 2), reference)
    assert not torch.equal(scores(1, 5, 1), reference)
    if kind == "forest":  # a network's stream is used at the start only
        assert not torch.equal(scores(0, 6, 1), reference)


def test_a_forest_obeys_its_settings() -> None:
    critic = make("forest", num_trees=7, max_depth=2, min_leaf=6)
    assert isinstance(critic, ForestCritic)
    critic.observe(memory_at(0), 0)
    assert critic.forest is not None and len(critic.forest.estimators_) == 7
    trees = [tree.tree_ for tree in critic.forest.estimators_]
    assert max(tree.max_depth for tree in trees) == 2
    assert min(int(tree.n_node_samples[tree.children_left < 0].min()) for tree in trees) >= 6
    assert critic.state() == {}


def test_a_forest_scores_rows_that_are_not_finite_as_nan_and_the_others_as_before() -> None:
    """scikit-learn raises on them; in a run that diverges one worker would be gone and the others would wait for it."""
    critic, rows = make("forest"), queries()
    critic.observe(memory_at(0), 0)
    good = critic.score(rows, memory_at(0))
    rows[2, 3], rows[5, 0], rows[7, 1] = torch.nan, torch.inf, -torch.inf
    t = critic.score(rows, memory_at(0))
    bad = torch.tensor([i in (2, 5, 7) for i in range(len(rows))])
    assert bool(t[bad].isnan().all()) and torch.equal(t[~bad], good[~bad])


def test_a_network_begins_undecided_with_weights_of_its_own_stream() -> None:
    critic = make("network", hidden=(64, 5))
    assert isinstance(critic, NetworkCritic)
    assert torch.equal(critic.score(queries(), memory_at(0)), torch.zeros(11))
    state = critic.state()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "0.weight": (64, SIZE),
        "0.bias": (64,),
        "2.weight": (5, 64),
        "2.bias": (5,),
        "4.weight": (1, 5),
        "4.bias": (1,),
    }
    std = state["0.weight"].std() / (2 / SIZE) ** 0.5
    assert abs(float(std) - 1) < 6 / (2 * 64 * SIZE) ** 0.5
    assert not torch.equal(state["0.weight"], make("network", 1, hidden=(64, 5)).state()["0.weight"])


def test_one_update_is_adam_on_the_balanced_logistic_loss() -> None:
    """Logistic regression from zero: Adam's first step is lr g / (|g| + 1e-8), and the gradient g is known."""
    memory = memory_at(0, num_data=5, dtype=torch.float64)
    critic = make("network", hidden=(), updates=1, learning_rate=0.01, dtype=torch.float64)
    critic.observe(memory, 0)
    data, particles = memory.features[:5].mean(0), memory.features[5:].mean(0)
    gradient = (particles - data) / 4  # half of p x over particles less (1 - p) x over data, at p = 1/2
    expected = (-0.01 * gradient / (gradient.abs() + 1e-8))[None]
    state = critic.state()
    torch.testing.assert_close(state["0.weight"], expected, rtol=1e-9, atol=0)
    assert float(state["0.bias"].abs()) < 1e-9 and float(state["adam.0.bias.step"]) == 1


def test_the_loss_is_the_balanced_cross_entropy() -> None:
    critic, memory = make("network", dtype=torch.float64), memory_at(0, 7, torch.float64)
    assert isinstance(critic, NetworkCritic)
    critic.observe(memory_at(1, dtype=torch.float64), 0)
    p = (critic.score(memory.features, memory) + 1) / 2
    expected = -(p[:7].log().mean() + (1 - p[7:]).log().mean()) / 2
    torch.testing.assert_close(logistic_loss(critic.network, memory).detach(), expected)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
def test_a_network_goes_on_from_its_state_bit_for_bit(hidden: tuple[int, ...]) -> None:
    whole, first = make("network", hidden=hidden), make("network", hidden=hidden)
    for step in range(4):
        whole.observe(memory_at(step), step)
        first.observe(memory_at(step), step)
    saved = {name: value.clone() for name, value in first.state().items()}
    second = make("network", seed=5, hidden=hidden)
    second.load_state(saved)
    for step in range(4, 9):
        whole.observe(memory_at(step), step)
        second.observe(memory_at(step), step)
    assert whole.state().keys() == second.state().keys()
    assert all(torch.equal(value, second.state()[name]) for name, value in whole.state().items())
    assert torch.equal(whole.score(queries(), memory_at(9)), second.score(queries(), memory_at(9)))


def test_a_network_of_another_shape_is_refused_and_another_kind_passed_over() -> None:
    critic = make("network", hidden=(8,))
    before = {name: value.clone() for name, value in critic.state().items()}
    critic.load_state({"backend": torch.tensor(0)})
    assert all(torch.equal(value, critic.state()[name]) for name, value in before.items())
    for hidden in ((9,), (8, 8)):
        with pytest.raises(ValueError, match=r"does not fit critic\.hidden = \(8,\)"):
            critic.load_state(make("network", hidden=hidden).state())
