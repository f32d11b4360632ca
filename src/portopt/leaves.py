"""The leaves of a step's trees: what each one is, and whether those of gradients and slots fit those of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from portopt.arithmetic.dtypes import COMPUTE_DTYPE, gradient_dtypes, slot_dtypes
from portopt.backend import ArrayInfo, Backend, find_backend
from portopt.trees import STANDARD_TREES, TreeDefinition, explain_difference


class Leaves(NamedTuple):
    """The leaves of a tree of parameters; `infos` describes each that is an array."""

    backend: Backend
    definition: TreeDefinition
    arrays: list[Any]
    infos: list[ArrayInfo | None]


def leaves_of(params: Any) -> Leaves:
    """Return the leaves of a tree of parameters, after checking that all are arrays that a step can update."""
    leaves, definition = STANDARD_TREES.flatten(params)
    first = next((leaf for leaf in leaves if leaf is not None), None)
    if first is None:
        raise ValueError("params holds no array; give an array, or nested dicts, lists and tuples of arrays")
    backend = find_backend(first)
    if backend is None:
        i = next(i for i, leaf in enumerate(leaves) if leaf is first)
        raise _no_array(f"params{STANDARD_TREES.paths(params)[i]}", first)
    if backend.trees is not STANDARD_TREES:
        leaves, definition = backend.trees.flatten(params)
    infos: list[ArrayInfo | None] = []
    for i, leaf in enumerate(leaves):
        if leaf is None:
            infos.append(None)
            continue
        if not backend.owns(leaf):
            raise _foreign(backend, f"params{backend.trees.paths(params)[i]}", leaf, "params")
        info = _describe(backend, leaf, lambda i=i: f"params{backend.trees.paths(params)[i]}")  # type: ignore[misc]  # binds i
        if info.dtype not in COMPUTE_DTYPE:
            raise TypeError(
                f"params{backend.trees.paths(params)[i]} has dtype {info.dtype}; parameters must be of dtype "
                f"{', '.join(COMPUTE_DTYPE)}: leave other arrays out of params, or convert them"
            )
        infos.append(info)
    return Leaves(backend, definition, leaves, infos)


def leaves_of_slot(slot: Any) -> tuple[Backend, list[Any], TreeDefinition]:
    """Return the leaves of one slot of a state, whose parameters are not known."""
    leaves, definition = STANDARD_TREES.flatten(slot)
    backend = next((b for b in map(find_backend, leaves) if b is not None), None)
    if backend is None:
        raise ValueError("the state holds no array; start from init(params)")
    if backend.trees is not STANDARD_TREES:
        leaves, definition = backend.trees.flatten(slot)
    return backend, leaves, definition


def gradients_of(found: Leaves, params: Any, grads: Any) -> list[Any]:
    """Return the gradient of each leaf, after checking that the tree is like that of the parameters."""
    return _leaves_like(found, params, grads, "grads")


def slots_of(
    found: Leaves, params: Any, state: Any, slots: Sequence[str], scalar_slots: Sequence[str], owner: str
) -> dict[str, list[Any]]:
    """Return each slot of each leaf, after checking that the state has those of the optimizer, in trees like the parameters'."""
    given = getattr(state, "slots", None)
    if not isinstance(given, Mapping) or not hasattr(state, "step"):
        raise TypeError(
            f"state must be the OptimizerState that init or the previous step returned, but {type(state).__name__} was given"
        )
    expected = {*scalar_slots, *slots}
    if set(given) != expected:
        raise ValueError(
            f"state has the slots {sorted(given)}, but {owner} with these options has {sorted(expected)}: "
            "start from init(params) of this optimizer"
        )
    return {name: _leaves_like(found, params, given[name], f"state.slots[{name!r}]") for name in slots}


def _leaves_like(found: Leaves, params: Any, tree: Any, name: str) -> list[Any]:
    trees = found.backend.trees
    leaves, definition = trees.flatten(tree)
    if definition != found.definition:
        difference = explain_difference(trees, params, tree, "params", name)
        raise ValueError(f"{name} must have the structure of params: {difference}")
    return leaves


