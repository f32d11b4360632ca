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
"""The dialects and what each one follows. This is the one list of them: rules, tests, conformance and documentation walk it."""

DEFAULT_DIALECT: Dialect = "keras2"

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
    """Return a default that differs between dialects; those that are not named lack the hyperparameter."""
    return PerDialect(tuple(defaults.items()))
