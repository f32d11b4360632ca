"""The number of finished steps: what a kernel and every library can count, and a clear error beyond."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from support.libraries import BY_NAME

import portopt

LAST = 2**31 - 1
libraries = pytest.mark.parametrize("library", ["numpy", "torch", "array_api_strict"])


@libraries
@pytest.mark.parametrize("planned", [False, True], ids=["unplanned", "planned"])
@pytest.mark.parametrize(
    "step", [LAST, 2**32, 2**53, 2**63 - 1, 2**64 + 5, 10**400, 10**5000], ids=lambda step: f"{step.bit_length()} bits"
)
@pytest.mark.parametrize("rule", [portopt.Adam, portopt.Nadam])
def test_step_beyond_the_last_is_refused(rule: type[portopt.Optimizer], step: int, planned: bool, library: str) -> None:
    optimizer = rule()
    (w, g) = BY_NAME[library].arrays([np.ones(3, np.float32)] * 2)
    state = optimizer.init(w)
    if planned and library != "array_api_strict":
        for _ in range(3):
            state = optimizer.apply_(w, g, state)
    before = np.array(BY_NAME[library].numpy(w))
    given = str(step) if step < 2**128 else "a number of more than 128 bits"
    message = f"state.step must be at most {LAST - 1} before a step, but {given} was given: portopt counts {LAST} steps"
    for apply in (optimizer.apply, optimizer.apply_):
        with pytest.raises(ValueError, match=re.escape(message)):
            apply(w, g, state._replace(step=step))
    assert (BY_NAME[library].numpy(w) == before).all()


@libraries
def test_the_last_step_is_done(library: str) -> None:
    optimizer = portopt.Adam(0.5)
    (w, g) = BY_NAME[library].arrays([np.ones(3, np.float32)] * 2)
    state = optimizer.init(w)._replace(step=LAST - 1)
    new: Any
    new, after = optimizer.apply(w, g, state)
    assert after.step == LAST
    with portopt.interpreted():
        expected = optimizer.apply(w, g, state)[0]
    assert np.asarray(new).tolist() == np.asarray(expected).tolist()


def test_a_state_after_the_last_step_can_be_saved(tmp_path: Any) -> None:
    optimizer, w = portopt.SGD(), {"w": np.ones(3, np.float32)}
    state = optimizer.init(w)._replace(step=LAST)
    portopt.save(tmp_path / "file", optimizer, w, state)
    assert portopt.load(tmp_path / "file")[2].step == LAST
