"""The optimizers of `torch.optim` for `portopt.NativeOptimizer`, and tensors for those of Keras."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from portopt.backend import ArrayInfo
from portopt.interchange.exchange import Native, NativeArrays, Tree, expression
from portopt.trees import Trees
from portopt_torch._backend import backend


class TorchArrays(NativeArrays):
    """Tensors, on the memory of NumPy arrays where they are given instead."""

    name = "torch"
    trees: Trees = backend.trees
    shares_memory = True

    def owns(self, leaf: object) -> bool:
        return backend.owns(leaf)

    def describe(self, array: Any) -> ArrayInfo:
        return ArrayInfo(tuple(array.shape), backend.dtype_name(array), str(array.device))

    def borrow(self, array: Any) -> Any:
        torch = importlib.import_module("torch")
        array = np.asarray(array)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            # torch has neither read-only tensors nor negative strides.
            array = array.copy()
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def give_back(self, array: Any) -> Any:
        torch = importlib.import_module("torch")
        array = array.detach()
        if array.dtype is torch.bfloat16:
            return array.view(torch.int16).numpy().view(importlib.import_module("ml_dtypes").bfloat16)
        return array.numpy()

    def copy(self, array: Any) -> Any:
        return array.detach().clone()

    def why_read_only(self, array: Any) -> str | None:
        return backend.why_read_only(array)

    def assign(self, target: Any, value: Any) -> None:
        target.detach().copy_(value)


class TorchNative(Native):
    """One class of `torch.optim` with its arguments; each step constructs it anew on the tensors of the step."""

    arrays = TorchArrays()
    updates_in_place = True

    def __init__(self, cls: Any, arguments: dict[str, Any]) -> None:
        if inspect.signature(cls.step).parameters["closure"].default is inspect.Parameter.empty:
            raise ValueError(
                f"{cls.__name__} needs a closure that evaluates the loss again, which apply(params, grads, state) has not: use "
                "torch's own loop for it"
            )
        self.cls, self.arguments = cls, arguments
        torch = importlib.import_module("torch")
        # What is wrong with the arguments is said now, by torch; a matrix, as Muon takes nothing else.
        self._known = set(cls([torch.zeros(1, 1)], **arguments).defaults)

    def describe(self) -> str:
        return expression(path_of(self.cls), self.arguments)

    def config(self) -> dict[str, Any]:
        if getattr(importlib.import_module("torch").optim, self.cls.__name__, None) != self.cls:
            raise ValueError(f"{path_of(self.cls)} is no class of torch.optim, so a config cannot name it")
        return {"optimizer": self.cls.__name__, "arguments": {k: _plain(v) for k, v in self.arguments.items()}}

    def init(self, tree: Tree, leaves: list[Any]) -> dict[str, Any]:
        tensors = [None if leaf is None else leaf.detach() for leaf in leaves]
        return self._collect(tree, self._construct(tensors), tensors, {})

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
        unknown = set(hyperparameters) - self._known
        if unknown:
            raise TypeError(
                f"{path_of(self.cls)} has no hyperparameter {min(unknown)!r}; allowed are {', '.join(sorted(self._known))}"
            )

        def own(value: Any) -> Any:
            return value.detach() if in_place else value.detach().clone()

        torch = importlib.import_module("torch")
        states = {
            name: [own(value) if isinstance(value, torch.Tensor) else value for value in tree.flatten(slot, name)]
            for name, slot in slots.items()
        }
        tensors = [None if leaf is None else own(leaf) for leaf in leaves]
        optimizer = self._construct(tensors)
        for group in optimizer.param_groups:
            group.update(hyperparameters)
        for i, (tensor, gradient) in enumerate(zip(tensors, gradients, strict=True)):
            if tensor is None:
                continue
            tensor.grad = None if gradient is None else gradient.detach()
            kept = {name: values[i] for name, values in states.items() if values[i] is not None}
            if kept:
                optimizer.state[tensor] = kept
        optimizer.step()
        new_slots = self._collect(tree, optimizer, tensors, slots)
        if in_place:
            return leaves, new_slots
        for tensor, leaf in zip(tensors, leaves, strict=True):
            if tensor is not None:
                tensor.grad = None
                tensor.requires_grad_(leaf.requires_grad)
        return tensors, new_slots

    def _construct(self, tensors: list[Any]) -> Any:
        return self.cls([tensor for tensor in tensors if tensor is not None], **self.arguments)

    def _collect(self, tree: Tree, optimizer: Any, tensors: list[Any], before: Mapping[str, Any]) -> dict[str, Any]:
        states = [{} if tensor is None else optimizer.state.get(tensor, {}) for tensor in tensors]
        names = dict.fromkeys([*before, *(name for state in states for name in state)])
        return {name: tree.unflatten([state.get(name) for state in states]) for name in names}


def path_of(cls: Any) -> str:
    """Return how users of torch write a class."""
    own = getattr(importlib.import_module("torch").optim, cls.__name__, None) is cls
    return f"torch.optim.{cls.__name__}" if own else f"{cls.__module__}.{cls.__qualname__}"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value


def hyperparameters_of(optimizer: Any) -> dict[str, Any]:
    """Return the constructor's arguments of a `torch.optim` optimizer, from its parameter groups.

    Raises:
        ValueError: the groups differ.
    """
    names = inspect.signature(type(optimizer).__init__).parameters
    groups = [{k: v for k, v in group.items() if k in names and k != "params"} for group in optimizer.param_groups]
    for group in groups[1:]:
        differing = [name for name in group if group[name] != groups[0].get(name)]
        if differing:
            raise ValueError(
                f"the parameter groups of this {type(optimizer).__name__} differ in {', '.join(differing)}, but one portopt "
                "optimizer has one value of each hyperparameter: portopt_torch.from_torch(optimizer) keeps groups, or make one "
                "for each group"
            )
    return groups[0]
