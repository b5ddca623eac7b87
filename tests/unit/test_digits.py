"""The digit classifier: learns the embedded 8x8 digits, is decided by its seed, is kept in files; class counts by hand."""

import gzip
import math
import os
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from jobs.paper.digit_classes import (
    CARD_FILE,
    WEIGHTS_FILE,
    DigitClassifier,
    TrainedClassifier,
    class_scores,
    load_classifier,
    save_classifier,
    train_digit_classifier,
)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    return torch.tensor(found.data)[order] / 16, torch.tensor(found.target)[order]


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> TrainedClassifier:
    rows, labels = digits
    return train_digit_classifier(rows[:1400], labels[:1400], rows[1400:], labels[1400:], epochs=25)


def test_learns_the_embedded_digits(trained, digits):
    assert trained.accuracy > 0.94 and trained.num_test_rows == 397
    rows, labels = digits
    scores = class_scores(trained, rows[1400:])
    assert scores.effective_classes > 9.8 and scores.confidence > 0.93 and scores.num_rows == 397
    assert sum(scores.shares) == pytest.approx(1)
    one = class_scores(trained, rows[labels == 3])
    assert one.effective_classes < 1.3 and one.confidence > 0.93 and max(one.shares) == one.shares[3]
    blends = (rows[:400] + rows[400:800]) / 2
    assert class_scores(trained, blends).confidence < scores.confidence - 0.1


def with_predictions(log_odds: list[list[float]]) -> TrainedClassifier:
    """A classifier that answers by the place of the only bright pixel among the first few."""
    model = DigitClassifier(4)
    table = torch.tensor(log_odds)

    def answer(rows: Tensor) -> Tensor:
        return torch.log_softmax(table[rows[:, : len(table)].argmax(1)], 1)

    model.forward = answer  # type: ignore[method-assign]
    return TrainedClassifier(model, 1.0, 1, 0)


def test_scores_by_hand():
    even = with_predictions([[0.0] * 10])
    scores = class_scores(even, torch.zeros(3, 16))
    assert scores.effective_classes == pytest.approx(10) and scores.confidence == pytest.approx(0.1)
    # Two sure classes, one row of the first and three of the second.
    sure = with_predictions([[100.0] + [0.0] * 9, [0.0, 100.0] + [0.0] * 8])
    rows = torch.zeros(4, 16)
    rows[0, 0] = 1
    rows[1:, 1] = 1
    scores = class_scores(sure, rows)
    assert scores.effective_classes == pytest.approx(math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75)))
    assert scores.confidence == pytest.approx(1) and scores.shares[:2] == pytest.approx((0.25, 0.75))


def test_rows_outside_the_unit_range_are_cut(trained, digits):
    rows = digits[0][:50]
    stretched = torch.where(rows == 1, 1.7, torch.where(rows == 0, -0.4, rows))
    assert class_scores(trained, stretched) == class_scores(trained, rows)


def test_the_seed_decides_every_bit(digits):
    rows, labels = digits
    found = [
        train_digit_classifier(rows[:300], labels[:300], rows[300:400], labels[300:400], epochs=1, seed=seed)
        for seed in (5, 5, 6)
    ]
    first, again, other = (torch.cat([p.flatten() for p in f.model.parameters()]) for f in found)
    assert torch.equal(first, again) and not torch.equal(first, other) and found[0].accuracy == found[1].accuracy


def test_training_does_not_read_the_global_random_state(digits):
    rows, labels = digits
    found = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        found.append(train_digit_classifier(rows[:130], labels[:130], rows[:50], labels[:50], epochs=1).model)
    assert all(torch.equal(p, q) for p, q in zip(found[0].parameters(), found[1].parameters()))


def test_saved_and_loaded(trained, digits, tmp_path):
    save_classifier(trained, tmp_path / "digits")
    assert sorted(p.name for p in (tmp_path / "digits").iterdir()) == [CARD_FILE, WEIGHTS_FILE]
    loaded = load_classifier(tmp_path / "digits")
    assert loaded[1:] == trained[1:]
    assert class_scores(loaded, digits[0]) == class_scores(trained, digits[0])
    (tmp_path / "digits" / WEIGHTS_FILE).unlink()
    with pytest.raises(ValueError, match="no digit classifier"):
        load_classifier(tmp_path / "digits")


def test_bad_inputs_are_refused(trained, digits):
    rows, labels = digits
    for arguments, text in (
        ((rows * 16, labels, rows, labels), r"\[0, 16\]"),
        ((rows[:, :63], labels, rows, labels), "square pictures"),
        ((rows, labels[:5], rows, labels), r"labels have shape \(5,\)"),
        ((rows, labels + 1, rows, labels), "classes 0 to 9"),
        ((rows, labels, rows, labels - 1), "test_labels must be classes"),
        ((rows, labels, rows, labels, 0), "epochs is 0"),
    ):
        with pytest.raises(ValueError, match=text):
            train_digit_classifier(*arguments)
    with pytest.raises(ValueError, match=r"reads \[n >= 1, 64\]"):
        class_scores(trained, torch.zeros(3, 784))
    with pytest.raises(ValueError, match="not finite"):
        class_scores(trained, torch.full((3, 64), torch.nan))
    with pytest.raises(ValueError, match="multiple of 4"):
        DigitClassifier(30)


@pytest.mark.slow
def test_real_digits_are_told_apart():
    folder = os.environ.get("MNIST")
    if not folder or not (Path(folder) / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("set MNIST to the folder of the four IDX files to train on real digits")

    def read(name: str, header: int) -> Tensor:
        return torch.frombuffer(
            bytearray(gzip.decompress((Path(folder) / name).read_bytes())[header:]), dtype=torch.uint8
        )

    rows = [read(f"{split}-images-idx3-ubyte.gz", 16).view(-1, 784) / 255 for split in ("train", "t10k")]
    labels = [read(f"{split}-labels-idx1-ubyte.gz", 8) for split in ("train", "t10k")]
    found = train_digit_classifier(rows[0], labels[0], rows[1], labels[1], epochs=4)
    assert found.accuracy >= 0.98
    scores = class_scores(found, rows[1])
    assert scores.effective_classes > 9.9 and scores.confidence > 0.96
