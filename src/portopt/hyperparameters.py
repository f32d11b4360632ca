"""Hyperparameters: declared once in a rule's class with default and range, checked once in its constructor."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, SupportsFloat

from portopt.backend import beside_numbers
from portopt.dialects import DIALECTS, Dialect, PerDialect
from portopt.program.reductions import GRADIENT_NORM

_epsilon = 1e-7


def epsilon() -> float:
    """Return the value that `epsilon=None` stands for; 1e-7 unless `set_epsilon` changed it.

    Example:
        >>> import portopt
        >>> portopt.epsilon()
        1e-07
    """
    return _epsilon


def set_epsilon(value: float) -> None:
    """Set the value that `epsilon=None` stands for in optimizers constructed from now on.

    Args:
        value: a float in [0, inf).

    Raises:
        ValueError: if `value` is negative, infinite or NaN.
        TypeError: if `value` is no number.

    Example:
        >>> import portopt
        >>> portopt.set_epsilon(1e-8)
        >>> portopt.Adam().epsilon
        1e-08
        >>> portopt.set_epsilon(1e-7)
    """
    global _epsilon
    _epsilon = Range(at_least=0).check("set_epsilon", "value", value)


@dataclass(frozen=True)
class Range:
    """A range of finite floats, or of integers."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    whole: bool = False

    def __contains__(self, x: float) -> bool:
        return (
            math.isfinite(x)
            and (self.at_least is None or x >= self.at_least)
            and (self.above is None or x > self.above)
            and (self.at_most is None or x <= self.at_most)
            and (self.below is None or x < self.below)
            and (not self.whole or float(x).is_integer())
        )

    def __str__(self) -> str:
        form = ".0f" if self.whole else "g"
        low = (
            f"[{self.at_least:{form}}"
            if self.at_least is not None
            else f"({-math.inf if self.above is None else self.above:{form}}"
        )
        high = (
            f"{self.at_most:{form}}]"
            if self.at_most is not None
            else f"{math.inf if self.below is None else self.below:{form}})"
        )
        return f"{low}, {high}"

    def check(self, owner: str, name: str, value: object) -> float:
        """Return `value` as a Python float, or raise an error that names it and the range."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            kind = "integer" if self.whole else "number"
            raise TypeError(
                f"{owner} {name} must be a Python {kind} in {self}, but {value!r} of type {type(value).__name__} was given"
                + (
                    "; a value known only at run time is given to apply: apply(..., " + name + "=x)"
                    if is_array(value)
                    else ""
                )
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if number not in self:
            raise ValueError(f"{owner} {name} must be {'an integer ' * self.whole}in {self}, but {value!r} was given")
        return number


def is_array(value: object) -> bool:
    """Tell whether a hyperparameter's value is an array, of any library, rather than a Python number."""
    return not isinstance(value, numbers.Real) and hasattr(value, "shape") and hasattr(value, "dtype")


def check_number(owner: str, name: str, value: object) -> None:
    """Raise an error if a value given for one step has a unit or a mask besides its number."""
    if carried := beside_numbers(value):
        raise TypeError(
            f"{owner} {name} must be a number, but {value!r:.80} of type {type(value).__name__} was given, whose {carried} would "
            "be dropped; give a Python number or a plain 0-d array"
        )


StepValue = SupportsFloat | Sequence[SupportsFloat] | Mapping[str, SupportsFloat] | None
"""A value for one step: a Python number or a 0-d array, several for a name that stands for several, or None for off.

A mapping is that of totals.
"""


def check_totals(owner: str, totals: Any) -> Mapping[str, Any]:
    """Return totals that were given for a step by name, or none for None; NaN and infinity are totals too."""
    if totals is None:
        return {}
    if not isinstance(totals, Mapping):
        raise TypeError(f"{owner} totals must be a dict of totals by their names, but {totals!r:.80} was given")
    for name, value in totals.items():
        _check_total(owner, name, value)
    return totals


def check_norm(owner: str, value: Any) -> Any:
    """Return a norm that was given for a step; NaN and infinity are norms too."""
    _check_total(owner, GRADIENT_NORM, value)
    if isinstance(value, numbers.Real) and value < 0:
        raise ValueError(f"{owner} gradient_norm must be at least 0, but {value!r} was given")
    return value


