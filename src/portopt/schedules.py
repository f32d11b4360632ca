"""Learning-rate schedules: callables of the number of finished steps, the same bits on the host and inside a JAX jit.

A schedule is called with a `portopt.scalars.Scalar` that holds the number of finished steps: 0 at the first step. Any
callable will do. Those here compute with the operations of the arithmetic contract only; so does a function that uses only
`+ - * / **` and `portopt.scalars` on its argument. A callable that cannot take a `Scalar` gets the plain number.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeGuard, TypeVar, overload

from portopt.arithmetic import HOST, UnknownValueError
from portopt.hyperparameters import Range, unknown_argument
from portopt.scalars import Scalar, ScalarLike, cos, floor, minimum, where

_RATE = Range(at_least=0)
_STEPS = Range(above=0)

_registry: dict[str, type[Any]] = {}


LearningRate = float | Callable[[Any], Any]
"""What an optimizer takes for its learning rate: a number, a schedule, or any callable of the number of finished steps."""

_Class = TypeVar("_Class", bound=type[Any])


def _schedule(cls: _Class) -> _Class:
    _registry[cls.__name__] = cls
    return cls


class Schedule:
    """Base of the ready-made schedules, which are immutable, comparable and serialisable values."""

    @overload
    def __call__(self, step: Scalar) -> ScalarLike: ...
    @overload
    def __call__(self, step: float) -> float: ...
    def __call__(self, step: Scalar | float) -> ScalarLike:
        """Return the value after `step` finished steps: a scalar for a scalar, a float for a Python number."""
        if isinstance(step, Scalar):
            return self.at(step)
        return float(self.at(Scalar(step, HOST)))

    def at(self, step: Scalar) -> ScalarLike:
        """Return the value after `step` finished steps, from contract operations."""
        raise NotImplementedError(f"{type(self).__name__} must define at(self, step)")

    def _check_flag(self, name: str, value: object) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"{type(self).__name__} {name} must be True or False, but {value!r} was given")

    def _check(self, name: str, value: object, allowed: Range) -> None:
        object.__setattr__(self, name, allowed.check(type(self).__name__, name, value))


@_schedule
@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step.

    Args:
        value: a float in [0, inf).

    Example:
        >>> import portopt
        >>> portopt.schedules.Constant(0.1)(1000)
        0.1
    """

    value: float

    def __post_init__(self) -> None:
        self._check("value", self.value, _RATE)

    def at(self, step: Scalar) -> ScalarLike:
        return self.value


@_schedule
@dataclass(frozen=True)
class InverseTimeDecay(Schedule):
    """`initial / (1 + rate * step / steps)`, as `initial * (1 / (1 + rate * (step / steps)))`.

    With `steps=1` it is what the `decay` argument of the optimizers does.

    Args:
        initial: value at step 0, in [0, inf).
        rate: decay per `steps` steps, in [0, inf).
        steps: number of steps in which the denominator grows by `rate`, in (0, inf).
        staircase: whether `step / steps` is rounded down, so that the value changes every `steps` steps.

    Example:
        >>> import portopt
        >>> portopt.schedules.InverseTimeDecay(1.0, rate=1.0, steps=10)(10)
        0.5
    """

    initial: float
    rate: float
    steps: float = 1
    staircase: bool = False

    def __post_init__(self) -> None:
        self._check("initial", self.initial, _RATE)
        self._check("rate", self.rate, _RATE)
        self._check("steps", self.steps, _STEPS)
        self._check_flag("staircase", self.staircase)

    def at(self, step: Scalar) -> ScalarLike:
        return self.initial * (1 / (1 + self.rate * _progress(step, self.steps, staircase=self.staircase)))


@_schedule
@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """`initial * rate ** (step / steps)`.

    Args:
        initial: value at step 0, in [0, inf).
        rate: factor per `steps` steps, in (0, inf).
        steps: number of steps in which the value is multiplied by `rate`, in (0, inf).
        staircase: whether `step / steps` is rounded down, so that the value changes every `steps` steps.

    Example:
        >>> import portopt
        >>> portopt.schedules.ExponentialDecay(1.0, rate=0.5, steps=10, staircase=True)(25)
        0.25
    """

    initial: float
    rate: float
    steps: float = 1
    staircase: bool = False

    def __post_init__(self) -> None:
        self._check("initial", self.initial, _RATE)
        self._check("rate", self.rate, Range(above=0))
        self._check("steps", self.steps, _STEPS)
        self._check_flag("staircase", self.staircase)

    def at(self, step: Scalar) -> ScalarLike:
        if self.steps == 1:
            return self.initial * self.rate**step
        return self.initial * self.rate ** _progress(step, self.steps, staircase=self.staircase)


