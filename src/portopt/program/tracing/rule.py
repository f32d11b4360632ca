"""What tracing knows of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class TracedRule(Protocol):
    """What tracing asks of an optimizer."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays that it keeps for each parameter."""

    @property
    def scalar_slots(self) -> Mapping[str, float]:
        """Names of the scalars that it keeps for all parameters together."""

    def numeric_hyperparameters(self) -> tuple[str, ...]:
        """Return the names of the hyperparameters that are numbers, and so may be given for one step."""

    def is_optional(self, name: str, /) -> bool:
        """Tell whether a hyperparameter has a value that switches its feature off."""

    @property
    def coefficients(self) -> Callable[..., Mapping[str, Any]]:
        """Returns the scalars of step number `t` that `update` uses, and the new values of `scalar_slots`."""

    @property
    def nested(self) -> Mapping[str, Any]:
        """The rules that it is made of, by name."""

    def own(self, name: str) -> Any:
        """Return what the rule has itself of an attribute, without what those have that it is made of."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arrays that a step may be given for each parameter beside the gradient."""

    @property
    def draws(self) -> Mapping[str, str]:
        """Names of the random numbers that it needs for each element, and their distributions."""

    @property
    def totals(self) -> Callable[..., Mapping[str, Any]] | None:
        """Returns what is reduced over all parameters, by name."""

    @property
    def update(self) -> Callable[..., tuple[Any, Mapping[str, Any]]]:
        """Returns the new parameter, and the new value of each slot by name."""
