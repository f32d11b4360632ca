"""Reductions with derivatives: neither powers of two nor sums of integers have any that add up to those of a sum."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from portopt.program.reductions import Axes, Reductions
from portopt_jax._scalars import JaxArithmetic


class JaxReductions(Reductions):
    """Reductions of JAX arrays, which `jax.grad` may go through.

    The derivative of a norm of zeros is zero; that of a largest or smallest element is shared by all that are equal to it.
    """

    @functools.cached_property
    def _in_graph(self) -> Reductions:
        """The reductions without derivatives, whose results are arrays in any case."""
        return Reductions(self._primitives, self._wide, JaxArithmetic, self._float64)

    def total(self, name: str, *xs: Any) -> Any:
        xs = tuple(x for x in xs if x.size)
        if not _is_traced(*xs):
            return super().total(name, *xs)
        return _with_derivative(functools.partial(self._in_graph.total, name), name, None)(*xs)

    def norm(self, x: Any, axes: Axes) -> Any:
        return self._reduced(super().norm, self._in_graph.norm, "norm", x, axes)

    def max(self, x: Any, axes: Axes) -> Any:
        return self._reduced(super().max, self._in_graph.max, "max", x, axes)

    def min(self, x: Any, axes: Axes) -> Any:
        return self._reduced(super().min, self._in_graph.min, "min", x, axes)

    def wide_sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        return self._reduced(super().wide_sum, self._in_graph.wide_sum, "sum", x, axes)

    def _reduced(self, plain: Callable[..., Any], in_graph: Callable[..., Any], name: str, x: Any, axes: Axes) -> Any:
        if not x.size or not _is_traced(x):
            return plain(x, axes)
        return _with_derivative(lambda x: in_graph(x, axes), name, axes)(x)


def _is_traced(*xs: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in xs)


def _with_derivative(reduce: Callable[..., Any], name: str, axes: Axes) -> Any:
    """Return a reduction of arrays together, along axes or of all elements, with its derivative."""

    def reduced(*xs: Any) -> Any:
        # JAX calls it again where it differentiates, outside of the context in which the reduction was asked for.
        with jax.enable_x64(True):
            return reduce(*xs)

    function = jax.custom_jvp(reduced)

    def derivative(xs: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        value = function(*xs)
        with jax.enable_x64(True):
            wide = value.astype(jnp.float64)
            summed = functools.partial(jnp.sum, axis=axes, keepdims=axes is not None)
            elements = [x.astype(jnp.float64) for x in xs]
            if name == "norm":
                divisor = jnp.where(wide == 0.0, 1.0, wide)
                weights = [x / divisor for x in elements]
            elif name == "sum":
                weights = [jnp.ones_like(x) for x in elements]
            else:
                chosen = [(x == wide).astype(jnp.float64) for x in elements]
                count = functools.reduce(jnp.add, map(summed, chosen))
                weights = [x / jnp.maximum(count, 1.0) for x in chosen]
            parts = [summed(w * dx.astype(jnp.float64)) for w, dx in zip(weights, tangents, strict=True)]
            return value, functools.reduce(jnp.add, parts).astype(value.dtype)

    function.defjvp(derivative)
    return function
