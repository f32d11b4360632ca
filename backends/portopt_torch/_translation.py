"""`torch.optim` and the rules in the dialect `torch`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from portopt.interchange.correspondence import Correspondence, Vocabulary
from portopt.interchange.frameworks import Translator
from portopt.optimizer import Optimizer
from portopt.state import OptimizerState
from portopt.trees import Trees
from portopt_torch._backend import backend
from portopt_torch._native import TorchNative, hyperparameters_of

VOCABULARY = Vocabulary(
    namespace="torch.optim",
    dialect="torch",
    names={"learning_rate": "lr", "epsilon": "eps", "beta_1": "betas.0", "beta_2": "betas.1"},
    lacks=frozenset({"clipnorm", "clipvalue"}),
    ignored=frozenset({"foreach", "capturable", "differentiable", "fused"}),
)


class TorchTranslator(Translator):
    """Optimizers of `torch.optim`, which hold their parameters and state."""

    library = "torch"
    vocabulary = VOCABULARY
    trees: Trees = backend.trees

    def defaults(self, correspondence: Correspondence) -> Mapping[str, Any]:
        torch = importlib.import_module("torch")
        return _flat(hyperparameters_of(self.vocabulary.find(correspondence.name)([torch.zeros(1, 1)])))

    def arguments(self, native: TorchNative) -> tuple[str, Mapping[str, Any]]:
        torch = importlib.import_module("torch")
        cls, arguments = native.cls, native.arguments
        return name_of(cls), _flat(hyperparameters_of(cls([torch.zeros(1, 1)], **arguments)))

    def capture(self, native: Any, params: Any) -> tuple[str, Mapping[str, Any], OptimizerState, Any]:
        own = [p for group in native.param_groups for p in group["params"]]
        leaves, definition = self.trees.flatten(own if params is None else params)
        if {id(leaf) for leaf in leaves} != {id(p) for p in own} or len(leaves) != len(own):
            raise ValueError(
                f"params must have the {len(own)} parameters of the optimizer as its leaves, the very tensors, but it has "
                f"{sum(any(leaf is p for p in own) for leaf in leaves)} of them among {len(leaves)}"
            )
        states = [native.state.get(p, {}) for p in leaves]
        names = dict.fromkeys(name for state in states for name, value in state.items() if value is not None)
        slots = {name: self.trees.unflatten(definition, [_copy(state.get(name)) for state in states]) for name in names}
        # SGD does not count; a buffer says that it has begun.
        step = 1 if slots and "step" not in slots else 0
        tree = self.trees.unflatten(definition, leaves)
        if slots and not all(states) and not step:
            raise ValueError(
                f"{sum(not state for state in states)} of the {len(states)} parameters of this {type(native).__name__} have made "
                "no step yet, but others have: portopt counts one number of steps"
            )
        return name_of(type(native)), _flat(hyperparameters_of(native)), OptimizerState(step, slots), tree

    def why_not_constant(self, native: Any) -> str | None:
        if not any("initial_lr" in group for group in native.param_groups):
            return None
        return f"a scheduler sets the learning rate of this {type(native).__name__} (portopt_torch.from_torch keeps schedulers)"

    def release(
        self,
        correspondence: Correspondence,
        arguments: dict[str, Any],
        optimizer: Optimizer,
        state: OptimizerState,
        params: Any,
    ) -> Any:
        leaves, definition = self.trees.flatten(params)
        factory, merged = self.vocabulary.call(correspondence, arguments)
        native = factory(leaves, **merged)
        if not int(state.step):
            return native
        slots = self.native_slots(correspondence, optimizer, state, leaves, definition)
        for i, leaf in enumerate(leaves):
            own = {name: value[i] if isinstance(value, list) else _scalar(value) for name, value in slots.items()}
            native.state[leaf] = {name: _copy(value) for name, value in own.items() if value is not None}
        return native


def name_of(cls: type) -> str:
    """Return the name of a class in `torch.optim`; of another, which may compute something else, with its module."""
    own = getattr(importlib.import_module("torch").optim, cls.__name__, None) is cls
    return cls.__name__ if own else f"{cls.__module__}.{cls.__qualname__}"


def _copy(value: Any) -> Any:
    return value.detach().clone() if hasattr(value, "detach") else value


def _scalar(value: Any) -> Any:
    torch = importlib.import_module("torch")
    return torch.tensor(float(value), dtype=torch.get_default_dtype())


def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with the learning rate as a number, and those apart that are several in one, as the betas are."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, tuple | list):
            flat |= {f"{name}.{i}": None if part is None else float(part) for i, part in enumerate(value)}
        else:
            flat[name] = value.item() if hasattr(value, "item") else value
    return flat