@_schedule
@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """`(initial - end) * (1 - step / steps) ** power + end` for `steps` steps, then `end`.

    Args:
        initial: value at step 0, in [0, inf).
        steps: number of steps until `end` is reached, in (0, inf).
        end: final value, in [0, inf).
        power: exponent, in (0, inf); 1 is a straight line.

    Example:
        >>> import portopt
        >>> portopt.schedules.PolynomialDecay(1.0, steps=10, power=2)(5)
        0.25
    """

    initial: float
    steps: float
    end: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        self._check("initial", self.initial, _RATE)
        self._check("steps", self.steps, _STEPS)
        self._check("end", self.end, _RATE)
        self._check("power", self.power, Range(above=0))

    def at(self, step: Scalar) -> ScalarLike:
        remaining: ScalarLike = 1 - minimum(step / self.steps, 1.0)
        return (self.initial - self.end) * remaining**self.power + self.end


@_schedule
@dataclass(frozen=True)
class PiecewiseConstant(Schedule):
    """`values[j]`, where `j` is the number of boundaries that `step` has reached.

    Args:
        boundaries: increasing numbers of steps, each at least 1. The value changes at the step numbered so (from 0).
        values: one more than boundaries, in [0, inf).

    Example:
        >>> import portopt
        >>> schedule = portopt.schedules.PiecewiseConstant([100], [0.1, 0.01])
        >>> schedule(99), schedule(100)
        (0.1, 0.01)
    """

    boundaries: Sequence[int]
    values: Sequence[float]

    def __post_init__(self) -> None:
        owner = type(self).__name__
        values = tuple(_RATE.check(owner, "values", v) for v in self.values)
        boundaries = tuple(map(_integer_or_zero, self.boundaries))
        if any(b < 1 for b in boundaries) or any(b >= c for b, c in itertools.pairwise(boundaries)):
            raise ValueError(
                f"{owner} boundaries must be increasing integers of at least 1, but {list(self.boundaries)} was given"
            )
        if len(values) != len(boundaries) + 1:
            raise ValueError(
                f"{owner} needs one more value than boundaries, but {len(values)} values and {len(boundaries)} boundaries "
                "were given"
            )
        object.__setattr__(self, "boundaries", boundaries)
        object.__setattr__(self, "values", values)

    def at(self, step: Scalar) -> ScalarLike:
        value: ScalarLike = self.values[0]
        for boundary, later in zip(self.boundaries, self.values[1:], strict=True):
            value = where(step >= boundary, later, value)
        return value