def _check_total(owner: str, name: str, value: Any) -> None:
    check_number(owner, name, value)
    is_scalar = hasattr(value, "__float__") or is_array(value)  # a tensor of a graph of TensorFlow has no value yet
    if isinstance(value, bool) or getattr(value, "shape", ()) != () or not is_scalar:
        raise TypeError(
            f"{owner} {name} must be a Python number or a 0-d array, but {value!r:.80} of type {type(value).__name__} was given"
        )


@dataclass(frozen=True)
class Hyperparameter:
    """A rule's numeric hyperparameter or option, as declared in its class.

    Attributes:
        default: the value when the constructor is given none; a `PerDialect` as declared, one value in `_fields`.
        range: the allowed numbers; None for an option.
        kw_only: whether the constructor takes it by name only.
        off: the value that switches its feature off; the ellipsis if there is none.
        none_means: what None stands for, if the default is None.
        at_init: whether only `init` reads it, so that it cannot be given for one step.
        choices: the names, or integers, that an option can have; empty if it is True or False.
        none_is_default: whether None stands for the default.
    """

    default: Any
    range: Range | None
    kw_only: bool
    off: Any = ...
    none_means: Callable[[], float] | None = None
    at_init: bool = False
    choices: tuple[Any, ...] = ()
    none_is_default: bool = False

    @property
    def is_numeric(self) -> bool:
        """Whether it is a number that may be given for one step, rather than fixed at construction."""
        return self.range is not None and not self.at_init

    def dialects(self, of_rule: Sequence[str]) -> tuple[str, ...]:
        """Return those of a rule's dialects that have it."""
        if not isinstance(self.default, PerDialect):
            return tuple(of_rule)
        return tuple(dialect for dialect in of_rule if dialect in self.default.dialects)

    def of_dialect(self, dialect: str, default_dialect: str) -> Hyperparameter:
        """Return it as a dialect has it, with one default; None is that default if the default dialect lacks it."""
        if not isinstance(self.default, PerDialect):
            return self
        default = self.default.of(dialect)
        may_be_none = self.none_means is not None or default_dialect not in self.default.dialects
        return replace(self, default=default, none_is_default=may_be_none and default is not None)

    @property
    def is_optional(self) -> bool:
        """Whether it has a value that switches its feature off."""
        return self.off is not ...

    def check(self, owner: str, name: str, value: object) -> Any:
        """Return the value to keep, or raise an error."""
        if value is None and self.none_is_default:
            return self.default
        if value is None and self.none_means is not None:
            return self.none_means()
        if value is None and self.off is None:
            return None
        if self.choices:
            if type(value) is type(self.choices[0]) and value in self.choices:
                return value
            error = ValueError if type(value) is type(self.choices[0]) else TypeError
            raise error(f"{owner} {name} must be {listed(map(repr, self.choices), 'or')}, but {value!r} was given")
        if self.range is None:
            if isinstance(value, bool):
                return value
            raise TypeError(f"{owner} {name} must be True or False, but {value!r} was given")
        number = self.range.check(owner, name, value)
        return int(number) if self.range.whole and self.at_init else number

    def check_value(self, owner: str, name: str, value: Any) -> Any:
        """Return a value that may be an array and known only at run time, or raise an error if it is no real scalar."""
        if not is_array(value):
            return self.check(owner, name, value)
        check_number(owner, name, value)
        if tuple(value.shape) != ():
            raise ValueError(
                f"{owner} {name} must be a Python number or a 0-d array, but an array of shape {tuple(value.shape)} was given"
            )
        dtype = getattr(value.dtype, "name", None) or str(value.dtype).rpartition(".")[2]
        if not dtype.startswith(("float", "bfloat", "int", "uint")):
            raise TypeError(
                f"{owner} {name} must be a number in {self.range}, but {value!r} of dtype {dtype} was given"
            )
        return value


