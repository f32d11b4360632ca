"""Functions of scalars evaluated on the host and inside JAX, with x64 on or off, and their float64 results brought back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.bits import Array

import portopt
from portopt.arithmetic import HOST, Arithmetic
from portopt.scalars import Scalar
from portopt_jax._scalars import from_words, to_words

each_x64 = pytest.mark.parametrize("x64", [False, True], ids=["x64 off", "x64 on"])


def on_host(function: Callable[..., Any], *columns: Array) -> Array:
    """Return `function` of scalars of the host, for all rows of the columns, as float64."""
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return np.asarray([float(function(*(Scalar(x, HOST) for x in row))) for row in rows])


def _entering(column: Array) -> Any:
    """Return int32 for integers, and for float64 the two words that JAX can hold with x64 off."""
    if column.dtype.kind in "iu":
        return jnp.asarray(column, jnp.int32)
    return jnp.asarray(np.ascontiguousarray(column, np.float64).view(np.uint32).reshape(*column.shape, 2))


def _inside(values: Any) -> Any:
    return from_words(values) if values.dtype == "uint32" else values


def _leaving(result: Any, arithmetic: Arithmetic) -> Any:
    return to_words(arithmetic.to_float(result.value if isinstance(result, Scalar) else result))


def _arithmetic(*values: Any) -> Arithmetic:
    return portopt.get_backend("jax").arithmetic(values)


def _float64(words: Any) -> Array:
    return np.ascontiguousarray(np.asarray(words)).view(np.float64)[..., 0]


def jitted(function: Callable[..., Any], *columns: Any, x64: bool = False) -> Array:
    """Return `function` of scalars under one `jax.jit`, for all rows of the columns at once, as float64."""

    def evaluate(*entered: Any) -> Any:
        values = [_inside(column) for column in entered]
        arithmetic = _arithmetic(*values)
        return _leaving(function(*(Scalar(value, arithmetic) for value in values)), arithmetic)

    with jax.enable_x64(x64):
        return _float64(jax.jit(evaluate)(*map(_entering, map(np.asarray, columns))))


def scanned(function: Callable[[Scalar], Any], steps: int, *, x64: bool = False) -> Array:
    """Return `function` of the step numbers from 0 inside one `jax.lax.scan`, which counts them itself.

    A function that returns a list gives a row for each step.
    """

    def body(step: Any, _: None) -> tuple[Any, Any]:
        arithmetic = _arithmetic(step)
        result = function(Scalar(step, arithmetic))
        if not isinstance(result, list):
            return step + 1, _leaving(result, arithmetic)
        return step + 1, jnp.stack([_leaving(value, arithmetic) for value in result])

    with jax.enable_x64(x64):
        return _float64(jax.jit(lambda start: lax.scan(body, start, None, length=steps)[1])(jnp.asarray(0, jnp.int32)))
