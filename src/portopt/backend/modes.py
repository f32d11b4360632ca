"""Ways to execute steps that several backends have, and the switch that turns fused kernels off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from portopt.backend.protocol import Mode, Step
from portopt.protocols import SupportsApply
from portopt.state import OptimizerState


def apply_in_place(optimizer: SupportsApply) -> Step:
    """Return a step that changes the given parameters and state in place."""

    def step(params: Any, grads: Any, state: OptimizerState, **hyperparameters: Any) -> tuple[Any, OptimizerState]:
        return params, optimizer.apply_(params, grads, state, **hyperparameters)

    return step


_interpreted: ContextVar[bool] = ContextVar("portopt_interpreted", default=False)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Run programs operation by operation instead of by fused kernels; the bits are the same.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adam(), np.ones(3)
        >>> with portopt.interpreted():
        ...     w, state = opt.apply(w, np.ones(3), opt.init(w))
    """
    token = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(token)


def is_interpreted() -> bool:
    """Tell whether fused kernels are switched off by `interpreted`."""
    return _interpreted.get()


def apply_interpreted(optimizer: SupportsApply) -> Step:
    """Return a step without fused kernels."""

    def step(params: Any, grads: Any, state: OptimizerState, **hyperparameters: Any) -> tuple[Any, OptimizerState]:
        with interpreted():
            return optimizer.apply(params, grads, state, **hyperparameters)

    return step


PURE = Mode("apply", lambda optimizer: optimizer.apply)
"""Steps by `apply`."""
IN_PLACE = Mode("apply_", apply_in_place)
"""Steps by `apply_`."""
INTERPRETED = Mode("interpreted", apply_interpreted)
"""Steps by `apply`, operation by operation."""
