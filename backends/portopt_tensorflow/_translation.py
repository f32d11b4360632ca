"""The optimizers of Keras 2 in `tf_keras.optimizers.legacy`, and the rules in the dialect `keras2`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from portopt.interchange.correspondence import Correspondence, Vocabulary
from portopt.interchange.variables import VariablesTranslator
from portopt.optimizer import Optimizer
from portopt.state import OptimizerState
from portopt.trees import STANDARD_TREES, Trees
from portopt_tensorflow._native import TensorFlowNative, bound_to

KERAS_2 = Vocabulary(
    namespace="tf_keras.optimizers.legacy",
    dialect="keras2",
    step="iter",
    names={"clipnorm": "global_clipnorm"},
    ignored=frozenset({"name"}),
)
VERSION_1 = Vocabulary(
    namespace="tf.compat.v1.train",
    dialect="keras2",
    names={"beta_1": "beta1", "beta_2": "beta2"},
    lacks=frozenset({"clipnorm", "clipvalue", "decay"}),
    package="tensorflow",
    translated=False,
)


class TensorFlowTranslator(VariablesTranslator):
    """Optimizers of `tf_keras.optimizers.legacy`, whose slots are found through the variables."""

    library = "TensorFlow"
    vocabulary = KERAS_2
    trees: Trees = STANDARD_TREES

    def arguments(self, native: TensorFlowNative) -> tuple[str, Mapping[str, Any]]:
        config = native.config()
        return config["optimizer"].removeprefix("tf_keras.optimizers.legacy."), config["arguments"]

    def capture(self, native: Any, params: Any) -> tuple[str, Mapping[str, Any], OptimizerState, Any]:
        legacy = importlib.import_module("tf_keras").optimizers.legacy.Optimizer
        if not isinstance(native, legacy):
            raise ValueError(
                f"portopt has no counterpart of {type(native).__module__}.{type(native).__name__}; of TensorFlow's optimizers "
                "those of tf_keras.optimizers.legacy are translated"
            )
        if params is None:
            raise ValueError(f"{type(native).__name__} finds its slots through the variables: give them as params")
        tf = importlib.import_module("tensorflow")
        leaves, definition = self.trees.flatten(params)
        bound = bound_to(native, leaves)
        slots = {name: tf.identity(variable) for name, variable in bound.scalars.items()}
        for name, variables in bound.per_parameter.items():
            slots[name] = self.trees.unflatten(definition, [tf.identity(v) for v in variables])
        return type(native).__name__, native.get_config(), OptimizerState(0, slots), params

    def release(
        self,
        correspondence: Correspondence,
        arguments: dict[str, Any],
        optimizer: Optimizer,
        state: OptimizerState,
        params: Any,
    ) -> Any:
        leaves, definition = self.trees.flatten(params)
        factory, arguments = self.vocabulary.call(correspondence, arguments)
        native = factory(**arguments)
        self.load(bound_to(native, leaves), correspondence, optimizer, state, definition)
        return native
