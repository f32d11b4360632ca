"""`Optimizer`: what every rule shares. Trees, checks and state are here; the rule itself is two small methods."""

from __future__ import annotations

import copy
import functools
import inspect
import numbers
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self, dataclass_transform

from portopt import keras_weights
from portopt.arithmetic import HOST
from portopt.arithmetic.dtypes import COMPUTE_DTYPE, gradient_dtypes, round_scalar, slot_dtypes
from portopt.backend import ArrayInfo, Backend, find_backend
from portopt.dialects import DEFAULT_DIALECT, PerDialect
from portopt.hyperparameters import (
    Alias,
    Hyperparameter,
    alias,
    check_number,
    dialect_option,
    epsilon_hyperparameter,
    fields_by_dialect,
    hyperparameter,
    is_array,
    not_in_dialect,
    option,
    unknown_argument,
)
from portopt.program import Program
from portopt.program.interpreter import StepScalars, evaluate_scalars
from portopt.program.tracing import trace
from portopt.scalars import MOST_STEPS, Scalar
from portopt.schedules import configuration_of, is_schedule, rate_at, schedule_from_configuration
from portopt.step_cache import StepCache
from portopt.trees import STANDARD_TREES, TreeDefinition, explain_difference


class OptimizerState(NamedTuple):
    """What an optimizer carries from step to step.

    Attributes:
        step: number of finished steps, a Python int (a traced or concrete 0-d integer array under JAX's transformations); at
            most 2**31 - 1.
        slots: slot name to a tree shaped like the parameters, its arrays in the compute dtype. Scalars of the state, such
            as Nadam's `m_schedule`, are Python floats (two uint32 words that hold the float64 under JAX).
    """

    step: Any
    slots: dict[str, Any]


class _Leaves(NamedTuple):
    backend: Backend
    definition: TreeDefinition
    leaves: list[Any]
    infos: list[ArrayInfo | None]


class _Arguments(NamedTuple):
    """A step's arguments after checks; `moving` are the places of the parameters that have gradients."""

    backend: Backend
    definition: TreeDefinition
    leaves: list[Any]
    gradients: list[Any]
    slots: dict[str, list[Any]]
    overrides: dict[str, Any]
    moving: list[int]
    parameters: list[dict[str, Any]]


class _OfClassOrInstance:
    """A method without further arguments that can be called on a class too, whose defaults then count."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: object, owner: type) -> Callable[[], Any]:
        return functools.partial(self.function, owner if instance is None else instance)


@dataclass_transform(
    kw_only_default=True, field_specifiers=(hyperparameter, option, dialect_option, epsilon_hyperparameter, alias)
)
class _Declarations:
    """Makes type checkers read hyperparameters as constructor arguments; they skip the decorated class's own fields."""


