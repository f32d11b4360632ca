"""The optimizers of Keras 3 for `portopt.NativeOptimizer`, on the arrays of Keras's backend."""

from __future__ import annotations

import contextlib
import copy
import importlib
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from portopt.backend import ArrayInfo, backends
from portopt.imports import imported
from portopt.interchange.frameworks import NativeArrays, Tree
from portopt.trees import STANDARD_TREES, Trees


class NumpyArrays:
    """NumPy arrays, for Keras's NumPy backend."""

    name = "numpy"
    trees: Trees = STANDARD_TREES
    shares_memory = True

    def owns(self, leaf: object) -> bool:
        return isinstance(leaf, np.ndarray | np.generic)

    def describe(self, array: Any) -> ArrayInfo:
        return backends()["numpy"].describe(array)

    def borrow(self, array: Any) -> Any:
        return array

    def give_back(self, array: Any) -> Any:
        return array

    def why_read_only(self, array: Any) -> str | None:
        return None if isinstance(array, np.ndarray) and array.flags.writeable else "is a read-only NumPy array"

    def assign(self, target: Any, value: Any) -> None:
        target[...] = value

    def dtype_context(self, dtype: str) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()


def backend_arrays() -> NativeArrays:
    """Return the arrays of the backend that Keras runs on."""
    chosen = importlib.import_module("keras").backend.backend()
    if chosen == "numpy":
        return NumpyArrays()
    modules = {"torch": "portopt_torch", "jax": "portopt_jax", "tensorflow": "portopt_tensorflow"}
    if chosen not in modules:
        raise ValueError(
            f"Keras's backend is {chosen!r}; optimizers of Keras work here on {', '.join(modules)} and numpy"
        )
    arrays: NativeArrays = {
        "torch": lambda: importlib.import_module("portopt_torch._native").TorchArrays(),
        "jax": lambda: importlib.import_module("portopt_jax._native").JaxArrays(),
        "tensorflow": lambda: importlib.import_module("portopt_tensorflow._native").TensorFlowArrays(),
    }[chosen]()
    return arrays


class _Bound(NamedTuple):
    """A copy of the optimizer with variables of its own."""

    optimizer: Any
    parameters: list[Any]
    per_parameter: dict[str, list[Any]]
    """The slots: for each name, a variable for each parameter, or None."""
    scalars: dict[str, Any]
    """The variables that are one for all parameters."""


