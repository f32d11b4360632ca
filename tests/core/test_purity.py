"""`apply` leaves what it is given alone, and takes arrays of any layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.bits import Array, assert_same_bits, ordinary, random_words
from support.libraries import BY_NAME, RUNS, Library, Run, each_library
from support.turns import rules_in_turn

import portopt

KINDS = (portopt.SGD, portopt.Adam, portopt.LAMB)
PURE = [run for run in RUNS if run.mode_name != "apply_"]


def data(seed: int) -> dict[str, Array]:
    return {
        "a": random_words((4, 5), "float32", seed),
        "b": ordinary((7,), "float32", seed),
        "c": ordinary((), "float32", seed),
    }


@pytest.mark.parametrize("run", PURE, ids=str)
@pytest.mark.parametrize("rule", [portopt.SGD, portopt.Adam, portopt.Nadam])
def test_apply_leaves_inputs_untouched(rule: type[portopt.Optimizer], run: Run) -> None:
    library, optimizer = run.library, rule(clipnorm=1.0, clipvalue=0.5)
    params, grads = library.arrays(data(1)), library.arrays(data(2))
    state = optimizer.init(params)
    _, state = optimizer.apply(params, grads, state)
    before = library.numpy_state(state, tuple(optimizer.scalar_slots))
    step = run.mode.step(optimizer)
    step(params, grads, state)
    after = library.numpy_state(state, tuple(optimizer.scalar_slots))
    for name in ("a", "b", "c"):
        assert_same_bits(library.numpy(params[name]), data(1)[name])
        assert_same_bits(library.numpy(grads[name]), data(2)[name])
        for slot in before.slots.keys() - set(optimizer.scalar_slots):
            if before.slots[slot][name] is not None:
                assert_same_bits(after.slots[slot][name], before.slots[slot][name])
    assert after.step == before.step == 1
    assert [after.slots[name] for name in optimizer.scalar_slots] == [
        before.slots[name] for name in optimizer.scalar_slots
    ]


@pytest.mark.parametrize("rule", rules_in_turn(portopt.RULES, 4, always=KINDS))
def test_inputs_may_be_read_only(rule: type[portopt.Optimizer]) -> None:
    """An in-place write anywhere would raise."""
    optimizer = rule(clipnorm=1.0, clipvalue=0.5)
    params, grads = data(1), data(2)
    state = optimizer.init(params)
    expected, _ = optimizer.apply(params, grads, state)
    for array in [
        *params.values(),
        *grads.values(),
        *(a for name in optimizer.slots for a in state.slots.get(name, {}).values() if a is not None),
    ]:
        array.flags.writeable = False
    new, new_state = optimizer.apply(params, grads, state)
    for name in params:
        assert_same_bits(new[name], expected[name])
        assert new[name].flags.writeable
    optimizer.apply_(new, grads, new_state)


@pytest.mark.parametrize("run", PURE, ids=str)
def test_gradient_may_be_the_parameter_itself(run: Run) -> None:
    library, optimizer = run.library, portopt.Adam(0.5)
    host = ordinary((50,), "float32", 1)
    expected, _ = optimizer.apply(host, host.copy(), optimizer.init(host))
    params = library.arrays(host)
    new, _ = run.mode.step(optimizer)(params, params, optimizer.init(params))
    assert_same_bits(library.numpy(new), expected)
    assert_same_bits(library.numpy(params), host)


@pytest.mark.parametrize("run", PURE, ids=str)
def test_one_array_may_be_several_parameters(run: Run) -> None:
    library, optimizer = run.library, portopt.SGD(0.5)
    array = library.arrays(ordinary((3,), "float32", 1))
    params = {"a": array, "b": array}
    grads = library.arrays({"a": np.ones(3, np.float32), "b": np.zeros(3, np.float32)})
    new, _ = run.mode.step(optimizer)(params, grads, optimizer.init(params))
    assert_same_bits(library.numpy(new["a"]), ordinary((3,), "float32", 1) - np.float32(0.5))
    assert_same_bits(library.numpy(new["b"]), ordinary((3,), "float32", 1))


class Passing(portopt.Optimizer):
    """Returns what it was given: a result must be an array of its own all the same."""

    slots = ("last", "same", "constant")

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p, {"last": g, "same": g, "constant": xp.ones_like(p)}


@pytest.mark.parametrize("interpreted", [False, True], ids=["fused", "interpreted"])
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_results_share_no_memory(name: str, interpreted: bool) -> None:
    library, optimizer = BY_NAME[name], Passing()
    p, g = library.arrays(ordinary((4,), "float32", 1)), library.arrays(ordinary((4,), "float32", 2))
    state = optimizer.init(p)
    if interpreted:
        with portopt.interpreted():
            new, new_state = optimizer.apply(p, g, state)
    else:
        new, new_state = optimizer.apply(p, g, state)
    arrays = [p, g, *state.slots.values(), new, *new_state.slots.values()]
    values = [library.numpy(array) for array in arrays]
    for i, array in enumerate(arrays):
        array[...] = 77.0
        for j, (other, value) in enumerate(zip(arrays, values, strict=True)):
            if j > i:
                assert_same_bits(library.numpy(other), value, f"array {j} after a change of array {i}")


def test_state_given_is_not_the_state_returned() -> None:
    optimizer = portopt.Adam()
    p = np.ones(2)
    state = optimizer.init({"w": p})
    _, new = optimizer.apply({"w": p}, {"w": p}, state)
    assert state.step == 0
    assert new.slots is not state.slots
    assert np.all(state.slots["m"]["w"] == 0)


# Layouts

NUMPY_LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "Fortran order": np.asfortranarray,
    "transposed": lambda x: x.T.copy().T,
    "every second": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "unaligned": lambda x: np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
}
TORCH_LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda x: x.T.clone(memory_format=torch.contiguous_format).T,
    "every second": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "part of a storage": lambda x: torch.cat([x, x])[x.shape[0] :],
}
LAYOUTS = [("numpy", layout) for layout in NUMPY_LAYOUTS] + [("torch", layout) for layout in TORCH_LAYOUTS]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
@pytest.mark.parametrize("which", ["params", "grads", "slots", "all"])
def test_layout_of_the_memory_does_not_matter(which: str, name: str, layout: str) -> None:
    library, optimizer = BY_NAME[name], portopt.Adam(0.5, clipnorm=1.0)
    change: Callable[[Any], Any] = NUMPY_LAYOUTS[layout] if name == "numpy" else TORCH_LAYOUTS[layout]
    p, g = (library.arrays(ordinary((6, 10), "float32", seed)) for seed in (1, 2))
    p, state = optimizer.apply(p, g, optimizer.init(p))
    expected, expected_state = optimizer.apply(p, g, state)
    if which in ("params", "all"):
        p = change(p)
    if which in ("grads", "all"):
        g = change(g)
    if which in ("slots", "all"):
        state = state._replace(slots={slot: change(array) for slot, array in state.slots.items()})
    actual, actual_state = optimizer.apply(p, g, state)
    assert_same_bits(library.numpy(actual), library.numpy(expected))
    for slot in optimizer.slots:
        assert_same_bits(library.numpy(actual_state.slots[slot]), library.numpy(expected_state.slots[slot]))


def test_gradient_may_be_a_broadcast_view() -> None:
    optimizer, expected = portopt.Adam(0.5), None
    host = ordinary((6, 10), "float32", 1)
    row = ordinary((10,), "float32", 2)
    expected = optimizer.apply(host, np.tile(row, (6, 1)), optimizer.init(host))[0]
    assert_same_bits(optimizer.apply(host, np.broadcast_to(row, (6, 10)), optimizer.init(host))[0], expected)
    p = torch.from_numpy(host)
    actual = optimizer.apply(p, torch.from_numpy(row).expand(6, 10), optimizer.init(p))[0]
    assert_same_bits(actual.numpy(), expected)


@pytest.mark.parametrize("run", PURE, ids=str)
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (), (1,), (1, 1, 1), (2, 3, 4, 5)], ids=str)
def test_any_shape(shape: tuple[int, ...], run: Run) -> None:
    library, optimizer = run.library, portopt.Adam(0.5, clipnorm=1.0)
    p, g = ordinary(shape, "float32", 1), ordinary(shape, "float32", 2)
    expected, expected_state = optimizer.apply(p, g, optimizer.init(p))
    assert expected.shape == shape
    params = library.arrays(p)
    actual, state = run.mode.step(optimizer)(params, library.arrays(g), optimizer.init(params))
    assert_same_bits(library.numpy(actual), expected)
    assert_same_bits(library.numpy(state.slots["v"]), expected_state.slots["v"])


@each_library
def test_scalars_stay_arrays(library: Library) -> None:
    optimizer = portopt.SGD(0.5)
    p = library.arrays(np.asarray(1.0, np.float32))
    new, state = optimizer.apply(p, p, optimizer.init(p))
    for result in (new, state.slots["moment"]):
        assert type(result) is type(p)
        assert tuple(result.shape) == ()
    new, state = optimizer.apply(new, p, state)
    assert library.numpy(new) == 0.0


@each_library
def test_init_leaves_parameters_alone_and_starts_from_zero(library: Library) -> None:
    params = library.arrays(data(1))
    state = portopt.Adam(amsgrad=True).init(params)
    assert (state.step, set(state.slots)) == (0, {"m", "v", "vhat"})
    for name in data(1):
        assert_same_bits(library.numpy(params[name]), data(1)[name])
        for slot in state.slots.values():
            assert_same_bits(library.numpy(slot[name]), np.zeros(data(1)[name].shape, np.float32))


@pytest.mark.parametrize("rule", portopt.RULES)
def test_overflow_and_nan_give_no_warnings(rule: type[portopt.Optimizer]) -> None:
    """Warnings are errors in the tests."""
    optimizer = rule(learning_rate=1e30, clipnorm=1e-30)
    p, g = random_words((2000,), "float32", 1), random_words((2000,), "float32", 2)
    # Scalars of a rule overflow on the host, with kernels or without.
    for interpreted in (False, True) if rule in rules_in_turn(portopt.RULES, 5, always=KINDS) else (True,):
        state = optimizer.init(p)
        if interpreted:
            with portopt.interpreted():
                optimizer.apply(p, g, state)
        else:
            optimizer.apply(p, g, state)
