"""`Optimizer`: what every rule shares. Trees, checks and state are here; the rule itself is two small methods."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, SupportsFloat

import numpy.typing as npt

from portopt import keras_weights, step
from portopt.backend import Backend, PlannedStep
from portopt.counterparts import Counterpart
from portopt.declaration_errors import check_draws, check_slots, own_constructor
from portopt.declarations import OfClassOrInstance, WithKey
from portopt.declared_value import DeclaredValue
from portopt.hyperparameters import Hyperparameter, StepValue, alias, check_totals, hyperparameter
from portopt.nested import Assembled, configuration, from_configuration, is_of_inner, value_of
from portopt.program import Dim, Program
from portopt.program.draws import Place
from portopt.program.facts import Facts, UnknownFactError
from portopt.program.interpreter import StepScalars
from portopt.program.reductions import GRADIENT_NORM, TOTALS_GIVEN
from portopt.program.tracing import trace
from portopt.scalars import Scalar
from portopt.schedules import LearningRate, configuration_of, is_schedule, schedule_from_configuration
from portopt.slot import slot_dims, slots_of
from portopt.state import OptimizerState as OptimizerState
from portopt.step_cache import Variants, shared
from portopt.trees import Tree


class Optimizer(DeclaredValue):
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
    """Names of the arrays that the rule keeps for each parameter, of its shape and zero at first; `portopt.slot` makes others."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """Names of further trees beside the gradients; a step is given each by name, and `update` gets it so, or None."""
    draws: ClassVar[Mapping[str, Literal["normal", "uniform"]]] = {}
    """Names of random numbers, one for each element, and their distributions; `update` gets each as an argument of that name."""
    totals: ClassVar[Callable[..., Mapping[str, Any]] | None] = None
    """A method like `update`, which returns what `coefficients` takes: sums, maxima and norms over all parameters, by name."""
    scalar_slots: ClassVar[Mapping[str, float]] = {}
    """Names and first values of the float64 scalars that the rule keeps for all parameters together."""
    rates: ClassVar[tuple[str, ...]] = ("learning_rate",)
    """Names of the hyperparameters that may be schedules."""
    counterparts: ClassVar[tuple[Counterpart, ...]] = ()
    """What has the rule's formula in other frameworks; a subclass, whose formula may be another, states its own."""
    worth_testing: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Arguments worth testing beside those that tests find from the hyperparameters; with `dialect`, if not the default one."""
    worth_measuring: ClassVar[Mapping[str, Any]] = {}
    """Arguments with which `portopt bench` measures the rule, where those are not its defaults."""
    keras_placeholder_slots: ClassVar[tuple[str, ...]] = ()
    """Slots that Keras lists after `slots` in its weights, as zeros of shape (1,), though the rule does not use them."""
    keras_short_list: ClassVar[tuple[int, float] | None] = None
    """Index and value of the weight that lists written by Keras 2.2.4 lack."""

    learning_rate: LearningRate = hyperparameter(default=0.01, at_least=0, kw_only=False)
    lr: LearningRate | None = alias("learning_rate", default=None, kw_only=True)
    clipnorm: float | None = hyperparameter(default=None, above=0, off=None, kw_only=True)
    clipvalue: float | None = hyperparameter(default=None, above=0, off=None, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if cls.__init__ is not Optimizer.__init__:
            raise own_constructor(cls)
        super().__init_subclass__(**kwargs)
        check_draws(cls, cls.draws, cls._declarations.declared)
        scalars = inspect.getattr_static(cls, "scalar_slots")
        if cls.draws and not isinstance(scalars, WithKey):
            cls.scalar_slots = WithKey(scalars)  # type: ignore[assignment]  # in place of what the class says

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.check_combination()
        owner = type(self).__name__
        check_slots(owner, self.slots, self.scalar_slots, self._declarations.declared)

    @classmethod
    def dialects(cls) -> tuple[str, ...]:
        """Return the names of the rule's dialects, the default one first; empty for a rule that has none.

        Example:
            >>> import portopt
            >>> portopt.Adam.dialects()
            ('keras2', 'keras3', 'torch', 'optax')
        """
        return cls._declarations.dialects

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
        fields = cls._fields if dialect is None else cls._declarations.by_dialect.get(dialect)
        if fields is None:
            raise ValueError(f"{cls.__name__} has no dialect {dialect!r}: it has {', '.join(cls.dialects()) or 'none'}")
        return {name: dialect if name == "dialect" and dialect else field.default for name, field in fields.items()}

    @classmethod
    def hyperparameters(cls, dialect: str | None = None) -> Mapping[str, Hyperparameter]:
        """Return the hyperparameters that the rule has in a dialect, as declared; None means the default dialect."""
        cls.defaults(dialect)
        return cls._fields if dialect is None else cls._declarations.by_dialect[dialect]

    # The rule ----------------------------------------------------------------------------------------------------

    def coefficients(self, t: Scalar, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        """Return the scalars of step number `t`, from 1, that `update` uses, by name.

        `t` and the hyperparameters `self.…` are scalars: combine them with `+ - * / **` and the functions of
        `portopt.scalars`. The learning rate of the step is `self.learning_rate_at(t)`. A rule with `scalar_slots` takes
        each as a keyword argument and returns its new value under the same name.
        """
        return {"lr": self.learning_rate_at(t)}

    def update(
        self, xp: Any, p: Any, g: Any, slots: Any, c: Any, *args: Any, **kwargs: Any
    ) -> tuple[Any, Mapping[str, Any]]:
        """Return the new parameter, and the new value of each slot by name.

        Args:
            xp: the array API namespace.
            p: one parameter before the step, of any shape.
            g: its gradient, after clipping.
            slots: its slots, as attributes.
            c: the coefficients, as attributes.
            *args: none.
            **kwargs: each of the rule's `inputs`, None where the step has not got it, and each of its `draws`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define update(self, xp, p, g, slots, c): it returns the new parameter and the new value "
            "of each slot by name, such as `return p - c.lr * g, {}` without slots"
        )

    def slots_for(self, p: Any) -> Iterable[str]:
        """Return the names of those of the rule's slots that a parameter has: all, unless a rule says otherwise.

        Args:
            p: what is known of the parameter: `p.ndim`, `p.shape` and `p.size`.
        """
        return self.slots

    slots_for.is_default = True  # type: ignore[attr-defined]  # an attribute of the function

    def check_combination(self) -> None:
        """Raise ValueError if hyperparameters, each of which is in its range, cannot go together."""

    def learning_rate_at(self, t: Any) -> Any:
        """Return the learning rate of step number `t`, from 1: the schedule's at `t - 1`, lowered by `decay`.

        That of the inner rule, if the rule's learning rate is another name for it.
        """
        if "learning_rate" in self._declarations.aliases:
            inner, _, _ = self._declarations.targets("learning_rate")[0].rpartition(".")
            return value_of(self, inner).learning_rate_at(t)
        rate = self.learning_rate
        if is_schedule(rate):
            rate = rate(t - 1)
        decay = getattr(self, "decay", 0.0)
        return rate * (1 / (1 + decay * (t - 1))) if decay else rate

    # Steps -------------------------------------------------------------------------------------------------------

    def init(self, params: object, *, slot_dtype: str | None = None, capturable: bool = False) -> OptimizerState:
        """Return the state before the first step.

        Args:
            params: an array, or nested dicts, lists, tuples and NamedTuples of arrays (under JAX any pytree), of dtype
                float16, bfloat16, float32 or float64.
            slot_dtype: dtype of the slots: by default `"float32"`, and `"float64"` for float64 parameters. For parameters that
                are not float64, `"float16"` and `"bfloat16"` save memory and round the slots after each step.
            capturable: whether a CUDA graph can repeat the steps: `step` and the scalars of the state are then arrays on the
                device of the parameters, which steps in place overwrite.

        Raises:
            TypeError: a leaf is no array, or of an unsupported dtype.
            ValueError: there is no array in `params`, or it has arrays that cannot have slots of `slot_dtype`; or `capturable`
                is True and the parameters are not on a CUDA device.

        Example:
            >>> import numpy as np, portopt
            >>> state = portopt.Adam().init({"w": np.zeros(2)})
            >>> state.step, state.slots["m"]
            (0, {'w': array([0., 0.])})
        """
        return step.first_state(self, params, slot_dtype, self._cache.places, capturable=capturable)

    def to_capturable(self, params: object, state: OptimizerState) -> OptimizerState:
        """Return a state that goes on where another one is, with steps that a CUDA graph can repeat; see `init`.

        The slots are those of the given state. `from_capturable` is the other direction.

        Raises:
            ValueError: the parameters are not on a CUDA device.

        Example:
            >>> import numpy as np, portopt
            >>> opt, w = portopt.SGD(), np.zeros(2)
            >>> opt.to_capturable(w, opt.init(w))
            Traceback (most recent call last):
            ValueError: a capturable state is for arrays on a CUDA device, ... but arrays of numpy were given; ...
        """
        return step.to_capturable(self, params, state)

    def from_capturable(self, state: OptimizerState) -> OptimizerState:
        """Return a state that goes on where a capturable one is, its step number and scalars as Python numbers.

        The host waits for them. The slots are those of the given state.

        Example:
            >>> import numpy as np, portopt
            >>> opt = portopt.SGD()
            >>> opt.from_capturable(opt.init(np.zeros(2)))
            OptimizerState(step=0, slots={'moment': array([0., 0.])})
        """
        return step.from_capturable(self, state)

    def apply(
        self,
        params: Tree,
        grads: object,
        state: OptimizerState,
        *,
        gradient_norm: SupportsFloat | None = None,
        **hyperparameters: StepValue,
    ) -> tuple[Tree, OptimizerState]:
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
            **hyperparameters: values for this step only, of any numeric hyperparameter: Python numbers or 0-d arrays. And the
                rule's further `inputs`, each a tree of arrays like `grads`; None, for a tree or a leaf, is none in this step.
                And `totals`, a dict of values of the rule's totals, where `params` are only some of those that they are of.

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
        if gradient_norm is not None:
            hyperparameters[GRADIENT_NORM] = gradient_norm
        done = self._planned(self._cache.pure_plans, params, grads, state, hyperparameters)
        if done is not None:
            return done
        return step.do_step(self, self._cache, params, grads, state, hyperparameters, in_place=False)

    def apply_(
        self,
        params: object,
        grads: object,
        state: OptimizerState,
        *,
        gradient_norm: SupportsFloat | None = None,
        **hyperparameters: StepValue,
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
            hyperparameters[GRADIENT_NORM] = gradient_norm
        done = self._planned(self._cache.plans, params, grads, state, hyperparameters)
        if done is not None:
            return done[1]
        return step.do_step(self, self._cache, params, grads, state, hyperparameters, in_place=True)[1]

    def _planned(
        self,
        plans: tuple[PlannedStep, ...],
        params: Any,
        grads: object,
        state: OptimizerState,
        hyperparameters: dict[str, Any],
    ) -> tuple[Any, OptimizerState] | None:
        """Return what a step returns that one of the plans did; None if none fits."""
        names, tried = self.inputs, plans
        if not hyperparameters.keys().isdisjoint(names):
            given = tuple([name for name in names if name in hyperparameters])
            tried = tuple([plan for plan in plans if plan.inputs == given])
        for plan in tried:
            done = plan.step(self, params, grads, state, hyperparameters)
            if done is not None:
                if plan is not plans[0]:
                    self._cache.add(plan)
                return done
        return None

    def check_step(
        self,
        params: object,
        grads: object,
        state: OptimizerState,
        *,
        gradient_norm: SupportsFloat | None = None,
        **hyperparameters: StepValue,
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
        if gradient_norm is not None:
            hyperparameters[GRADIENT_NORM] = gradient_norm
        step.check_step(self, self._cache, params, grads, state, hyperparameters)

    def repeat_(
        self, params: object, grads: object, state: OptimizerState, hyperparameters: Mapping[str, Any]
    ) -> OptimizerState | None:
        """Do a step like `apply_` if a plan does it; None, with nothing done, if none does. For adapters.

        `grads` may be what only a plan of the library knows to read.
        """
        done = self._planned(self._cache.plans, params, grads, state, dict(hyperparameters))
        return None if done is None else done[1]

    def would_repeat(
        self, params: object, grads: object, state: OptimizerState, hyperparameters: Mapping[str, Any]
    ) -> bool:
        """Tell whether `repeat_` is sure to do a step, doing nothing. For adapters."""
        return step.would_repeat(self, self._cache, params, grads, state, hyperparameters)

    def place_parameters(self, places: Sequence[Place] | None) -> None:
        """Say where the parameters of further steps are in a whole of which they are part; for adapters.

        What a rule draws depends on it. It is no part of the optimizer's value, and copies do not have it.

        Args:
            places: of each parameter, in the order of the tree; None: the parameters are a whole.
        """
        self._cache.places = places
        self._cache.forget_plans()

    def part_of_step(
        self, params: object, grads: object, state: OptimizerState, hyperparameters: Mapping[str, Any]
    ) -> step.Part:
        """Return what `portopt.step.totals_of` needs to know of a step of which this one is a part. For adapters."""
        return step.Part(self, self._cache, params, grads, state, hyperparameters)

    def step_scalars(
        self,
        backend: Backend,
        programs: Sequence[Program],
        state: OptimizerState,
        overrides: Mapping[str, Any],
        total_of: Callable[[str, Any], Any],
    ) -> tuple[list[StepScalars], Any]:
        """Return the scalars of a step for each of its programs, checked, and the number of finished steps afterwards.

        For backends.

        Args:
            backend: of the arrays.
            programs: what the step runs.
            state: before the step.
            overrides: what `check_overrides` returned.
            total_of: returns the value of one of the programs' `totals` that is not among `overrides`, given its name and what
                returns the scalars of a part of a program.
        """
        return step.step_scalars(self, backend, programs, state, overrides, total_of)

    def program(self, overrides: Mapping[str, Any] | None = None, shape: tuple[int, ...] | None = None) -> Program:
        """Return the traced program of one step.

        Args:
            overrides: hyperparameters and further inputs given for the step; only whether they are on or off matters.
            shape: of the parameter; only rules that ask for it need one.

        Raises:
            TypeError: no shape was given, and the rule asks about the parameter.

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
        found = self._programs(overrides)
        if not isinstance(found, Variants):
            return found
        program = None if shape is None else found.find(shape)
        if program is None:
            facts = Facts(type(self).__name__, shape)
            program = self._trace(self.active_names(overrides or {}), facts)
            found.add(facts, program)
        return program

    def fixed_program(self, overrides: Mapping[str, Any] | None = None) -> Program | None:
        """Return the program of one step if it is the same for all parameters, else None."""
        found = self._programs(overrides)
        return None if isinstance(found, Variants) else found

    def _programs(self, overrides: Mapping[str, Any] | None) -> Program | Variants:
        cache = self._cache.programs
        if not overrides and None in cache:
            return cache[None]
        active = self.active_names(overrides or {})
        if active not in cache:
            try:
                # Should two threads trace at once, both get the program of the first.
                cache.setdefault(active, self._trace(active, Facts(type(self).__name__, None)))
            except UnknownFactError:
                cache.setdefault(active, Variants())
        if not overrides:
            cache[None] = cache[active]
        return cache[active]

    def _trace(self, active: frozenset[str], facts: Facts) -> Program:
        rule = self
        if given_as_off := [n for n in self._fields.numeric if n not in active and self._is_on(n)]:
            rule = copy.copy(self)
            for name in given_as_off:
                object.__setattr__(rule, name, self._fields[name].off)
        return shared(trace(rule, active, facts, self._slot_dims))

    def _slot_dims(self, p: Facts) -> dict[str, tuple[Dim, ...] | None]:
        return {str(name): slot_dims(self, name, p) for name in slots_of(self, p)}

    def active_names(self, overrides: Mapping[str, Any]) -> frozenset[str]:
        """Return the names of the hyperparameters and inputs that a step with these values has in its program."""
        given = frozenset(
            name
            for name in self._fields.numeric
            if (name in overrides and overrides[name] is not None) or (name not in overrides and self._is_on(name))
        )
        for head, inner in self.nested.items() if self._declarations.nested else ():
            start = f"{head}."
            of_inner = {n.removeprefix(start): value for n, value in overrides.items() if n.startswith(start)}
            given = given.union(start + name for name in inner.active_names(of_inner))
        return given.union(name for name in self.inputs if overrides.get(name) is not None) if self.inputs else given

    def own(self, name: str) -> Any:
        """Return what the rule has itself of `slots`, `scalar_slots`, `inputs` or `draws`, without what inner rules have."""
        found = inspect.getattr_static(type(self), name)
        return found.own(self) if isinstance(found, Assembled) else getattr(self, name)

    @property
    def nested(self) -> Mapping[str, Any]:
        """The rules that this one is made of, by the names under which `portopt.rule` declares them."""
        return {name: getattr(self, name) for name in self._declarations.nested}

    def _is_on(self, name: str) -> bool:
        field = self._fields[name]
        return not (field.is_optional and getattr(self, name) == field.off)

    # Hyperparameters ---------------------------------------------------------------------------------------------

    @OfClassOrInstance
    def numeric_hyperparameters(self: Any) -> tuple[str, ...]:
        """Return the names of the hyperparameters that are numbers, and so may be given for one step.

        Those of the optimizer's dialect; of the default dialect, if called on the class. Those of inner rules have the name of
        the inner rule before their own, `"inner.beta_1"`.
        """
        own: tuple[str, ...] = self._fields.numeric
        heads = self._declarations.nested
        inner = {h: getattr(self, h) if isinstance(self, Optimizer) else self._fields[h].default for h in heads}
        return own + tuple(f"{h}.{n}" for h in heads for n in inner[h].numeric_hyperparameters() if is_of_inner(n))

    @OfClassOrInstance
    def hyperparameter_named(self: Any, name: str) -> Hyperparameter:
        """Return a hyperparameter of the optimizer, or of one that it is made of, as declared."""
        head, _, rest = name.partition(".")
        field: Hyperparameter = self._declarations.declared[head]
        if not rest:
            return field
        inner = getattr(self, head) if isinstance(self, Optimizer) else self._fields[head].default
        found: Hyperparameter = inner.hyperparameter_named(rest)
        return found

    @OfClassOrInstance
    def is_optional(self: Any, name: str) -> bool:
        """Tell whether a hyperparameter has a value that switches its feature off."""
        return bool(self.hyperparameter_named(name).is_optional)

    def check_overrides(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return hyperparameters given for one step under their own names; raise an error if one is no hyperparameter."""
        owner = f"{type(self).__name__}.apply"
        totals: Mapping[str, Any] = {}
        if TOTALS_GIVEN in overrides:
            overrides = dict(overrides)
            totals = check_totals(owner, overrides.pop(TOTALS_GIVEN))
        of_inner: dict[str, Any] = {}
        if self._declarations.nested:
            overrides, of_inner = self._fields.own_and_inner(owner, overrides)
        checked = self._fields.values_for_step(owner, overrides, self.inputs)
        for name, value in checked.items():
            if name != GRADIENT_NORM and value is not None and not self._is_on(name):
                self._check_slots_suffice(owner, name)
        for head, values in of_inner.items():
            inner = getattr(self, head).check_overrides(values)
            checked.update((f"{head}.{name}", value) for name, value in inner.items())
        return {**checked, **totals} if totals else checked

    def check_value(self, owner: str, name: str, value: Any) -> Any:
        """Return the value of a numeric hyperparameter, a number or a 0-d array; raise an error if it is outside its range.

        Args:
            owner: what the error says has the value.
            name: of the hyperparameter.
            value: to check.
        """
        head, _, rest = name.partition(".")
        if rest:
            return getattr(self, head).check_value(owner, rest, value)
        return self._fields[name].check_value(owner, name, value)

    def _check_slots_suffice(self, owner: str, name: str) -> None:
        switched_on = copy.copy(self)
        object.__setattr__(switched_on, name, True)
        if missing := [slot for slot in switched_on.slots if slot not in self.slots]:
            raise ValueError(
                f"{owner} was given {name!r}, which is off in this optimizer, so that its state lacks the slot "
                f"{', '.join(missing)}: construct an optimizer with {name} and begin with the state from its init"
            )

    def replace(self, **changes: object) -> Self:
        """Return an optimizer like this one with some hyperparameters changed.

        Example:
            >>> import portopt
            >>> portopt.Adam(learning_rate=0.1).replace(beta_1=0.5).beta_1
            0.5
        """
        changed = {target for name in changes for target in self._declarations.targets(name)}
        kept = {name: getattr(self, name) for name in self._fields if name not in changed}
        if "dialect" in changes:
            others = next(
                (f for d, f in self._declarations.by_dialect.items() if d == changes["dialect"]), self._fields
            )
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
        config = self.arguments()
        if "learning_rate" in config and is_schedule(self.learning_rate):
            config["learning_rate"] = configuration_of(self.learning_rate)
        return config | {name: configuration(inner) for name, inner in self.nested.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the optimizer that `get_config` described; `config` is left alone."""
        return cls(**cls.arguments_of(config))

    @classmethod
    def arguments_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments that a config holds: schedules and inner rules are made of what describes them."""
        arguments = dict(config)
        for name in (
            "learning_rate",
            *(n for n, a in cls._declarations.aliases.items() if "learning_rate" in a.targets),
        ):
            if isinstance(arguments.get(name), Mapping):
                arguments[name] = schedule_from_configuration(arguments[name])
        for name in cls._declarations.nested:
            if name in arguments:
                arguments[name] = from_configuration(arguments[name])
        return arguments

    def get_weights(self, state: OptimizerState) -> list[npt.NDArray[Any]]:
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

    def set_weights(self, state: OptimizerState, weights: Sequence[object]) -> OptimizerState:
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
