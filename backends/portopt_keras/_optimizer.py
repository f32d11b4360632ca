from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras.src.utils.naming import auto_name

import portopt
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.backend import find_backend
from portopt.interrupts import deferred
from portopt.schedules import is_schedule
from portopt.slot import slot_shape, slot_start, slots_of_shape
from portopt.step import first_number, totals_of
from portopt_keras._inputs import inputs_for, inputs_of_step
from portopt_keras._learning_rate import ScheduleOfSteps, nearest, on_keras_backend, scalar_of
from portopt_keras._options import check_options
from portopt_keras._placed import PlacedRules
from portopt_keras._weight_decay import Exclusions, has_weight_decay, without_weight_decay

EXCLUSIONS = "excluded_from_weight_decay"
"""What a config calls the variables that are excluded from weight decay."""


@keras.saving.register_keras_serializable(package="portopt")
class KerasOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]  # keras is untyped
    """A portopt optimizer, for `model.compile(optimizer=...)`.

    The arithmetic of the step is portopt's, with the same bits on Keras' JAX, torch and TensorFlow backends. What Keras does
    around the step (its own clipping, weight decay, loss scaling, accumulation, moving average, constraints) is Keras'.

    Args:
        optimizer: a `portopt.Optimizer`, or its name or config.
        learning_rate: used in place of the optimizer's: a number, a schedule of Keras, or a callable without arguments, as
            Keras has them; or one of `portopt.schedules`. None: the optimizer's.
        weight_decay: Keras' decoupled weight decay, a float. None: off.
        clipnorm: Keras' own: the norm of each gradient by itself is clipped. For the norm of all together give `clipnorm` to the
            portopt optimizer, or `global_clipnorm`.
        clipvalue: each element of a gradient is clipped to [-clipvalue, clipvalue].
        global_clipnorm: the norm of all gradients together is clipped.
        use_ema, ema_momentum, ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps: as for every optimizer of
            Keras.
        name: None: the rule's name, numbered as Keras numbers names.

    Raises:
        TypeError: `optimizer` is no portopt optimizer, or an argument is unknown.
        ValueError: an argument is outside its range.

    Example:
        >>> import portopt, portopt_keras
        >>> opt = portopt_keras.KerasOptimizer(portopt.Adam(learning_rate=0.01, clipnorm=1.0), use_ema=True)
        >>> opt.optimizer.clipnorm, opt.use_ema
        (1.0, True)

    Reference:
        https://keras.io/api/optimizers/
    """

    def __init__(
        self,
        optimizer: portopt.Optimizer | str | Mapping[str, Any],
        learning_rate: Any = None,
        *,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(optimizer, portopt.Optimizer | str | Mapping):
            raise TypeError(
                f"KerasOptimizer takes a portopt optimizer, its name or its config, but {optimizer!r} of type "
                f"{type(optimizer).__name__} was given"
            )
        optimizer = portopt.get(optimizer)
        if learning_rate is not None and not is_keras_rate(learning_rate):
            optimizer = optimizer.replace(learning_rate=learning_rate)
            learning_rate = None
        if learning_rate is None:
            rate = optimizer.learning_rate
            learning_rate = ScheduleOfSteps(rate) if is_schedule(rate) else rate
        options = {
            "weight_decay": weight_decay,
            "clipnorm": clipnorm,
            "clipvalue": clipvalue,
            "global_clipnorm": global_clipnorm,
            "use_ema": use_ema,
            "ema_momentum": ema_momentum,
            "ema_overwrite_frequency": ema_overwrite_frequency,
            "loss_scale_factor": loss_scale_factor,
            "gradient_accumulation_steps": gradient_accumulation_steps,
        }
        check_options(type(self).__name__, options)
        name = auto_name(type(optimizer).__name__) if name is None else name
        super().__init__(learning_rate=learning_rate, name=name, **options)
        self._exclusions = Exclusions()
        self._excluded: frozenset[Any] = frozenset()
        self._undecayed: portopt.Optimizer | None = None
        self._placed = PlacedRules()
        self._has_stepped = False
        self._optimizer = optimizer

    @property
    def optimizer(self) -> portopt.Optimizer:
        """The portopt optimizer."""
        return self._optimizer

    def build(self, variables: Sequence[Any]) -> None:
        """Create the slots of each variable; Keras calls it before the first step."""
        if self.built:
            return
        super().build(variables)
        slots = {str(name): [self._add_slot(v, name) for v in variables] for name in self.optimizer.slots}
        self._slots = {name: of for name, of in slots.items() if any(slot is not None for slot in of)}
        self._scalar_slots = {}
        for name, value in self.optimizer.scalar_slots.items():
            words = np.float64(value).view((np.uint32, 2))
            self._scalar_slots[name] = self.add_variable((2,), lambda *_, words=words, **__: words, "uint32", name=name)
        self._exclude(self._exclusions.with_variables(variables, self._var_key))

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None, **inputs: Any) -> None:
        """Do one step, as every optimizer of Keras does.

        Args:
            grads: a gradient for each variable; None leaves it as it is.
            trainable_variables: the variables; None: those that the optimizer was built with.
            **inputs: what the rule takes beside gradients, by name, such as `hessian`: a list with an array for each variable.
                None, for all or for one, where the step has none. Keras neither scales nor clips them.

        Raises:
            TypeError: the rule has no such input.
            ValueError: shapes do not agree, or steps are given inputs while gradients are accumulated.

        Example:
            >>> import keras, numpy as np, portopt_keras
            >>> w = keras.Variable(np.ones(2, "float32"))
            >>> opt = portopt_keras.SophiaG(learning_rate=0.5, weight_decay=0.0)
            >>> opt.apply([keras.ops.ones(2)], [w], hessian=[keras.ops.ones(2)])
            >>> keras.ops.convert_to_numpy(w).round(4)
            array([0.9915, 0.9915], dtype=float32)
        """
        with self._with_inputs(trainable_variables, inputs):
            super().apply(grads, trainable_variables)

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]], **inputs: Any) -> Any:
        """Do one step, given pairs of gradients and variables; otherwise as `apply`."""
        pairs = list(grads_and_vars)
        with self._with_inputs([v for _, v in pairs], inputs):
            return super().apply_gradients(pairs)

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Any],
        grads: Sequence[Any],
        trainable_variables: Sequence[Any],
        **inputs: Any,
    ) -> Any:
        """Return variables and optimizer variables after one step, given their values; otherwise as `apply`."""
        with self._with_inputs(None, inputs):
            return super().stateless_apply(optimizer_variables, grads, trainable_variables)

    def _with_inputs(
        self, variables: Sequence[Any] | None, inputs: Mapping[str, Any]
    ) -> contextlib.AbstractContextManager[None]:
        if not inputs:
            return contextlib.nullcontext()
        if self.gradient_accumulation_steps:
            raise ValueError(
                f"{self.name!r} accumulates gradients of {self.gradient_accumulation_steps} calls for a step, but was given "
                f"{', '.join(inputs)} for one call: leave gradient_accumulation_steps out, and accumulate what a step needs"
            )
        if variables is None:
            variables = self._trainable_variables if self.built else ()
        return inputs_of_step(self.optimizer, list(variables), inputs, self._var_key)

    def _add_slot(self, variable: Any, name: str) -> Any:
        if self._overwrite_variable_with_gradient(variable):
            return None
        dtype = keras.backend.standardize_dtype(variable.dtype)
        if dtype not in COMPUTE_DTYPE:
            raise TypeError(
                f"variable {variable.path} has dtype {dtype}; portopt optimizers update variables of dtype "
                f"{', '.join(COMPUTE_DTYPE)}: set trainable=False on others"
            )
        rule, shape = self.optimizer, tuple(variable.shape)
        if name not in slots_of_shape(rule, shape):
            return None
        own, start = slot_shape(rule, name, shape), slot_start(rule, name)
        first: Any = functools.partial(_copy_of, variable)
        if start != "p":
            first = keras.initializers.Constant(first_number(rule, name, start))
        if COMPUTE_DTYPE[dtype] == dtype and own == shape:
            return self.add_variable_from_reference(variable, name=str(name), initializer=first)
        full_name = f"{variable.path.replace('/', '_')}_{name}"
        return self.add_variable(own, first, dtype=COMPUTE_DTYPE[dtype], name=full_name)

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        # The step of all variables at once, where Keras would call update_step for each: the norm of all gradients needs them.
        variables = list(trainable_variables)
        numbers = [self._get_variable_index(v) for v in variables]
        slots = {name: [of[n] for n in numbers] for name, of in self._slots.items()}
        slots = {name: of for name, of in slots.items() if any(slot is not None for slot in of)}
        excluded = [i for i, v in enumerate(variables) if not self._use_weight_decay(v)] if self._excluded else []
        step = functools.partial(self._step, learning_rate, numbers, excluded)
        with deferred():
            inputs = inputs_for(list(map(self._var_key, variables)))
            on_keras_backend().update(self, variables, list(grads), slots, self._scalar_slots, inputs, step)
            if not self._has_stepped:
                self._has_stepped = True

    def _step(
        self,
        learning_rate: Any,
        numbers: Sequence[int],
        excluded: Sequence[int],
        params: list[Any],
        gradients: list[Any],
        state: portopt.OptimizerState,
        inputs: Mapping[str, list[Any]],
        *,
        in_place: bool = False,
    ) -> tuple[list[Any], portopt.OptimizerState]:
        """Return parameters and state after one step; what is excluded takes it without the rule's weight decay."""
        overrides = self._rate_for_step(learning_rate)
        rule = self.optimizer
        if not excluded or not has_weight_decay(rule):
            placed = self._placed.of(rule, params, numbers)
            return _apply(placed, params, gradients, state, {**overrides, **inputs}, in_place)
        if self._undecayed is None:
            self._undecayed = without_weight_decay(rule)
        _check_shapes(params, gradients)
        others = [i for i in range(len(params)) if i not in excluded]
        divided = [
            (self._placed.of(of, [params[i] for i in indices], [numbers[i] for i in indices]), indices)
            for of, indices in ((rule, others), (self._undecayed, excluded))
            if indices
        ]
        parts = [
            of.part_of_step(
                [params[i] for i in indices],
                [gradients[i] for i in indices],
                state._replace(slots=_slots_of(rule, state.slots, indices)),
                {**overrides, **_inputs_of(inputs, indices)},
            )
            for of, indices in divided
        ]
        if rule.totals or rule.clipnorm is not None:
            overrides["totals"] = totals_of(parts)
        params = list(params)
        new_slots = {name: list(of) for name, of in state.slots.items() if name not in rule.scalar_slots}
        for part, (of, indices) in zip(parts, divided, strict=True):
            given = {**overrides, **_inputs_of(inputs, indices)}
            new, after = _apply(of, part.params, part.grads, part.state, given, in_place)
            for k, i in enumerate(indices):
                params[i] = new[k]
                for name in new_slots:
                    if name in after.slots:
                        new_slots[name][i] = after.slots[name][k]
        return params, portopt.OptimizerState(after.step, {**after.slots, **new_slots})

    def _rate_for_step(self, learning_rate: Any) -> dict[str, Any]:
        """Return the learning rate of a step as portopt's override, given Keras' value of it."""
        if isinstance(self._learning_rate, ScheduleOfSteps):
            return {}
        if learning_rate is not self._learning_rate:
            return {"learning_rate": learning_rate}
        # Keras' variable is as narrow as its floatx. While it holds what the given number was rounded to, the number itself is
        # meant, so that the bits are those of the same optimizer outside of Keras.
        given: Any = self.optimizer.learning_rate
        value = scalar_of(learning_rate)
        held = value.arithmetic.equal(value.value, nearest(given))
        return {"learning_rate": value.arithmetic.where(held, given, value.value)}

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Exclude variables from weight decay, the rule's and Keras'; a second call takes the place of the first.

        Args:
            var_list: variables.
            var_names: regular expressions. A variable is excluded if one of them is found in its name, or in its path.

        Raises:
            ValueError: the optimizer has done a step, in which variables were decayed; or the rule cannot do without.
            TypeError: `var_names` is no list of strings.

        Example:
            >>> import portopt_keras
            >>> opt = portopt_keras.Adam(weight_decay=0.004, dialect="keras3")
            >>> opt.exclude_from_weight_decay(var_names=["bias"])
        """
        if self._has_stepped:
            raise ValueError(
                f"exclude_from_weight_decay was called on {self.name!r} after a step, in which variables were decayed: call it "
                "before the first step, or on a new optimizer"
            )
        exclusions = Exclusions.of(var_list, var_names, self._var_key)
        if has_weight_decay(self.optimizer):
            without_weight_decay(self.optimizer)
        self._exclude(exclusions)

    def _exclude(self, exclusions: Exclusions) -> None:
        self._exclusions = exclusions
        if self.built:
            self._excluded = exclusions.among(self._trainable_variables, self._var_key)

    def _use_weight_decay(self, variable: Any) -> bool:
        return self._var_key(variable) not in self._excluded

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        # Keras on torch cannot decay an empty list.
        decayed = [v for v in variables if self._use_weight_decay(v)]
        if decayed:
            super()._apply_weight_decay(decayed)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Put the moving averages into the variables, if there are any; Keras calls it after training.

        On Keras' JAX backend a variable and its average would be one array from then on, which the next `fit` of any
        optimizer of Keras 3.15 donates twice, so that it fails and loses the weights; here each has its own.
        """
        super().finalize_variable_values(var_list)
        if self.use_ema and keras.backend.backend() == "jax":
            for variable in var_list:
                variable.assign(keras.ops.copy(variable.value))

    @property
    def learning_rate(self) -> Any:
        """The learning rate: a variable of Keras, or what a schedule gives now."""
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, rate: Any) -> None:
        if isinstance(rate, portopt.Schedule):
            self._optimizer = self._optimizer.replace(learning_rate=rate)
            self._undecayed = None
            rate = ScheduleOfSteps(rate)
        keras.optimizers.Optimizer.learning_rate.fset(self, rate)

    @property
    def lr(self) -> Any:
        """`learning_rate`, under its name in Keras 2."""
        return self.learning_rate

    @lr.setter
    def lr(self, rate: Any) -> None:
        self.learning_rate = rate

    def __setattr__(self, name: str, value: Any) -> None:
        if "_optimizer" in self.__dict__ and name in self._fixed_names():
            raise AttributeError(
                f"{name!r} of {self.name!r} cannot be set, for it is portopt's, whose optimizers are immutable: make another, "
                f"such as KerasOptimizer(opt.optimizer.replace({name}=...))"
            )
        super().__setattr__(name, value)

    def _fixed_names(self) -> frozenset[str]:
        """Return the hyperparameters of the rule that a user might mean to set here: what Keras does itself is set as usual."""
        return self._hyperparameters() - frozenset(self.__dict__)

    def _hyperparameters(self) -> frozenset[str]:
        rule = self._optimizer
        return frozenset(rule.defaults(getattr(rule, "dialect", None))) - {"learning_rate"}

    def _get_current_learning_rate(self) -> Any:
        if isinstance(self._learning_rate, ScheduleOfSteps):
            # portopt's schedules count steps of the optimizer, not the batches that are accumulated for one.
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as values that JSON can hold."""
        config = {**super().get_config(), "optimizer": portopt.serialize(self._configured())}
        if not self._has_keras_rate():
            del config["learning_rate"]
        if self._exclusions:
            variables = self._trainable_variables if self.built else None
            config[EXCLUSIONS] = self._exclusions.get_config(variables, self._var_key)
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Return the optimizer that `get_config` described."""
        config = dict(config)
        exclusions = config.pop(EXCLUSIONS, None)
        optimizer: Self = super().from_config(config, custom_objects)
        if exclusions is not None:
            optimizer._exclusions = Exclusions.from_config(exclusions)
        return optimizer

    def _has_keras_rate(self) -> bool:
        rate = self._learning_rate
        return not isinstance(rate, keras.Variable | ScheduleOfSteps)

    def _configured(self) -> portopt.Optimizer:
        """Return the portopt optimizer with the learning rate that Keras' variable holds now."""
        if not isinstance(self._learning_rate, keras.Variable):
            return self.optimizer
        value = float(keras.ops.convert_to_numpy(self._learning_rate))
        given: Any = self.optimizer.learning_rate
        return self.optimizer if value == nearest(given) else self.optimizer.replace(learning_rate=value)


