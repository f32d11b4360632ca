"""The optimizers of Keras 2 in `tf_keras.optimizers.legacy`, and the rules in the dialect `keras2`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from portopt.interchange.frameworks import Correspondence
from portopt.optimizer import Optimizer, OptimizerState
from portopt.rules import SGD, Adadelta, Adagrad, Adam, Adamax, Nadam, RMSprop
from portopt.trees import STANDARD_TREES, Trees
from portopt_tensorflow._native import TensorFlowNative, create_slots

COMMON = {
    "learning_rate": "learning_rate",
    "decay": "decay",
    "global_clipnorm": "clipnorm",
    "clipvalue": "clipvalue",
}
BETAS = {**COMMON, "beta_1": "beta_1", "beta_2": "beta_2", "epsilon": "epsilon"}
# The first value of the accumulators is in the state.
IGNORED = frozenset({"name", "initial_accumulator_value"})

CORRESPONDENCES = (
    Correspondence(
        SGD,
        "SGD",
        {**COMMON, "momentum": "momentum", "nesterov": "nesterov"},
        {"iter": "step", "momentum": "moment"},
        ignored=IGNORED,
    ),
    Correspondence(
        RMSprop,
        "RMSprop",
        {**COMMON, "rho": "rho", "epsilon": "epsilon"},
        {"iter": "step", "rms": "accumulator"},
        ignored=IGNORED,
    ),
    Correspondence(
        Adagrad,
        "Adagrad",
        {**COMMON, "epsilon": "epsilon"},
        {"iter": "step", "accumulator": "accumulator"},
        ignored=IGNORED,
    ),
    Correspondence(
        Adadelta,
        "Adadelta",
        {**COMMON, "rho": "rho", "epsilon": "epsilon"},
        {"iter": "step", "accum_grad": "accumulator", "accum_var": "delta_accumulator"},
        ignored=IGNORED,
    ),
    Correspondence(
        Adam,
        "Adam",
        {**BETAS, "amsgrad": "amsgrad"},
        {"iter": "step", "m": "m", "v": "v", "vhat": "vhat"},
        ignored=IGNORED,
    ),
    Correspondence(Adamax, "Adamax", BETAS, {"iter": "step", "m": "m", "v": "u"}, ignored=IGNORED),
    Correspondence(
        Nadam,
        "Nadam",
        {**BETAS, "decay": "schedule_decay"},
        {"iter": "step", "momentum_cache": "m_schedule", "m": "m", "v": "v"},
        ignored=IGNORED,
    ),
)


class TensorFlowTranslator:
    """Optimizers of `tf_keras.optimizers.legacy`, whose slots are found through the variables."""

    dialect = "keras2"
    package = "tf_keras.optimizers.legacy"
    trees: Trees = STANDARD_TREES
    correspondences = CORRESPONDENCES

    def defaults(self, correspondence: Correspondence) -> Mapping[str, Any]:
        legacy = importlib.import_module("tf_keras").optimizers.legacy
        defaults: Mapping[str, Any] = getattr(legacy, correspondence.name)().get_config()
        return defaults

    def arguments(self, native: TensorFlowNative) -> tuple[str, Mapping[str, Any]]:
        config = native.config()
        return config["optimizer"].removeprefix("tf_keras.optimizers.legacy."), config["arguments"]

    def own_state(self, native: Any, state: Any, params: Any) -> OptimizerState:
        raise TypeError(
            f"the state of a NativeOptimizer of TensorFlow is the OptimizerState that its init or apply returned, but "
            f"{type(state).__name__} was given"
        )

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
        per_parameter, scalars = create_slots(native, leaves)
        slots = {name: tf.identity(variable) for name, variable in scalars.items()}
        for name, variables in per_parameter.items():
            slots[name] = self.trees.unflatten(definition, [tf.identity(v) for v in variables])
        return type(native).__name__, native.get_config(), OptimizerState(0, slots), params

    def call(self, correspondence: Correspondence, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        return getattr(importlib.import_module("tf_keras").optimizers.legacy, correspondence.name), dict(arguments)

    def release(
        self,
        correspondence: Correspondence,
        arguments: dict[str, Any],
        optimizer: Optimizer,
        state: OptimizerState,
        params: Any,
    ) -> Any:
        leaves, definition = self.trees.flatten(params)
        factory, arguments = self.call(correspondence, arguments)
        native = factory(**arguments)
        per_parameter, scalars = create_slots(native, leaves)
        for name, variable in scalars.items():
            ours = correspondence.slots[name]
            variable.assign(state.step if ours == "step" else float(state.slots[ours]))
        for name, variables in per_parameter.items():
            values, found = self.trees.flatten(state.slots[correspondence.slots[name]])
            if found != definition:
                raise ValueError(
                    f"params must have the structure of the slots, but it is {definition}, and theirs {found}"
                )
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        return native


translator = TensorFlowTranslator()
