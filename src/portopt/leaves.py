"""The leaves of a step's trees: what each one is, and whether those of gradients and slots fit those of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from portopt.arithmetic.dtypes import COMPUTE_DTYPE, gradient_dtypes, slot_dtypes
from portopt.backend import ArrayInfo, Backend, find_backend
from portopt.program.draws import Place
from portopt.slot import HasSlots, are_plain, slot_shape, slots_of_shape
from portopt.trees import STANDARD_TREES, TreeDefinition, Trees, explain_difference


class Leaves(NamedTuple):
    """The leaves of a tree; `infos` describes each that is an array."""

    backend: Backend
    definition: TreeDefinition
    arrays: list[Any]
    infos: list[ArrayInfo | None]


def leaves_of(params: object) -> Leaves:
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
        # Arrays of one type are of one library, which is how its backend is found.
        if type(leaf) is not type(first) and not backend.owns(leaf):
            raise _foreign(backend, f"params{backend.trees.paths(params)[i]}", leaf, "params")
        try:
            info = backend.describe(leaf)
        except TypeError as error:
            raise TypeError(f"params{backend.trees.paths(params)[i]}: {error}") from None
        if info.dtype not in COMPUTE_DTYPE:
            raise TypeError(
                f"params{backend.trees.paths(params)[i]} has dtype {info.dtype}; parameters must be of dtype "
                f"{', '.join(COMPUTE_DTYPE)}: leave other arrays out of params, or convert them"
            )
        infos.append(info)
    return Leaves(backend, definition, leaves, infos)


def leaves_of_slot(slot: object) -> tuple[Backend, list[Any], TreeDefinition]:
    """Return the leaves of one slot of a state, whose parameters are not known."""
    leaves, definition = STANDARD_TREES.flatten(slot)
    backend = next((b for b in map(find_backend, leaves) if b is not None), None)
    if backend is None:
        raise ValueError("the state holds no array; start from init(params)")
    if backend.trees is not STANDARD_TREES:
        leaves, definition = backend.trees.flatten(slot)
    return backend, leaves, definition


Shape = tuple[int, ...]


SlotShapes = Mapping[str, Sequence[Shape | None] | None]
"""The shape of a slot of each leaf by its name, None where there is none; None if it is that of each leaf."""


def slot_shapes(rule: HasSlots, found: Leaves, places: Sequence[Place] | None = None) -> SlotShapes:
    """Return the shapes of the slots that some leaf has, given where the leaves are if they are parts."""
    if are_plain(rule):
        return dict.fromkeys(rule.slots)
    shapes: dict[str, list[Shape | None]] = {name: [] for name in rule.slots}
    for i, info in enumerate(found.infos):
        whole = () if info is None else info.shape if places is None else places[i].whole
        held = () if info is None else slots_of_shape(rule, whole)
        for name, of_slot in shapes.items():
            of_slot.append(slot_shape(rule, name, whole, info.shape) if info is not None and name in held else None)
    return {name: of_slot for name, of_slot in shapes.items() if any(shape is not None for shape in of_slot)}


def gradients_of(found: Leaves, params: object, grads: object) -> list[Any]:
    """Return the gradient of each leaf, after checking that the tree is like that of the parameters."""
    return leaves_like(found.backend.trees, found.definition, params, grads, "grads")


def slots_of(
    found: Leaves, params: object, state: object, slots: Sequence[str], scalar_slots: Sequence[str], owner: str
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
    trees, definition = found.backend.trees, found.definition
    return {name: leaves_like(trees, definition, params, given[name], f"state.slots[{name!r}]") for name in slots}


def leaves_like(trees: Trees, definition: TreeDefinition, params: object, tree: object, name: str) -> list[Any]:
    """Return the leaves of a tree, after checking that its structure is that of the parameters."""
    leaves, found = trees.flatten(tree)
    if found != definition:
        difference = explain_difference(trees, params, tree, "params", name)
        raise ValueError(f"{name} must have the structure of params: {difference}")
    return leaves


def check_gradients(
    found: Leaves, params: object, gradients: Sequence[Any], name: str = "grads"
) -> list[ArrayInfo | None]:
    """Return what each gradient, or other input of its kind, is; raise an error if one does not fit its parameter."""

    def misfit(i: int, gradient: object) -> Exception:
        at = found.backend.trees.paths(params)[i]
        if found.arrays[i] is None:
            return ValueError(
                f"params{at} is None, so {name}{at} must be None too, but it is {type(gradient).__name__}"
            )
        return _foreign(found.backend, f"{name}{at}", gradient, f"params{at}")

    what_they_are = "gradients" if name == "grads" else name
    return _infos_like(found, params, gradients, name, what_they_are, gradient_dtypes, misfit, found.infos)


def check_slots(
    found: Leaves, params: object, slots: Mapping[str, Sequence[Any]], shapes: SlotShapes
) -> dict[str, list[ArrayInfo | None]]:
    """Return what each array of each slot is; raise an error if one does not fit its parameter, or has not its shape."""
    described = {}
    for slot, arrays in slots.items():
        name = f"state.slots[{slot!r}]"

        of_slot = shapes[slot]
        expected = found.infos if of_slot is None else _with_shapes(found.infos, of_slot)

        def misfit(i: int, array: object, name: str = name, expected: Sequence[Any] = expected) -> Exception:
            at = found.backend.trees.paths(params)[i]
            if expected[i] is None and found.infos[i] is not None:
                return ValueError(
                    f"{name}{at} is an array, but this optimizer has no such slot for a parameter of the shape of params{at}: "
                    "start from init(params)"
                )
            return TypeError(
                f"{name}{at} is {type(array).__name__}, but params{at} is {type(found.arrays[i]).__name__} of "
                f"{found.backend.name}: start from init(params), or convert the state to the parameters' library"
            )

        described[slot] = _infos_like(found, params, arrays, name, "slots", slot_dtypes, misfit, expected)
    return described


def _with_shapes(infos: Sequence[ArrayInfo | None], shapes: Sequence[Shape | None]) -> list[ArrayInfo | None]:
    """Return what the arrays of a slot have to be, given what the parameters are."""
    return [
        None if info is None or shape is None else info._replace(shape=shape)
        for info, shape in zip(infos, shapes, strict=True)
    ]


def _infos_like(
    found: Leaves,
    params: object,
    arrays: Sequence[Any],
    name: str,
    what_they_are: str,
    allowed_dtypes: Callable[[str], tuple[str, ...]],
    misfit: Callable[[int, Any], Exception],
    wanted: Sequence[ArrayInfo | None],
) -> list[ArrayInfo | None]:
    """Return what each array that goes with a parameter is, None for a missing gradient; raise an error if one does not fit."""
    backend = found.backend
    infos: list[ArrayInfo | None] = []
    for i, (parameter, expected, array) in enumerate(zip(found.arrays, wanted, arrays, strict=True)):
        if array is None and (expected is None or allowed_dtypes is gradient_dtypes):
            infos.append(None)
            continue
        owned = array is not None and (type(array) is type(parameter) or backend.owns(array))
        if expected is None or not owned:
            raise misfit(i, array)
        try:
            info = backend.describe(array)
        except TypeError as error:
            raise TypeError(f"{name}{backend.trees.paths(params)[i]}: {error}") from None
        if info != expected:
            allowed = allowed_dtypes(expected.dtype)
            _check_agreement(expected, info, what_they_are, allowed, name, lambda i=i: backend.trees.paths(params)[i])  # type: ignore[misc]  # binds i
        infos.append(info)
    return infos


def check_slot_dtype(found: Leaves, params: object, slot_dtype: str) -> None:
    """Raise an error if a parameter cannot have slots of a dtype."""
    for i, info in enumerate(found.infos):
        if info is not None and slot_dtype not in slot_dtypes(info.dtype):
            raise ValueError(
                f"slot_dtype {slot_dtype!r} was given, but slots of params{found.backend.trees.paths(params)[i]}, which has "
                f"dtype {info.dtype}, must be of dtype {' or '.join(slot_dtypes(info.dtype))}"
            )


def _check_agreement(
    expected: ArrayInfo,
    found: ArrayInfo,
    what_it_is: str,
    allowed_dtypes: Sequence[str],
    name: str,
    path: Callable[[], str],
) -> None:
    """Raise an error if an array is not as its parameter wants it; a device that is not known yet agrees with any."""
    for what, left, right in zip(ArrayInfo._fields, expected, found, strict=True):
        wanted = left
        if what == "dtype":
            if right in allowed_dtypes:
                continue
            wanted = f"{left}, whose {what_it_is} are {' or '.join(allowed_dtypes)}"
        elif left == right or left is None or right is None:
            continue
        error = TypeError if what == "dtype" else ValueError
        raise error(f"{name}{path()} has {what} {right}, but params{path()} has {what} {wanted}; they must agree")


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
