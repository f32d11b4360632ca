"""`DeclaredValue`: an immutable value made of the hyperparameters that its class declares."""

from __future__ import annotations

from typing import Any, ClassVar, dataclass_transform

from portopt.declarations import Declarations, Fields
from portopt.hyperparameters import (
    alias,
    dialect_option,
    epsilon_hyperparameter,
    hyperparameter,
    option,
    seed_hyperparameter,
)
from portopt.nested import assemble, rule
from portopt.step_cache import StepCache


@dataclass_transform(
    kw_only_default=True,
    field_specifiers=(hyperparameter, option, dialect_option, epsilon_hyperparameter, seed_hyperparameter, alias, rule),
)
class DeclaredValue:
    """Base of `Optimizer`: construction, comparison, copies and pickles, none of which is about steps.

    Type checkers read the hyperparameters of subclasses as arguments of their constructors.
    """

    _declarations: ClassVar[Declarations]
    _fields: ClassVar[Fields]  # each instance has those of its dialect
    _cache: ClassVar[StepCache]  # each instance has its own, from its making on

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        assemble(cls)
        cls._declarations = Declarations(cls)
        cls._fields = cls._declarations.default
        cls.__signature__ = cls._declarations.signature()  # type: ignore[attr-defined]  # what inspect looks for

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        fields = self._declarations.chosen(owner, kwargs)
        self.__dict__.update(fields.values_of(owner, args, kwargs), _cache=StepCache(), _fields=fields)

    def arguments(self) -> dict[str, Any]:
        """Return the hyperparameters that are not None, and the dialect if it is not the default one."""
        values = {name: getattr(self, name) for name in self._fields}
        default = {"dialect": next(iter(self._declarations.dialects), None)}
        return {n: v for n, v in values.items() if v is not None and v != default.get(n)}

    def __setattr__(self, name: str, value: object) -> None:
        cache = self.__dict__.get("_cache")
        names = self._declarations
        known = name in names.declared or name in names.aliases or name in names.absent
        if known or (cache is not None and cache.programs):
            raise AttributeError(
                f"an optimizer is immutable, so {name!r} cannot be set: give a value for one step as apply(..., {name}=x), "
                f"or make another optimizer with replace({name}=x)"
            )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an optimizer is immutable, so {name!r} cannot be deleted")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.arguments().items())})"

    def _key(self) -> tuple[Any, ...]:
        return (type(self), *((n, v) for n, v in sorted(self.__dict__.items()) if n not in _NO_VALUES))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeclaredValue) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _NO_VALUES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fields = self._declarations.chosen(type(self).__name__, state)
        self.__dict__.update(state, _cache=StepCache(), _fields=fields)


_NO_VALUES = frozenset({"_cache", "_fields"})
"""Attributes that are no part of the value."""
