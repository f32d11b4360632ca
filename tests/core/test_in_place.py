"""`apply_`: the bits of `apply` in the memory that is there, seen by autograd, all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support.bits import Array, assert_same_bits, assert_same_float, ordinary, random_words
from support.libraries import BY_NAME, IN_PLACE, Library
from support.turns import in_turn, in_turns

import portopt

each_library = pytest.mark.parametrize("library", IN_PLACE, ids=str)
SHAPES = {"a": (4, 5), "b": (7,), "c": ()}


def tree(make: Callable[..., Array], dtype: str, seed: int) -> dict[str, Array]:
    return {name: make(shape, dtype, seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


def test_libraries_with_changeable_arrays() -> None:
    assert {"numpy", "torch", "array_api_strict"} <= {library.name for library in IN_PLACE}
    assert "jax" not in {library.name for library in IN_PLACE}


WAYS = [
    (make, dtype, library)
    for make in (ordinary, random_words)
    for dtype in ("float32", "float64")
    for library in IN_PLACE
]


@pytest.mark.parametrize(
    ("rule", "way"),
    in_turns(in_turn(portopt.RULES, 0, 2), WAYS, in_all=(portopt.Adam, portopt.LAMB)),
    ids=lambda given: given.__name__ if isinstance(given, type) else f"{given[0].__name__}-{given[1]}-{given[2]}",
)
def test_apply_in_place_gives_the_bits_of_apply(
    rule: type[portopt.Optimizer], way: tuple[Callable[..., Array], str, Library]
) -> None:
    make, dtype, library = way
    optimizer = rule(clipnorm=1.0, clipvalue=0.5)
    params = library.arrays(tree(make, dtype, 1))
    mutable = library.arrays(tree(make, dtype, 1))
    state, mutable_state = optimizer.init(params), optimizer.init(mutable)
    for step in range(1, 4):
        grads = library.arrays(tree(make, dtype, 100 * step))
        if step == 2:
            grads["b"] = None
        params, state = optimizer.apply(params, grads, state)
        mutable_state = optimizer.apply_(mutable, grads, mutable_state)
        assert mutable_state.step == state.step == step
    for name in SHAPES:
        assert_same_bits(library.numpy(mutable[name]), library.numpy(params[name]), name)
        for slot in state.slots.keys() - set(optimizer.scalar_slots):
            one, other = mutable_state.slots[slot][name], state.slots[slot][name]
            assert (one is None) == (other is None)
            if one is not None:
                assert_same_bits(library.numpy(one), library.numpy(other), slot)
    for slot in optimizer.scalar_slots:
        assert_same_float(mutable_state.slots[slot], state.slots[slot])


def address(library: Library, array: Any) -> int:
    if library.name == "array_api_strict":
        return int(array._array.ctypes.data)
    return int(array.data_ptr() if library.name == "torch" else array.ctypes.data)


@each_library
def test_memory_stays_where_it_is(library: Library) -> None:
    optimizer = portopt.Adam()
    params, grads = (library.arrays(tree(ordinary, "float32", seed)) for seed in (1, 50))
    state = optimizer.init(params)
    arrays = [*params.values(), *(a for slot in state.slots.values() for a in slot.values())]
    before = [address(library, a) for a in arrays]
    for _ in range(2):
        state = optimizer.apply_(params, grads, state)
    after = [*params.values(), *(a for slot in state.slots.values() for a in slot.values())]
    assert all(x is y for x, y in zip(after, arrays, strict=True))
    assert [address(library, a) for a in after] == before


@each_library
def test_gradients_are_left_alone(library: Library) -> None:
    optimizer = portopt.Adam(clipnorm=0.1, clipvalue=0.01)
    params, grads = (library.arrays(tree(ordinary, "float32", seed)) for seed in (1, 50))
    optimizer.apply_(params, grads, optimizer.init(params))
    for name, gradient in tree(ordinary, "float32", 50).items():
        assert_same_bits(library.numpy(grads[name]), gradient)


@each_library
@pytest.mark.parametrize("shape", [(0,), (3, 0), ()], ids=str)
def test_empty_and_scalar_arrays(shape: tuple[int, ...], library: Library) -> None:
    optimizer = portopt.Adam(clipnorm=1.0)
    host = np.full(shape, 0.5, np.float32)
    expected, _ = optimizer.apply(host, host, optimizer.init(host))
    params = library.arrays(host)
    state = optimizer.apply_(params, library.arrays(host), optimizer.init(params))
    assert state.step == 1
    assert_same_bits(library.numpy(params), expected)


# Views

VIEWS: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda x: x.T,
    "every second": lambda x: x[::2, 1::2],
    "column": lambda x: x[:, 3],
    "part": lambda x: x[2:5, 2:4],
    "element": lambda x: x[2:3, 3],
    "0-d": lambda x: x[2, 3, ...],
}
BACKWARDS: dict[str, Callable[[Any], Any]] = {
    "reversed": lambda x: x[::-1, ::-1],
    "every second, reversed": lambda x: x[::-2, ::2],
}
CASES = [("numpy", view) for view in (*VIEWS, *BACKWARDS)] + [("torch", view) for view in VIEWS]


@pytest.mark.parametrize(("name", "view"), CASES)
def test_view_is_updated_and_its_surroundings_are_not(name: str, view: str) -> None:
    library, optimizer, take = BY_NAME[name], portopt.Adam(0.5), {**VIEWS, **BACKWARDS}[view]
    host = ordinary((8, 8), "float32", 1)
    base, touched = library.arrays(host), library.arrays(np.zeros((8, 8), np.float32))
    params = take(base)
    grads = library.arrays(ordinary(tuple(params.shape), "float32", 2))
    expected = library.numpy(optimizer.apply(params, grads, optimizer.init(params))[0])
    optimizer.apply_(params, grads, optimizer.init(params))
    assert_same_bits(library.numpy(params), expected)
    take(touched)[...] = 1
    inside = library.numpy(touched) == 1
    assert_same_bits(library.numpy(base)[~inside], host[~inside])
    assert np.all(library.numpy(base)[inside] != host[inside])


def test_array_in_fortran_order_is_updated() -> None:
    optimizer, p, g = portopt.Adam(0.5), ordinary((4, 5), "float32", 1), ordinary((4, 5), "float32", 2)
    expected = optimizer.apply(p, g, optimizer.init(p))[0]
    p = np.asfortranarray(p)
    optimizer.apply_(p, g, optimizer.init(p))
    assert_same_bits(p, expected)


def whole(make: Callable[..., Array] = ordinary) -> Array:
    return make((64,), "float32", 1)


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("offset", [0, 1, 3, -1, -3])
def test_gradient_that_overlaps_its_parameter_is_read_before_it_changes(offset: int, name: str) -> None:
    library, optimizer = BY_NAME[name], portopt.Adam(0.5)
    start = 8
    base = library.arrays(whole())
    params, grads = base[start : start + 32], base[start + offset : start + offset + 32]
    expected = library.numpy(optimizer.apply(params, grads, optimizer.init(params))[0])
    optimizer.apply_(params, grads, optimizer.init(params))
    assert_same_bits(library.numpy(params), expected)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_gradient_that_is_another_parameter_is_read_before_it_changes(name: str) -> None:
    library, optimizer = BY_NAME[name], portopt.SGD(0.5)
    params = library.arrays({"a": ordinary((9,), "float32", 1), "b": ordinary((9,), "float32", 2)})
    crossed = {"a": params["b"], "b": params["a"]}
    expected = library.numpy(optimizer.apply(params, crossed, optimizer.init(params))[0])
    optimizer.apply_(params, crossed, optimizer.init(params))
    for key in ("a", "b"):
        assert_same_bits(library.numpy(params[key]), expected[key])


# Arrays that cannot be changed


def values(array: Any) -> Array:
    return array.detach().numpy().copy() if isinstance(array, torch.Tensor) else array.copy()


def refused(params: Any, kind: type[Exception], state: portopt.OptimizerState | None = None) -> str:
    """Return the error of a step in place, and make sure that nothing has changed."""
    optimizer = portopt.SGD(0.5)
    state = optimizer.init(params) if state is None else state
    grads = {name: p * 0 + 1 for name, p in params.items()}
    held = [*params.values(), *(a for slot in state.slots.values() for a in slot.values())]
    before = [values(a) for a in held]
    with pytest.raises(kind) as caught:
        optimizer.apply_(params, grads, state)
    for array, old in zip(held, before, strict=True):
        assert_same_bits(values(array), old)
    return str(caught.value)


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def f32(*shape: int) -> Array:
    return ordinary(shape, "float32", 1)


def test_read_only_parameter_is_refused() -> None:
    assert refused({"a": f32(3), "b": read_only(f32(3))}, TypeError) == (
        'params["b"] is a read-only NumPy array, so it cannot be changed in place; copy it, or use apply'
    )


def test_read_only_slot_is_refused() -> None:
    params = {"a": f32(3), "b": f32(3)}
    state = portopt.SGD().init(params)
    read_only(state.slots["moment"]["b"])
    assert refused(params, TypeError, state) == (
        "state.slots['moment'][\"b\"] is a read-only NumPy array, so it cannot be changed in place; copy it, or use apply"
    )


def test_read_only_gradient_is_fine() -> None:
    optimizer, params = portopt.SGD(0.5), np.ones(3)
    optimizer.apply_(params, read_only(np.ones(3)), optimizer.init(params))
    assert_same_bits(params, np.full(3, 0.5))


def test_broadcast_array_is_refused() -> None:
    text = refused({"a": f32(3), "b": np.broadcast_to(f32(1), (3,))}, TypeError)
    assert text.startswith('params["b"] is a read-only NumPy array')


@pytest.mark.parametrize(("shape", "strides"), [((3,), (0,)), ((3, 3), (4, 4)), ((4,), (2,))], ids=str)
def test_numpy_view_whose_own_elements_overlap_is_refused(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    params = {"a": f32(3), "b": np.lib.stride_tricks.as_strided(f32(16), shape, strides)}
    assert refused(params, TypeError) == (
        'params["b"] is a view whose elements share memory, so it cannot be changed in place; copy it, or use apply'
    )


def test_numpy_view_with_strides_of_its_own_is_fine() -> None:
    optimizer, base = portopt.SGD(1.0), np.zeros(16, np.float32)
    params = np.lib.stride_tricks.as_strided(base, (2, 2), (8, 4))
    optimizer.apply_(params, np.ones((2, 2), np.float32), optimizer.init(params))
    assert_same_bits(base, np.repeat(np.asarray([-1, 0], np.float32), (4, 12)))


@pytest.mark.parametrize("expanded", [torch.ones(1).expand(3), torch.ones(3, 1).expand(3, 2)], ids=["1-d", "2-d"])
def test_expanded_tensor_is_refused(expanded: torch.Tensor) -> None:
    text = refused({"a": torch.ones(3), "b": expanded}, TypeError)
    assert text.startswith('params["b"] is ')
    assert "elements share memory, so it cannot be changed in place; " in text
    assert text.endswith("or use apply")


@each_library
def test_array_that_is_two_parameters_is_refused(library: Library) -> None:
    array = library.arrays(f32(3))
    optimizer = portopt.SGD()
    params = {"a": array, "b": array}
    with pytest.raises(ValueError, match=r'params\["[ab]"\] and params\["[ab]"\] ') as caught:
        optimizer.apply_(params, params, optimizer.init(params))
    assert str(caught.value).endswith(
        "so an update in place would change it twice; give each its own array, or use apply"
    )
    assert_same_bits(library.numpy(array), f32(3))


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_parameters_that_share_memory_are_refused(name: str) -> None:
    base = BY_NAME[name].arrays(f32(8))
    text = refused({"a": base[:5], "b": base[4:]}, ValueError)
    assert text == (
        'params["a"] and params["b"] share memory, so an update in place would change it twice; '
        "give each its own array, or use apply"
    )


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_parameter_and_slot_that_share_memory_are_refused(name: str) -> None:
    params = {"w": BY_NAME[name].arrays(f32(8))}
    state = portopt.OptimizerState(0, {"moment": {"w": params["w"]}})
    text = refused(params, ValueError, state)
    assert 'params["w"]' in text
    assert "state.slots['moment'][\"w\"]" in text


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_shared_memory_is_seen_past_a_view_in_between(name: str) -> None:
    base = BY_NAME[name].arrays(f32(10))
    text = refused({"a": base[::2], "b": base[1:2], "c": base[4:5]}, ValueError)
    assert text.startswith('params["a"] and params["c"] share memory')


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_interleaved_views_that_share_no_element_are_fine(name: str) -> None:
    library, optimizer = BY_NAME[name], portopt.SGD(1.0)
    base = library.arrays(np.zeros((4, 6), np.float32))
    params = {"a": base[:, :3], "b": base[:, 3:5]}
    grads = library.arrays({"a": np.full((4, 3), 1, np.float32), "b": np.full((4, 2), 2, np.float32)})
    optimizer.apply_(params, grads, optimizer.init(params))
    assert_same_bits(library.numpy(base), np.tile(np.asarray([-1, -1, -1, -2, -2, 0], np.float32), (4, 1)))


def test_jax_arrays_are_refused_with_the_remedy() -> None:
    optimizer, params = portopt.SGD(), jnp.ones(2)
    with pytest.raises(TypeError) as caught:
        optimizer.apply_(params, params, optimizer.init(params))
    assert str(caught.value) == (
        "JAX arrays cannot be changed in place: use params, state = opt.apply(params, grads, state), and donate the arguments "
        "of your jitted step to save the memory"
    )


# All or nothing


@each_library
@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"grads": {"b": np.zeros(4, np.float32)}}, ValueError),
        ({"grads": {"b": np.zeros(3, np.int32)}}, TypeError),
        ({"hyperparameters": {"learning_rate": -1.0}}, ValueError),
        ({"hyperparameters": {"learning_rate": np.asarray(np.nan)}}, ValueError),
        ({"hyperparameters": {"speed": 1.0}}, TypeError),
        ({"step": -1}, ValueError),
        ({"schedule": lambda step: -1.0}, ValueError),
        ({"schedule": lambda step: 1 / 0}, ZeroDivisionError),
    ],
    ids=["shape", "dtype", "range", "NaN", "unknown", "step", "schedule range", "schedule error"],
)
def test_nothing_changes_when_an_error_is_raised(
    wrong: dict[str, Any], kind: type[Exception], library: Library
) -> None:
    optimizer = portopt.Adam(wrong.get("schedule", 0.5))
    names = ("a", "b", "c")
    host = {name: ordinary((3,), "float32", i) for i, name in enumerate(names)}
    params = library.arrays(host)
    state = optimizer.init(params)
    grads = library.arrays({**host, **wrong.get("grads", {})})
    with pytest.raises(kind):
        optimizer.apply_(params, grads, state._replace(step=wrong.get("step", 0)), **wrong.get("hyperparameters", {}))
    for name in names:
        assert_same_bits(library.numpy(params[name]), host[name], name)
        for slot in optimizer.slots:
            assert_same_bits(library.numpy(state.slots[slot][name]), np.zeros(3, np.float32), slot)


# torch: autograd


def test_leaf_that_requires_grad_is_trained() -> None:
    optimizer = portopt.SGD(0.25)
    w = torch.ones(2, requires_grad=True)
    state = optimizer.init(w)
    for expected in (0.5, 0.25, 0.125):
        w.grad = None
        (w**2).sum().backward()  # type: ignore[no-untyped-call]  # torch's own annotation
        state = optimizer.apply_(w, w.grad, state)
        assert torch.equal(w, torch.full((2,), expected))
    assert w.is_leaf
    assert w.requires_grad
    assert w.grad_fn is None
    assert not state.slots["moment"].requires_grad


def test_module_parameters_are_trained() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    params = dict(layer.named_parameters())
    optimizer = portopt.SGD(0.5)
    before = {name: p.detach().clone() for name, p in params.items()}
    layer(torch.ones(1, 3)).sum().backward()
    grads = {name: p.grad for name, p in params.items()}
    optimizer.apply_(params, grads, optimizer.init(params))
    for name, p in layer.named_parameters():
        assert torch.equal(p, before[name] - 0.5)


@pytest.mark.parametrize("interpreted", [False, True], ids=["fused", "interpreted"])
def test_backward_through_a_tensor_changed_in_place_raises(interpreted: bool) -> None:
    optimizer = portopt.SGD(0.25)
    w = torch.ones(2, requires_grad=True)
    loss = (w**2).sum()  # saves w
    version = w._version
    if interpreted:
        with portopt.interpreted():
            optimizer.apply_(w, torch.ones(2), optimizer.init(w))
    else:
        optimizer.apply_(w, torch.ones(2), optimizer.init(w))
    assert w._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation


def test_version_of_a_tensor_without_gradient_stays() -> None:
    optimizer = portopt.SGD(0.25)
    params = {"moved": torch.ones(2, requires_grad=True), "kept": torch.ones(2, requires_grad=True)}
    loss = (params["kept"] ** 2).sum()
    optimizer.apply_(params, {"moved": torch.ones(2), "kept": None}, optimizer.init(params))
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation
    gradient = params["kept"].grad
    assert gradient is not None
    assert torch.equal(gradient, torch.full((2,), 2.0))


def test_step_is_not_recorded_by_autograd() -> None:
    optimizer = portopt.Adam()
    w = torch.ones(2, requires_grad=True)
    grads = (w * 3).detach().requires_grad_()
    new, state = optimizer.apply(w, grads, optimizer.init(w))
    assert new.requires_grad
    assert new.is_leaf
    assert not state.slots["m"].requires_grad
    assert state.slots["m"].grad_fn is None
    plain, _ = optimizer.apply(w.detach(), grads, optimizer.init(w))
    assert not plain.requires_grad


@each_library
def test_hyperparameters_for_one_step_are_read_in_the_midst_of_a_loop(library: Library) -> None:
    """When the steps before were all alike, and the backend has prepared the next one."""
    optimizer = portopt.SGD(0.5)
    params, grads = library.arrays(np.ones(3, np.float32)), library.arrays(np.ones(3, np.float32))
    state = optimizer.init(params)
    for _ in range(4):
        state = optimizer.apply_(params, grads, state)
    state = optimizer.apply_(params, grads, state, lr=0.25)
    for wrong, error in (({"rate": 0.5}, TypeError), ({"lr": -1.0}, ValueError), ({"nesterov": True}, TypeError)):
        with pytest.raises(error, match=r"^SGD\.apply"):
            optimizer.apply_(params, grads, state, **wrong)
    assert library.numpy(params).tolist() == [1 - 4 * 0.5 - 0.25] * 3