@dataclass(frozen=True)
class Alias:
    """Another name for a hyperparameter, or for several in order, for reading and in the constructor.

    Attributes:
        targets: the hyperparameters' own names.
        dialect: the only dialect that has the name; None for all.
    """

    targets: tuple[str, ...]
    dialect: str | None = None

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        if self.dialect not in (None, getattr(instance, "dialect", None)):
            return None
        values = tuple(operator.attrgetter(target)(instance) for target in self.targets)
        return values if len(values) > 1 else values[0]

    def __set__(self, instance: object, value: object) -> None:
        setattr(instance, self.targets[0], value)

    def elsewhere(self, owner: str, name: str, dialect: str) -> TypeError:
        """Return the error for this name in another dialect than its own."""
        own = listed(map(repr, self.targets), "and")
        return TypeError(
            f"{owner} was given {name!r}, as {own} is called in the dialect {self.dialect!r}: in the dialect {dialect!r} give "
            f"{own}, or choose dialect={self.dialect!r}"
        )

    def spelled_out(self, owner: str, name: str, value: Any) -> dict[str, Any]:
        """Return the hyperparameters that a value under this name gives."""
        if len(self.targets) == 1 or value is None:
            return dict.fromkeys(self.targets, value)
        values = tuple(value) if isinstance(value, tuple | list) else ()
        if len(values) != len(self.targets):
            raise ValueError(
                f"{owner} {name} must be {len(self.targets)} numbers, ({', '.join(self.targets)}), but {value!r} was given"
            )
        return dict(zip(self.targets, values, strict=True))


@dataclass(frozen=True)
class Fixed:
    """An inherited hyperparameter that has one value in a class, and is no argument there."""

    value: Any

    def __get__(self, instance: object, owner: type) -> Any:
        return self if instance is None else self.value


def fixed(value: Any, *, init: Literal[False] = False) -> Any:
    """Give an inherited hyperparameter one value in the body of a subclass, whose constructor no longer takes it.

    Args:
        value: what it always is.
        init: False; for type checkers.

    Example:
        >>> import portopt
        >>> from portopt.hyperparameters import fixed
        >>> class Nesterov(portopt.SGD):
        ...     nesterov: bool = fixed(True)
        >>> Nesterov(0.5, 0.9)
        Nesterov(learning_rate=0.5, momentum=0.9, decay=0.0)
    """
    return Fixed(value)


def hyperparameter(
    *,
    default: float | PerDialect | None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    off: float | None = ...,  # type: ignore[assignment]  # the ellipsis is "no such value"; None is one
    whole: bool = False,
    kw_only: bool = True,
    at_init: bool = False,
) -> Any:
    """Declare a numeric hyperparameter in the body of an `Optimizer` subclass.

    Args:
        default: the value when the constructor is given none.
        at_least: lowest allowed value; allowed values are finite floats.
        above: largest value that is too low.
        at_most: highest allowed value.
        below: smallest value that is too high.
        off: the value that switches the hyperparameter's feature off. A rule may then ask `if self.momentum:`, and the
            program of an optimizer whose feature is off has no operation for it.
        whole: whether only whole numbers are allowed; a value that is an array is not looked at.
        kw_only: whether the constructor takes it by name only.
        at_init: whether only `init` reads it, so that it cannot be given for one step.

    Example:
        >>> import portopt
        >>> class SignDescent(portopt.Optimizer):
        ...     learning_rate: float = portopt.hyperparameter(default=0.01, at_least=0, kw_only=False)
        ...
        ...     def coefficients(self, t):
        ...         return {"lr": self.learning_rate_at(t)}
        ...
        ...     def update(self, xp, p, g, slots, c):
        ...         return p - c.lr * xp.sign(g), {}
        >>> SignDescent(learning_rate=-1.0)
        Traceback (most recent call last):
        ValueError: SignDescent learning_rate must be in [0, inf), but -1.0 was given
    """
    return Hyperparameter(default, Range(at_least, above, at_most, below, whole), kw_only, off, at_init=at_init)


