"""`from_torch`: an optimizer of `torch.optim` as a `TorchOptimizer`, with groups, state and schedulers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from portopt.interchange.matching import corresponding
from portopt_torch._capturable import put_on_device
from portopt_torch._conversion import attach, own_group, own_state, schedulers_of
from portopt_torch._optimizer import TorchOptimizer
from portopt_torch._translation import VOCABULARY, name_of


def from_torch(
    optimizer: torch.optim.Optimizer,
    *,
    schedulers: Iterable[Any] | None = None,
    slot_dtype: str | None = None,
) -> TorchOptimizer:
    """Return a `TorchOptimizer` that goes on where an optimizer of `torch.optim` is.

    It has the same parameters, in the same groups with the same hyperparameters and labels, a copy of the state, and the formula:
    a rule in the dialect `torch`. Hooks are not taken over. The given optimizer stays as it is, and must not be stepped any more.

    Args:
        optimizer: an optimizer of `torch.optim` that a rule, one of portopt's or one that was registered, states as its
            counterpart.
        schedulers: the schedulers of `torch.optim.lr_scheduler` that set values of `optimizer`: they set those of the new one
            from now on, going on where they are. None: there are none; if the groups show that there was one, a warning says so.
        slot_dtype: dtype of the slots, see `portopt.Optimizer.init`.

    Raises:
        ValueError: the optimizer, or something in a group, has no counterpart; it is named. Or a scheduler is not of `optimizer`.
        TypeError: `optimizer` is none of `torch.optim`.

    Example:
        >>> import torch, portopt_torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> native = torch.optim.AdamW([w], lr=0.1)
        >>> w.grad = torch.ones(2)
        >>> native.step()
        >>> optimizer = portopt_torch.from_torch(native)
        >>> type(optimizer.rule).__name__, optimizer.state[w]["step"], optimizer.state[w]["m"]
        ('AdamW', 1, tensor([0.1000, 0.1000]))
    """
    if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, TorchOptimizer):  # type: ignore[redundant-expr]  # callers may be untyped
        raise TypeError(f"from_torch takes an optimizer of torch.optim, but {type(optimizer).__name__} was given")
    name = type(optimizer).__name__
    correspondence = corresponding(
        VOCABULARY, name_of(type(optimizer)), f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    )
    attached = schedulers_of(schedulers or (), optimizer)
    if schedulers is None and any("initial_lr" in group for group in optimizer.param_groups):
        warnings.warn(
            f"a scheduler has set the learning rate of this {name}, but it still sets that of the optimizer that was given: give "
            "from_torch(optimizer, schedulers=[...]), or schedulers=() if there is none any more",
            UserWarning,
            stacklevel=2,
        )
    known = set(correspondence.hyperparameters.values())
    capturable = any(group.get("capturable") for group in optimizer.param_groups)
    own = {n: v for n, v in own_group(correspondence, optimizer.defaults, capturable=True).items() if n in known}
    rate = own.pop("learning_rate")
    rule = correspondence.optimizer(own)
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        own = own_group(correspondence, group, capturable=True)
        if isinstance(own["learning_rate"], torch.Tensor):
            own["learning_rate"] = own["learning_rate"].detach().clone()
        groups.append({**correspondence.fixed, **own, "params": list(group["params"])})
    converted = TorchOptimizer(groups, rule, lr=rate, slot_dtype=slot_dtype, capturable=capturable)
    for i, group in enumerate(optimizer.param_groups):
        for j, p in enumerate(group["params"]):
            if optimizer.state.get(p):
                entry = own_state(
                    correspondence, optimizer.state[p], p, slot_dtype, f"the state of parameter {j} of group {i}"
                )
                converted.state[p] = entry
    if capturable:
        put_on_device(rule, converted.state.items())
    attach(attached, optimizer, converted)
    return converted
