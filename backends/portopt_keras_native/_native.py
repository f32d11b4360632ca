"""The optimizers of Keras 3 for `portopt.NativeOptimizer`, on the arrays of Keras's backend."""

from __future__ import annotations

import contextlib
import copy
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from portopt.backend import ArrayInfo, backends
from portopt.interchange.exchange import NativeArrays
from portopt.interchange.frameworks import get_framework
from portopt.interchange.variables import Bound, Values, VariablesNative, by_parameter

FRAMEWORKS = {"torch": "torch", "jax": "optax", "tensorflow": "tensorflow"}
"""The framework on whose arrays Keras works, for each of its backends other than NumPy."""


class NumpyArrays(NativeArrays):
    """NumPy arrays, for Keras's NumPy backend."""

    name = "numpy"
    shares_memory = True

    def owns(self, leaf: object) -> bool:
        return isinstance(leaf, np.ndarray | np.generic)

    def describe(self, array: Any) -> ArrayInfo:
        return backends()["numpy"].describe(array)

    def borrow(self, array: Any) -> Any:
        return array

    def give_back(self, array: Any) -> Any:
        return array

    def copy(self, array: Any) -> Any:
        return np.array(array)

    def why_read_only(self, array: Any) -> str | None:
        return None if isinstance(array, np.ndarray) and array.flags.writeable else "is a read-only NumPy array"

    def assign(self, target: Any, value: Any) -> None:
        target[...] = value


def backend_arrays() -> NativeArrays:
    """Return the arrays of the backend that Keras runs on."""
    chosen = importlib.import_module("keras").backend.backend()
    if chosen == "numpy":
        return NumpyArrays()
    if chosen not in FRAMEWORKS:
        raise ValueError(
            f"Keras's backend is {chosen!r}; optimizers of Keras work here on {', '.join(FRAMEWORKS)} and numpy"
        )
    return get_framework(FRAMEWORKS[chosen]).arrays


