"""The optimizers of `tf.compat.v1.train` and `tf_keras` for `portopt.NativeOptimizer`, and tensors for those of Keras."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from portopt.backend import ArrayInfo
from portopt.imports import imported
from portopt.interchange.frameworks import Tree
from portopt.trees import STANDARD_TREES, Trees

ALIGNMENT = 64
"""Bytes to which TensorFlow aligns tensors; it ends the process when one that it was lent is not."""


class TensorFlowArrays:
    """`tf.Tensor`, and `tf.Variable`, whose value is read, and which can be changed in place."""

    name = "tensorflow"
    trees: Trees = STANDARD_TREES
    shares_memory = False

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

    def give_back(self, array: Any) -> Any:
        # A copy: TensorFlow hands out the memory of a tensor, which others may hold.
        return np.array(array)

    def why_read_only(self, array: Any) -> str | None:
        tf = importlib.import_module("tensorflow")
        return None if isinstance(array, tf.Variable) else "is a tf.Tensor"

    def assign(self, target: Any, value: Any) -> None:
        target.assign(value)

    def dtype_context(self, dtype: str) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()


class _Bound(NamedTuple):
    """A copy of the optimizer with variables of its own."""

    optimizer: Any
    parameters: list[Any]
    per_parameter: dict[str, list[Any]]
    """The slots: for each name, a variable for each parameter, or None."""
    scalars: dict[str, Any]
    """The variables that are one for all parameters."""


class TensorFlowNative:
    """One optimizer; each step runs on variables of its own, which are loaded from the arguments and read afterwards."""

    arrays = TensorFlowArrays()
    updates_in_place = False

    def __init__(
        self, make: Callable[[Mapping[str, Any]], Any], name: str, config: Callable[[], dict[str, Any]]
    ) -> None:
        self._make, self._name, self._config = make, name, config
        self._bound: dict[Any, _Bound] = {}
        make({})

    def describe(self) -> str:
        return self._name

    def config(self) -> dict[str, Any]:
        return self._config()

    def init(self, tree: Tree, leaves: list[Any]) -> dict[str, Any]:
        return self._read(tree, leaves, self._bind(leaves, {}, fresh=True))

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
        tf = importlib.import_module("tensorflow")
        if not tf.executing_eagerly():
            raise RuntimeError(
                f"{self._name} needs eager execution here: call apply outside of tf.function and tf.Graph"
            )
        bound = self._bind(leaves, hyperparameters)
        check_slots(slots, [*bound.scalars, *bound.per_parameter], self._name)
        present = [leaf for leaf in leaves if leaf is not None]
        for variable, value in zip(bound.parameters, present, strict=True):
            variable.assign(value)
        for name, variable in bound.scalars.items():
            variable.assign(slots[name])
        for name, variables in bound.per_parameter.items():
            values = [v for v, leaf in zip(tree.flatten(slots[name], name), leaves, strict=True) if leaf is not None]
            for variable, value in zip(variables, values, strict=True):
                if variable is not None:
                    variable.assign(value)
        own = iter(bound.parameters)
        variables = [None if leaf is None else next(own) for leaf in leaves]
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        if pairs:
            bound.optimizer.apply_gradients(pairs)
        return [None if v is None else tf.identity(v) for v in variables], self._read(tree, leaves, bound)

    def _read(self, tree: Tree, leaves: list[Any], bound: _Bound) -> dict[str, Any]:
        tf = importlib.import_module("tensorflow")
        slots = {name: tf.identity(variable) for name, variable in bound.scalars.items()}
        for name, variables in bound.per_parameter.items():
            own = iter(None if v is None else tf.identity(v) for v in variables)
            slots[name] = tree.unflatten([None if leaf is None else next(own) for leaf in leaves])
        return slots

    def _bind(self, leaves: list[Any], changes: Mapping[str, Any], *, fresh: bool = False) -> _Bound:
        tf = importlib.import_module("tensorflow")
        shapes = tuple((tuple(leaf.shape), leaf.dtype.name) for leaf in leaves if leaf is not None)
        key = (shapes, tuple(sorted(changes.items())))
        if key in self._bound and not fresh:
            return self._bound[key]
        parameters = [tf.Variable(tf.zeros(shape, dtype), name=f"p{i}") for i, (shape, dtype) in enumerate(shapes)]
        optimizer = self._make(changes)
        bound = _Bound(optimizer, parameters, *create_slots(optimizer, parameters))
        if changes:
            # A rate that changes at each step must not leave a set of variables behind each time.
            self._bound = {k: v for k, v in self._bound.items() if not k[1]}
        self._bound[key] = bound
        return bound


def create_slots(optimizer: Any, parameters: list[Any]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Make the variables of an optimizer for these parameters; return those that each of them has by name, and the others."""
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
        named = named_by_parameter(len(parameters), [(v, re.search(r"(\w+)/p(\d+):", v.name)) for v in variables])
    in_slots = {id(v) for slot in named.values() for v in slot}
    rest = [v for v in variables if id(v) not in in_slots]
    return named, {v.name.partition(":")[0].rpartition("/")[2]: v for v in rest}


