"""Dialects: the frameworks whose formulas, defaults and options a rule can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Dialect = Literal["keras2", "keras3", "torch", "optax"]
"""A dialect's name."""

DIALECTS: Mapping[Dialect, str] = {
    "keras2": "Keras 2.3.1",
    "keras3": "Keras 3.15",
    "torch": "torch.optim of PyTorch 2.13",
    "optax": "optax 0.2.8",
}
"""The dialects and what each one follows. A rule states which of them it has, the default one first."""

assert tuple(DIALECTS) == get_args(Dialect)


@dataclass(frozen=True)
class PerDialect:
    """A hyperparameter's default in each dialect that has the hyperparameter."""

    defaults: tuple[tuple[str, Any], ...]

    def of(self, dialect: str) -> Any:
        """Return the default in a dialect; None if the dialect lacks the hyperparameter."""
        return dict(self.defaults).get(dialect)

    @property
    def dialects(self) -> tuple[str, ...]:
        """The dialects that have the hyperparameter."""
        return tuple(name for name, _ in self.defaults)


def per_dialect(**defaults: Any) -> PerDialect:
    """Return a default that differs between dialects; those that are not named lack the hyperparameter.

    Raises:
        ValueError: a name is none of `DIALECTS`, or none is given.
    """
    if unknown := [name for name in defaults if name not in DIALECTS]:
        raise ValueError(f"per_dialect was given {', '.join(unknown)}, but the dialects are {', '.join(DIALECTS)}")
    if not defaults:
        raise ValueError("per_dialect needs at least one dialect with its default, such as per_dialect(torch=0.1)")
    return PerDialect(tuple(defaults.items()))