class Optimizer(_Declarations):
    """Base of all rules: `init`, `apply` and `apply_` over trees of arrays of any supported library.

    A rule is a subclass that names its slots, declares its hyperparameters, and gives `coefficients` and `update`.
    Optimizers are immutable values; all that changes is in the state.

    Args:
        learning_rate: a float in [0, inf), or a schedule: a callable of the number of finished steps (0 at the first step).
        lr: another name for `learning_rate`.
        clipnorm: in (0, inf); gradients are scaled so that their norm, over all tensors together, is at most this. None: off.
        clipvalue: in (0, inf); each element of a gradient is clipped to [-clipvalue, clipvalue], after clipnorm. None: off.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt = portopt.SGD(learning_rate=0.5)
        >>> params = {"w": np.asarray([1.0, 2.0], np.float32)}
        >>> state = opt.init(params)
        >>> params, state = opt.apply(params, {"w": np.asarray([1.0, 1.0], np.float32)}, state)
        >>> params["w"], state.step
        (array([0.5, 1.5], dtype=float32), 1)
    """

    slots: ClassVar[tuple[str, ...]] = ()
    """Names of the arrays that the rule keeps for each parameter; zero at first, unless `first_values` says otherwise."""
    scalar_slots: ClassVar[Mapping[str, float]] = {}
    """Names and first values of the float64 scalars that the rule keeps for all parameters together."""
    first_values: ClassVar[Mapping[str, float]] = {}
    """Names of the slots whose elements are not zero at first, and their value."""
    keras_placeholder_slots: ClassVar[tuple[str, ...]] = ()
    """Slots that Keras lists after `slots` in its weights, as zeros of shape (1,), though the rule does not use them."""
    keras_short_list: ClassVar[tuple[int, float] | None] = None
    """Index and value of the weight that lists written by Keras 2.2.4 lack."""

    learning_rate: Any = hyperparameter(default=0.01, at_least=0, kw_only=False)
    lr: Any = alias("learning_rate", default=None, kw_only=True)
    clipnorm: float | None = hyperparameter(default=None, above=0, off=None, kw_only=True)
    clipvalue: float | None = hyperparameter(default=None, above=0, off=None, kw_only=True)

    _declared: ClassVar[dict[str, Hyperparameter]] = {}
    _fields_by_dialect: ClassVar[dict[str | None, dict[str, Hyperparameter]]] = {}
    _fields: ClassVar[dict[str, Hyperparameter]] = {}  # an instance of another than the default dialect has its own
    _aliases: ClassVar[dict[str, Alias]] = {}
    _cache: ClassVar[StepCache]  # each instance has its own, from its making on

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._collect_fields()

    @classmethod
    def _collect_fields(cls) -> None:
        fields: dict[str, Hyperparameter] = {}
        aliases: dict[str, Alias] = {}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).items():
                aliases.pop(name, None)
                if isinstance(value, Hyperparameter):
                    fields[name] = value
                elif isinstance(value, Alias):
                    aliases[name] = value
        cls._declared, cls._aliases = fields, aliases
        cls._fields_by_dialect = fields_by_dialect(fields)
        cls._fields = next(iter(cls._fields_by_dialect.values()))
        if "__init__" not in vars(cls):
            cls.__signature__ = _signature(fields, aliases)  # type: ignore[attr-defined]  # what inspect looks for

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__["_cache"] = StepCache()
        owner = type(self).__name__
        positional = [name for name, field in self._fields.items() if not field.kw_only]
        if len(args) > len(positional):
            raise TypeError(
                f"{owner} takes at most {len(positional)} positional arguments ({', '.join(positional)}), but "
                f"{len(args)} were given"
            )
        given = dict(zip(positional, args, strict=False))
        self._choose_dialect(kwargs)
        for name, target, value in self._spelled_out(owner, kwargs):
            if target not in self._declared:
                raise unknown_argument(owner, name, [*self._fields, *self._other_names()])
            if target not in self._fields and value is not None:
                raise self._not_in_dialect(owner, name)
            if target in given:
                names = " and ".join(sorted({target, *(k for k in kwargs if target in self._targets(k))}))
                raise TypeError(
                    f"{owner} was given {names} at once, which are one hyperparameter; give only one of them"
                )
            given[target] = value
        for name in self._declared:
            field = self._fields.get(name)
            if field is None:
                object.__setattr__(self, name, None)
                continue
            value = given.get(name, field.default)
            scheduled = name == "learning_rate" and is_schedule(value)
            object.__setattr__(self, name, value if scheduled else field.check(owner, name, value))
        self.check_combination()

    def _choose_dialect(self, arguments: Mapping[str, Any]) -> None:
        field = self._declared.get("dialect")
        if field is not None and "dialect" in arguments:
            dialect = field.check(type(self).__name__, "dialect", arguments["dialect"])
            self.__dict__["_fields"] = self._fields_by_dialect[dialect]

    def _not_in_dialect(self, owner: str, name: str) -> TypeError:
        alias = self._aliases.get(name)
        if alias is not None and alias.dialect is not None:
            return alias.elsewhere(owner, name, str(self._dialect()))
        return not_in_dialect(owner, name, str(self._dialect()), self._declared[self._targets(name)[0]].dialects)

    def _dialect(self) -> str | None:
        return next(d for d, fields in self._fields_by_dialect.items() if fields is self._fields)

    def _other_names(self) -> dict[str, Alias]:
        """Return the aliases that the dialect has."""
        return {name: a for name, a in self._aliases.items() if a.dialect in (None, self._dialect())}

    def _targets(self, name: str) -> tuple[str, ...]:
        return self._aliases[name].targets if name in self._aliases else (name,)

    def _spelled_out(self, owner: str, given: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
        """Yield the name that was given, the hyperparameter's own name, and the value."""
        for name, value in given.items():
            alias = self._aliases.get(name)
            if alias is None:
                yield name, name, value
            elif alias.dialect in (None, self._dialect()):
                for target, part in alias.spelled_out(owner, name, value).items():
                    yield name, target, part
            elif value is not None:
                raise self._not_in_dialect(owner, name)

    @classmethod
    def dialects(cls) -> tuple[str, ...]:
        """Return the names of the rule's dialects, the default one first; empty for a rule that has none.

        Example:
            >>> import portopt
            >>> portopt.Adam.dialects()
            ('keras2', 'keras3', 'torch', 'optax')
        """
        return tuple(name for name in cls._fields_by_dialect if name is not None)

    @classmethod
    def defaults(cls, dialect: str | None = None) -> dict[str, Any]:
        """Return the hyperparameters that the rule has in a dialect, with their defaults; None means the default dialect.

        Raises:
            ValueError: the rule has no such dialect.

        Example:
            >>> import portopt
            >>> portopt.Adagrad.defaults("torch")["initial_accumulator_value"]
            0.0
        """
        fields = cls._fields if dialect is None else cls._fields_by_dialect.get(dialect)
        if fields is None:
            raise ValueError(f"{cls.__name__} has no dialect {dialect!r}: it has {', '.join(cls.dialects()) or 'none'}")
        return {name: dialect if name == "dialect" and dialect else field.default for name, field in fields.items()}

    # The rule ----------------------------------------------------------------------------------------------------

    def coefficients(self, t: Scalar, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        """Return the scalars of step number `t`, from 1, that `update` uses, by name.

        `t` and the hyperparameters `self.…` are scalars: combine them with `+ - * / **` and the functions of
        `portopt.scalars`. The learning rate of the step is `self.learning_rate_at(t)`. A rule with `scalar_slots` takes
        each as a keyword argument and returns its new value under the same name.
        """
        return {"lr": self.learning_rate_at(t)}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        """Return the new parameter, and the new value of each slot by name.

        Args:
            xp: the array API namespace.
            p: one parameter before the step, of any shape.
            g: its gradient, after clipping.
            slots: its slots, as attributes.
            c: the coefficients, as attributes.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update(self, xp, p, g, slots, c)")

    def check_combination(self) -> None:
        """Raise ValueError if hyperparameters, each of which is in its range, cannot go together."""

    def learning_rate_at(self, t: Any) -> Any:
        """Return the learning rate of step number `t`, from 1: the schedule's at `t - 1`, lowered by `decay`."""
        rate = self.learning_rate
        if is_schedule(rate):
            rate = rate(t - 1)
        decay = getattr(self, "decay", 0.0)
        return rate * (1 / (1 + decay * (t - 1))) if decay else rate

    # Steps -------------------------------------------------------------------------------------------------------

    def init(self, params: Any, *, slot_dtype: str | None = None) -> OptimizerState:
        """Return the state before the first step.

        Args:
            params: an array, or nested dicts, lists, tuples and NamedTuples of arrays (under JAX any pytree), of dtype
                float16, bfloat16, float32 or float64.
            slot_dtype: dtype of the slots: by default `"float32"`, and `"float64"` for float64 parameters. For parameters that
                are not float64, `"float16"` and `"bfloat16"` save memory and round the slots after each step.

        Raises:
            TypeError: a leaf is no array, or of an unsupported dtype.
            ValueError: there is no array in `params`, or it has arrays that cannot have slots of `slot_dtype`.

        Example:
            >>> import numpy as np, portopt
            >>> state = portopt.Adam().init({"w": np.zeros(2)})
            >>> state.step, state.slots["m"]
            (0, {'w': array([0., 0.])})
        """
        backend, definition, leaves, infos = _flatten_params(params)
        dtypes = [None if info is None else info.dtype for info in infos]
        if slot_dtype is not None:
            for i, dtype in enumerate(dtypes):
                if dtype is not None and slot_dtype not in slot_dtypes(dtype):
                    raise ValueError(
                        f"slot_dtype {slot_dtype!r} was given, but slots of params{backend.trees.paths(params)[i]}, which has "
                        f"dtype {dtype}, must be of dtype {' or '.join(slot_dtypes(dtype))}"
                    )
        dtypes = [None if d is None else slot_dtype or COMPUTE_DTYPE[d] for d in dtypes]

        def filled(value: float) -> Any:
            # Rounded to the compute dtype first, as every scalar is that meets arrays.
            rounded = {d: round_scalar(value, "float64" if d == "float64" else "float32") for d in dtypes if d}
            new = (None if d is None else backend.full(p, rounded[d], d) for p, d in zip(leaves, dtypes, strict=True))
            return backend.trees.unflatten(definition, list(new))

        first = self.first_values
        scalars = {name: backend.stored_scalar(value) for name, value in self.scalar_slots.items()}
        return OptimizerState(0, {**scalars, **{name: filled(first.get(name, 0.0)) for name in self.slots}})

    def apply(
        self, params: Any, grads: Any, state: OptimizerState, *, gradient_norm: Any = None, **hyperparameters: Any
    ) -> tuple[Any, OptimizerState]:
        """Return parameters and state after one step; the given ones stay untouched.

        Works eagerly and, on JAX arrays, inside `jit`, `scan`, `vmap` and `grad`.

        Args:
            params: the tree given to `init`, or one of the same structure, shapes and dtypes.
            grads: gradients in the same structure and shapes, of any of the dtypes of parameters. One of another dtype than its
                parameter is converted to the compute dtype, as all that is loaded. None leaves a parameter and its slots as
                they are.
            state: what `init` or the previous step returned.
            gradient_norm: the norm that `clipnorm` compares, a Python number or a 0-d array, where `grads` are only some of
                the gradients that are clipped together. None: the norm of `grads`. Without `clipnorm` it changes nothing.
            **hyperparameters: values for this step only, of any numeric hyperparameter: Python numbers or 0-d arrays.

        Raises:
            ValueError: structure, shape or device differ (the message has the path of the leaf), or a hyperparameter is
                outside its range.
            TypeError: libraries differ, a leaf is no array of a supported dtype, or a hyperparameter is unknown.

        Example:
            >>> import numpy as np, portopt
            >>> opt, w = portopt.SGD(learning_rate=0.1), np.asarray([1.0])
            >>> w, state = opt.apply(w, np.asarray([2.0]), opt.init(w), learning_rate=0.25)
            >>> w
            array([0.5])
        """
        return self._step(params, grads, state, _with_norm(hyperparameters, gradient_norm), in_place=False)

    def apply_(
        self, params: Any, grads: Any, state: OptimizerState, *, gradient_norm: Any = None, **hyperparameters: Any
    ) -> OptimizerState:
        """Do one step in place: parameters and slots are overwritten; returns the state to use from now on.

        Arguments and errors are those of `apply`; nothing is changed if an error is raised. JAX arrays cannot be changed.
        With NumPy arrays and tensors in host memory, a step that has begun to write is finished, and an interrupt such as
        KeyboardInterrupt is raised after it; the arrays are then one step ahead of the state that the caller has.

        Raises:
            TypeError: the arrays cannot be changed in place (JAX, read-only NumPy arrays).

        Example:
            >>> import numpy as np, portopt
            >>> opt, w = portopt.SGD(learning_rate=0.25), np.asarray([1.0])
            >>> state = opt.apply_(w, np.asarray([2.0]), opt.init(w))
            >>> w
            array([0.5])
        """
        if gradient_norm is not None:
            hyperparameters = _with_norm(hyperparameters, gradient_norm)
        plans = self._cache.plans
        for plan in plans:
            done: OptimizerState | None = plan.step(self, params, grads, state, hyperparameters)
            if done is not None:
                if plan is not plans[0]:
                    self._cache.add(plan)
                return done
        return self._step(params, grads, state, hyperparameters, in_place=True)[1]

    def check_step(
        self, params: Any, grads: Any, state: OptimizerState, *, gradient_norm: Any = None, **hyperparameters: Any
    ) -> None:
        """Raise what `apply_` with these arguments would raise; change nothing.

        For steps of several optimizers of which all or none shall be done.

        Example:
            >>> import numpy as np, portopt
            >>> opt, w = portopt.SGD(), np.asarray([1.0])
            >>> opt.check_step(w, np.asarray([2.0, 3.0]), opt.init(w))
            Traceback (most recent call last):
            ValueError: grads has shape (2,), but params has shape (1,); they must agree
        """
        overrides = _with_norm(hyperparameters, gradient_norm)
        plan = next((p for p in self._cache.plans if p.fits(params, grads, state)), None)
        if plan is None:
            checked = self._check_arguments(params, grads, state, overrides, in_place=True)
            backend, overrides = checked.backend, checked.overrides
        else:
            backend, overrides = plan.backend, self.check_overrides(overrides)
        _concrete_step(state.step, further=1)
        if is_schedule(overrides.get("learning_rate", self.learning_rate)):
            self.step_scalars(backend, self.program(overrides), state, overrides, lambda: 1.0)

    def _check_arguments(
        self, params: Any, grads: Any, state: OptimizerState, overrides: dict[str, Any], *, in_place: bool
    ) -> _Arguments:
        backend, definition, leaves, infos = _flatten_params(params)
        gradients = _flatten_like(backend, definition, grads, params, "grads")
        slots = self._flatten_slots(backend, definition, state, params)
        _check_gradients(backend, leaves, infos, gradients, params)
        _check_slots(backend, leaves, infos, slots, params)
        overrides = self.check_overrides(overrides)
        moving = [i for i, g in enumerate(gradients) if g is not None and leaves[i] is not None]
        parameters = [{"p": leaves[i], "g": gradients[i], **{n: slots[n][i] for n in self.slots}} for i in moving]
        if in_place:
            backend.check_in_place(parameters, lambda i: backend.trees.paths(params)[moving[i]])
        return _Arguments(backend, definition, leaves, gradients, slots, overrides, moving, parameters)

    def _step(
        self, params: Any, grads: Any, state: OptimizerState, overrides: dict[str, Any], *, in_place: bool
    ) -> tuple[Any, OptimizerState]:
        backend, definition, leaves, gradients, slots, overrides, moving, parameters = self._check_arguments(
            params, grads, state, overrides, in_place=in_place
        )
        program = self.program(overrides)
        scalars, step = self.step_scalars(
            backend, program, state, overrides, lambda: backend.gradient_norm([gradients[i] for i in moving])
        )
        if in_place and len(moving) == len(leaves):
            # Before this step, which must not fail once it is done.
            self._plan_next_step(backend, program, (params, grads, state), parameters)
        results = backend.update(program, scalars, parameters, in_place=in_place)

        new_slots: dict[str, Any] = {name: backend.stored_scalar(value) for name, value in scalars.outputs().items()}
        for i, result in zip(moving, results, strict=True):
            leaves[i] = result["p"]
            for name in self.slots:
                slots[name][i] = result[name]
        for name in self.slots:
            new_slots[name] = state.slots[name] if in_place else backend.trees.unflatten(definition, slots[name])
        new_params = params if in_place else backend.trees.unflatten(definition, leaves)
        # In the order of the given state, as a planned step leaves it.
        return new_params, OptimizerState(step, {name: new_slots[name] for name in state.slots})

    def _plan_next_step(
        self,
        backend: Backend,
        program: Program,
        trees: tuple[Any, Any, OptimizerState],
        parameters: list[dict[str, Any]],
    ) -> None:
        """Let the backend prepare the next step on the same arrays, once a second step on them shows that there is a loop."""
        arrays = [tuple(map(id, named.values())) for named in parameters]
        looping = hash((program, *((*ids[:1], *ids[2:]) for ids in arrays)))
        if not self._cache.has_seen(looping):
            return
        plan = backend.plan(program, trees, parameters)
        if plan is not None:
            self._cache.add(plan)

    def step_scalars(
        self,
        backend: Backend,
        program: Program,
        state: OptimizerState,
        overrides: Mapping[str, Any],
        gradient_norm: Callable[[], Any],
    ) -> tuple[StepScalars, Any]:
        """Return the scalars of a step, checked, and the number of finished steps afterwards; for backends.

        Args:
            backend: of the arrays.
            program: what the step runs.
            state: before the step.
            overrides: what `check_overrides` returned.
            gradient_norm: returns the norm of all gradients together; called if the program uses it.
        """
        given: dict[str, Any] = {name: state.slots[name] for name in self.scalar_slots}
        if program.uses_gradient_norm:
            given[_NORM] = overrides[_NORM] if _NORM in overrides else gradient_norm()
        for name in program.scalar_inputs:
            if name not in given and name != "t":
                given[name] = overrides[name] if name in overrides else getattr(self, name)
        schedule = given.get("learning_rate")
        scheduled = is_schedule(schedule)
        values = [state.step, *(v for n, v in given.items() if n != "learning_rate" or not scheduled)]
        arithmetic = backend.arithmetic(values)
        step = backend.scalar(state.step) if arithmetic is not HOST else _concrete_step(state.step, further=1)
        owners = {name: f"{type(self).__name__}.apply" for name in overrides if name != _NORM}
        if schedule is not None and scheduled:
            owner = owners["learning_rate"] = f"the schedule {schedule!r} of {type(self).__name__}:"
            rate = self._fields["learning_rate"].check_value(
                owner, "learning_rate", rate_at(schedule, Scalar(step, arithmetic))
            )
            given["learning_rate"] = rate
            if arithmetic is HOST:  # the schedule may have brought a value of its own that is not known yet
                arithmetic = backend.arithmetic([rate])
        inputs = {name: backend.scalar(value) for name, value in given.items()}
        for name, owner in owners.items():
            if isinstance(inputs.get(name), int | float):
                self._fields[name].check(owner, name, inputs[name])
        finished = arithmetic.add(step, 1)
        return evaluate_scalars(program, arithmetic, {**inputs, "t": finished}), finished

    def program(self, overrides: Mapping[str, Any] | None = None) -> Program:
        """Return the traced program of one step.

        Args:
            overrides: hyperparameters given for the step; only whether they switch a feature on or off matters.

        Example:
            >>> import portopt
            >>> print(portopt.SGD(learning_rate=0.1).program())
            program SGD
              scalars, float64, given learning_rate
              arrays, compute dtype, loaded p, g
                a0 = round(learning_rate)
                a1 = a0 * g
                a2 = negative(a1)
                a3 = p + a2
                store p <- a3
                store moment <- a2
        """
        cache = self._cache.programs
        if not overrides and None in cache:
            return cache[None]
        overrides = overrides or {}
        active = frozenset(
            name
            for name in self.numeric_hyperparameters()
            if (name in overrides and overrides[name] is not None) or (name not in overrides and self._is_on(name))
        )
        if active not in cache:
            # Should two threads trace at once, both get the program of the first.
            cache.setdefault(active, trace(self, active))
        if not overrides:
            cache[None] = cache[active]
        return cache[active]

    def _is_on(self, name: str) -> bool:
        field = self._fields[name]
        return not (field.is_optional and getattr(self, name) == field.off)

    # Hyperparameters ---------------------------------------------------------------------------------------------

    @_OfClassOrInstance
    def numeric_hyperparameters(self) -> tuple[str, ...]:
        """Return the names of the hyperparameters that are numbers, and so may be given for one step.

        Those of the optimizer's dialect; of the default dialect, if called on the class.
        """
        return tuple(name for name, field in self._fields.items() if field.is_numeric)

    @classmethod
    def is_optional(cls, name: str) -> bool:
        """Tell whether a hyperparameter has a value that switches its feature off."""
        return cls._declared[name].is_optional

    def check_overrides(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return hyperparameters given for one step under their own names; raise an error if one is no hyperparameter."""
        checked: dict[str, Any] = {}
        owner = f"{type(self).__name__}.apply"
        for name, target, value in self._spelled_out(owner, overrides):
            if name == _NORM:
                checked[name] = _check_norm(owner, value)
                continue
            field = self._fields.get(target)
            if field is None and target in self._declared:
                raise self._not_in_dialect(owner, name)
            if field is None or not field.is_numeric:
                if field is not None:
                    raise TypeError(
                        f"{owner}: {name!r} is fixed at construction; construct another optimizer to change it"
                    )
                raise unknown_argument(owner, name, [*self.numeric_hyperparameters(), *self._other_names()])
            if target in checked:
                raise TypeError(f"{owner} was given {name!r} and another name of it at once; give only one of them")
            checked[target] = field.check_value(owner, name, value)
            if checked[target] is not None and field.is_optional and not self._is_on(target):
                self._check_slots_suffice(owner, target)
        return checked

    def _check_slots_suffice(self, owner: str, name: str) -> None:
        switched_on = copy.copy(self)
        object.__setattr__(switched_on, name, True)
        if missing := [slot for slot in switched_on.slots if slot not in self.slots]:
            raise ValueError(
                f"{owner} was given {name!r}, which is off in this optimizer, so that its state lacks the slot "
                f"{', '.join(missing)}: construct an optimizer with {name} and begin with the state from its init"
            )

    def replace(self, **changes: Any) -> Self:
        """Return an optimizer like this one with some hyperparameters changed.

        Example:
            >>> import portopt
            >>> portopt.Adam(learning_rate=0.1).replace(beta_1=0.5).beta_1
            0.5
        """
        changed = {target for name in changes for target in self._targets(name)}
        kept = {name: getattr(self, name) for name in self._fields if name not in changed}
        if "dialect" in changes:
            others = self._fields_by_dialect.get(changes["dialect"], self._fields)
            kept = {n: v for n, v in kept.items() if n in others or v != self._fields[n].default}
        return type(self)(**kept, **changes)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as Python values that JSON can hold; clipping only where it is on.

        The dialect is among them if it is not the default one.

        Raises:
            ValueError: the learning rate is a schedule that cannot be serialised, such as a lambda.

        Example:
            >>> import portopt
            >>> portopt.RMSprop(learning_rate=0.01).get_config()
            {'learning_rate': 0.01, 'rho': 0.9, 'epsilon': 1e-07, 'decay': 0.0}
        """
        config = self._arguments()
        if is_schedule(self.learning_rate):
            config["learning_rate"] = configuration_of(self.learning_rate)
        return config

    def _arguments(self) -> dict[str, Any]:
        """Return the hyperparameters that are not None, and the dialect if it is not the default one."""
        values = {name: getattr(self, name) for name in self._fields}
        default = {"dialect": DEFAULT_DIALECT}
        return {n: v for n, v in values.items() if v is not None and v != default.get(n)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the optimizer that `get_config` described; `config` is left alone."""
        arguments = dict(config)
        for name in ("learning_rate", *(n for n, a in cls._aliases.items() if "learning_rate" in a.targets)):
            if isinstance(arguments.get(name), Mapping):
                arguments[name] = schedule_from_configuration(arguments[name])
        return cls(**arguments)

    def get_weights(self, state: OptimizerState) -> list[Any]:
        """Return the state as the list of NumPy arrays that Keras 2.3.1's `get_weights` gives.

        Iterations (int64, shape ()), scalars of the state, then each slot for all parameters in the order of the tree.

        Raises:
            ValueError: the rule is in another dialect than keras2.

        Example:
            >>> import numpy as np, portopt
            >>> opt = portopt.Adagrad()
            >>> opt.get_weights(opt.init([np.zeros(2)]))
            [array(0), array([0., 0.])]
        """
        return keras_weights.get_weights(self, state)

    def set_weights(self, state: OptimizerState, weights: Any) -> OptimizerState:
        """Return a state like `state` with the values of a list that Keras 2.3.1's, or 2.2.4's, `get_weights` gave.

        Raises:
            ValueError: the number of weights, or the shape of one, does not fit, or the rule is in another dialect than keras2.

        Example:
            >>> import numpy as np, portopt
            >>> opt = portopt.Adagrad()
            >>> opt.set_weights(opt.init([np.zeros(2)]), [np.asarray(7), np.ones(2)])
            OptimizerState(step=7, slots={'accumulator': [array([1., 1.])]})
        """
        return keras_weights.set_weights(self, state, weights)

    # Immutable value ---------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        cache = self.__dict__.get("_cache")
        if name in self._declared or name in self._aliases or (cache is not None and cache.programs):
            raise AttributeError(
                f"an optimizer is immutable, so {name!r} cannot be set: give a value for one step as apply(..., {name}=x), "
                f"or make another optimizer with replace({name}=x)"
            )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an optimizer is immutable, so {name!r} cannot be deleted")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._arguments().items())})"

    def _key(self) -> tuple[Any, ...]:
        return (type(self), *((n, v) for n, v in sorted(self.__dict__.items()) if n not in _NO_VALUES))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Optimizer) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _NO_VALUES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _cache=StepCache())
        self._choose_dialect(state)

    def _flatten_slots(
        self, backend: Backend, definition: TreeDefinition, state: OptimizerState, params: Any
    ) -> dict[str, list[Any]]:
        slots = getattr(state, "slots", None)
        if not isinstance(slots, Mapping) or not hasattr(state, "step"):
            raise TypeError(
                f"state must be the OptimizerState that init or the previous step returned, but {type(state).__name__} was given"
            )
        expected = {*self.scalar_slots, *self.slots}
        if set(slots) != expected:
            raise ValueError(
                f"state has the slots {sorted(slots)}, but {type(self).__name__} with these options has {sorted(expected)}: "
                "start from init(params) of this optimizer"
            )
        return {
            name: _flatten_like(backend, definition, slots[name], params, f"state.slots[{name!r}]")
            for name in self.slots
        }


_NO_VALUES = frozenset({"_cache", "_fields"})
"""Attributes of an optimizer that are no part of its value."""

_NORM = "gradient_norm"
"""The norm's name among a program's scalar inputs, and among the values given for one step."""

Optimizer._collect_fields()


def _with_norm(hyperparameters: dict[str, Any], gradient_norm: Any) -> dict[str, Any]:
    return hyperparameters if gradient_norm is None else {**hyperparameters, _NORM: gradient_norm}


def _check_norm(owner: str, value: Any) -> Any:
    """Return a norm that was given for a step; NaN and infinity are norms too."""
    check_number(owner, "gradient_norm", value)
    is_scalar = hasattr(value, "__float__") or is_array(value)  # a tensor of a graph of TensorFlow has no value yet
    if isinstance(value, bool) or getattr(value, "shape", ()) != () or not is_scalar:
        raise TypeError(
            f"{owner} gradient_norm must be a Python number or a 0-d array, but {value!r:.80} of type "
            f"{type(value).__name__} was given"
        )
    if isinstance(value, numbers.Real) and value < 0:
        raise ValueError(f"{owner} gradient_norm must be at least 0, but {value!r} was given")
    return value


def _signature(fields: Mapping[str, Hyperparameter], aliases: Mapping[str, Alias]) -> inspect.Signature:
    kinds = inspect.Parameter
    declared = {n: f.default for n, f in fields.items()}
    defaults = {n: d.of(DEFAULT_DIALECT) if isinstance(d, PerDialect) else d for n, d in declared.items()}
    positional = [
        kinds(n, kinds.POSITIONAL_OR_KEYWORD, default=defaults[n]) for n, f in fields.items() if not f.kw_only
    ]
    by_name = [kinds(n, kinds.KEYWORD_ONLY, default=defaults[n]) for n, f in fields.items() if f.kw_only]
    by_name += [kinds(n, kinds.KEYWORD_ONLY, default=None) for n in aliases]
    return inspect.Signature([*positional, *by_name])


def _flatten_params(params: Any) -> _Leaves:
    leaves, definition = STANDARD_TREES.flatten(params)
    first = next((leaf for leaf in leaves if leaf is not None), None)
    if first is None:
        raise ValueError("params holds no array; give an array, or nested dicts, lists and tuples of arrays")
    backend = find_backend(first)
    if backend is None:
        i = next(i for i, leaf in enumerate(leaves) if leaf is first)
        raise _no_array(f"params{STANDARD_TREES.paths(params)[i]}", first)
    if backend.trees is not STANDARD_TREES:
        leaves, definition = backend.trees.flatten(params)
    infos: list[ArrayInfo | None] = []
    for i, leaf in enumerate(leaves):
        if leaf is None:
            infos.append(None)
            continue
        if not backend.owns(leaf):
            raise _foreign(backend, f"params{backend.trees.paths(params)[i]}", leaf, "params")
        info = _describe(backend, leaf, lambda i=i: f"params{backend.trees.paths(params)[i]}")  # type: ignore[misc]  # binds i
        if info.dtype not in COMPUTE_DTYPE:
            raise TypeError(
                f"params{backend.trees.paths(params)[i]} has dtype {info.dtype}; parameters must be of dtype "
                f"{', '.join(COMPUTE_DTYPE)}: leave other arrays out of params, or convert them"
            )
        infos.append(info)
    return _Leaves(backend, definition, leaves, infos)


def _describe(backend: Backend, array: Any, path: Callable[[], str]) -> ArrayInfo:
    try:
        return backend.describe(array)
    except TypeError as error:
        raise TypeError(f"{path()}: {error}") from None


def _no_array(path: str, leaf: object) -> TypeError:
    return TypeError(
        f"{path} is {leaf!r:.80} of type {type(leaf).__name__}, which is no array of an installed library; give arrays of NumPy, "
        "CuPy, PyTorch, JAX or another array API library (`portopt backends` lists what is installed)"
    )


def _foreign(backend: Backend, path: str, leaf: object, first_path: str) -> TypeError:
    other = find_backend(leaf)
    if other is None:
        return _no_array(path, leaf)
    return TypeError(
        f"{path} is an array of {other.name}, but {first_path} has arrays of {backend.name}: nothing is moved between libraries "
        f"silently; convert it to {backend.name} first"
    )


def _flatten_like(backend: Backend, definition: TreeDefinition, tree: Any, params: Any, name: str) -> list[Any]:
    leaves, found = backend.trees.flatten(tree)
    if found != definition:
        difference = explain_difference(backend.trees, params, tree, "params", name)
        raise ValueError(f"{name} must have the structure of params: {difference}")
    return leaves


def _check_gradients(
    backend: Backend, leaves: list[Any], infos: list[ArrayInfo | None], gradients: list[Any], params: Any
) -> None:
    for i, (p, info, g) in enumerate(zip(leaves, infos, gradients, strict=True)):
        if g is None:
            continue

        def at(name: str, i: int = i) -> str:
            return f"{name}{backend.trees.paths(params)[i]}"

        if p is None or info is None:
            raise ValueError(f"{at('params')} is None, so {at('grads')} must be None too, but it is {type(g).__name__}")
        if not backend.owns(g):
            raise _foreign(backend, at("grads"), g, at("params"))
        _check_same(backend, info, g, at, "grads", "gradients", gradient_dtypes)


def _check_slots(
    backend: Backend,
    leaves: list[Any],
    infos: list[ArrayInfo | None],
    slots: Mapping[str, list[Any]],
    params: Any,
) -> None:
    for slot, arrays in slots.items():
        here = f"state.slots[{slot!r}]"
        for i, (p, info, s) in enumerate(zip(leaves, infos, arrays, strict=True)):
            if p is None and s is None:
                continue

            def at(name: str, i: int = i) -> str:
                return f"{name}{backend.trees.paths(params)[i]}"

            if info is None or s is None or not backend.owns(s):
                raise TypeError(
                    f"{at(here)} is {type(s).__name__}, but {at('params')} is {type(p).__name__} of {backend.name}: "
                    "start from init(params), or convert the state to the parameters' library"
                )
            _check_same(backend, info, s, at, here, "slots", slot_dtypes)


def _check_same(
    backend: Backend,
    expected: ArrayInfo,
    other: Any,
    at: Callable[[str], str],
    name: str,
    what_it_is: str,
    allowed_dtypes: Callable[[str], tuple[str, ...]],
) -> None:
    found = _describe(backend, other, lambda: at(name))
    if found == expected:
        return
    for what in ("shape", "dtype", "device"):
        left, right = getattr(expected, what), getattr(found, what)
        if what == "dtype":
            if right in allowed_dtypes(left):
                continue
            left = f"{left}, whose {what_it_is} are {' or '.join(allowed_dtypes(left))}"
        elif left == right or left is None or right is None:
            continue
        error = TypeError if what == "dtype" else ValueError
        raise error(f"{at(name)} has {what} {right}, but {at('params')} has {what} {left}; they must agree")


def _concrete_step(step: Any, *, further: int = 0) -> int:
    """Return the number of finished steps, after checking that `further` ones can be counted."""
    try:
        finished = operator.index(step)
    except TypeError:
        raise TypeError(
            f"state.step must be an integer, the number of finished steps, but {step!r} was given"
        ) from None
    if finished < 0:
        raise ValueError(f"state.step must be at least 0, but {finished} was given")
    if finished > MOST_STEPS - further:
        given = finished if finished < 2**128 else "a number of more than 128 bits"
        raise ValueError(
            f"state.step must be at most {MOST_STEPS - further}{' before a step' * bool(further)}, but {given} was given: "
            f"portopt counts {MOST_STEPS} steps, the most that every library can; begin anew with the state from init"
        )
    return finished


def check_state(optimizer: Optimizer, params: Any, state: OptimizerState) -> tuple[Backend, int]:
    """Return the backend of parameters and the finished steps of their state, after checking that the two fit together."""
    backend, definition, leaves, infos = _flatten_params(params)
    _check_slots(backend, leaves, infos, optimizer._flatten_slots(backend, definition, state, params), params)
    return backend, _concrete_step(state.step)
