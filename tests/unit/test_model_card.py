"""The model card: what it has to say of data, numbers and code; the load snippets run in tests/jobs/test_registry.py."""

import re

import pytest

from pipeline.registry.card import DRIVEN_MEANS, Measured, measured, model_card

PROVENANCE = {
    "mlflow.source.git.commit": "abc123",
    "git.dirty": "True",
    "version.torch": "2.6.0",
    "version.python": "3.11",
}


def card(**changes: object) -> str:
    values: dict = {
        "name": "synthetic-faces-beam",
        "kind": "beam",
        "dataset": "synthetic-faces",
        "data_hash": "d4ta",
        "recipe": "faces_quick",
        "metrics": measured(
            {"recall": 0.4, "frechet_latent": 50.0, "frechet_latent_spread": 2.0}, num_rows=800, num_seeds=3
        ),
        "score_name": "frechet_latent",
        "provenance": PROVENANCE,
    }
    return model_card(**{**values, **changes})


def row(text: str, first: str) -> list[str]:
    """The cells of the table row that begins with `first`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)][2:-1]


def test_every_number_has_its_rows_seeds_and_protocol() -> None:
    metrics = {
        **measured(
            {
                "frechet_latent": 49.1,
                "frechet_latent_spread": 1.4,
                "fresh_recall": 0.27,
                "sample_recall": 0.5,
                "psnr": None,
            },
            num_rows=800,
            num_seeds=3,
        ),
        "face_share": Measured(0.985, None, 1000, 1, DRIVEN_MEANS),
    }
    text = card(metrics=metrics)
    assert row(text, "frechet_latent (the score)") == ["49.1 ± 1.4", "800", "3", "driven protocol, E[v|h]"]
    assert row(text, "fresh_recall") == ["0.27", "800", "1", "fresh protocol, E[v|h]"]
    assert row(text, "sample_recall") == ["0.5", "800", "1", "driven protocol, v with its noise"]
    assert row(text, "face_share") == ["0.985", "1000", "1", "driven protocol, E[v|h]"]
    assert row(text, "psnr") == ["-", "800", "3", "driven protocol, E[v|h]"]
    assert "frechet_latent_spread" not in text
    assert text.index("frechet_latent (the score)") < text.index("fresh_recall")
    unknown = card(metrics=measured({"recall": float("nan"), "x_spread": 1.0}))
    assert row(unknown, "recall")[:3] == ["-", "-", "-"] and row(unknown, "x_spread")[0] == "1"


@pytest.mark.parametrize(
    ("dataset", "said", "not_said"),
    [
        ("synthetic-faces", "drawn stand-in faces, not photographs", "non-commercial"),
        ("celeba", "non-commercial research only", "stand-in"),
        ("mixture-line", "Data set `mixture-line`", "photographs"),
    ],
)
def test_the_data_are_said_to_be_what_they_are(dataset: str, said: str, not_said: str) -> None:
    text = card(dataset=dataset)
    assert said in text and not_said not in text and "`d4ta`" in text


def test_code_settings_pictures_and_limits_are_there() -> None:
    text = card(settings={"critic.num_neighbors": 5}, pictures=["samples.png"], limits=["One more."], run_id="r1")
    assert "Commit `abc123`, with changes that were not committed." in text
    assert row(text, "torch") == ["2.6.0"] and row(text, "`critic.num_neighbors`") == ["`5`"]
    assert "![samples.png](<samples.png>)" in text and "- One more." in text and "`r1`" in text
    assert "Commit not known." in card(provenance={})
    assert "## Pictures" not in card() and "## Comparison" not in card() and "## Baselines" not in card()
    assert re.search(r"Commit (`[0-9a-f]{40}`|not known)", card(provenance=None))


def test_variants_stand_beside_each_other_with_their_spreads() -> None:
    comparison = {
        "recipe": {"frechet_latent": 50.0, "frechet_latent_spread": 2.0, "recall": 0.4},
        "winner": {"frechet_latent": 40.0, "frechet_latent_spread": 1.0, "precision": 0.5},
    }
    text = card(metrics={}, comparison=comparison, comparison_note="3 seeds.", baselines={"a|b": {"kl": 0.1}})
    assert row(text, "frechet_latent") == ["50 ± 2", "40 ± 1"]
    assert row(text, "recall") == ["0.4", "-"] and row(text, "precision") == ["-", "0.5"]
    assert "3 seeds." in text and r"| metric | a\|b |" in text


def test_nothing_secret_is_on_it() -> None:
    assert "pw" not in card(comparison_note="from https://me:pw@host/x")


def test_a_model_of_points_is_loaded_as_one() -> None:
    assert "float32 [36, 2]" in card(num_visible=2) and "uint8 [36, 64, 64, 3]" in card()