class KerasNative(VariablesNative):
    """An optimizer of Keras's."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        # On torch Keras makes subclasses, of the same names, of what is asked for.
        own = getattr(importlib.import_module("keras").optimizers, type(optimizer).__name__, None)
        self._is_own = isinstance(own, type) and isinstance(optimizer, own)
        self.cls, self.arguments = type(optimizer), optimizer.get_config()
        self.arrays = backend_arrays()

    def describe(self) -> str:
        return f"keras.optimizers.{self.cls.__name__}"

    def config(self) -> dict[str, Any]:
        if not self._is_own:
            raise ValueError(f"{self.cls.__qualname__} is no class of keras.optimizers, so a config cannot name it")
        return {"optimizer": self.cls.__name__, "arguments": copy.deepcopy(self.arguments)}

    def bind(self, leaves: list[Any], hyperparameters: Mapping[str, Any], *, fresh: bool = False) -> Bound:
        keras = importlib.import_module("keras")
        infos = [self.arrays.describe(leaf) for leaf in leaves if leaf is not None]
        on_torch = self.arrays.name == "torch"
        key = tuple((info.shape, info.dtype, info.device if on_torch else None) for info in infos)
        if key in self._bound and not fresh:
            return self._bound[key]
        with contextlib.ExitStack() as contexts:
            if on_torch:
                # Keras would place its variables on the first GPU.
                contexts.enter_context(keras.device(infos[0].device))
            if self.arrays.name == "jax":
                contexts.enter_context(importlib.import_module("jax").ensure_compile_time_eval())
            parameters = [
                keras.Variable(np.zeros(info.shape), dtype=info.dtype, name=f"p{i}") for i, info in enumerate(infos)
            ]
            optimizer = self.cls.from_config(copy.deepcopy(self.arguments))
            optimizer.build(parameters)
        rates = {id(getattr(o, "_learning_rate", None)) for o in (optimizer, _inner(optimizer))}
        variables = [v for v in optimizer.variables if id(v) not in rates]
        matches = [(v, re.fullmatch(r"p(?P<index>\d+)_(?P<slot>\w+)", v.path.rpartition("/")[2])) for v in variables]
        per_parameter, narrow = by_parameter(len(infos), matches), _in_lists(_inner(optimizer), len(infos))
        scalars: dict[str, Any] = {}
        for variable in (v for v, match in matches if match is None):
            if re.fullmatch(r"p\d+", variable.path.rpartition("/")[2]) and id(variable) in narrow:
                # What Adafactor keeps of rows and columns has the name of the parameter alone.
                slot, index = narrow[id(variable)]
                per_parameter.setdefault(slot, [None] * len(infos))[index] = variable
                continue
            # Keras numbers the variables without a name through the whole process.
            name = re.sub(r"^variable_\d+$", "variable", variable.path.rpartition("/")[2])
            while name in scalars:
                name += "_"
            scalars[name] = variable
        self._bound[key] = Bound(optimizer, parameters, per_parameter, scalars)
        return self._bound[key]

    def step_values(self, bound: Bound, hyperparameters: Mapping[str, Any]) -> Values:
        keras = importlib.import_module("keras")
        unknown = next((name for name in hyperparameters if name != "learning_rate"), None)
        if unknown is not None:
            raise TypeError(f"{self.describe()} has no hyperparameter {unknown!r} for a step; allowed is learning_rate")
        variable = _inner(bound.optimizer)._learning_rate
        if not isinstance(variable, keras.Variable):
            if hyperparameters:
                raise TypeError(
                    f"the learning rate of this {self.describe()} is a schedule, so none can be given for a step"
                )
            return []
        rate = hyperparameters.get("learning_rate", _inner_arguments(self.arguments)["learning_rate"])
        return [(variable, keras.ops.convert_to_tensor(rate, variable.dtype))]

    def run(self, bound: Bound, values: Values, gradients: Values) -> Callable[[Any], Any]:
        updated, grads = [v for v, _ in gradients], [g for _, g in gradients]
        if self.arrays.name == "jax":
            # The variables stay as they are, so that a step can be traced.
            return _stateless(bound.optimizer, values, grads, updated)
        for variable, value in values:
            variable.assign(value)
        bound.optimizer.apply(grads, updated)
        return self.read

    def read(self, variable: Any) -> Any:
        return variable.value if self.arrays.name == "jax" else self.arrays.copy(variable.value)


def _stateless(
    optimizer: Any, values: list[tuple[Any, Any]], gradients: list[Any], variables: list[Any]
) -> Callable[[Any], Any]:
    keras = importlib.import_module("keras")
    with keras.StatelessScope(state_mapping=values) as scope:
        start = [scope.get_current_value(v) for v in variables]
        own = [v.value for v in optimizer.variables]
    if len(variables) < len(_inner(optimizer)._trainable_variables):
        with keras.StatelessScope(state_mapping=values) as scope:
            optimizer.apply(gradients, variables)
        read: Callable[[Any], Any] = scope.get_current_value
        return read
    # Not `apply` in a scope, in which a LossScaleOptimizer leaks tracers.
    new, own = optimizer.stateless_apply(own, gradients, start)
    found = {id(v): x for v, x in [*zip(variables, new, strict=True), *zip(optimizer.variables, own, strict=True)]}
    return lambda variable: found[id(variable)]


def _in_lists(optimizer: Any, count: int) -> dict[int, tuple[str, int]]:
    """Return where an optimizer keeps a variable, by its identity, in lists with one for each parameter: name and index."""
    lists = {name: of for name, of in vars(optimizer).items() if isinstance(of, list) and len(of) == count}
    return {id(v): (name.lstrip("_"), i) for name, of in lists.items() for i, v in enumerate(of)}


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def _inner_arguments(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = arguments.get("inner_optimizer")
    return inner["config"] if isinstance(inner, Mapping) else arguments
