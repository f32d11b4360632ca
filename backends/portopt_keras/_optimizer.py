from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

import portopt
from portopt.primitives import COMPUTE_DTYPE
from portopt.schedules import is_schedule
from portopt_keras._learning_rate import ScheduleOfSteps, nearest, on_keras_backend, scalar_of


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
        use_ema, ema_momentum, ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps, name: as for every
            optimizer of Keras.

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
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        self.optimizer = optimizer

    def build(self, variables: Sequence[Any]) -> None:
        """Create the slots of each variable; Keras calls it before the first step."""
        if self.built:
            return
        super().build(variables)
        self._slots = {name: [self._add_slot(v, name) for v in variables] for name in self.optimizer.slots}
        self._scalar_slots = {}
        for name, value in self.optimizer.scalar_slots.items():
            words = np.float64(value).view((np.uint32, 2))
            self._scalar_slots[name] = self.add_variable((2,), lambda *_, words=words, **__: words, "uint32", name=name)

    def _add_slot(self, variable: Any, name: str) -> Any:
        if self._overwrite_variable_with_gradient(variable):
            return None
        dtype = keras.backend.standardize_dtype(variable.dtype)
        first = keras.initializers.Constant(self.optimizer.first_values.get(name, 0.0))
        if COMPUTE_DTYPE.get(dtype) == dtype:
            return self.add_variable_from_reference(variable, name=name, initializer=first)
        if dtype not in COMPUTE_DTYPE:
            raise TypeError(
                f"variable {variable.path} has dtype {dtype}; portopt optimizers update variables of dtype "
                f"{', '.join(COMPUTE_DTYPE)}: set trainable=False on others"
            )
        full_name = f"{variable.path.replace('/', '_')}_{name}"
        return self.add_variable(variable.shape, first, dtype=COMPUTE_DTYPE[dtype], name=full_name)

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        # The step of all variables at once, where Keras would call update_step for each: the norm of all gradients needs them.
        variables = list(trainable_variables)
        slots = {name: [of[self._get_variable_index(v)] for v in variables] for name, of in self._slots.items()}
        on_keras_backend().update(self, variables, list(grads), slots, self._scalar_slots, learning_rate)

    def rate_for_step(self, learning_rate: Any) -> dict[str, Any]:
        """Return the learning rate of a step as portopt's override, given Keras' value of it."""
        if isinstance(self._learning_rate, ScheduleOfSteps):
            return {}
        if learning_rate is not self._learning_rate:
            return {"learning_rate": learning_rate}
        # Keras' variable is as narrow as its floatx. While it holds what the given number was rounded to, the number itself is
        # meant, so that the bits are those of the same optimizer outside of Keras.
        given = self.optimizer.learning_rate
        value = scalar_of(learning_rate)
        held = value.arithmetic.equal(value.value, nearest(given))
        return {"learning_rate": value.arithmetic.where(held, given, value.value)}

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
        return config

    def _has_keras_rate(self) -> bool:
        rate = self._learning_rate
        return not isinstance(rate, keras.Variable | ScheduleOfSteps)

    def _configured(self) -> portopt.Optimizer:
        """Return the portopt optimizer with the learning rate that Keras' variable holds now."""
        if not isinstance(self._learning_rate, keras.Variable):
            return self.optimizer
        value = float(keras.ops.convert_to_numpy(self._learning_rate))
        given = self.optimizer.learning_rate
        return self.optimizer if value == nearest(given) else self.optimizer.replace(learning_rate=value)


def is_keras_rate(rate: Any) -> bool:
    """Tell whether a learning rate is a schedule of Keras, or a callable that Keras calls without arguments."""
    return callable(rate) and not isinstance(rate, portopt.Schedule)
