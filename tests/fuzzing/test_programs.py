"""Rules drawn at random, few of them (`make fuzz` draws more), and proof that a wrong kernel is seen."""

from __future__ import annotations

import pytest

from fuzzing import drawn_rules
from fuzzing.worlds import Difference
from portopt.kernels.host import totals
from portopt.kernels.key import Flush

pytestmark = pytest.mark.needs("numba")


@pytest.mark.parametrize(("seed", "flush"), [(3, "register"), (9, "where")])
def test_kernels_of_rules_drawn_at_random_have_the_bits_of_the_interpreter(seed: int, flush: Flush) -> None:
    assert drawn_rules.run(seed, flush, "float64" if seed == 9 else "float32") > 8


def test_a_lost_part_of_a_total_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    parts_of = totals.parts_of
    monkeypatch.setattr(totals, "parts_of", lambda works, scalars: parts_of(works, scalars)[:-1])
    with pytest.raises(Difference, match="program 3, flushed by register"):
        drawn_rules.run(3, "register")
