"""A minute of the fuzzer (`make fuzz` goes on for hours), and proof that it sees what it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fuzzing.episodes import Episode
from fuzzing.worlds import Difference
from portopt import step
from portopt.backend import is_interpreted
from portopt.kernels.host import plan, repeated_step
from portopt.trees import STANDARD_TREES

EPISODES = 8


@pytest.mark.needs("torch")
@pytest.mark.needs("numba")
@pytest.mark.parametrize("first", range(0, EPISODES, 4))
def test_steps_are_those_of_the_interpreter(first: int) -> None:
    for seed in range(first, first + 4):
        Episode(seed).run()


def stale_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that does not see that other values are given for a step."""
    monkeypatch.setattr(repeated_step, "same_numbers", lambda overrides, others: True)


def any_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that does not look at the number of steps."""
    monkeypatch.setattr(plan.Plan, "is_for", lambda self, state: not is_interpreted())


def half_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that writes before it refuses."""
    do_step: Callable[..., Any] = step.do_step

    def writing_step(rule: Any, cache: Any, params: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return do_step(rule, cache, params, *arguments, **named)
        except (TypeError, ValueError):
            for array in STANDARD_TREES.flatten(params)[0]:
                if getattr(array, "size", 0) and array.flags.writeable:
                    array += 1
            raise

    monkeypatch.setattr(step, "do_step", writing_step)


@pytest.mark.needs("numba")
@pytest.mark.parametrize("fault", [stale_inputs, any_state, half_steps])
def test_it_finds_what_is_wrong(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)

    def look() -> None:
        for seed in range(1004, 1060):
            Episode(seed, ("numpy",)).run()

    with pytest.raises(Difference):
        look()


def test_episodes_of_one_seed_are_equal() -> None:
    runs = [Episode(1004, ("numpy",)) for _ in range(2)]
    assert [episode.run() for episode in runs] == [30, 30]
    assert runs[0].trail == runs[1].trail
    assert runs[0].trail != Episode(1005, ("numpy",)).trail
