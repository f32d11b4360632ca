"""Rules drawn at random, of reductions, functions, products and elementwise operations: their kernels against the interpreter."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from unittest import mock

import numpy as np
from support.bits import random_words, words

import portopt
from fuzzing.worlds import Difference
from portopt.kernels.host import kernel, plan, threads, totals
from portopt.kernels.key import Flush
from portopt.scalars import sqrt, where
from portopt.slot import slot

SHAPES = ((5, 7), (1, 1), (33, 21), (2, 0), (3, 600), (600, 2))
_FUNCTIONS = ("exp", "log", "tanh", "cbrt", "sqrt", "abs", "square")


class _Recipe:
    """The operations of a rule: those of one seed are the same for symbols and for arrays."""

    def __init__(self, seed: int, xp: Any) -> None:
        self._random = random.Random(seed)
        self._xp = xp

    def array(self, arrays: list[Any]) -> Any:
        """Return a value of which each operand is one of the arrays, the last ones more often."""
        draw = self._random
        return arrays[-1 - min(draw.randrange(len(arrays)), draw.randrange(len(arrays)))]

    def grow(self, arrays: list[Any], scalars: list[Any], steps: int, *, with_products: bool) -> None:
        """Append results of operations on what there is."""
        draw, xp = self._random, self._xp
        kinds = [*["arithmetic"] * 6, *["function", "where", "scale"] * 2, *["narrow", "whole"] * 3]
        kinds += ["product"] * 4 if with_products else []
        for _ in range(steps):
            a, b, s = self.array(arrays), self.array(arrays), draw.choice(scalars)
            match draw.choice(kinds):
                case "arithmetic":
                    arrays.append(draw.choice((a + b, a - b, a * b, a / b)))
                case "function":
                    arrays.append(getattr(xp, draw.choice(_FUNCTIONS))(a))
                case "where":
                    arrays.append(xp.where(draw.choice((a < b, a <= b, a == b)), a, self.array(arrays)))
                case "scale":
                    arrays.append(draw.choice((s * a, a / s, a + s)))
                case "narrow":
                    axis = draw.choice((0, -1, (0, 1)))
                    name = draw.choice(("sum", "mean", "max", "min", "norm", "any", "count"))
                    arrays.append(self._reduced(name, a, axis=axis, keepdims=True))
                case "whole":
                    found = self._reduced(draw.choice(("sum", "mean", "max", "min", "norm", "any", "count")), a)
                    scalars.append(
                        draw.choice((found, found * s, sqrt(found * found + 1.0), where(found > s, found, s)))
                    )
                case "product":
                    arrays.append(a @ (b.mT @ a) if draw.random() < 0.5 else (a @ b.mT) @ b)

    def _reduced(self, name: str, a: Any, **along: Any) -> Any:
        xp = self._xp
        match name:
            case "norm":
                return xp.linalg.vector_norm(a, **along)
            case "any":
                found = xp.any(a > 0.5, **along)
                return xp.where(found, 2.0, 0.5) if along else where(found, 2.0, 0.5)
            case "count":
                return xp.count_nonzero(a > 0.5, **along)
            case _:
                return getattr(xp, name)(a, **along)


def rule_of(seed: int) -> portopt.Optimizer:
    """Return a rule drawn at random."""

    class Drawn(portopt.Optimizer):
        slots = ("m", slot("row", drop=-1), slot("n", shape=()))
        scalar_slots: ClassVar[Mapping[str, float]] = {"d": 0.5}

        def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Mapping[str, Any]:
            recipe, arrays = _Recipe(seed + 1, xp), [p, g, slots.m]
            recipe.grow(arrays, [c.d, slots.n, 0.25], 2, with_products=False)
            return {"total": (xp.sum, xp.max, xp.linalg.vector_norm)[seed % 3](arrays[-1])}

        def coefficients(self, t: Any, d: Any, total: Any) -> Mapping[str, Any]:
            return {"d": 0.5 * d, "lr": self.learning_rate_at(t), "total": total}

        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            recipe, arrays, scalars = _Recipe(seed, xp), [slots.row, p, slots.m, g], [c.lr, c.total, slots.n, 3.0]
            recipe.grow(arrays, scalars, 7, with_products=seed % 4 == 0)
            full, row = 0.0 * p + arrays[-1] + 0.5 * arrays[-3], xp.sum(arrays[-2] + 0.0 * p, axis=-1, keepdims=True)
            return p - c.lr * full, {
                "m": recipe.array(arrays) + 0.5 * slots.m,
                "row": row,
                "n": scalars[-1] * 0.5 + c.total,
            }

    return Drawn(0.5)


@contextlib.contextmanager
def flushed_by(flush: Flush) -> Iterator[None]:
    """Within it, kernels make subnormals zero in one of the two ways."""
    with contextlib.ExitStack() as stack:
        for module in (kernel, plan, totals):
            stack.enter_context(mock.patch.object(module, "default_flush", return_value=flush))
        yield


def _values(shape: tuple[int, ...], dtype: str, kind: int, seed: int) -> Any:
    """Return words of a kind: any, ordinary numbers, very small ones, ordinary ones and a special one, finite ones."""
    rng = np.random.default_rng(seed)
    if kind % 4 == 0:
        values = random_words(shape, dtype, seed)
        return values if kind == 0 else np.where(np.isfinite(values), values, np.ones_like(values))
    scale = float(np.finfo(dtype).smallest_normal) if kind == 2 else 1.0
    values = np.asarray(rng.standard_normal(shape) * scale * 2.0 ** rng.integers(-3, 4, shape), dtype)
    if kind == 3 and values.size:
        values.flat[rng.integers(values.size)] = rng.choice([np.nan, np.inf, -np.inf, -0.0])
    return values


def run_both(seed: int) -> int:
    """Do `run` for both ways to make subnormals zero, and return the number of steps."""
    return sum(run(seed, flush, "float64" if seed % 5 == 4 else "float32") for flush in ("register", "where"))


def run(seed: int, flush: Flush, dtype: str = "float32", rounds: int = 6) -> int:
    """Do steps of a rule drawn at random, by kernels and by the interpreter, and return their number.

    Raises:
        Difference: their bits are not the same.
    """
    rule, steps = rule_of(seed), 0
    with flushed_by(flush), np.errstate(all="ignore"), mock.patch.object(threads, "ELEMENTS_PER_THREAD", 64):
        for number in range(rounds):
            kind = number % 5
            params = {str(shape): _values(shape, dtype, kind, 100 * number + i) for i, shape in enumerate(SHAPES)}
            expected, state = {name: p.copy() for name, p in params.items()}, rule.init(params)
            expected_state = rule.init(expected)
            for step in range(3 if number % 2 else 1):  # the third one by a plan
                first = 1000 * (step + 1) + 100 * number
                grads = {n: _values(p.shape, dtype, kind, first + i) for i, (n, p) in enumerate(params.items())}
                state = rule.apply_(params, grads, state)
                with portopt.interpreted():
                    expected, expected_state = rule.apply(expected, grads, expected_state)
                steps += 1
                _compare(seed, flush, {"p": params, **state.slots}, {"p": expected, **expected_state.slots})
    return steps


def _compare(seed: int, flush: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, tree in expected.items():
        pairs = {name: (tree, found[name])}
        if isinstance(tree, Mapping):
            pairs = {f"{name}{leaf}": (value, found[name][leaf]) for leaf, value in tree.items()}
        for what, (a, b) in pairs.items():
            if not np.array_equal(words(np.asarray(a)), words(np.asarray(b))):
                raise Difference(
                    f"program {seed}, flushed by {flush}, {what}: {b} by the kernel, {a} by the interpreter"
                )
