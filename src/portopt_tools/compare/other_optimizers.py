"""`--against`: the optimizers of other libraries, as runs that are shown beside portopt's and are no part of the verdict.

They run as `portopt.NativeOptimizer`. Unless the rule is in the framework's dialect, their formulas may differ from portopt's in
where epsilon stands, which its counterpart says; the order of operations and the rounding differ in any case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from portopt.interchange.frameworks import Construction, NativeFramework, get_framework
from portopt.interchange.matching import compared_rules
from portopt.interchange.native import NativeOptimizer
from portopt.interchange.nearest import counterpart_of
from portopt.optimizer import Optimizer, OptimizerState
from portopt_tools.compare.digits import Parameters
from portopt_tools.errors import UnusableArgumentsError


def other_runner(name: str, optimizer: Optimizer, devices: Sequence[str], dtype: str) -> NativeRunner:
    """Return a run of the framework's optimizer that is nearest to `optimizer`, with the same hyperparameters.

    Args:
        name: the framework.
        optimizer: what the other runs compute.
        devices: the devices that were asked for; the framework's first is taken if it has none of them.
        dtype: the dtype of the parameters.

    Raises:
        UnusableArgumentsError: the framework cannot be used, or has no counterpart of `optimizer`.
    """
    framework = get_framework(name)
    try:
        version = framework.version()
    except ImportError as error:
        raise UnusableArgumentsError(
            f"--against {name} needs {name}, but it is not installed ({error}): {framework.install_command}"
        ) from None
    try:
        counterpart = counterpart_of(framework, optimizer)
    except ValueError as error:
        raise UnusableArgumentsError(str(error)) from error
    if counterpart is None:
        known = ", ".join(rule.__name__ for rule in compared_rules(framework.vocabulary))
        raise UnusableArgumentsError(
            f"{name} has no counterpart of {optimizer!r}; --against {name} works with {known}, in the default dialect or that of "
            f"{name}"
        )
    usable = [device for device, reason in framework.devices().items() if reason is None]
    chosen = [d for asked in devices for d in usable if asked in (d, d.partition(":")[0])]
    return NativeRunner(framework, counterpart, version, (chosen or usable)[0], optimizer, dtype)


class NativeRunner:
    """One framework's own optimizer."""

    def __init__(
        self,
        framework: NativeFramework,
        counterpart: Construction,
        version: str,
        device: str,
        optimizer: Optimizer,
        dtype: str,
    ) -> None:
        self.backend, _, self.mode = counterpart.name.rpartition(".")
        self.formula: str | None = counterpart.name
        self.difference = counterpart.difference
        self.version, self.device = version, device
        self._framework, self._counterpart, self._portopt, self._dtype = framework, counterpart, optimizer, dtype
        self._params: Any = None
        self._state: OptimizerState | None = None

    def context(self) -> contextlib.AbstractContextManager[Any]:
        return self._make().arrays.dtype_context(self._dtype)

    def _make(self) -> NativeOptimizer:
        return NativeOptimizer(self._counterpart.factory, **self._counterpart.arguments)

    def start(self, parameters: Parameters) -> None:
        native, rate = self._make(), self._counterpart.learning_rate

        def step(params: Any, grads: Any, state: OptimizerState, learning_rate: Any) -> tuple[Any, OptimizerState]:
            return native.apply(params, grads, state, **{rate: learning_rate})

        self._params = self._load(parameters)
        self._state = native.init(self._params)
        self._step = self._framework.compiled(step)
        self._finished = 0

    def load(self, gradients: Parameters) -> Any:
        return self._load(_clipped(gradients, self._portopt))

    def _load(self, arrays: Parameters) -> list[Any]:
        return [self._framework.load(array, self.device) for array in arrays]

    def step(self, gradients: Any) -> None:
        self._finished += 1
        rate = float(self._portopt.learning_rate_at(self._finished))
        self._params, self._state = self._step(self._params, gradients, self._state, rate)

    def parameters(self) -> Sequence[npt.NDArray[Any]]:
        return [self._framework.fetch(array) for array in self._params]


def _clipped(gradients: Parameters, optimizer: Optimizer) -> Parameters:
    """Clip as `optimizer` would: no two libraries have one formula for it, and it is no part of a rule."""
    clipnorm, clipvalue = optimizer.clipnorm, optimizer.clipvalue
    clipped = list(gradients)
    if clipnorm is not None:
        norm = float(np.sqrt(sum(float(np.sum(np.square(g.astype(np.float64)))) for g in clipped)))
        if norm >= clipnorm:
            clipped = [(g.astype(np.float64) * clipnorm / norm).astype(g.dtype) for g in clipped]
    if clipvalue is not None:
        clipped = [np.clip(g, -clipvalue, clipvalue) for g in clipped]
    return clipped
