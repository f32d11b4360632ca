"""optax and the rules in the dialect `optax`."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from portopt.interchange.correspondence import Correspondence, Vocabulary
from portopt.interchange.frameworks import Translator
from portopt.interchange.native import NativeOptimizer
from portopt.interchange.states import filled, is_called
from portopt.optimizer import Optimizer
from portopt.state import OptimizerState
from portopt.trees import Trees
from portopt_jax._backend import backend
from portopt_jax._native import OptaxNative, name_of

VOCABULARY = Vocabulary(
    namespace="optax",
    dialect="optax",
    step="count",
    names={"beta_1": "b1", "beta_2": "b2", "epsilon": "eps"},
    lacks=frozenset({"clipnorm", "clipvalue"}),
)


class OptaxTranslator(Translator):
    """Functions of optax with their arguments, and the states of what they make."""

    library = "optax"
    vocabulary = VOCABULARY
    trees: Trees = backend.trees

    def defaults(self, correspondence: Correspondence) -> Mapping[str, Any]:
        function = self.vocabulary.find(correspondence.name)
        return _flat({name: p.default for name, p in inspect.signature(function).parameters.items()})

    def arguments(self, native: OptaxNative) -> tuple[str, Mapping[str, Any]]:
        if native.factory is None:
            raise _opaque()
        bound = inspect.signature(native.factory).bind(**native.arguments)
        bound.apply_defaults()
        return name_of(native.factory), _flat(bound.arguments)

    def own_state(self, native: Any, state: Any, params: Any) -> OptimizerState:
        if not isinstance(state, tuple):
            raise TypeError(
                f"the state that goes with {native.describe()} is optax's, a tuple, or an OptimizerState, but "
                f"{type(state).__name__} was given"
            )
        if params is not None:
            with contextlib.suppress(ValueError):  # what is missing is said when it is looked for
                return OptimizerState(0, native.slots_of(params, state))
        return OptimizerState(0, dict(_fields(state)))

    def capture(self, native: Any, params: Any) -> Any:
        raise _opaque()

    def release(
        self,
        correspondence: Correspondence,
        arguments: dict[str, Any],
        optimizer: Optimizer,
        state: OptimizerState,
        params: Any,
    ) -> Any:
        jnp = importlib.import_module("jax.numpy")
        factory, arguments = self.vocabulary.call(correspondence, arguments)
        native = OptaxNative(factory(**arguments), factory, arguments)
        leaves, definition = self.trees.flatten(params)
        slots = self.native_slots(correspondence, optimizer, state, leaves, definition)
        if correspondence.counterpart.begins and not int(state.step):
            slots = {}
        started: dict[str, Any] = {}
        for name, first in NativeOptimizer(factory, **arguments).init(params).slots.items():
            last = next((last for last in slots if is_called(name, last)), None)
            value = None if last is None else slots[last]
            if last is not None and isinstance(value, list):
                own = [None if f is None else v for v, f in zip(value, self.trees.flatten(first)[0], strict=True)]
                filled_up = filled(correspondence, last, own, self.trees.flatten(first)[0])
                started[name] = self.trees.unflatten(definition, filled_up)
            else:
                started[name] = first if value is None else jnp.asarray(value, first.dtype)
        return native.transformation, native.state_of(params, started)


def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with those apart that are several in one, as `betas` of `optax.contrib` is, or one of several."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
            flat[f"{name}.{value[0]}"] = value[1]
        elif isinstance(value, tuple):
            flat |= {f"{name}.{i}": part for i, part in enumerate(value)}
        else:
            flat[name] = value
    return flat


def _fields(state: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and value of the fields of optax's states in a state, which nest in tuples."""
    if isinstance(state, tuple):
        names = getattr(state, "_fields", None)
        if names is None:
            for part in state:
                yield from _fields(part)
        elif type(state).__module__.partition(".")[0] == "optax":
            yield from zip(names, state, strict=True)


def _opaque() -> ValueError:
    return ValueError(
        "an optax transformation does not know its hyperparameters, so it cannot be translated: give the function and its "
        "arguments, as in from_native(NativeOptimizer(optax.adam, learning_rate=0.1), state)"
    )
