"""The optimizers of `tf.compat.v1.train` and `tf_keras` for `portopt.NativeOptimizer`, and tensors for those of Keras."""

from __future__ import annotations

import copy
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from portopt.backend import ArrayInfo
from portopt.imports import imported
from portopt.interchange.exchange import NativeArrays
from portopt.interchange.variables import Bound, Values, VariablesNative, by_parameter

ALIGNMENT = 64
"""Bytes to which TensorFlow aligns tensors; it ends the process when one that it was lent is not."""


class TensorFlowArrays(NativeArrays):
    """`tf.Tensor`, and `tf.Variable`, whose value is read, and which can be changed in place."""

    name = "tensorflow"

    def owns(self, leaf: object) -> bool:
        tf = imported("tensorflow")
        return tf is not None and isinstance(leaf, tf.Tensor | tf.Variable)

    def describe(self, array: Any) -> ArrayInfo:
        return ArrayInfo(tuple(array.shape), array.dtype.name, array.device)

    def borrow(self, array: Any) -> Any:
        tf = importlib.import_module("tensorflow")
        array = np.asarray(array)
        aligned = array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous and array.flags.writeable
        if aligned and array.size and array.dtype.name != "bfloat16":
            return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
        return tf.constant(array)

    def copy(self, array: Any) -> Any:
        return importlib.import_module("tensorflow").identity(array)

    def why_read_only(self, array: Any) -> str | None:
        tf = importlib.import_module("tensorflow")
        return None if isinstance(array, tf.Variable) else "is a tf.Tensor"

    def assign(self, target: Any, value: Any) -> None:
        target.assign(value)


class TensorFlowNative(VariablesNative):
    """An optimizer of TensorFlow's.

    Args:
        make: returns it, with other values of some hyperparameters.
        name: how users write its class.
        config: returns what `NativeOptimizer.get_config` does.
    """

    arrays = TensorFlowArrays()

    def __init__(
        self, make: Callable[[Mapping[str, Any]], Any], name: str, config: Callable[[], dict[str, Any]]
    ) -> None:
        super().__init__()
        self._make, self._name, self._config = make, name, config
        make({})

    def describe(self) -> str:
        return self._name

    def config(self) -> dict[str, Any]:
        return self._config()

    def bind(self, leaves: list[Any], hyperparameters: Mapping[str, Any], *, fresh: bool = False) -> Bound:
        tf = importlib.import_module("tensorflow")
        if not tf.executing_eagerly():
            raise RuntimeError(
                f"{self._name} needs eager execution here: call apply outside of tf.function and tf.Graph"
            )
        shapes = tuple((tuple(leaf.shape), leaf.dtype.name) for leaf in leaves if leaf is not None)
        key = (shapes, tuple(sorted(hyperparameters.items())))
        if key in self._bound and not fresh:
            return self._bound[key]
        parameters = [tf.Variable(tf.zeros(shape, dtype), name=f"p{i}") for i, (shape, dtype) in enumerate(shapes)]
        bound = bound_to(self._make(hyperparameters), parameters)
        if hyperparameters:
            # A rate that changes at each step must not leave a set of variables behind each time.
            self._bound = {k: v for k, v in self._bound.items() if not k[1]}
        self._bound[key] = bound
        return bound

    def run(self, bound: Bound, values: Values, gradients: Values) -> Callable[[Any], Any]:
        for variable, value in values:
            variable.assign(value)
        if gradients:
            bound.optimizer.apply_gradients([(gradient, variable) for variable, gradient in gradients])
        return self.read


def bound_to(optimizer: Any, parameters: list[Any]) -> Bound:
    """Make the variables of an optimizer for these parameters."""
    if hasattr(optimizer, "build"):
        optimizer.build(parameters)
    elif hasattr(optimizer, "_create_all_weights"):
        optimizer._create_all_weights(parameters)
    else:
        optimizer._create_slots(parameters)
    variables = list(optimizer.variables() if callable(optimizer.variables) else optimizer.variables)
    if hasattr(optimizer, "get_slot_names"):
        named = {name: [optimizer.get_slot(p, name) for p in parameters] for name in optimizer.get_slot_names()}
    else:
        matches = ((v, re.search(r"(?P<slot>\w+)/p(?P<index>\d+):", v.name)) for v in variables)
        named = by_parameter(len(parameters), matches)
    in_slots = {id(v) for slot in named.values() for v in slot}
    scalars = {v.name.partition(":")[0].rpartition("/")[2]: v for v in variables if id(v) not in in_slots}
    return Bound(optimizer, parameters, named, scalars)


def of_version_1(cls: Any, thing: Any, arguments: dict[str, Any]) -> TensorFlowNative:
    """Return the native optimizer of a class of `tf.compat.v1.train` with its arguments, or of an instance."""
    train = importlib.import_module("tensorflow").compat.v1.train
    path = f"tf.compat.v1.train.{cls.__name__}"

    def make(changes: Mapping[str, Any]) -> Any:
        if thing is cls:
            unknown = next((name for name in changes if name not in inspect.signature(cls).parameters), None)
            if unknown is not None:
                raise _unknown(path, unknown, inspect.signature(cls).parameters)
            return cls(**{**arguments, **changes})
        if changes:
            raise TypeError(
                f"a {path} that was given as an instance has no hyperparameter that can be given for a step, but "
                f"{min(changes)!r} was given: give the class and its arguments"
            )
        made = copy.copy(thing)
        # TensorFlow 1's optimizers keep the variables of whatever they have updated.
        made._slots, made._non_slot_dict, made._deferred_slot_restorations = {}, {}, {}
        return made

    def config() -> dict[str, Any]:
        if thing is not cls:
            raise ValueError(
                f"a {path} does not know its arguments, so it has no config: give the class and its arguments, as in "
                f"NativeOptimizer({path}, learning_rate=0.1)"
            )
        if getattr(train, cls.__name__, None) is not cls:
            raise ValueError(f"{cls.__qualname__} is no class of tf.compat.v1.train, so a config cannot name it")
        return {"optimizer": path, "arguments": dict(arguments)}

    return TensorFlowNative(make, path, config)


def of_keras_2(cls: Any, optimizer: Any) -> TensorFlowNative:
    """Return the native optimizer of an instance of `tf_keras`."""
    optimizers = importlib.import_module("tf_keras").optimizers
    legacy = issubclass(cls, optimizers.legacy.Optimizer)
    path = f"tf_keras.optimizers.{'legacy.' if legacy else ''}{cls.__name__}"
    arguments = optimizer.get_config()

    def make(changes: Mapping[str, Any]) -> Any:
        unknown = next((name for name in changes if name != "learning_rate"), None)
        if unknown is not None:
            raise _unknown(path, unknown, ["learning_rate"])
        return cls.from_config({**copy.deepcopy(arguments), **changes})

    def config() -> dict[str, Any]:
        if getattr(optimizers.legacy if legacy else optimizers, cls.__name__, None) is not cls:
            raise ValueError(f"{cls.__qualname__} is no class of tf_keras.optimizers, so a config cannot name it")
        return {"optimizer": path, "arguments": {name: _plain(value) for name, value in arguments.items()}}

    return TensorFlowNative(make, path, config)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _unknown(path: str, name: str, allowed: Iterable[str]) -> TypeError:
    return TypeError(f"{path} has no hyperparameter {name!r} for a step; allowed are {', '.join(allowed)}")