class KerasNative:
    """One optimizer; each step loads its arguments into variables of a copy, and reads them afterwards."""

    updates_in_place = False

    def __init__(self, optimizer: Any) -> None:
        # On torch Keras makes subclasses, of the same names, of what is asked for.
        own = getattr(importlib.import_module("keras").optimizers, type(optimizer).__name__, None)
        self._is_own = isinstance(own, type) and isinstance(optimizer, own)
        self.cls, self.arguments = type(optimizer), optimizer.get_config()
        self._bound: dict[Any, _Bound] = {}
        self.arrays = backend_arrays()

    def describe(self) -> str:
        return f"keras.optimizers.{self.cls.__name__}"

    def config(self) -> dict[str, Any]:
        if not self._is_own:
            raise ValueError(f"{self.cls.__qualname__} is no class of keras.optimizers, so a config cannot name it")
        return {"optimizer": self.cls.__name__, "arguments": copy.deepcopy(self.arguments)}

    def init(self, tree: Tree, leaves: list[Any]) -> dict[str, Any]:
        bound = self.bind(leaves, fresh=True)
        return self._slots(tree, leaves, bound, lambda variable: variable.value)

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
        bound = self.bind(leaves)
        expected = {*bound.scalars, *bound.per_parameter}
        if set(slots) != expected:
            raise ValueError(
                f"state has the slots {sorted(slots)}, but {self.describe()} has {sorted(expected)}: start from init(params) of "
                "this optimizer"
            )
        values = list(zip(bound.parameters, (leaf for leaf in leaves if leaf is not None), strict=True))
        values += [(variable, slots[name]) for name, variable in bound.scalars.items()]
        for name, variables in bound.per_parameter.items():
            slot = [v for v, leaf in zip(tree.flatten(slots[name], name), leaves, strict=True) if leaf is not None]
            values += [(v, value) for v, value in zip(variables, slot, strict=True) if v is not None]
        values += self._learning_rate(bound.optimizer, hyperparameters)
        own = iter(bound.parameters)
        variables = [None if leaf is None else next(own) for leaf in leaves]
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        with self._run(bound.optimizer, values, pairs) as read:
            new = [None if v is None else read(v) for v in variables]
            return new, self._slots(tree, leaves, bound, read)

    def _learning_rate(self, optimizer: Any, hyperparameters: Mapping[str, Any]) -> list[tuple[Any, Any]]:
        keras = importlib.import_module("keras")
        unknown = next((name for name in hyperparameters if name != "learning_rate"), None)
        if unknown is not None:
            raise TypeError(f"{self.describe()} has no hyperparameter {unknown!r} for a step; allowed is learning_rate")
        variable = _inner(optimizer)._learning_rate
        if not isinstance(variable, keras.Variable):
            if hyperparameters:
                raise TypeError(
                    f"the learning rate of this {self.describe()} is a schedule, so none can be given for a step"
                )
            return []
        rate = hyperparameters.get("learning_rate", _inner_arguments(self.arguments)["learning_rate"])
        return [(variable, keras.ops.convert_to_tensor(rate, variable.dtype))]

    @contextlib.contextmanager
    def _run(self, optimizer: Any, values: list[tuple[Any, Any]], pairs: list[tuple[Any, Any]]) -> Any:
        """Do the step with these values of variables; give a function that reads a variable."""
        gradients, variables = [g for g, _ in pairs], [v for _, v in pairs]
        if self.arrays.name == "jax":
            # The variables stay as they are, so that a step can be traced.
            yield _stateless(optimizer, values, gradients, variables)
            return
        for variable, value in values:
            variable.assign(value)
        optimizer.apply(gradients, variables)
        yield self._copy

    def _copy(self, variable: Any) -> Any:
        value = variable.value
        if self.arrays.name == "torch":
            return value.detach().clone()
        return np.array(value) if self.arrays.name == "numpy" else importlib.import_module("tensorflow").identity(value)

    def _slots(self, tree: Tree, leaves: list[Any], bound: _Bound, read: Callable[[Any], Any]) -> dict[str, Any]:
        slots = {name: read(variable) for name, variable in bound.scalars.items()}
        for name, variables in bound.per_parameter.items():
            own = iter(None if v is None else read(v) for v in variables)
            slots[name] = tree.unflatten([None if leaf is None else next(own) for leaf in leaves])
        return slots

    def bind(self, leaves: list[Any], *, fresh: bool = False) -> _Bound:
        """Return a copy of the optimizer for such parameters, the same one again unless `fresh`."""
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
        matches = [(v, re.fullmatch(r"p(\d+)_(\w+)", v.path.rpartition("/")[2])) for v in variables]
        per_parameter: dict[str, list[Any]] = {}
        scalars: dict[str, Any] = {}
        for variable, match in matches:
            if match is not None:
                per_parameter.setdefault(match[2], [None] * len(infos))[int(match[1])] = variable
                continue
            # Keras numbers the variables without a name through the whole process.
            name = re.sub(r"^variable_\d+$", "variable", variable.path.rpartition("/")[2])
            while name in scalars:
                name += "_"
            scalars[name] = variable
        self._bound[key] = _Bound(optimizer, parameters, per_parameter, scalars)
        return self._bound[key]


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


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def _inner_arguments(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = arguments.get("inner_optimizer")
    return inner["config"] if isinstance(inner, Mapping) else arguments


class KerasFramework:
    """Keras 3."""

    name = "keras"
    install_command = 'pip install "portopt[keras]"'
    accepts = "a class of keras.optimizers with its arguments, or an instance"

    @property
    def vocabulary(self) -> Any:
        return self.translator.vocabulary

    @property
    def translator(self) -> Any:
        """What translates between Keras 3 and the dialect `keras3`."""
        return importlib.import_module("portopt_keras_native._translation").translator

    def owns(self, thing: object) -> bool:
        base = getattr(getattr(imported("keras"), "optimizers", None), "Optimizer", None)
        return base is not None and (isinstance(thing, base) or (isinstance(thing, type) and issubclass(thing, base)))

    def version(self) -> str:
        # Keras may be set up to run on TensorFlow.
        importlib.import_module("portopt_tensorflow._native").load_triton_first()
        return str(importlib.import_module("keras").__version__)

    def adopt(self, thing: Any, arguments: dict[str, Any]) -> KerasNative:
        if isinstance(thing, type):
            return KerasNative(thing(**arguments))
        if arguments:
            raise TypeError(
                f"{type(thing).__name__} was given as an instance, which has its hyperparameters, so {', '.join(arguments)} "
                "cannot be given too: give the class"
            )
        return KerasNative(thing)

    def from_config(self, config: Mapping[str, Any]) -> KerasNative:
        cls = getattr(importlib.import_module("keras").optimizers, config["optimizer"], None)
        if not (isinstance(cls, type) and self.owns(cls)):
            raise ValueError(f"keras.optimizers has no optimizer {config['optimizer']!r}")
        return KerasNative(cls.from_config(copy.deepcopy(dict(config["arguments"]))))  # type: ignore[attr-defined]  # checked by owns

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if backend_arrays().name != "jax":
            return function
        jitted: Callable[..., Any] = importlib.import_module("jax").jit(function)
        return jitted

    def devices(self) -> Mapping[str, str | None]:
        importlib.import_module("keras")
        return {"cpu": None}

    def load(self, array: Any, device: str) -> Any:
        keras = importlib.import_module("keras")
        with keras.device(device):
            return keras.ops.convert_to_tensor(np.array(array))

    def fetch(self, array: Any) -> Any:
        return np.array(importlib.import_module("keras").ops.convert_to_numpy(array))


native = KerasFramework()
