"""Which version of a model is its champion: promoted by its score or by decision, rolled back, with the history kept.

The history lies in tags of the registered model, one for each change: `champion.0001`, `champion.0002`, ... in the order
of the changes. Promotions are put on a stack and a rollback takes the last one off, so rollbacks that follow one another
go further back, and what was rolled back is never returned to by a rollback.
"""

import json
from datetime import UTC, datetime
from typing import NamedTuple

from pipeline.provenance import without_secrets
from pipeline.registry.scores import Promotion, compare_scores
from pipeline.registry.versions import (
    CANDIDATE,
    CHAMPION,
    RegistryError,
    asking,
    find_model,
    find_version,
    registered_model,
)

# isort: split
from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel

MAX_WHY = 1000
"""Characters; a tag holds 5000 in MLflow's databases."""
_PREFIX = "champion."


class Change(NamedTuple):
    """One change of a model's champion."""

    version: str
    """The champion from then on."""
    time: str
    """UTC, as 2026-01-31T12:00:00+00:00; empty where it is not known."""
    kind: str
    """`promoted`, `rolled back`, or `found`: it was made the champion elsewhere, or before there was a history."""
    why: str = ""
    forced: bool = False
    before: str | None = None
    """The champion until then."""


class Rollback(NamedTuple):
    """The champion after a rollback, and the one before."""

    version: str
    replaced: str | None
    """None when there was none any more, for instance because its version was deleted."""


def set_candidate(name: str, version: str, *, tracking: str | None = None) -> None:
    """Give `version` the alias `candidate`. Raises RegistryError when there is no such version."""
    find_model(f"models:/{name}/{version}", tracking=tracking)
    with asking(tracking) as client:
        assert client is not None
        client.set_registered_model_alias(name, CANDIDATE, str(version))


def promote_if_better(
    name: str, version: str, *, beyond_spread: bool = False, tracking: str | None = None
) -> Promotion:
    """Make `version` the champion when there is none, or when its score beats the champion's on the same data hash.

    Better is strictly smaller; the reason says when the difference is within the spread. With `beyond_spread` the
    difference must exceed the larger of the two versions' spreads. The reason, the time and that nobody forced it are kept
    as the version's tags `promotion`, `promotion_time` and `promotion_forced`. A version that is the champion already stays
    it. One that was rolled back may come back, and the reason says so.

    Raises:
        RegistryError: there is no such version, or the server cannot be asked.
    """
    return _decide(name, version, None, beyond_spread, tracking)


def promote(name: str, version: str, *, why: str, tracking: str | None = None) -> Promotion:
    """Make `version` the champion whatever the scores say. Tags: `promotion` has `why` and what the scores say,
    `promotion_forced` is true, `promotion_time`.

    Raises:
        ValueError: `why` is empty or longer than 1000 characters.
        RegistryError: there is no such version, or the server cannot be asked.
    """
    why = without_secrets(" ".join(why.split()))
    if not 0 < len(why) <= MAX_WHY:
        raise ValueError(
            f"why has {len(why)} characters: say in 1 to {MAX_WHY} why this version has to be the champion"
        )
    return _decide(name, version, why, False, tracking)


def rollback(name: str, *, tracking: str | None = None) -> Rollback:
    """Make the version the champion that was it before the present one was promoted; versions deleted since are passed over.

    Raises:
        RegistryError: there is no such model, or no champion before this one.
    """
    with asking(tracking) as client:
        model = registered_model(client, name, tracking)
        assert client is not None
        current, stack = _champion(model), _stack(_changes(model))
        while stack and (stack[-1] == current or find_version(name, stack[-1], tracking=tracking) is None):
            stack.pop()
        if not stack:
            one = f"before version {current}" if current else "yet"
            raise RegistryError(f"model {name!r} had no champion {one}: promote a version")
        # The record first: after a crash in between, the alias differs from it and counts as put on top, as it was.
        _record(client, model, Change(stack[-1], _now(), "rolled back", before=current))
        client.set_registered_model_alias(name, CHAMPION, stack[-1])
    return Rollback(stack[-1], current)


def champion_history(name: str, *, tracking: str | None = None) -> list[Change]:
    """Every change of the champion, the oldest first.

    Raises:
        RegistryError: there is no such model, or the server cannot be asked.
    """
    with asking(tracking) as client:
        return _changes(registered_model(client, name, tracking))


def _decide(name: str, version: str, why: str | None, beyond_spread: bool, tracking: str | None) -> Promotion:
    """Promote by the scores, or whatever they say when there is a `why`."""
    version = str(version)
    new = find_model(f"models:/{name}/{version}", tracking=tracking)
    with asking(tracking) as client:
        model = registered_model(client, name, tracking)
        assert client is not None
        current, changes = _champion(model), _changes(model)
        if current == version:
            return Promotion(True, new.tags.get("promotion", "it is the champion already"))
        champion = None if current is None else find_version(name, current, tracking=tracking)
        result = compare_scores(
            new.tags, None if champion is None else champion.tags, current or "", beyond_spread=beyond_spread
        )
        if why is not None:
            result = Promotion(True, f"forced: {why} (by the scores: {result.reason})")
        elif result.promoted and (
            taken := [c.time for c in changes if c.kind == "rolled back" and c.before == version]
        ):
            result = Promotion(True, f"{result.reason}; it had been rolled back ({taken[-1]})")
        now = _now()
        tags = {"promotion": result.reason, "promotion_forced": str(why is not None).lower(), "promotion_time": now}
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
        if result.promoted:
            if changes and not changes[-1].time:
                _record(client, model, changes[-1]._replace(time=now))
            # The alias first: after a crash in between, it differs from the record and counts as put on top, as it was.
            client.set_registered_model_alias(name, CHAMPION, version)
            change = Change(version, now, "promoted", why or result.reason, why is not None, current)
            _record(client, registered_model(client, name, tracking), change)
        return result


def _champion(model: RegisteredModel) -> str | None:
    number = model.aliases.get(CHAMPION)
    return None if number is None else str(number)


def _changes(model: RegisteredModel) -> list[Change]:
    """The recorded changes, and one without a time when the champion is another than the last of them."""
    changes = [Change(**json.loads(model.tags[f"{_PREFIX}{number:04d}"])) for number in _numbers(model)]
    champion, last = _champion(model), changes[-1].version if changes else None
    if champion is not None and champion != last:
        changes.append(Change(champion, "", "found", before=last))
    return changes


def _stack(changes: list[Change]) -> list[str]:
    """The champions that a rollback can still return to, the present one on top."""
    stack: list[str] = []
    for change in changes:
        if change.kind != "rolled back":
            stack.append(change.version)
            continue
        while stack and stack[-1] != change.version:
            stack.pop()
    return stack


def _record(client: MlflowClient, model: RegisteredModel, change: Change) -> None:
    """Add a change to the model's tags."""
    key = f"{_PREFIX}{max(_numbers(model), default=0) + 1:04d}"
    client.set_registered_model_tag(model.name, key, json.dumps(change._asdict(), ensure_ascii=False))


def _numbers(model: RegisteredModel) -> list[int]:
    return sorted(int(key.removeprefix(_PREFIX)) for key in model.tags if key.startswith(_PREFIX))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
