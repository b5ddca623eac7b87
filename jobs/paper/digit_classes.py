"""How many classes of digits a model draws, and how clearly, by a small classifier trained on real ones.

Two numbers: the effective number of classes, 10 for real digits and 1 for a model that draws one of them, and the mean top
probability, which falls for blots between classes. Both are easy to satisfy separately (clear copies of one digit, or
noise that the classifier calls by all names), so a table shows both, beside those of real test digits.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.streams import stream

NUM_CLASSES = 10
WEIGHTS_FILE = "digits.safetensors"
CARD_FILE = "digits.json"

_BATCH = 128
_EVALUATION_ROWS = 1024  # of one forward pass
_LEARNING_RATE = 3e-3


class DigitClassifier(nn.Module):
    """Two convolutions of stride 2 and one hidden layer: log probabilities [n, 10] of rows [n, side^2] in [0, 1]."""

    def __init__(self, side: int):
        """Build the network for pictures of a side.

        Raises:
            ValueError: unless the side is a multiple of 4.
        """
        super().__init__()
        if side < 4 or side % 4:
            raise ValueError(f"side is {side}; two convolutions of stride 2 need a multiple of 4, such as 28 or 8")
        self.side = side
        self.first = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.third = nn.Linear(2 * side**2, 64)
        self.last = nn.Linear(64, NUM_CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        """Log probabilities [n, 10]."""
        x = F.relu(self.first(rows.reshape(-1, 1, self.side, self.side)))
        x = F.relu(self.third(F.relu(self.second(x)).flatten(1)))
        return F.log_softmax(self.last(x), 1)


class TrainedClassifier(NamedTuple):
    """A classifier, and how good it is."""

    model: DigitClassifier
    accuracy: float
    """Share of the test digits named rightly: a table that shows class counts shows this too."""
    num_test_rows: int
    seed: int


class ClassScores(NamedTuple):
    """What the classifier sees in a set of rows."""

    effective_classes: float
    """exp of the entropy of the mean prediction, in [1, 10]; about 10.0 for real digits."""
    confidence: float
    """Mean top probability, in [.1, 1]; about .97 or more for real digits."""
    shares: tuple[float, ...]
    """The mean prediction, by class."""
    num_rows: int


def train_digit_classifier(
    rows: Tensor, labels: Tensor, test_rows: Tensor, test_labels: Tensor, epochs: int = 4, seed: int = 0
) -> TrainedClassifier:
    """Train the classifier with Adam at a rate that falls linearly to 0, and measure it on the test digits.

    On MNIST, 4 epochs of 60,000 digits: 98 to 99 % in about half a minute on one thread. Equal seeds give equal bits at
    an equal number of threads, on the CPU.

    Args:
        rows: [n, side^2] in [0, 1], training digits; side 28 (MNIST) or 8 (scikit-learn's).
        labels: [n], 0 to 9.
        test_rows: [m, side^2]; they decide the accuracy only.
        test_labels: [m].
        epochs: passes over the training digits, at least 1.
        seed: decides initial weights and data order.

    Raises:
        ValueError: on rows that are not square pictures in [0, 1], labels outside 0..9 or of another number.
    """
    side = _side_of(rows)
    _check_labels("labels", rows, labels)
    _check_labels("test_labels", test_rows, test_labels)
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; give at least 1")
    model = DigitClassifier(side)
    _initialize_(model, stream(seed, "digit classifier weights"))
    rows, labels = rows.float(), labels.long()
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    num_updates = epochs * -(-len(rows) // _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 - update / num_updates)
    for epoch in range(epochs):
        order = torch.randperm(len(rows), generator=stream(seed, "digit classifier order", epoch))
        for batch in order.split(_BATCH):
            optimizer.zero_grad()
            F.nll_loss(model(rows[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    model.requires_grad_(False)
    right = _predict(model, test_rows).argmax(1) == test_labels.long()
    return TrainedClassifier(model, right.double().mean().item(), len(test_rows), seed)


def class_scores(classifier: TrainedClassifier, rows: Tensor) -> ClassScores:
    """Return the effective number of classes and the mean confidence of rows.

        effective_classes = exp(-sum_c q_c log q_c),    q = mean over rows of p(c | row)

    Args:
        classifier: of this side.
        rows: [n, side^2], n >= 1: E[v|h] or v, and the report says which. Values outside [0, 1] are cut: a Gaussian
            visible layer leaves the range on which the classifier was trained.

    Raises:
        ValueError: on another shape or values that are not finite.
    """
    probabilities = _predict(classifier.model, rows).exp()
    shares = probabilities.mean(0)
    return ClassScores(
        effective_classes=torch.special.entr(shares).sum().exp().item(),
        confidence=probabilities.max(1).values.mean().item(),
        shares=tuple(shares.tolist()),
        num_rows=len(rows),
    )


def save_classifier(classifier: TrainedClassifier, folder: Path) -> None:
    """Write the weights as safetensors and the rest as JSON into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(classifier.model.state_dict(), folder / WEIGHTS_FILE)
    card = {
        "side": classifier.model.side,
        "accuracy": classifier.accuracy,
        "num_test_rows": classifier.num_test_rows,
        "seed": classifier.seed,
    }
    (folder / CARD_FILE).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")  # last: it marks completion


def load_classifier(folder: Path) -> TrainedClassifier:
    """Return the classifier that `save_classifier` wrote.

    Raises:
        ValueError: when the folder has none, or files that do not fit together.
    """
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        model = DigitClassifier(int(card["side"]))
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        model.requires_grad_(False)
        return TrainedClassifier(model, float(card["accuracy"]), int(card["num_test_rows"]), int(card["seed"]))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no digit classifier ({error}): train it and save it there") from error


def _predict(model: DigitClassifier, rows: Tensor) -> Tensor:
    """Log probabilities [n, 10], float64."""
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] != model.side**2:
        raise ValueError(f"rows have shape {tuple(rows.shape)}; the classifier reads [n >= 1, {model.side**2}]")
    if not torch.isfinite(rows).all():
        raise ValueError("rows hold values that are not finite: the run that made them has diverged")
    device = model.last.weight.device
    with torch.no_grad():
        blocks = [model(block.to(device).float().clamp(0, 1)) for block in rows.split(_EVALUATION_ROWS)]
    return torch.cat(blocks).double().cpu()


def _initialize_(model: DigitClassifier, generator: torch.Generator) -> None:
    for layer in (model.first, model.second, model.third, model.last):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


def _side_of(rows: Tensor) -> int:
    side = round(rows.shape[-1] ** 0.5)
    if rows.ndim != 2 or len(rows) == 0 or side**2 != rows.shape[1]:
        raise ValueError(f"rows have shape {tuple(rows.shape)}; expected flattened square pictures [n >= 1, side^2]")
    if not (rows.min() >= 0 and rows.max() <= 1):
        raise ValueError(f"rows lie in [{rows.min():.3g}, {rows.max():.3g}]; divide pixels so that they lie in [0, 1]")
    return side


def _check_labels(name: str, rows: Tensor, labels: Tensor) -> None:
    if labels.shape != (len(rows),):
        raise ValueError(f"{name} have shape {tuple(labels.shape)}; {len(rows)} rows need [{len(rows)}]")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise ValueError(f"{name} must be classes 0 to {NUM_CLASSES - 1}, one for each row")