def is_keras_rate(rate: Any) -> bool:
    """Tell whether a learning rate is a schedule of Keras, or a callable that Keras calls without arguments."""
    return callable(rate) and not isinstance(rate, portopt.Schedule)


def _copy_of(variable: Any, shape: Any, dtype: Any) -> Any:
    """Return what a slot that starts as its parameter is at first, as an initializer of Keras."""
    value = on_keras_backend().tensor(variable)
    backend = find_backend(value)
    assert backend is not None
    return backend.copied(value, keras.backend.standardize_dtype(dtype))


def _slots_of(rule: portopt.Optimizer, slots: Mapping[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    """Return the slots of some parameters, and the scalars of the state; what none of them has is left out."""
    own = {n: [of[i] for i in indices] for n, of in slots.items() if n not in rule.scalar_slots}
    held = {name for name, of in own.items() if any(slot is not None for slot in of)}
    return {n: own.get(n, of) for n, of in slots.items() if n in rule.scalar_slots or n in held}


def _inputs_of(inputs: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
    """Return the inputs of some parameters; what none of them has is left out."""
    own = {name: [of[i] for i in indices] for name, of in inputs.items()}
    return {name: of for name, of in own.items() if any(x is not None for x in of)}


def _apply(
    optimizer: portopt.Optimizer,
    params: Any,
    gradients: Any,
    state: portopt.OptimizerState,
    overrides: Mapping[str, Any],
    in_place: bool,
) -> tuple[list[Any], portopt.OptimizerState]:
    if in_place:
        return params, optimizer.apply_(params, gradients, state, **overrides)
    params, state = optimizer.apply(params, gradients, state, **overrides)
    return params, state


def _check_shapes(params: Sequence[Any], gradients: Sequence[Any]) -> None:
    """Raise `ValueError` before any part of a step that is done in two has moved."""
    for i, (p, g) in enumerate(zip(params, gradients, strict=True)):
        if tuple(p.shape) != tuple(g.shape):
            raise ValueError(f"gradient {i} has shape {tuple(g.shape)}, but its variable has shape {tuple(p.shape)}")
