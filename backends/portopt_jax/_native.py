"""Transformations of optax for `portopt.NativeOptimizer`, and JAX arrays for the optimizers of Keras."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from portopt.backend import ArrayInfo
from portopt.interchange.exchange import Native, NativeArrays, Tree, expression
from portopt.trees import Trees
from portopt_jax._backend import backend
from portopt_jax._states import StateStructure

EXTRA_ARGUMENTS = ("value", "grad", "value_fn")
"""What optax's `update` may be given beside gradients, state and parameters."""


class JaxArrays(NativeArrays):
    """JAX arrays, on the memory of NumPy arrays where JAX finds it aligned well enough."""

    name = "jax"
    trees: Trees = backend.trees

    def owns(self, leaf: object) -> bool:
        return backend.owns(leaf)

    def describe(self, array: Any) -> ArrayInfo:
        return backend.describe(array)

    def borrow(self, array: Any) -> Any:
        jax = importlib.import_module("jax")
        array = np.asarray(array)
        cpu = jax.devices("cpu")[0]
        if array.flags.writeable and array.flags.c_contiguous and array.dtype.name != "bfloat16":
            return jax.dlpack.from_dlpack(array, device=cpu)
        return jax.device_put(array, cpu)

    def copy(self, array: Any) -> Any:
        return array.copy()

    def why_read_only(self, array: Any) -> str | None:
        return "is a JAX array"

    def dtype_context(self, dtype: str) -> AbstractContextManager[Any]:
        return backend.dtype_context(dtype)


class OptaxNative(Native):
    """One gradient transformation; slots are named by their path in optax's state, such as `0.mu`."""

    arrays = JaxArrays()

    def __init__(self, transformation: Any, factory: Any, arguments: dict[str, Any]) -> None:
        self.factory, self.arguments = factory, arguments
        self.transformation = transformation
        self._structures: dict[Any, StateStructure] = {}

    def describe(self) -> str:
        if self.factory is None:
            return "an optax transformation"
        return expression(f"optax.{name_of(self.factory)}", self.arguments)

    def config(self) -> dict[str, Any]:
        if self.factory is None:
            raise ValueError(
                "an optax transformation does not know what it was made of, so it has no config: give the function and its "
                "arguments, as in NativeOptimizer(optax.adam, learning_rate=0.1)"
            )
        unfit = [
            name for name, value in self.arguments.items() if not isinstance(value, bool | int | float | str | None)
        ]
        if unfit or named(name_of(self.factory)) != self.factory:
            what = f"the argument {unfit[0]} of {self.describe()}" if unfit else self.describe()
            raise ValueError(f"{what} cannot be written into a config, which holds numbers, strings and None only")
        return {"optimizer": name_of(self.factory), "arguments": dict(self.arguments)}

    def init(self, tree: Tree, leaves: list[Any]) -> dict[str, Any]:
        params = tree.unflatten(leaves)
        return self._structure(params).slots(self.transformation.init(params))

    def apply(
        self,
        tree: Tree,
        leaves: list[Any],
        gradients: list[Any],
        slots: Mapping[str, Any],
        hyperparameters: Mapping[str, Any],
        *,
        in_place: bool,
    ) -> tuple[list[Any], dict[str, Any]]:
        for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
            if leaf is not None and gradient is None:
                path = tree.trees.paths(tree.unflatten(leaves))[i]
                raise ValueError(
                    f"grads{path} is None, but optax updates every parameter: use optax.masked, or leave it out"
                )
        params = tree.unflatten(leaves)
        structure = self._structure(params)
        self.check_slots(slots, structure.names)
        state = self.state_of(params, slots)
        extra = {name: value for name, value in hyperparameters.items() if name in EXTRA_ARGUMENTS}
        changes = {name: value for name, value in hyperparameters.items() if name not in EXTRA_ARGUMENTS}
        transformation = self._changed(changes)
        updates, state = transformation.update(tree.unflatten(gradients), state, params, **extra)
        params = importlib.import_module("optax").apply_updates(params, updates)
        return tree.flatten(params, "params"), structure.slots(state)

    def state_of(self, params: Any, slots: Mapping[str, Any]) -> Any:
        """Return optax's own form of a state."""
        return self._structure(params).state(slots)

    def slots_of(self, params: Any, state: Any) -> dict[str, Any]:
        """Return a state of optax as slots; raise `ValueError` if it is none of this transformation and these parameters."""
        return self._structure(params).slots(state)

    def _changed(self, changes: dict[str, Any]) -> Any:
        if not changes:
            return self.transformation
        known = [] if self.factory is None else list(inspect.signature(self.factory).parameters)
        unknown = next((name for name in changes if name not in known), None)
        if unknown is not None:
            allowed = ", ".join([*known, *EXTRA_ARGUMENTS])
            remedy = "" if self.factory else "; a function and its arguments, given instead, can have some changed"
            raise TypeError(f"{self.describe()} has no hyperparameter {unknown!r}; allowed are {allowed}{remedy}")
        return self.factory(**{**self.arguments, **changes})

    def _structure(self, params: Any) -> StateStructure:
        jax = importlib.import_module("jax")
        leaves, definition = jax.tree.flatten(params)
        key = (definition, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves))
        if key not in self._structures:
            self._structures[key] = StateStructure(jax.eval_shape(self.transformation.init, params), params)
        return self._structures[key]


def name_of(factory: Any) -> str:
    """Return how optax calls a function, such as `adam` or `contrib.prodigy`; some are partial applications, without a name."""
    optax = importlib.import_module("optax")
    for module, prefix in ((optax, ""), (optax.contrib, "contrib.")):
        for name, value in vars(module).items():
            if value is factory:
                return f"{prefix}{name}"
    return getattr(factory, "__name__", repr(factory))


def named(name: str) -> Any:
    """Return what has a name in optax; None if nothing has."""
    found: Any = importlib.import_module("optax")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
