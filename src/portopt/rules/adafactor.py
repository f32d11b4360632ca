"""Adafactor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from portopt.counterparts import Counterpart
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule
from portopt.scalars import maximum, minimum, sqrt
from portopt.schedules import LearningRate
from portopt.slot import slot


class Adafactor(DialectRule):
    """Adafactor: of the squared gradients of a matrix, only the means of rows and of columns are kept.

    With `w = t**beta_2_decay`, in optax `(t - decay_offset)**-decay_rate`; the means of rows and columns `mean(·, row)` and
    `mean(·, column)`; and `rms(x) = sqrt(mean(x**2))`:

    - torch: `s = max(epsilon_2, rms(p)) * min(lr, 1 / sqrt(t))`; `p = p * (1 - lr * weight_decay)`;
      `row = row + w * (mean(g**2, row) - row)`, `column` likewise;
      `u = g / max(sqrt(row / max(mean(row), epsilon_1)) * sqrt(column), epsilon_1)`;
      `p - s / max(1, rms(u) / clip_threshold) * u`
    - keras3: `p = p - p * weight_decay * lr`; `s = max(epsilon_2, rms(p)) * min(lr, 1 / sqrt(t))`;
      `row = (1 - w) * row + w * mean(g**2 + epsilon_1, row)`, `column` likewise;
      `u = g / (sqrt(row / mean(row)) * sqrt(column))`;
      `p - s / max(1, rms(u) / clip_threshold) * u`
    - optax: `row = (1 - w) * row + w * mean(g**2 + epsilon_1, row)`, `column` likewise;
      `u = g / (sqrt(row / mean(row)) * sqrt(column))`; `m = momentum * m + (1 - momentum) * s * u` with
      `s = lr / max(1, rms(u) / clip_threshold) * max(1e-3, rms(p))`; `p - (m + weight_decay * p)`

    Rows and columns are those of the last two axes, in optax those of the two longest if both have `min_dim_size_to_factor`
    elements; further axes are batches. Without two such axes `v` takes their place, the mean of the squares for each element, and
    `sqrt(v)` that of the product. Two matrices of 768 x 3072 and 3072 x 768 need 7,680 numbers, where Adam needs 9,437,184.

    Keras keeps the whole `v` as well, and has a `relative_step` that changes nothing, since the rate is at most `1 / sqrt(t)`
    without it too. Keras takes its means, and optax `w`, in float32, whatever the parameters are; here both have full precision.
    optax's default learning rate is none, which is 1.

    Args:
        learning_rate: in [0, inf), or a schedule.
        beta_2_decay: torch, keras3: in (-inf, 0]; the weight of a new gradient is the number of the step to this power.
        epsilon_1: in [0, inf); keeps the root above zero. None: the machine epsilon of the compute dtype.
        epsilon_2: torch, keras3: in [0, inf); the least that stands for the size of the parameter.
        clip_threshold: in [1, inf); the largest root mean square of a step, before the learning rate.
        weight_decay: in [0, inf). In optax it is no part of the learning rate.
        decay_rate: optax: in [0, inf); as `beta_2_decay`, with the other sign.
        decay_offset: optax: in [0, inf); how many steps had been finished where fine-tuning began.
        min_dim_size_to_factor: optax: in [1, inf); a parameter is factored if its second longest axis is at least as long.
        factored: optax: whether any is.
        multiply_by_parameter_scale: optax: whether steps are in units of the parameter's root mean square.
        momentum: optax: decay of the mean of the steps, in [0, 1).
        dialect, maximize: see `DialectRule`.
        eps, beta2_decay, d: torch: other names for (epsilon_1, epsilon_2), beta_2_decay and clip_threshold.
        lr, clipnorm, clipvalue: see `Optimizer`.

    Raises:
        ValueError: a hyperparameter is outside its range.
        TypeError: an argument is unknown or not in the dialect, of a wrong type, or given under two names.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adafactor(learning_rate=0.5), np.ones((2, 3))
        >>> w, state = opt.apply(w, np.ones((2, 3)), opt.init(w))
        >>> w[0].round(4), state.slots["row"], state.slots["column"]
        (array([0.5, 0.5, 0.5]), array([1., 1.]), array([1., 1., 1.]))

    Reference:
        Shazeer, Stern, "Adafactor: adaptive learning rates with sublinear memory cost", 2018, https://arxiv.org/abs/1804.04235
    """

    counterparts: ClassVar[tuple[Counterpart, ...]] = (
        Counterpart(
            "torch.optim.Adafactor",
            {"row": "row_var", "column": "col_var", "v": "variance"},
            keeps_axes=True,
            names={"epsilon_1": "eps.0", "epsilon_2": "eps.1"},
            epsilon="in the maximum",
        ),
        Counterpart(
            "optax.adafactor",
            {"row": "v_row", "column": "v_col", "v": "v", "m": "ema"},
            placeholders=("row", "column", "v"),
            names={"epsilon_1": "eps", "clip_threshold": "clipping_threshold", "weight_decay": "weight_decay_rate"},
            none=("momentum", "weight_decay"),
            # Moments of any dtype are those of the state.
            ignored=("dtype_momentum",),
            epsilon="under the root",
        ),
        Counterpart(
            "keras.optimizers.Adafactor",
            {"row": "r", "column": "c", "v": "velocity"},
            # What is there for a matrix is computed anew in each step, and rows and columns of a vector are numbers.
            placeholders=("row", "column", "v"),
            ignored=("relative_step",),
            epsilon="under the root",
        ),
    )
    worth_testing: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"dialect": "optax", "learning_rate": 0.05, "min_dim_size_to_factor": 2.0},
        {
            "dialect": "optax", "learning_rate": 0.05, "min_dim_size_to_factor": 2.0, "momentum": 0.5, "weight_decay": 0.01,
            "multiply_by_parameter_scale": False,
        },
    )  # fmt: skip

    dialect: Dialect = dialect_option(default="torch", others=("keras3", "optax"))
    learning_rate: LearningRate = hyperparameter(
        default=per_dialect(torch=0.01, keras3=0.001, optax=1.0), at_least=0, kw_only=False
    )
    beta_2_decay: float | None = hyperparameter(default=per_dialect(torch=-0.8, keras3=-0.8), at_most=0)
    epsilon_1: float | None = hyperparameter(
        default=per_dialect(torch=None, keras3=1e-30, optax=1e-30), at_least=0, off=None
    )
    epsilon_2: float | None = hyperparameter(default=per_dialect(torch=1e-3, keras3=1e-3), at_least=0)
    clip_threshold: float = hyperparameter(default=1.0, at_least=1)
    weight_decay: float | None = hyperparameter(
        default=per_dialect(torch=0.0, keras3=0.0, optax=0.0), at_least=0, off=0.0
    )
    decay_rate: float | None = hyperparameter(default=per_dialect(optax=0.8), at_least=0)
    decay_offset: float | None = hyperparameter(default=per_dialect(optax=0.0), at_least=0, off=0.0)
    min_dim_size_to_factor: float | None = hyperparameter(default=per_dialect(optax=128.0), at_least=1, at_init=True)
    factored: bool | None = option(default=per_dialect(optax=True))
    multiply_by_parameter_scale: bool | None = option(default=per_dialect(optax=True))
    momentum: float | None = hyperparameter(default=per_dialect(optax=0.0), at_least=0, below=1, off=0.0)
    eps: tuple[float | None, float] | None = alias(
        "epsilon_1", "epsilon_2", dialect="torch", default=None, kw_only=True
    )
    beta2_decay: float | None = alias("beta_2_decay", dialect="torch", default=None, kw_only=True)
    d: float | None = alias("clip_threshold", dialect="torch", default=None, kw_only=True)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on momentum
        """`row` and `column`, or `v`; in optax with momentum, `m` before them."""
        moments = ("m",) if self.momentum else ()
        return (*moments, "v", slot("row", drop="axis_of_row_means"), slot("column", drop="axis_of_column_means"))

    def slots_for(self, p: Any) -> tuple[str, ...]:
        """Return the names of the slots that a parameter of this shape has."""
        moments = ("m",) if self.momentum else ()
        return (*moments, "row", "column") if self._is_factored(p) else (*moments, "v")

    def axis_of_row_means(self, p: Any) -> int:
        """Return the axis along which a row is."""
        return self._longest_axes(p)[0] if self.dialect == "optax" else p.ndim - 1

    def axis_of_column_means(self, p: Any) -> int:
        """Return the axis along which a column is."""
        return self._longest_axes(p)[1] if self.dialect == "optax" else p.ndim - 2

    def _is_factored(self, p: Any) -> bool:
        if p.ndim < 2 or self.dialect != "optax":
            return bool(p.ndim >= 2)
        return bool(self.factored and p.shape[self._longest_axes(p)[1]] >= self.min_dim_size_to_factor)

    @staticmethod
    def _longest_axes(p: Any) -> tuple[int, int]:
        """Return the longest axis and the second longest; of equals, the last is the longest."""
        *_, second, longest = sorted(range(p.ndim), key=lambda axis: (p.shape[axis], axis))
        return longest, second

    def coefficients(self, t: Any) -> Mapping[str, Any]:
        lr = self.learning_rate_at(t)
        if self.dialect == "optax":
            steps = t - self.decay_offset if self.decay_offset else t
            return {"lr": lr, "rate": lr, "weight": steps**-self.decay_rate}  # type: ignore[operator]  # optax has it
        return {"lr": lr, "rate": minimum(lr, 1 / sqrt(t)), "weight": t**self.beta_2_decay}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        size = _root_mean_square(xp, p)  # torch: before the weights decay
        p, g = self.prepare(p, g, c.lr, decoupled=True)
        if self.dialect == "keras3" and self.weight_decay:
            size = _root_mean_square(xp, p)
        squares = xp.square(g) if self.dialect == "torch" else xp.square(g) + self._epsilon(xp, g)
        new: dict[str, Any] = {}
        if self._is_factored(p):
            along, across = self.axis_of_row_means(p), self.axis_of_column_means(p)
            new["row"] = self._mean(slots.row, xp.mean(squares, axis=along, keepdims=True), c.weight)
            new["column"] = self._mean(slots.column, xp.mean(squares, axis=across, keepdims=True), c.weight)
            middle = xp.mean(new["row"], axis=across, keepdims=True)
            if self.dialect == "torch":
                middle = xp.maximum(middle, self._epsilon(xp, middle))
            root = xp.sqrt(new["row"] / middle) * xp.sqrt(new["column"])
        else:
            new["v"] = self._mean(slots.v, squares, c.weight)
            root = xp.sqrt(new["v"])
        u = g / (xp.maximum(root, self._epsilon(xp, root)) if self.dialect == "torch" else root)

        step = c.rate / maximum(1.0, _root_mean_square(xp, u) / self.clip_threshold)
        if self.dialect != "optax":
            return p - maximum(self.epsilon_2, size) * step * u, new  # type: ignore[arg-type]  # they have it
        step = step * maximum(1e-3, size) if self.multiply_by_parameter_scale else step
        change = step * u
        if self.momentum:
            change = new["m"] = self.momentum * slots.m + (1 - self.momentum) * change
        return p - (change + self.weight_decay * p if self.weight_decay else change), new

    def _epsilon(self, xp: Any, like: Any) -> Any:
        # An array is no larger than what it is compared with: what is made of a small one is computed once for all of it.
        return _machine_epsilon(xp, like) if self.epsilon_1 is None else self.epsilon_1

    def _mean(self, old: Any, x: Any, weight: Any) -> Any:
        return old + weight * (x - old) if self.dialect == "torch" else (1 - weight) * old + weight * x


def _root_mean_square(xp: Any, x: Any) -> Any:
    return sqrt(xp.mean(xp.square(x)))


def _machine_epsilon(xp: Any, x: Any) -> Any:
    """Return the distance from 1 to the next number of the compute dtype: what is lost where 4/3 is rounded to it, times 3."""
    return xp.abs((xp.full_like(x, 4 / 3) - 1.0) * 3.0 - 1.0)
