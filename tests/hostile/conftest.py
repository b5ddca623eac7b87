"""Counts of what the fuzzing did, and of the errors it met, for the end of a run with HYPOTHESIS_PROFILE=long."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from point_models import point_model

from pipeline.packages.models import PackagedBeam

_examples: Counter[str] = Counter()
_errors: dict[str, set[str]] = {}

Named = Callable[[str, type[Exception], str], AbstractContextManager[None]]


@pytest.fixture(scope="session")
def named() -> Named:
    """A context in which reading may succeed, or raise one kind of error in words that name the place."""

    @contextmanager
    def check(reader: str, error: type[Exception], names: str) -> Iterator[None]:
        _examples[reader] += 1
        try:
            yield
        except error as found:
            text = str(found)
            assert names in text, f"the error does not say where: {text[:300]}"
            assert len(text) < 2000, f"the error is {len(text)} characters long"
            words = re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|[\d.]+", "_", text.replace(names, "WHERE"))
            _errors.setdefault(reader, set()).add(f"{type(found).__name__} {words[:60]}")

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Examples and distinct errors by reader."""
    for reader, count in sorted(_examples.items()):
        terminalreporter.write_line(
            f"fuzzed {reader}: {count} examples, {len(_errors.get(reader, ()))} distinct errors"
        )


@pytest.fixture(scope="session")
def small_beam() -> PackagedBeam:
    """A packaged model of points."""
    return point_model("gaussian")