@_schedule
@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Linear warm-up from `warmup_initial` to `initial`, then half a cosine down to `end`, then `end`.

    With `s = step - warmup_steps`: `(initial - end) * (0.5 * (1 + cos(pi * s / steps))) + end` (Loshchilov & Hutter, "SGDR:
    Stochastic Gradient Descent with Warm Restarts", 2017).

    Args:
        initial: value at the top, in [0, inf).
        steps: number of steps of the cosine, after the warm-up, in (0, inf).
        end: final value, in [0, inf).
        warmup_steps: number of steps of the warm-up, in [0, inf); 0 for none.
        warmup_initial: value at step 0 if there is a warm-up, in [0, inf).

    Example:
        >>> import portopt
        >>> schedule = portopt.schedules.CosineDecay(1.0, steps=100, warmup_steps=10)
        >>> schedule(5), schedule(10), schedule(60), schedule(110)
        (0.5, 1.0, 0.5, 0.0)
    """

    initial: float
    steps: float
    end: float = 0.0
    warmup_steps: float = 0
    warmup_initial: float = 0.0

    def __post_init__(self) -> None:
        self._check("initial", self.initial, _RATE)
        self._check("steps", self.steps, _STEPS)
        self._check("end", self.end, _RATE)
        self._check("warmup_steps", self.warmup_steps, Range(at_least=0))
        self._check("warmup_initial", self.warmup_initial, _RATE)

    def at(self, step: Scalar) -> ScalarLike:
        fraction = minimum((step - self.warmup_steps) / self.steps, 1.0)
        value: ScalarLike = (self.initial - self.end) * (0.5 * (1 + cos(math.pi * fraction))) + self.end
        # (initial - end) * 0 + end is the end only if the cosine is exactly -1 there; giving it does not rely on that.
        value = where(fraction >= 1.0, self.end, value)
        if self.warmup_steps:
            rising = self.warmup_initial + (self.initial - self.warmup_initial) * (step / self.warmup_steps)
            value = where(step < self.warmup_steps, rising, value)
        return value


def _integer_or_zero(x: Any) -> int:
    """Return an integer of any integer type; zero, which is no boundary, for anything else."""
    try:
        return 0 if isinstance(x, bool) else operator.index(x)
    except TypeError:
        return 0


def _progress(step: Scalar, steps: float, *, staircase: bool) -> Scalar:
    progress: Scalar = floor(step / steps) if staircase else step / steps
    return progress


def is_schedule(value: object) -> TypeGuard[Callable[[Any], Any]]:
    """Tell whether a learning rate is a schedule rather than a number."""
    return callable(value)


def is_ready_made(schedule: object) -> TypeGuard[Schedule]:
    """Tell whether a schedule is one of this module's, and not of a class of a user's."""
    return isinstance(schedule, Schedule) and type(schedule).__module__ == __name__


_take_numbers: Mapping[bool, weakref.WeakSet[Any]] = {True: weakref.WeakSet(), False: weakref.WeakSet()}
"""Schedules that have refused a `Scalar` and taken a plain number, where steps are known (True) and where they are not."""

_REFUSALS = (TypeError, AttributeError, IndexError, RuntimeError)
"""What libraries raise for an argument of a type that they do not know."""


def rate_at(schedule: Callable[[Any], Any], step: Scalar) -> Any:
    """Return what a schedule gives after `step` finished steps: a value of the scalar's arithmetic, a number or an array.

    A schedule that cannot take a `Scalar`, since it hands it to another library, is called again with the plain number: an
    int, or the integer array that a transformation of JAX traces. From then on it is called once, with that.
    """
    if isinstance(schedule, Schedule):
        return _value(schedule(step))
    on_host = step.arithmetic is HOST
    try:
        takes_numbers = schedule in _take_numbers[on_host]
    except TypeError:  # it has no hash, or cannot be referred to weakly
        takes_numbers = False
    if takes_numbers:
        return _value(schedule(step.value))
    try:
        return _value(schedule(step))
    except _REFUSALS as refusal:
        try:
            rate = schedule(step.value)
        except _REFUSALS as error:
            if isinstance(refusal, UnknownValueError):
                raise refusal from error
            raise
    with contextlib.suppress(TypeError):
        _take_numbers[on_host].add(schedule)
    return _value(rate)


def _value(rate: Any) -> Any:
    return rate.value if isinstance(rate, Scalar) else rate


def configuration_of(schedule: Callable[..., Any]) -> dict[str, Any]:
    """Return a ready-made or registered schedule as `{"class_name": ..., "config": ...}`."""
    name = type(schedule).__name__
    if _registry.get(name) is type(schedule):
        if isinstance(schedule, Schedule):
            config = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(schedule).items()}  # type: ignore[call-overload]  # each is a dataclass
        else:
            config = schedule.get_config()  # type: ignore[attr-defined]  # register_schedule made sure of it
        return {"class_name": name, "config": config}
    raise ValueError(
        f"the learning-rate schedule {schedule!r} cannot be put into a config: use one of portopt.schedules "
        f"({', '.join(_registry)}), or a class with get_config registered by portopt.register_schedule"
    )


def schedule_from_configuration(config: Mapping[str, Any]) -> Any:
    """Return the schedule that `configuration_of` described."""
    name = config.get("class_name")
    if name not in _registry:
        raise ValueError(f"unknown learning-rate schedule {name!r}; known are {', '.join(_registry)}")
    cls, arguments = _registry[name], dict(config.get("config", {}))
    if issubclass(cls, Schedule):
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]  # each is a dataclass
        for argument in arguments:
            if argument not in known:
                raise unknown_argument(name, argument, known)
    return cls(**arguments)


def register_schedule(cls: _Class) -> _Class:
    """Make a schedule class known by its name, so that configs can hold it; usable as a decorator.

    The class needs `__call__(step)`, and `get_config()` returning its constructor's arguments.

    Raises:
        TypeError: `cls` lacks one of them.
        ValueError: another class is registered under this name.

    Example:
        >>> import portopt
        >>> @portopt.register_schedule
        ... class HalfEvery:
        ...     def __init__(self, steps):
        ...         self.steps = steps
        ...
        ...     def __call__(self, step):
        ...         return 0.1 * 0.5 ** portopt.scalars.floor(step / self.steps)
        ...
        ...     def get_config(self):
        ...         return {"steps": self.steps}
        >>> portopt.SGD(HalfEvery(10)).get_config()["learning_rate"]
        {'class_name': 'HalfEvery', 'config': {'steps': 10}}
    """
    has_call = any("__call__" in vars(base) for base in cls.__mro__)
    if not has_call or not callable(getattr(cls, "get_config", None)):
        raise TypeError(
            f"{cls.__name__} must define __call__(self, step) and get_config(self) to be registered as a schedule"
        )
    known = _registry.get(cls.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"another schedule is registered as {cls.__name__!r}: {known!r}; rename one of them")
    _registry[cls.__name__] = cls
    return cls
