"""Trees of parameters: nesting, missing gradients, and errors that name the leaf."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support.bits import assert_same_bits, ordinary
from support.libraries import LIBRARIES, Library, each_library

import portopt


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def a(seed: int, shape: tuple[int, ...] = (2, 3)) -> Any:
    return ordinary(shape, "float32", seed)


TREES: dict[str, Any] = {
    "one array": a(1),
    "dict": {"kernel": a(1), "bias": a(2, (3,))},
    "list": [a(1), a(2, (3,))],
    "tuple": (a(1), a(2, (3,))),
    "NamedTuple": Layer(a(1), a(2, (3,))),
    "OrderedDict": collections.OrderedDict([("z", a(1)), ("a", a(2, (3,)))]),
    "defaultdict": collections.defaultdict(list, {"z": a(1), "a": a(2, (3,))}),
    "nested": {"layer1": Layer(a(1), [a(2), (a(3, ()),)]), "layer2": {"kernel": a(4)}, "empty": {}, "none": None},
    "integer keys": {3: a(1), 1: a(2)},
}
each_tree = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)


def paired(params: Any, expected: Any) -> list[tuple[Any, Any]]:
    """Return pairs of leaves of two trees, walked in plain Python."""
    if isinstance(params, dict):
        assert type(params) is type(expected)
        assert params.keys() == expected.keys()
        return [pair for key in params for pair in paired(params[key], expected[key])]
    if isinstance(params, list | tuple):
        assert type(params) is type(expected)
        assert len(params) == len(expected)
        return [pair for x, y in zip(params, expected, strict=True) for pair in paired(x, y)]
    return [(params, expected)]


@each_library
@each_tree
def test_every_nesting_keeps_its_structure(tree: Any, library: Library) -> None:
    optimizer = portopt.SGD(0.5, momentum=0.5)
    params = library.arrays(tree)
    state = optimizer.init(params)
    for _ in range(2):
        params, state = optimizer.apply(params, library.arrays(tree), state)
    for new, old in paired(library.numpy(params), tree):
        if old is None:
            assert new is None
        else:
            moment = -np.float32(0.5) * old
            moved = old + moment
            moment = np.float32(0.5) * moment - np.float32(0.5) * old
            assert_same_bits(new, moved + moment)
    for slot, old in paired(library.numpy(state.slots["moment"]), tree):
        assert (slot is None) == (old is None)
        assert slot is None or slot.shape == old.shape


@each_tree
def test_trees_are_updated_in_place(tree: Any) -> None:
    library = LIBRARIES[0]
    optimizer = portopt.Adam(clipnorm=1.0)
    params, grads = library.arrays(tree), library.arrays(tree)
    expected, expected_state = optimizer.apply(params, grads, optimizer.init(params))
    state = optimizer.apply_(params, grads, optimizer.init(params))
    for new, wanted in paired(params, expected):
        if new is not None:
            assert_same_bits(new, wanted)
    for new, wanted in paired(state.slots["v"], expected_state.slots["v"]):
        if new is not None:
            assert_same_bits(new, wanted)


@each_library
def test_order_of_a_dict_does_not_matter(library: Library) -> None:
    optimizer = portopt.SGD(1.0)
    params = library.arrays({"b": a(1), "a": a(2)})
    grads = library.arrays({"a": a(3), "b": a(4)})
    new = library.numpy(optimizer.apply(params, grads, optimizer.init(params))[0])
    assert_same_bits(new["a"], a(2) - a(3))
    assert_same_bits(new["b"], a(1) - a(4))


# None


@each_library
def test_none_as_gradient_leaves_parameter_and_slots(library: Library) -> None:
    optimizer = portopt.Adam()
    params = library.arrays({"used": a(1), "unused": a(2)})
    state = optimizer.init(params)
    for _ in range(2):
        params, state = optimizer.apply(params, library.arrays({"used": a(3), "unused": a(4)}), state)
    new, new_state = optimizer.apply(params, {**library.arrays({"used": a(5)}), "unused": None}, state)
    before, after = library.numpy_state(state), library.numpy_state(new_state)
    assert_same_bits(library.numpy(new["unused"]), library.numpy(params["unused"]))
    assert np.all(library.numpy(new["used"]) != library.numpy(params["used"]))
    for name in ("m", "v"):
        assert_same_bits(after.slots[name]["unused"], before.slots[name]["unused"])
        assert np.all(after.slots[name]["used"] != before.slots[name]["used"])
    assert after.step == 3


@each_library
@pytest.mark.parametrize("clipnorm", [None, 1.0])
def test_all_gradients_may_be_none(library: Library, clipnorm: float | None) -> None:
    optimizer = portopt.Adam(clipnorm=clipnorm)
    params = library.arrays({"w": a(1)})
    new, state = optimizer.apply(params, {"w": None}, optimizer.init(params))
    assert_same_bits(library.numpy(new["w"]), a(1))
    assert state.step == 1


def test_none_as_gradient_does_not_count_in_the_norm() -> None:
    optimizer = portopt.SGD(1.0, clipnorm=1.0)
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    new, _ = optimizer.apply(params, {"a": np.asarray([4.0]), "b": None}, optimizer.init(params))
    assert new["a"] == -1.0


@each_library
def test_none_among_the_parameters_stays(library: Library) -> None:
    optimizer = portopt.SGD(1.0)
    params = {"w": library.arrays(a(1)), "missing": None}
    state = optimizer.init(params)
    assert state.slots["moment"]["missing"] is None
    new, _ = optimizer.apply(params, {"w": library.arrays(a(2)), "missing": None}, state)
    assert new["missing"] is None
    assert_same_bits(library.numpy(new["w"]), a(1) - a(2))


@each_library
def test_gradient_of_a_missing_parameter_is_refused(library: Library) -> None:
    optimizer = portopt.SGD(1.0)
    params = {"w": library.arrays(a(1)), "missing": None}
    grads = library.arrays({"w": a(1), "missing": a(2)})
    with pytest.raises(
        ValueError, match=r'params\["missing"\] is None, so grads\["missing"\] must be None too, but it is \w+'
    ):
        optimizer.apply(params, grads, optimizer.init(params))


@each_library
@pytest.mark.parametrize("tree", [{}, [], (), {"a": {}, "b": []}, None, {"a": None}], ids=repr)
def test_tree_without_arrays_is_refused(tree: Any, library: Library) -> None:
    message = "params holds no array; give an array, or nested dicts, lists and tuples of arrays"
    with pytest.raises(ValueError, match=message):
        portopt.SGD().init(tree)
    with pytest.raises(ValueError, match=message):
        portopt.SGD().apply(tree, tree, portopt.OptimizerState(0, {"moment": tree}))


# Errors that name the leaf


def params_of(library: Library) -> Any:
    return library.arrays({"layer1": {"kernel": a(1), "bias": a(2, (3,))}, "layer2": [a(3), Layer(a(4), a(5, ()))]})


def message(library: Library, kind: type[Exception], change: Any, where: str = "grads") -> str:
    """Return the error of a step whose gradients (or slots) were changed."""
    optimizer = portopt.SGD()
    params, other = params_of(library), params_of(library)
    state = optimizer.init(params)
    other = change(other)
    grads = other if where == "grads" else params
    if where == "slots":
        state = state._replace(slots={"moment": other})
    with pytest.raises(kind) as caught:
        optimizer.apply(params, grads, state)
    return str(caught.value)


def replaced(path: tuple[Any, ...], value: Any) -> Any:
    """Return a function that puts a value at a path of a tree of dicts and lists."""

    def change(tree: Any) -> Any:
        node = tree
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        return tree

    return change


KERNEL = ("layer1", "kernel")


@each_library
def test_difference_in_shape_names_the_leaf(library: Library) -> None:
    text = message(library, ValueError, replaced(KERNEL, library.arrays(a(1, (3, 2)))))
    assert text == (
        'grads["layer1"]["kernel"] has shape (3, 2), but params["layer1"]["kernel"] has shape (2, 3); they must agree'
    )


@each_library
def test_gradient_of_no_float_dtype_names_the_leaf(library: Library) -> None:
    text = message(library, TypeError, replaced(KERNEL, library.arrays(a(1).astype(np.int32))))
    assert text == (
        'grads["layer1"]["kernel"] has dtype int32, but params["layer1"]["kernel"] has dtype float32, whose gradients are '
        "float16 or bfloat16 or float32 or float64; they must agree"
    )


@each_library
def test_difference_in_library_names_the_leaf(library: Library) -> None:
    other = next(x for x in LIBRARIES if x.name != library.name)
    text = message(library, TypeError, replaced(KERNEL, other.arrays(a(1))))
    assert text == (
        f'grads["layer1"]["kernel"] is an array of {other.name}, but params["layer1"]["kernel"] has arrays of {library.name}: '
        f"nothing is moved between libraries silently; convert it to {library.name} first"
    )


@pytest.mark.parametrize("where", ["grads", "slots"])
def test_difference_in_device_names_the_leaf(where: str) -> None:
    library = next(x for x in LIBRARIES if x.name == "torch")
    text = message(library, ValueError, replaced(KERNEL, torch.zeros((2, 3), device="meta")), where)
    name = "grads" if where == "grads" else "state.slots['moment']"
    assert text == (
        f'{name}["layer1"]["kernel"] has device meta, but params["layer1"]["kernel"] has device cpu; they must agree'
    )


@each_library
def test_gradient_that_is_no_array_names_the_leaf(library: Library) -> None:
    text = message(library, TypeError, replaced(KERNEL, "gradient"))
    assert text.startswith(
        'grads["layer1"]["kernel"] is \'gradient\' of type str, which is no array of an installed library; give arrays of NumPy, '
    )


@each_library
def test_missing_leaf_is_named(library: Library) -> None:
    def without(tree: Any) -> Any:
        del tree["layer1"]["kernel"]
        return tree

    text = message(library, ValueError, without)
    assert text == (
        'grads must have the structure of params: params["layer1"]["kernel"] has no counterpart grads["layer1"]["kernel"]'
    )


@each_library
def test_additional_leaf_is_named(library: Library) -> None:
    text = message(library, ValueError, replaced(("layer1", "scale"), library.arrays(a(1))))
    assert text == (
        'grads must have the structure of params: grads["layer1"]["scale"] has no counterpart params["layer1"]["scale"]'
    )


@each_library
def test_shorter_list_is_named(library: Library) -> None:
    text = message(library, ValueError, replaced(("layer2",), library.arrays([a(3)])))
    assert text == (
        'grads must have the structure of params: params["layer2"][1].kernel has no counterpart grads["layer2"][1].kernel'
    )


@each_library
def test_none_in_place_of_a_container_names_the_leaf(library: Library) -> None:
    text = message(library, ValueError, replaced(("layer1",), None))
    assert 'has no counterpart grads["layer1"]["bias"]' in text


@each_library
def test_other_container_is_explained(library: Library) -> None:
    optimizer = portopt.SGD()
    params, grads = library.arrays([a(1), a(2)]), library.arrays((a(1), a(2)))
    with pytest.raises(
        ValueError,
        match=r"grads must have the structure of params: params and grads have the same leaves in different containers "
        r"\(list and tuple at the root\): ",
    ):
        optimizer.apply(params, grads, optimizer.init(params))


@each_library
def test_leaf_of_a_namedtuple_is_named_by_its_field(library: Library) -> None:
    params = params_of(library)
    grads = params_of(library)
    grads["layer2"][1] = Layer(grads["layer2"][1].kernel, library.arrays(a(5, (1,))))
    with pytest.raises(
        ValueError, match=r'^grads\["layer2"\]\[1\]\.bias has shape \(1,\), but params\["layer2"\]\[1\]\.bias'
    ):
        portopt.SGD().apply(params, grads, portopt.SGD().init(params))


@each_library
def test_single_array_is_named_without_a_path(library: Library) -> None:
    params, grads = library.arrays(a(1)), library.arrays(a(1, (6,)))
    with pytest.raises(ValueError, match=r"^grads has shape \(6,\), but params has shape \(2, 3\); they must agree$"):
        portopt.SGD().apply(params, grads, portopt.SGD().init(params))


def test_keys_are_shown_as_python_code() -> None:
    params: dict[int, dict[Any, Any]] = {3: {("a", 1): np.zeros(1)}, 4: {'say "hi"': np.zeros(1)}}
    for key, inner, path in ((3, ("a", 1), r"\[3\]\[\('a', 1\)\]"), (4, 'say "hi"', r'\[4\]\["say \\"hi\\""\]')):
        grads = {**params, key: {inner: np.zeros(2)}}
        with pytest.raises(ValueError, match=rf"^grads{path} has shape \(2,\)"):
            portopt.SGD().apply(params, grads, portopt.SGD().init(params))


@each_library
def test_parameters_of_two_libraries_are_refused(library: Library) -> None:
    other = next(x for x in LIBRARIES if x.name != library.name)
    params = {"a": library.arrays(a(1)), "b": other.arrays(a(2))}
    with pytest.raises(
        TypeError,
        match=rf'^params\["b"\] is an array of {other.name}, but params has arrays of {library.name}: nothing is moved between',
    ):
        portopt.SGD().init(params)


@each_library
@pytest.mark.parametrize("leaf", [1.0, "w", object(), 3], ids=["float", "str", "object", "int"])
def test_parameter_that_is_no_array_names_the_leaf(leaf: Any, library: Library) -> None:
    for params, path in (
        ({"w": leaf}, r'params\["w"\]'),
        ({"a": library.arrays(a(1)), "w": leaf}, r'params\["w"\]'),
        (leaf, "params"),
    ):
        with pytest.raises(
            TypeError,
            match=rf"^{path} is .* of type {type(leaf).__name__}, which is no array of an installed library; give",
        ):
            portopt.SGD().init(params)


# The state


@each_library
def test_state_of_another_structure_names_the_leaf(library: Library) -> None:
    text = message(library, ValueError, replaced(("layer2",), library.arrays([a(3)])), "slots")
    assert text == (
        "state.slots['moment'] must have the structure of params: params[\"layer2\"][1].kernel has no counterpart "
        "state.slots['moment'][\"layer2\"][1].kernel"
    )


@each_library
def test_state_of_another_shape_names_the_leaf(library: Library) -> None:
    text = message(library, ValueError, replaced(KERNEL, library.arrays(a(1, (3, 2)))), "slots")
    assert text == (
        'state.slots[\'moment\']["layer1"]["kernel"] has shape (3, 2), but params["layer1"]["kernel"] has shape (2, 3); '
        "they must agree"
    )


@each_library
def test_state_of_another_library_names_the_leaf(library: Library) -> None:
    other = next(x for x in LIBRARIES if x.name != library.name)
    text = message(library, TypeError, replaced(KERNEL, other.arrays(a(1))), "slots")
    assert text.startswith('state.slots[\'moment\']["layer1"]["kernel"] is ')
    assert 'but params["layer1"]["kernel"] is ' in text
    assert f"of {library.name}: start from init(params), or convert the state to the parameters' library" in text


@pytest.mark.parametrize("state", [None, {}, (0, {}), 3], ids=repr)
def test_state_that_is_none_is_refused(state: Any) -> None:
    with pytest.raises(
        TypeError,
        match=f"state must be the OptimizerState that init or the previous step returned, but {type(state).__name__} was given",
    ):
        portopt.SGD().apply(a(1), a(1), state)


def test_state_of_another_rule_is_refused() -> None:
    state = portopt.Adam().init(a(1))
    with pytest.raises(
        ValueError,
        match=r"state has the slots \['m', 'v'\], but Adam with these options has \['m', 'v', 'vhat'\]: "
        r"start from init\(params\) of this optimizer",
    ):
        portopt.Adam(amsgrad=True).apply(a(1), a(1), state)


@pytest.mark.parametrize(("step", "kind"), [(-1, ValueError), (0.5, TypeError), ("1", TypeError), (None, TypeError)])
def test_step_that_is_no_count_is_refused(step: Any, kind: type[Exception]) -> None:
    state = portopt.SGD().init(a(1))._replace(step=step)
    with pytest.raises(kind, match=rf"state\.step must be (an integer.*|at least 0), but {step!r} was given"):
        portopt.SGD().apply(a(1), a(1), state)


@pytest.mark.parametrize(
    "step", [np.int64(4), np.asarray(4), jnp.asarray(4), torch.tensor(4)], ids=["int64", "0-d", "jax", "torch"]
)
def test_step_may_be_any_integer(step: Any) -> None:
    optimizer = portopt.Adam()
    state = optimizer.init(a(1))
    expected = optimizer.apply(a(1), a(2), state._replace(step=4))
    actual = optimizer.apply(a(1), a(2), state._replace(step=step))
    assert actual[1].step == 5
    assert type(actual[1].step) is int
    assert_same_bits(actual[0], expected[0])


# Containers that only JAX knows


@jax.tree_util.register_pytree_with_keys_class
class Module:
    """A registered pytree class."""

    def __init__(self, kernel: Any, bias: Any, name: str) -> None:
        self.kernel, self.bias, self.name = kernel, bias, name

    def tree_flatten_with_keys(self) -> Any:
        key = jax.tree_util.GetAttrKey
        return ((key("kernel"), self.kernel), (key("bias"), self.bias)), self.name

    @classmethod
    def tree_unflatten(cls, name: str, children: Any) -> Module:
        kernel, bias = children
        return cls(kernel, bias, name)


def module(seed: int) -> Module:
    return Module(jnp.asarray(a(seed)), jnp.asarray(a(seed + 1, (3,))), "dense")


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"layer": [m]}], ids=["alone", "nested"])
def test_registered_pytree_is_a_container(wrap: Any, jit: bool) -> None:
    optimizer = portopt.Adam()
    params, grads = wrap(module(1)), wrap(module(5))
    apply = jax.jit(optimizer.apply) if jit else optimizer.apply
    new, state = apply(params, grads, optimizer.init(params))
    new, slot = (x if isinstance(x, Module) else x["layer"][0] for x in (new, state.slots["m"]))
    assert isinstance(new, Module)
    assert isinstance(slot, Module)
    assert new.name == slot.name == "dense"
    plain = {"kernel": a(1), "bias": a(2, (3,))}
    expected, _ = optimizer.apply(plain, {"kernel": a(5), "bias": a(6, (3,))}, optimizer.init(plain))
    assert_same_bits(np.asarray(new.kernel), expected["kernel"])
    assert_same_bits(np.asarray(new.bias), expected["bias"])


def test_leaf_of_a_registered_pytree_is_named() -> None:
    params, grads = {"layer": module(1)}, {"layer": module(1)}
    grads["layer"].bias = jnp.zeros(4)
    with pytest.raises(
        ValueError, match=r'^grads\["layer"\]\.bias has shape \(4,\), but params\["layer"\]\.bias has shape'
    ):
        portopt.SGD().apply(params, grads, portopt.SGD().init(params))


def test_numpy_array_among_jax_arrays_is_named() -> None:
    params = {"layer": module(1)}
    params["layer"].bias = a(2, (3,))
    with pytest.raises(TypeError, match=r'^params\["layer"\]\.bias is an array of numpy, but params has arrays of jax'):
        portopt.SGD().init(params)


def test_state_is_a_pytree_of_jax() -> None:
    state = portopt.Nadam().init({"w": jnp.ones(3)})
    leaves, definition = jax.tree_util.tree_flatten(state)
    assert [np.shape(leaf) for leaf in leaves] == [(), (3,), (2,), (3,)]
    again = jax.tree_util.tree_unflatten(definition, [np.shape(leaf) for leaf in leaves])
    assert again == portopt.OptimizerState((), {"m": {"w": (3,)}, "m_schedule": (2,), "v": {"w": (3,)}})


@pytest.mark.parametrize("rule", portopt.RULES)
def test_a_step_without_any_gradient_counts_and_changes_nothing(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(learning_rate=0.5)
    params = [np.ones((3, 4), np.float32), np.ones(3, np.float32)]
    new, state = optimizer.apply(params, [None, None], optimizer.init(params))
    assert state.step == 1
    for before, after in zip(params, new, strict=True):
        assert_same_bits(after, before)
    assert optimizer.apply_(params, [None, None], state).step == 2