def option(
    *, default: bool | str | int | PerDialect, choices: Sequence[str] | Sequence[int] = (), kw_only: bool = True
) -> Any:
    """Declare a flag, or a choice among names or integers, fixed at construction, in the body of an `Optimizer` subclass.

    Args:
        default: the value when the constructor is given none.
        choices: the names, or integers, that it can have; none for a flag, which is True or False.
        kw_only: whether the constructor takes it by name only.

    Raises:
        TypeError: a default of a flag is neither True nor False.
        ValueError: a default is none of the choices.

    Example:
        >>> import portopt
        >>> class Scaled(portopt.Optimizer):
        ...     scale: str = portopt.option(default="none", choices=("none", "half"))
        ...
        ...     def update(self, xp, p, g, slots, c):
        ...         return p - (c.lr * 0.5 if self.scale == "half" else c.lr) * g, {}
        >>> Scaled(scale="double")
        Traceback (most recent call last):
        ValueError: Scaled scale must be 'none' or 'half', but 'double' was given
    """
    for value in dict(default.defaults).values() if isinstance(default, PerDialect) else (default,):
        if choices:
            if value not in choices:
                raise ValueError(
                    f"the default of an option with choices must be {listed(map(repr, choices), 'or')}, but {value!r} was given"
                )
        elif not isinstance(value, bool):
            raise TypeError(
                f"the default of an option must be True or False, but {value!r} was given; declare a number as "
                "portopt.hyperparameter(default=...), and names as portopt.option(default=..., choices=(...))"
            )
    return Hyperparameter(default, None, kw_only, choices=tuple(choices))


def dialect_option(*, default: Dialect, others: Sequence[Dialect] = (), kw_only: bool = True) -> Any:
    """Declare the dialects of a rule; the one that is chosen at construction decides what other hyperparameters there are.

    Args:
        default: the first dialect, which an optimizer has if none is given.
        others: the further ones.
        kw_only: whether the constructor takes it by name only.

    Raises:
        ValueError: a name is none of `portopt.dialects.DIALECTS`, or stands there twice.
    """
    names = (default, *others)
    if unknown := [name for name in names if name not in DIALECTS]:
        raise ValueError(f"dialect_option was given {', '.join(unknown)}, but the dialects are {', '.join(DIALECTS)}")
    if len(set(names)) < len(names):
        raise ValueError(
            f"dialect_option was given {', '.join(names)}; each dialect stands there once, the default one first"
        )
    return Hyperparameter(default, None, kw_only, choices=names)


def epsilon_hyperparameter(*, default: float | PerDialect | None = None, kw_only: bool = True) -> Any:
    """Declare `epsilon`, for which None means `portopt.epsilon()` at construction."""
    return Hyperparameter(default, Range(at_least=0), kw_only=kw_only, none_means=epsilon)


def seed_hyperparameter(*, default: int, kw_only: bool = True) -> Any:
    """Declare `seed`, an integer in [0, 2**53), which a rule that draws random numbers has.

    Args:
        default: the value when the constructor is given none.
        kw_only: whether the constructor takes it by name only.

    Example:
        >>> import numpy as np, portopt
        >>> class Jittered(portopt.Optimizer):
        ...     draws = {"noise": "normal"}
        ...     seed: int = portopt.seed_hyperparameter(default=0)
        ...
        ...     def update(self, xp, p, g, slots, c, noise):
        ...         return p - c.lr * (g + 0.01 * noise), {}
        >>> opt, w = Jittered(seed=7), np.ones(3)
        >>> opt.apply(w, w, opt.init(w))[0].round(4)
        array([0.99  , 0.9899, 0.9901])
    """
    return Hyperparameter(default, Range(at_least=0, below=2.0**53, whole=True), kw_only, at_init=True)


def alias(*targets: str, dialect: Dialect | None = None, default: None = None, kw_only: bool = True) -> Any:
    """Declare another name for a hyperparameter, or for several together.

    Args:
        *targets: the hyperparameters' own names; of several, a value is as many numbers.
        dialect: the only dialect that has the name; None for all.
        default: None; for type checkers.
        kw_only: True; for type checkers.
    """
    return Alias(targets, dialect)


def unknown_argument(owner: str, name: str, known: Iterable[str]) -> TypeError:
    """Return the error for an argument that does not exist, with the nearest one that does."""
    import difflib

    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    return TypeError(f"{owner} got an unknown argument {name!r}; {suggestion}allowed are {', '.join(known)}")


def not_in_dialect(owner: str, name: str, dialect: str, dialects: Iterable[str]) -> TypeError:
    """Return the error for an argument that only other dialects have."""
    others = listed([f"dialect={other!r}" for other in dialects], "or")
    return TypeError(
        f"{owner} was given {name!r}, which does not exist in the dialect {dialect!r}: leave it out, or choose {others}"
    )


def listed(words: Iterable[str], conjunction: str) -> str:
    """Return words as a list in English."""
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last
