"""Signals within a block of a command: one exception comes out, whatever a library makes of it."""

import signal
from collections.abc import Iterator

import pytest

from jobs.ray_session import interruptible

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def in_the_foreground() -> Iterator[None]:
    """The tests may be run from a shell's background, where Ctrl-C is ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("number", BOTH)
def test_an_interrupt_that_a_library_swallowed_is_still_one(number: signal.Signals) -> None:
    handlers = [signal.getsignal(each) for each in BOTH]
    with pytest.raises(KeyboardInterrupt), interruptible(), interruptible():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise TypeError("could not determine the shape") from None
    assert [signal.getsignal(each) for each in BOTH] == handlers


def test_other_errors_pass_through() -> None:
    with pytest.raises(TypeError), interruptible():
        raise TypeError("no signal came")


def test_in_a_shells_background_only_the_termination_is_heard() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)
