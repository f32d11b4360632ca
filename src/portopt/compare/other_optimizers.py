"""`--against`: the optimizers of other libraries, as runs that are shown beside portopt's and are no part of the verdict.

Their formulas differ from portopt's in where epsilon stands, in the order of operations, and in rounding. To add a library,
write a class with the three members of `OtherOptimizers` and enter it into `OTHER_OPTIMIZERS`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from portopt.backend import Backend, backends
from portopt.compare.digits import Parameters
from portopt.compare.errors import UnusableArgumentsError
from portopt.optimizer import Optimizer
from portopt.rules import SGD, Adadelta, Adagrad, Adam, Adamax, Nadam, RMSprop


class OtherOptimizers(Protocol):
    """One library's own optimizers."""

    backend: str
    """The backend whose arrays they update."""

    def runner(self, optimizer: Optimizer, device: str, dtype: str) -> Any:
        """Return a `Runner` of the optimizer nearest to `optimizer`, with the same hyperparameters.

        Raises:
            UnusableArgumentsError: there is none.
        """

    def supports(self, optimizer: Optimizer) -> bool:
        """Tell whether the library has a counterpart of `optimizer`."""


class TorchOptim:
    """`torch.optim`."""

    backend = "torch"

    def supports(self, optimizer: Optimizer) -> bool:
        return type(optimizer) in _TORCH_COUNTERPARTS

    def runner(self, optimizer: Optimizer, device: str, dtype: str) -> Any:
        if not self.supports(optimizer):
            known = ", ".join(rule.__name__ for rule in _TORCH_COUNTERPARTS)
            raise UnusableArgumentsError(
                f"torch.optim has no counterpart of {type(optimizer).__name__}; --against torch works with {known}"
            )
        return _TorchRunner(backends()[self.backend], device, optimizer)


_TORCH_COUNTERPARTS: Mapping[type[Optimizer], Callable[[Any], tuple[str, dict[str, Any]]]] = {
    # torch refuses nesterov without momentum, for which it means nothing.
    SGD: lambda o: ("SGD", {"momentum": o.momentum, "nesterov": o.nesterov and o.momentum > 0}),
    RMSprop: lambda o: ("RMSprop", {"alpha": o.rho, "eps": o.epsilon}),
    Adagrad: lambda o: ("Adagrad", {"eps": o.epsilon}),
    Adadelta: lambda o: ("Adadelta", {"rho": o.rho, "eps": o.epsilon}),
    Adam: lambda o: ("Adam", {"betas": (o.beta_1, o.beta_2), "eps": o.epsilon, "amsgrad": o.amsgrad}),
    Adamax: lambda o: ("Adamax", {"betas": (o.beta_1, o.beta_2), "eps": o.epsilon}),
    Nadam: lambda o: (
        "NAdam",
        {"betas": (o.beta_1, o.beta_2), "eps": o.epsilon, "momentum_decay": o.schedule_decay},
    ),
}


class _TorchRunner:
    backend = "torch.optim"

    def __init__(self, backend: Backend, device: str, optimizer: Optimizer) -> None:
        self._backend, self._portopt = backend, optimizer
        self._torch = importlib.import_module("torch")
        self.mode, self._arguments = _TORCH_COUNTERPARTS[type(optimizer)](optimizer)
        self.version, self.device = backend.version(), device
        self.formula: str | None = f"torch.optim.{self.mode}"

    def context(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def start(self, parameters: Parameters) -> None:
        self._tensors = self.load(parameters)
        self._finished = 0
        self._optimizer = getattr(self._torch.optim, self.mode)(
            self._tensors, lr=float(self._portopt.learning_rate_at(1)), **self._arguments
        )

    def load(self, gradients: Parameters) -> Any:
        return [self._backend.from_numpy(array, self.device) for array in gradients]

    def step(self, gradients: Any) -> None:
        self._finished += 1
        for group in self._optimizer.param_groups:
            group["lr"] = float(self._portopt.learning_rate_at(self._finished))
        for tensor, gradient in zip(self._tensors, gradients, strict=True):
            tensor.grad = gradient
        if self._portopt.clipnorm is not None:
            self._torch.nn.utils.clip_grad_norm_(self._tensors, self._portopt.clipnorm)
        if self._portopt.clipvalue is not None:
            self._torch.nn.utils.clip_grad_value_(self._tensors, self._portopt.clipvalue)
        self._optimizer.step()

    def parameters(self) -> Sequence[npt.NDArray[Any]]:
        return [self._backend.to_numpy(tensor) for tensor in self._tensors]


OTHER_OPTIMIZERS: Mapping[str, OtherOptimizers] = {"torch": TorchOptim()}
"""The values of `--against`."""
