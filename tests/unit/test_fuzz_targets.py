"""What reads foreign bytes, near to what it should read; ``make fuzz`` goes further."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.fuzz_targets import TARGETS, TOKENS

EXAMPLES = 60


@pytest.mark.parametrize("name", TARGETS)
def test_good_bytes_are_read(name: str) -> None:
    """The promises hold for what is meant to be read."""
    for seed in TARGETS[name].seeds:
        TARGETS[name].check(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_near_good_ones_break_no_promise(name: str) -> None:
    """Nor do pieces cut out of it, put into it or taken twice."""
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        found = data.draw(st.sampled_from(target.seeds))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(found)))
            gone = data.draw(st.integers(0, 8))
            new = data.draw(
                st.binary(max_size=4) | st.sampled_from(TOKENS).map(str.encode) | st.just(found[at : at + 40])
            )
            found = found[:at] + new + found[at + gone :]
        target.check(found)

    property_()