def named_by_parameter(count: int, matches: Iterable[tuple[Any, Any]]) -> dict[str, list[Any]]:
    """Return slots from variables and the matches of their names, whose groups are the slot's name and the parameter's index."""
    named: dict[str, list[Any]] = {}
    for variable, match in matches:
        if match is not None:
            named.setdefault(match[1], [None] * count)[int(match[2])] = variable
    return named


def check_slots(slots: Mapping[str, Any], expected: list[str], name: str) -> None:
    """Raise `ValueError` if a state has other slots than those that an optimizer has."""
    if set(slots) != set(expected):
        raise ValueError(
            f"state has the slots {sorted(slots)}, but {name} has {sorted(expected)}: start from init(params) of this optimizer"
        )


class TensorFlowFramework:
    """`tf.compat.v1.train`, and `tf_keras`, where Keras 2 lives on."""

    name = "tensorflow"
    install_command = 'pip install "portopt[tensorflow]"'
    accepts = "a class of tf.compat.v1.train or tf_keras.optimizers with its arguments, or an instance"

    @property
    def vocabulary(self) -> Any:
        return importlib.import_module("portopt_tensorflow._translation").VERSION_1

    @property
    def translator(self) -> Any:
        """What translates between `tf_keras.optimizers.legacy` and the dialect `keras2`."""
        return importlib.import_module("portopt_tensorflow._translation").translator

    def owns(self, thing: object) -> bool:
        bases = tuple(self._bases())
        return isinstance(thing, bases) or (isinstance(thing, type) and issubclass(thing, bases))

    def _bases(self) -> Iterable[type]:
        tf = imported("tensorflow")
        if tf is not None:
            yield tf.compat.v1.train.Optimizer
        tf_keras = imported("tf_keras")
        if tf_keras is not None:
            yield tf_keras.optimizers.Optimizer
            yield tf_keras.optimizers.legacy.Optimizer

    def version(self) -> str:
        load_triton_first()
        return str(importlib.import_module("tensorflow").__version__)

    def adopt(self, thing: Any, arguments: dict[str, Any]) -> TensorFlowNative:
        cls = thing if isinstance(thing, type) else type(thing)
        if cls is not thing and arguments:
            raise TypeError(
                f"{cls.__name__} was given as an instance, which has its hyperparameters, so {', '.join(arguments)} cannot be "
                "given too: give the class"
            )
        tf = importlib.import_module("tensorflow")
        if issubclass(cls, tf.compat.v1.train.Optimizer):
            return _of_version_1(cls, thing, arguments)
        return _of_keras_2(cls, thing if thing is not cls else cls(**arguments))

    def from_config(self, config: Mapping[str, Any]) -> TensorFlowNative:
        name, arguments = config["optimizer"], dict(config["arguments"])
        package, _, path = name.rpartition(".")
        namespaces = {
            "tf.compat.v1.train": lambda: importlib.import_module("tensorflow").compat.v1.train,
            "tf_keras.optimizers": lambda: importlib.import_module("tf_keras").optimizers,
            "tf_keras.optimizers.legacy": lambda: importlib.import_module("tf_keras").optimizers.legacy,
        }
        cls = getattr(namespaces[package](), path, None) if package in namespaces else None
        if not self.owns(cls):
            raise ValueError(f"TensorFlow has no optimizer {name!r}")
        assert isinstance(cls, type)
        return self.adopt(cls, arguments) if package.startswith("tf.") else self.adopt(cls.from_config(arguments), {})  # type: ignore[attr-defined]  # checked by owns

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def devices(self) -> Mapping[str, str | None]:
        importlib.import_module("tensorflow")
        return {"cpu": None}

    def load(self, array: Any, device: str) -> Any:
        tf = importlib.import_module("tensorflow")
        with tf.device(device):
            return tf.constant(array)

    def fetch(self, array: Any) -> Any:
        return np.array(array)


def load_triton_first() -> None:
    """Import Triton if it is installed: both it and TensorFlow hold LLVM, and loading Triton second ends the process.

    PyTorch loads it when it constructs its first optimizer.
    """
    if "tensorflow" not in sys.modules:
        with contextlib.suppress(ImportError):
            importlib.import_module("triton")


def _of_version_1(cls: Any, thing: Any, arguments: dict[str, Any]) -> TensorFlowNative:
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


def _of_keras_2(cls: Any, optimizer: Any) -> TensorFlowNative:
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


native = TensorFlowFramework()
