"""Late requests are told from clocks that differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tierfall.protocol import age
from tierfall.protocol.age import LATE_S, Ages

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the worker's clock."""

    def set_to(seconds: float) -> None:
        monkeypatch.setattr(age, "clock", lambda: seconds)

    return set_to


def test_the_distance_of_two_clocks_is_no_age(set_clock: Callable[[float], None]) -> None:
    """However far apart they are, only what took longer than the quickest request is late."""
    ages = Ages()
    set_clock(9_000_000.0)
    assert ages.age("one", 5.0) == 0
    set_clock(9_000_001.25)
    assert ages.age("one", 6.0) == pytest.approx(0.25)
    set_clock(9_000_002.0)
    assert ages.age("one", 4.0) == pytest.approx(3.0)


def test_each_ingress_has_its_own_clock(set_clock: Callable[[float], None]) -> None:
    """What one sends says nothing of another."""
    ages = Ages()
    set_clock(100.0)
    assert ages.age("one", 100.0) == 0
    assert ages.age("two", -1e6) == 0
    assert ages.age("one", 99.0) == pytest.approx(1.0)


def test_a_fresh_request_sets_a_clock_that_jumped(set_clock: Callable[[float], None]) -> None:
    """All look late once; one that has just been sent again says how far the clocks are apart now."""
    ages = Ages()
    set_clock(100.0)
    assert ages.age("one", 50.0) == 0
    set_clock(105.0)
    assert ages.age("one", 50.5) > LATE_S
    assert ages.age("one", 50.6, fresh=True) == 0
    assert ages.age("one", 50.6) == 0


def test_a_quicker_request_is_the_new_measure(set_clock: Callable[[float], None]) -> None:
    """The first one may have been slow itself."""
    ages = Ages()
    set_clock(100.0)
    assert ages.age("one", 90.0) == 0
    assert ages.age("one", 99.9) == 0
    assert ages.age("one", 90.0) == pytest.approx(9.9)


def test_few_ingresses_are_remembered(
    set_clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ingresses come and go; what is kept of them is bounded."""
    monkeypatch.setattr(age, "KNOWN_INGRESSES", 2)
    ages = Ages()
    set_clock(10.0)
    for ingress in ("one", "two", "three"):
        assert ages.age(ingress, 10.0) == 0
    assert ages.age("three", 0.0) == 10
    assert ages.age("one", 0.0) == 0, "it was forgotten"
