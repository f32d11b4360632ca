"""Keras 3 and the rules in the dialect `keras3`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from portopt.interchange.correspondence import Correspondence, Vocabulary
from portopt.interchange.variables import Bound, VariablesTranslator
from portopt.optimizer import Optimizer
from portopt.state import OptimizerState
from portopt.trees import Trees
from portopt_keras_native._native import KerasNative, backend_arrays

VOCABULARY = Vocabulary(
    namespace="keras.optimizers",
    dialect="keras3",
    step="iteration",
    names={"clipnorm": "global_clipnorm"},
    ignored=frozenset({"name", "ema_momentum", "ema_overwrite_frequency"}),
)


class KerasTranslator(VariablesTranslator):
    """Optimizers of Keras 3, which hold their state once they are built."""

    library = "Keras"
    vocabulary = VOCABULARY

    @property
    def trees(self) -> Trees:
        return backend_arrays().trees

    def arguments(self, native: KerasNative) -> tuple[str, Mapping[str, Any]]:
        return native.cls.__name__, native.arguments

    def capture(self, native: Any, params: Any) -> tuple[str, Mapping[str, Any], OptimizerState, Any]:
        name = type(native).__name__
        if not native.built:
            raise ValueError(f"this {name} has no parameters yet: build it, or make a portopt optimizer anew")
        own = list(native._trainable_variables)
        leaves, definition = self.trees.flatten(own if params is None else params)
        order = [next((i for i, v in enumerate(own) if leaf is v or leaf is v.value), -1) for leaf in leaves]
        if sorted(order) != list(range(len(own))):
            raise ValueError(
                f"params must have the {len(own)} variables of the optimizer, or their values, as its leaves, but it has "
                f"{sum(i >= 0 for i in order)} of them among {len(leaves)}"
            )
        bound = KerasNative(native).bind([v.value for v in own], {})
        if [v.shape for v in native.variables] != [v.shape for v in bound.optimizer.variables]:
            raise ValueError(
                f"portopt has no counterpart of how this {name} updates some of its variables, for it keeps others than of "
                "variables of these shapes with other names: exclude_embeddings=False and no exclude_layers can be translated"
            )
        positions = {id(v): i for i, v in enumerate(bound.optimizer.variables)}
        copied = [backend_arrays().copy(v.value) for v in native.variables]
        slots = {slot: copied[positions[id(v)]] for slot, v in bound.scalars.items()}
        for slot, variables in bound.per_parameter.items():
            values = [None if v is None else copied[positions[id(v)]] for v in variables]
            slots[slot] = self.trees.unflatten(definition, [values[i] for i in order])
        tree = self.trees.unflatten(definition, [own[i].value for i in order])
        return name, native.get_config(), OptimizerState(0, slots), tree

    def release(
        self,
        correspondence: Correspondence,
        arguments: dict[str, Any],
        optimizer: Optimizer,
        state: OptimizerState,
        params: Any,
    ) -> Any:
        keras = importlib.import_module("keras")
        variables, definition = self.trees.flatten(params)
        foreign = next((v for v in variables if not isinstance(v, keras.Variable)), None)
        if foreign is not None:
            raise TypeError(
                f"params must have Keras variables as its leaves, such as a model's trainable_variables, but it has "
                f"{type(foreign).__name__}"
            )
        factory, arguments = self.vocabulary.call(correspondence, arguments)
        native = factory(**arguments)
        native.build(variables)
        bound = KerasNative(native).bind([v.value for v in variables], {})
        own = {id(theirs): ours for theirs, ours in zip(bound.optimizer.variables, native.variables, strict=True)}
        scalars = {name: own[id(v)] for name, v in bound.scalars.items()}
        slots = {name: [None if v is None else own[id(v)] for v in slot] for name, slot in bound.per_parameter.items()}
        self.load(Bound(native, variables, slots, scalars), correspondence, optimizer, state, definition)
        return native
