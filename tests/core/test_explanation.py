"""What `explain` says of a step is the way that it goes."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
from support.libraries import BY_NAME, Library, each_planned

import portopt
from portopt import step
from portopt.kernels.host import kernel


def arguments(library: Library, optimizer: portopt.Optimizer, build: Any = lambda w, b: {"w": w, "b": b}) -> Any:
    params, grads = (build(*library.arrays([np.ones((2, 3), np.float32), np.ones(3, np.float32)])) for _ in range(2))
    return params, grads, optimizer.init(params)


@each_planned
@pytest.mark.parametrize("in_place", [False, True])
def test_the_way_that_is_named_is_the_way_that_is_gone(
    in_place: bool, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = portopt.Adam()
    params, grads, state = arguments(library, optimizer)
    checked: list[str] = []
    do_step = step.do_step

    def noted(*given: Any, **options: Any) -> Any:
        checked.append("checked")
        return do_step(*given, **options)

    monkeypatch.setattr(step, "do_step", noted)
    expected = ["checked", "checked", "planned"] if in_place else ["checked", "planned", "planned"]
    for way in expected:
        found = portopt.explain(optimizer, params, grads, state, in_place=in_place)
        assert found.path == way, found
        del checked[:]
        if in_place:
            state = optimizer.apply_(params, grads, state)
        else:
            params, state = optimizer.apply(params, grads, state)
        assert (checked or ["planned"]) == [way]


@each_planned
def test_explaining_changes_nothing(library: Library) -> None:
    optimizer = portopt.Nadam(clipnorm=1.0)
    params, grads, state = arguments(library, optimizer)
    before = library.numpy((params, grads)), state.step, list(optimizer._cache.pure_plans)
    portopt.explain(optimizer, params, grads, state, learning_rate=0.5)
    np.testing.assert_equal((library.numpy((params, grads)), state.step, list(optimizer._cache.pure_plans)), before)


def reason(optimizer: portopt.Optimizer, *given: Any, **options: Any) -> str:
    return str(portopt.explain(optimizer, *given, **options))


def test_why_a_step_is_not_planned() -> None:
    numpy, torch = BY_NAME["numpy"], BY_NAME["torch"]
    optimizer = portopt.Adam()
    params, grads, state = arguments(numpy, optimizer)
    assert reason(optimizer, params, grads, state) == (
        "checked: no earlier step of this optimizer was like it; this one makes a plan"
    )
    assert reason(optimizer, params, grads, state, in_place=True).endswith(
        "a second one on the same arrays makes a plan"
    )
    transposed = {**params, "w": np.ones((3, 2), np.float32).T}
    assert reason(optimizer, transposed, grads, state) == (
        'checked: params["w"], of type ndarray, is no C-contiguous array of numpy itself in host memory'
    )
    assert "deque" not in reason(optimizer, *arguments(numpy, optimizer, lambda w, b: [w, (b,)]))
    in_deques = arguments(numpy, optimizer, lambda w, b: deque([w, b]))
    assert "containers other than dict" in reason(optimizer, *in_deques)
    assert "no parameter has a gradient" in reason(optimizer, params, {"w": None, "b": None}, state)
    given = arguments(torch, optimizer, lambda w, b: [w.to("meta"), b.to("meta")])
    assert reason(optimizer, *given) == (
        "operation by operation: there are kernels for tensors in host memory and on CUDA devices only"
    )


def test_why_a_step_is_done_operation_by_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    library, multiplying = BY_NAME["numpy"], portopt.Muon()
    given = arguments(library, multiplying)
    assert reason(multiplying, *given).startswith("operation by operation: no kernel holds all of the program")
    optimizer = portopt.Adam()
    with portopt.interpreted():
        assert "portopt.interpreted()" in reason(optimizer, *arguments(library, optimizer))
    monkeypatch.setattr(kernel, "available", lambda: False)
    assert "numba, which compiles the kernels, is not installed" in reason(optimizer, *arguments(library, optimizer))


@pytest.mark.parametrize("name", sorted({"jax", "array_api_strict"} & BY_NAME.keys()))
def test_steps_of_other_libraries_are_explained(name: str) -> None:
    optimizer = portopt.SGD()
    found = portopt.explain(optimizer, *arguments(BY_NAME[name], optimizer))
    assert ("this one makes a plan" in str(found)) == (name == "jax"), found
    assert ("no kernels for arrays of array_api_strict" in str(found)) == (name == "array_api_strict"), found


def test_wrong_arguments_have_the_errors_of_the_step() -> None:
    optimizer = portopt.SGD()
    params, grads, state = arguments(BY_NAME["numpy"], optimizer)
    with pytest.raises(ValueError, match="structure of params"):
        portopt.explain(optimizer, params, list(grads.values()), state)
    params["w"].flags.writeable = False
    with pytest.raises(TypeError, match="read-only"):
        portopt.explain(optimizer, params, grads, state, in_place=True)
    assert portopt.explain(optimizer, params, grads, state).path == "checked"
