"""`explain`: which way a step goes, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, SupportsFloat

from portopt.hyperparameters import StepValue
from portopt.optimizer import Optimizer
from portopt.program.reductions import GRADIENT_NORM
from portopt.state import OptimizerState
from portopt.step import way_of


@dataclass(frozen=True)
class Explanation:
    """Which way a step goes, and why.

    Attributes:
        path: `"planned"`: one compiled function looks at all arrays and runs the kernels. `"checked"`: Python checks all
            arguments, then kernels run. `"operation by operation"`: Python checks, then some or all of the
            program's operations run one by one.
        reasons: why; a clause each.
    """

    path: Literal["planned", "checked", "operation by operation"]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path}: {'; '.join(self.reasons)}"


def explain(
    optimizer: Optimizer,
    params: object,
    grads: object,
    state: OptimizerState,
    *,
    in_place: bool = False,
    gradient_norm: SupportsFloat | None = None,
    **hyperparameters: StepValue,
) -> Explanation:
    """Return which way `apply` with these arguments goes, or `apply_`, and why; nothing is changed.

    The results are the same on all ways, but the time is not.

    Args:
        optimizer: whose step it is.
        params: as `apply` takes them.
        grads: likewise.
        state: likewise.
        in_place: whether the step is `apply_`.
        gradient_norm: as `apply` takes it.
        **hyperparameters: likewise.

    Raises:
        ValueError: as the step does.
        TypeError: as the step does.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adam(), np.zeros(3)
        >>> with portopt.interpreted():
        ...     print(portopt.explain(opt, w, w, opt.init(w)))
        operation by operation: it is inside portopt.interpreted(), which switches the kernels off
        >>> portopt.explain(opt, w, w, opt.init(w)).path
        'checked'
        >>> _ = opt.apply(w, w, opt.init(w))
        >>> portopt.explain(opt, w, w, opt.init(w)).path
        'planned'
    """
    if gradient_norm is not None:
        hyperparameters[GRADIENT_NORM] = gradient_norm
    operations, plan = way_of(optimizer.part_of_step(params, grads, state, hyperparameters), in_place=in_place)
    if operations:
        return Explanation("operation by operation", operations)
    if isinstance(plan, str):
        return Explanation("checked", (plan,))
    if plan is not None:
        return Explanation("planned", ("an earlier step was like it", *plan.remarks))
    once = "a second one on the same arrays makes a plan" if in_place else "this one makes a plan"
    return Explanation("checked", (f"no earlier step of this optimizer was like it; {once}",))
