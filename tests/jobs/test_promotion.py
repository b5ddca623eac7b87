"""Who becomes champion, by its score or by decision, and how a champion is taken back."""

import json
import re

import pytest
from mlflow import MlflowClient
from registering import BEAM, register, start_run

from pipeline.packages.models import PackagedBeam
from pipeline.registry.promotion import champion_history, promote, promote_if_better, rollback
from pipeline.registry.scores import compare_scores, score_tags
from pipeline.registry.versions import RegistryError, find_model


@pytest.fixture
def run_id(tracking: str) -> str:
    return start_run(tracking)


def test_scores_of_other_kinds_or_numbers_of_rows_are_not_compared() -> None:
    champion = score_tags("d", "r", "frechet_latent", 50.0, 500, None)
    for changes in ({"score_name": "kl_sum"}, {"score_rows": "400"}, {"data_hash": "e"}):
        result = compare_scores({**champion, "score": "1.0", **changes}, champion, "4")
        assert not result.promoted and next(iter(changes)) in result.reason
    assert compare_scores({**champion, "score": "49.0"}, champion).promoted
    assert not compare_scores(champion, champion).promoted
    assert not compare_scores({**champion, "score": "inf"}, None).promoted
    assert compare_scores({**champion, "score": repr(50.0 - 1e-14)}, champion).promoted  # read back exactly


def test_beyond_the_spread_is_more_than_below() -> None:
    champion = score_tags("d", "r", "frechet_latent", 50.0, 500, 1.0)
    for score, spread, below, beyond in ((47.0, 2.0, True, True), (48.0, 2.0, True, False), (51.0, None, False, False)):
        new = score_tags("d", "r", "frechet_latent", score, 500, spread)
        assert compare_scores(new, champion).promoted is below
        assert compare_scores(new, champion, beyond_spread=True).promoted is beyond
    bare = {key: value for key, value in champion.items() if key != "score_spread"}
    result = compare_scores({**bare, "score": "1.0"}, bare, beyond_spread=True)
    assert not result.promoted and "no spread is known" in result.reason
    assert compare_scores(champion, None, beyond_spread=True).promoted
    edited = compare_scores(champion, {**champion, "score": "best"})
    assert edited.promoted and "no finite number" in edited.reason


def test_the_champion_is_the_best_on_the_same_data(packaged_beam: PackagedBeam, run_id: str) -> None:
    def champion() -> str:
        return find_model(f"models:/{BEAM}@champion").version

    tries = [  # score, data, promoted, champion afterwards, reason
        (50.0, "data one", True, "1", "there was no champion"),
        (55.0, "data one", False, "1", r"55 is not below 50 of the champion \(version 1\)"),
        (50.0 - 1e-9, "data one", True, "3", "within the spread 2"),
        (40.0, "data two", False, "3", r"not comparable .* another data \(data_hash data two, its is data one\)"),
        (30.0, "data one", True, "5", "30 is below 50"),
        (float("nan"), "data one", False, "5", "not a finite number"),
    ]
    for number, (score, data, promoted, after, reason) in enumerate(tries, start=1):
        version = register(packaged_beam, run_id, score, data)
        assert version.version == str(number)
        result = promote_if_better(BEAM, version.version)
        assert result.promoted is promoted and champion() == after, result
        assert re.search(reason, result.reason), result.reason
        assert find_model(version.uri).tags["promotion"] == result.reason
    assert promote_if_better(BEAM, "5") == (True, find_model(f"models:/{BEAM}/5").tags["promotion"])


@pytest.fixture
def versions(run_id: str, tracking: str) -> MlflowClient:
    """Five versions with scores 50, 40, 30, 20, 60, without files."""
    client = MlflowClient(tracking)
    client.create_registered_model(BEAM)
    for score in (50.0, 40.0, 30.0, 20.0, 60.0):
        client.create_model_version(BEAM, "/nowhere", run_id, score_tags("d", "r", "frechet_latent", score, 500, 2.0))
    return client


def champion() -> str:
    return find_model(f"models:/{BEAM}@champion").version


def test_rollbacks_go_back_one_champion_at_a_time(versions: MlflowClient) -> None:
    for version in "123":
        assert promote_if_better(BEAM, version).promoted
    assert rollback(BEAM) == ("2", "3") and champion() == "2"
    assert rollback(BEAM) == ("1", "2") and champion() == "1"
    with pytest.raises(RegistryError, match=r"had no champion before version 1: promote a version"):
        rollback(BEAM)
    assert promote_if_better(BEAM, "4").promoted  # on top of 1: what was rolled back is not returned to
    assert rollback(BEAM) == ("1", "4")
    again = promote_if_better(BEAM, "3")
    assert again.promoted and "it had been rolled back (20" in again.reason
    assert rollback(BEAM) == ("1", "3")
    kinds = [(change.version, change.kind, change.before) for change in champion_history(BEAM)]
    assert kinds[:5] == [
        ("1", "promoted", None),
        ("2", "promoted", "1"),
        ("3", "promoted", "2"),
        ("2", "rolled back", "3"),
        ("1", "rolled back", "2"),
    ]
    tags = versions.get_registered_model(BEAM).tags
    assert len(tags) == len(kinds) == 9 and json.loads(tags["champion.0001"])["time"].endswith("+00:00")


def test_a_forced_promotion_says_so(versions: MlflowClient) -> None:
    assert promote_if_better(BEAM, "2").promoted
    result = promote(BEAM, "5", why="its pictures\nare better")
    assert result.promoted and champion() == "5"
    tags = find_model(f"models:/{BEAM}/5").tags
    assert (
        tags["promotion"]
        == result.reason
        == (
            "forced: its pictures are better (by the scores: frechet_latent 60 is not below 40 of the champion (version 2))"
        )
    )
    assert tags["promotion_forced"] == "true" and re.fullmatch(r"20\d\d-.*\+00:00", tags["promotion_time"])
    assert champion_history(BEAM)[-1].forced and champion_history(BEAM)[-1].why == "its pictures are better"
    assert rollback(BEAM) == ("2", "5")
    assert not promote_if_better(BEAM, "5").promoted
    assert find_model(f"models:/{BEAM}/5").tags["promotion_forced"] == "false"
    for why in ("", "  ", "x" * 1001):
        with pytest.raises(ValueError, match=r"why has \d+ characters: say in 1 to 1000"):
            promote(BEAM, "1", why=why)
    for call in (lambda: promote(BEAM, "9", why="x"), lambda: promote_if_better(BEAM, "9"), lambda: rollback("zzz")):
        with pytest.raises(RegistryError, match=r"versions: 1, 2, 3, 4, 5|there is no model 'zzz'"):
            call()


def test_champions_made_elsewhere_and_versions_deleted_are_seen(versions: MlflowClient) -> None:
    with pytest.raises(RegistryError, match=r"had no champion yet"):
        rollback(BEAM)
    versions.set_registered_model_alias(BEAM, "champion", "1")  # as before there was a history, or in MLflow's pages
    assert champion_history(BEAM) == [("1", "", "found", "", False, None)]
    assert promote_if_better(BEAM, "2").promoted
    versions.set_registered_model_alias(BEAM, "champion", "4")
    assert rollback(BEAM) == ("2", "4") and rollback(BEAM) == ("1", "2")
    for version in "23":
        promote_if_better(BEAM, version)
    versions.delete_model_version(BEAM, "2")
    assert rollback(BEAM) == ("1", "3")
    promote_if_better(BEAM, "4")
    versions.delete_model_version(BEAM, "4")  # and its alias with it
    assert rollback(BEAM) == ("1", None) and champion() == "1"
