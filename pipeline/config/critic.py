"""Settings of the critics."""

from dataclasses import KW_ONLY
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.validation import require, settings
from pipeline.config.values import Count, Positive, Real, Whole, Widths


@settings("critic.")
class ScoreConfig:
    """Settings of every critic: the features it sees, and how p = p(data | features) becomes the score T."""

    _: KW_ONLY
    feature: Literal["hidden_mean", "hidden_sample", "visible"] = "hidden_mean"
    """Features that the critic sees. With hidden_sample the negative statistics use that same sample."""
    wire: Literal["float32", "bfloat16"] = "float32"
    """Numbers that features travel in between workers, and so what the memory holds, for any number of
    workers: bfloat16 halves the bytes and rounds. States drawn from Bernoulli units travel as single
    bits, exactly, with either."""
    form: Literal["linear", "log"] = "linear"
    """linear: T = 2p - 1 (Eq. 12); log: T = log 2 + log p, with p at least min_probability."""
    min_probability: Annotated[Real, Field(gt=0, le=0.5)] = 0.05
    """Floor of p in the log form: a neighborhood without data has p = 0."""
    sign: Whole = 1
    """1; -1 drives particles away from the data, for contrast experiments only."""

    def __post_init__(self) -> None:
        require(self.sign in (-1, 1), "sign", self.sign, "1 or -1")


@settings("critic.")
class CriticConfig(ScoreConfig):
    """Nearest-neighbor critic on the memory of the previous step (Eq. 12, 15, 16)."""

    weighting: Literal["distance", "uniform"] = "distance"
    """distance: Eq. 16; uniform: Eq. 15."""
    num_neighbors: Count = 5
    epsilon: Positive = 0.1
    """Addend of a distance before it is inverted (Eq. 16). The paper gives no value; 1e-6 and 0.1 gave
    the same results on mixtures, and distances between 512 hidden activations are several units."""
    search: Literal["auto", "faiss", "torch"] = "auto"
    """Backend of the k-nearest search; auto: the faster of the two here, all workers alike."""
    exclude_own_chain: bool = False
    """Hide a chain's own previous state from it (the paper does not)."""
    memory: Literal["replicated", "sharded"] = "replicated"
    """replicated: every worker holds all rows; they travel while the next Gibbs steps run. sharded: each
    worker holds its own and searches them for the particles of all; what a worker holds does not grow
    with their number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = '"float32" with critic.memory = "sharded": queries are compared as they are'
        require(self.memory == "replicated" or self.wire == "float32", "wire", self.wire, allowed)


@settings("critic.")
class ForestCriticConfig(ScoreConfig):
    """Random forest critic, fitted anew at each step to the memory of the previous one (Fig. 10, 11)."""

    num_trees: Count = 20
    max_depth: Count | None = None
    """Levels of a tree; None: until leaves are pure or would have fewer than min_leaf rows."""
    min_leaf: Count = 5
    """Rows of the memory in a leaf, at least. The paper gives none of these three; at 1 a tree repeats
    its rows."""


@settings("critic.")
class NetworkCriticConfig(ScoreConfig):
    """Dense ReLU network, trained on by logistic loss on each step's memory (the hidden DNN of Fig. 10)."""

    hidden: Widths = (128,)
    """Units of each hidden layer; none is logistic regression. The paper gives neither sizes nor rates."""
    learning_rate: Positive = 1e-3
    """Learning rate, constant, of Adam at (0.9, 0.999)."""
    updates: Count = 5
    """Updates of the network on the whole memory at each step."""


AnyCriticConfig = CriticConfig | ForestCriticConfig | NetworkCriticConfig