def check_gradients(found: Leaves, params: Any, gradients: Sequence[Any]) -> None:
    """Raise an error if a gradient does not fit its parameter."""
    backend = found.backend
    for i, (p, info, g) in enumerate(zip(found.arrays, found.infos, gradients, strict=True)):
        if g is None:
            continue

        def at(name: str, i: int = i) -> str:
            return f"{name}{backend.trees.paths(params)[i]}"

        if p is None or info is None:
            raise ValueError(f"{at('params')} is None, so {at('grads')} must be None too, but it is {type(g).__name__}")
        if not backend.owns(g):
            raise _foreign(backend, at("grads"), g, at("params"))
        _check_same(backend, info, g, at, "grads", "gradients", gradient_dtypes)


def check_slots(found: Leaves, params: Any, slots: Mapping[str, Sequence[Any]]) -> None:
    """Raise an error if a slot does not fit its parameter."""
    backend = found.backend
    for slot, arrays in slots.items():
        here = f"state.slots[{slot!r}]"
        for i, (p, info, s) in enumerate(zip(found.arrays, found.infos, arrays, strict=True)):
            if p is None and s is None:
                continue

            def at(name: str, i: int = i) -> str:
                return f"{name}{backend.trees.paths(params)[i]}"

            if info is None or s is None or not backend.owns(s):
                raise TypeError(
                    f"{at(here)} is {type(s).__name__}, but {at('params')} is {type(p).__name__} of {backend.name}: "
                    "start from init(params), or convert the state to the parameters' library"
                )
            _check_same(backend, info, s, at, here, "slots", slot_dtypes)


def check_slot_dtype(found: Leaves, params: Any, slot_dtype: str) -> None:
    """Raise an error if a parameter cannot have slots of a dtype."""
    for i, info in enumerate(found.infos):
        if info is not None and slot_dtype not in slot_dtypes(info.dtype):
            raise ValueError(
                f"slot_dtype {slot_dtype!r} was given, but slots of params{found.backend.trees.paths(params)[i]}, which has "
                f"dtype {info.dtype}, must be of dtype {' or '.join(slot_dtypes(info.dtype))}"
            )


def _check_same(
    backend: Backend,
    expected: ArrayInfo,
    other: Any,
    at: Callable[[str], str],
    name: str,
    what_it_is: str,
    allowed_dtypes: Callable[[str], tuple[str, ...]],
) -> None:
    found = _describe(backend, other, lambda: at(name))
    if found == expected:
        return
    for what in ("shape", "dtype", "device"):
        left, right = getattr(expected, what), getattr(found, what)
        if what == "dtype":
            if right in allowed_dtypes(left):
                continue
            left = f"{left}, whose {what_it_is} are {' or '.join(allowed_dtypes(left))}"
        elif left == right or left is None or right is None:
            continue
        error = TypeError if what == "dtype" else ValueError
        raise error(f"{at(name)} has {what} {right}, but {at('params')} has {what} {left}; they must agree")


def _describe(backend: Backend, array: Any, path: Callable[[], str]) -> ArrayInfo:
    try:
        return backend.describe(array)
    except TypeError as error:
        raise TypeError(f"{path()}: {error}") from None


def _no_array(path: str, leaf: object) -> TypeError:
    return TypeError(
        f"{path} is {leaf!r:.80} of type {type(leaf).__name__}, which is no array of an installed library; give arrays of NumPy, "
        "CuPy, PyTorch, JAX or another array API library (`portopt backends` lists what is installed)"
    )


def _foreign(backend: Backend, path: str, leaf: object, first_path: str) -> TypeError:
    other = find_backend(leaf)
    if other is None:
        return _no_array(path, leaf)
    return TypeError(
        f"{path} is an array of {other.name}, but {first_path} has arrays of {backend.name}: nothing is moved between libraries "
        f"silently; convert it to {backend.name} first"
    )
