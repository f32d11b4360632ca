"""Further trees beside the gradients: steps with and without them, in every library and mode, and what is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

import portopt

SHAPES = {"a": (3, 4), "b": (7,)}


class Preconditioned(portopt.Optimizer):
    """Momentum, divided by a diagonal that some of the steps are given."""

    slots: ClassVar[tuple[str, ...]] = ("m", "h")
    inputs: ClassVar[tuple[str, ...]] = ("hessian",)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, *, hessian: Any) -> Any:
        m = 0.9 * slots.m + 0.1 * g
        h = slots.h if hessian is None else 0.9 * slots.h + 0.1 * hessian
        return p - c.lr * m / xp.maximum(h, 1e-3), {"m": m, "h": h}


def tree(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def after_steps(
    array: Callable[[Any], Any], *, in_place: bool = False, jit: Callable[[Any], Any] | None = None, leave_out: str = ""
) -> list[bytes]:
    """Return the words of parameters and slots after five steps, of which the first and fourth are given the diagonal."""
    optimizer = Preconditioned(0.1)
    params, grads = ({n: array(a.copy()) for n, a in tree(seed).items()} for seed in (1, 2))
    hessian = {n: None if n == leave_out else array(np.abs(a)) for n, a in tree(3).items()}
    state, apply = optimizer.init(params), (jit or (lambda f: f))(optimizer.apply)
    for i in range(5):
        given: dict[str, Any] = {"hessian": hessian} if i % 3 == 0 else {}
        if in_place:
            state = optimizer.apply_(params, grads, state, **given)
        else:
            params, state = apply(params, grads, state, **given)
    return [np.asarray(a).tobytes() for t in (params, state.slots["m"], state.slots["h"]) for a in t.values()]


@pytest.mark.parametrize("leave_out", ["", "b"])
def test_steps_with_inputs_have_the_same_bits_interpreted_compiled_and_in_place(leave_out: str) -> None:
    with portopt.interpreted():
        expected = after_steps(np.asarray, leave_out=leave_out)
    assert after_steps(np.asarray, leave_out=leave_out) == expected
    assert after_steps(np.asarray, leave_out=leave_out, in_place=True) == expected


@pytest.mark.needs("numba")
@pytest.mark.parametrize("library", ["numpy", pytest.param("torch", marks=pytest.mark.needs("torch"))])
def test_steps_with_and_without_inputs_are_both_planned(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array: Any = np.asarray if library == "numpy" else importlib.import_module("torch").tensor
    optimizer, expected, params = Preconditioned(0.1), tree(1), {n: array(a) for n, a in tree(1).items()}
    state, expected_state = optimizer.init(params), optimizer.init(expected)
    for i in range(12):
        if i == 8:  # each of the two has been done four times
            monkeypatch.setattr("portopt.step.do_step", lambda *_, **__: pytest.fail("a step was not planned"))
        grads, diagonal = ({n: array(a) for n, a in tree(seed + i).items()} for seed in (100, 200))
        given: dict[str, Any] = {"hessian": diagonal} if i % 2 else {}
        state = optimizer.apply_(params, grads, state, **given)
    monkeypatch.undo()
    with portopt.interpreted():
        for i in range(12):
            given = {"hessian": tree(200 + i)} if i % 2 else {}
            expected, expected_state = optimizer.apply(expected, tree(100 + i), expected_state, **given)
    for name in SHAPES:
        assert np.asarray(params[name]).tobytes() == expected[name].tobytes()
        assert np.asarray(state.slots["h"][name]).tobytes() == expected_state.slots["h"][name].tobytes()


@pytest.mark.needs("numba")
def test_a_planned_step_sees_that_an_input_does_not_fit() -> None:
    optimizer, params, grads = Preconditioned(0.1), tree(1), tree(2)
    state = optimizer.init(params)
    for _ in range(4):
        state = optimizer.apply_(params, grads, state, hessian=tree(3))
    before = {name: p.copy() for name, p in params.items()}
    with pytest.raises(ValueError, match="hessian"):
        optimizer.apply_(params, grads, state, hessian={**tree(3), "a": np.zeros((4, 3), np.float32)})
    with pytest.raises(ValueError, match="hessian"):
        optimizer.apply_(params, grads, state, hessian={"a": tree(3)["a"]})
    assert all((params[name] == before[name]).all() for name in params)
    with pytest.raises((TypeError, ValueError)):
        optimizer.check_step(params, (grads, tree(3)), state)
    # What the step overwrites may be given as an input too.
    expected = {name: p.copy() for name, p in params.items()}
    expected_state = portopt.OptimizerState(
        state.step, {n: {k: a.copy() for k, a in s.items()} for n, s in state.slots.items()}
    )
    optimizer.apply_(params, grads, state, hessian=params)
    optimizer.apply_(expected, grads, expected_state, hessian={name: p.copy() for name, p in expected.items()})
    assert all((params[name] == expected[name]).all() for name in params)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("leave_out", ["", "b"])
def test_torch_has_the_bits_of_numpy_with_inputs(leave_out: str) -> None:
    torch = importlib.import_module("torch")
    expected = after_steps(np.asarray, leave_out=leave_out)
    assert after_steps(torch.tensor, leave_out=leave_out) == expected
    assert after_steps(torch.tensor, leave_out=leave_out, in_place=True) == expected


@pytest.mark.needs("jax")
@pytest.mark.parametrize("leave_out", ["", "b"])
def test_jax_has_the_bits_of_numpy_with_inputs(leave_out: str) -> None:
    jax = importlib.import_module("jax")
    expected = after_steps(np.asarray, leave_out=leave_out)
    assert after_steps(jax.numpy.asarray, leave_out=leave_out) == expected
    assert after_steps(jax.numpy.asarray, leave_out=leave_out, jit=jax.jit) == expected


def test_an_input_may_share_memory_with_what_a_step_in_place_writes() -> None:
    optimizer, params, grads = Preconditioned(0.1), tree(1), tree(2)
    expected, _ = optimizer.apply(params, grads, optimizer.init(params), hessian=params)
    optimizer.apply_(params, grads, optimizer.init(params), hessian=params)
    assert {n: a.tobytes() for n, a in params.items()} == {n: a.tobytes() for n, a in expected.items()}


def test_an_input_stays_one_program_with_one_more_column() -> None:
    program = Preconditioned().program({"hessian": True})
    assert program.is_elementwise
    assert program.further_inputs == ("hessian",)
    assert Preconditioned().program().further_inputs == ()


def test_a_loop_whose_steps_lack_the_input_is_planned() -> None:
    optimizer, params, grads = Preconditioned(0.1), tree(1), tree(2)
    state = optimizer.init(params)
    for _ in range(3):
        state = optimizer.apply_(params, grads, state)
    before = params["a"].copy()
    state = optimizer.apply_(params, grads, state, hessian=tree(3))
    assert not np.array_equal(before, params["a"])
    assert state.slots["h"]["a"].any()


@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        ({"a": np.ones((3, 4), np.float32)}, r"hessian must have the structure of params: .*\['b'\]|\[\"b\"\]"),
        (
            {"a": np.ones((4, 3), np.float32), "b": np.ones(7, np.float32)},
            r'hessian\["a"\] has shape \(4, 3\), but params\["a"\] has shape \(3, 4\)',
        ),
        ({"a": 1.0, "b": np.ones(7, np.float32)}, r'hessian\["a"\] is 1.0 of type float, which is no array'),
    ],
)
def test_inputs_that_do_not_fit_are_refused_and_nothing_is_changed(hessian: Any, message: str) -> None:
    optimizer, params, grads = Preconditioned(0.1), tree(1), tree(2)
    state = optimizer.init(params)
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.apply_(params, grads, state, hessian=hessian)
    assert params["a"].tobytes() == tree(1)["a"].tobytes()


def test_an_unknown_input_is_refused_with_the_name_that_was_meant() -> None:
    optimizer, params = Preconditioned(0.1), tree(1)
    with pytest.raises(TypeError, match=r"got an unknown argument 'hesian'; did you mean 'hessian'\?"):
        optimizer.apply(params, tree(2), optimizer.init(params), hesian=tree(3))


def test_an_input_that_the_rule_has_not_is_refused() -> None:
    optimizer, params = portopt.SGD(0.1), tree(1)
    with pytest.raises(TypeError, match=r"SGD.apply got an unknown argument 'hessian'; .*allowed are"):
        optimizer.apply(params, tree(2), optimizer.init(params), hessian=tree(3))


@pytest.mark.parametrize("taken", ["p", "g", "learning_rate", "m", "grads", "no name"])
def test_a_name_of_something_else_is_refused_as_an_input(taken: str) -> None:
    with pytest.raises(TypeError, match=rf"Wrong has an input {taken!r}, .*"):
        type("Wrong", (portopt.Optimizer,), {"slots": ("m",), "inputs": (taken,)})


def test_inputs_are_a_tuple_of_names() -> None:
    with pytest.raises(TypeError, match=r"Wrong inputs must be a tuple of names, such as \('hessian',\)"):
        type("Wrong", (portopt.Optimizer,), {"inputs": "hessian"})
