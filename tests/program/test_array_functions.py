"""Elementary functions of arrays: what the scalar ones give in float64, rounded once, on every library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, random_words
from support.libraries import LIBRARIES, Library, each_library

import portopt
from portopt.arithmetic import HOST
from portopt.arithmetic.dtypes import SMALLEST_NORMAL, round_scalar
from portopt.program.primitives import Primitives

FUNCTIONS = {"exp": 1, "log": 1, "tanh": 1, "cbrt": 1, "atan2": 2, "power": 2}
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 88.7, -87.4, 709.8, -708.5, np.inf, -np.inf, np.nan)


def primitives(library: Library, dtype: str) -> Primitives:
    backend: Any = library.backend
    found: Primitives = backend.primitives(dtype)
    return found.widened_by(lambda: backend.primitives("float64"))


def operands(dtype: str, count: int, words: int = 400) -> list[Array]:
    """Return special values with special values, raw words, and ordinary numbers, without subnormals."""
    special = np.asarray(SPECIAL, dtype)
    columns = [np.repeat(special, special.size), np.tile(special, special.size)]
    rng = np.random.default_rng(0)
    found = []
    for seed, column in enumerate(columns[:count]):
        ordinary = (rng.standard_normal(words) * 4).astype(dtype)
        both = np.concatenate([column, random_words((words,), dtype, seed), ordinary])
        with np.errstate(invalid="ignore"):
            found.append(np.where(np.abs(both) < SMALLEST_NORMAL[dtype], both * 0, both).astype(dtype))
    return found


def expected(name: str, dtype: str, columns: list[Array]) -> Array:
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return np.asarray([round_scalar(getattr(HOST, name)(*row), dtype) for row in rows], dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_library
def test_functions_of_arrays_are_those_of_scalars_rounded_once(library: Library, dtype: str) -> None:
    for name, count in FUNCTIONS.items():
        columns = operands(dtype, count)
        with library.precision(dtype), np.errstate(all="ignore"):
            found = library.numpy(getattr(primitives(library, dtype), name)(*map(library.arrays, columns)))
        assert_same_bits(found, expected(name, dtype, columns), name)


@each_library
def test_an_array_without_axes_stays_one(library: Library) -> None:
    for name, count in FUNCTIONS.items():
        columns = [np.asarray(value, np.float32) for value in (0.7, 1.3)[:count]]
        with np.errstate(all="ignore"):
            found = library.numpy(getattr(primitives(library, "float32"), name)(*map(library.arrays, columns)))
        assert_same_bits(found, expected(name, "float32", [c.reshape(1) for c in columns]).reshape(()), name)


def test_a_scalar_beside_an_array_is_the_same_for_all_elements() -> None:
    numpy = next(library for library in LIBRARIES if library.name == "numpy")
    x, y = np.asarray([0.5, 3.0, np.inf], np.float32), np.asarray(0.3, np.float32)
    with np.errstate(all="ignore"):
        found = primitives(numpy, "float32").power(x, y)
    assert_same_bits(found, expected("power", "float32", [x, np.full_like(x, 0.3)]))


@pytest.mark.needs("jax")
def test_functions_of_arrays_have_the_same_bits_under_jit_and_vmap() -> None:
    import jax

    jax_library = next(library for library in LIBRARIES if library.name == "jax")
    columns = operands("float32", 2, words=64)

    def compute(x: Any, y: Any) -> list[Any]:
        ops = primitives(jax_library, "float32")
        return [getattr(ops, name)(*(x, y)[:count]) for name, count in FUNCTIONS.items()]

    with jax.enable_x64(False):
        given = [jax.numpy.asarray(column).reshape(-1, 3) for column in columns]
        found = jax.jit(jax.vmap(compute))(*given)
    for (name, count), result in zip(FUNCTIONS.items(), found, strict=True):
        assert_same_bits(np.asarray(result).reshape(-1), expected(name, "float32", columns[:count]), name)


class Functions(portopt.Optimizer):
    """Moves by all functions of the gradient together."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        powers = abs(g) ** 0.3 + xp.cbrt(g)
        return p - c.lr * (xp.exp(g) + xp.log(abs(g)) + xp.tanh(g) + xp.atan2(g, p) + powers), {}


@pytest.mark.needs("jax")
def test_derivatives_are_those_of_the_functions() -> None:
    import jax
    import jax.numpy as jnp

    optimizer = Functions(1.0)
    with jax.enable_x64(True):
        p, g = jnp.asarray([1.0, 2.0, -0.5, 0.3]), jnp.asarray([0.4, -1.7, 3.0, 0.01])
        state = optimizer.init(p)

        def moved(g: Any) -> Any:
            powers = abs(g) ** 0.3 + jnp.cbrt(g)
            return (p - (jnp.exp(g) + jnp.log(abs(g)) + jnp.tanh(g) + jnp.arctan2(g, p) + powers)).sum()

        found = jax.grad(lambda g: optimizer.apply(p, g, state)[0].sum())(g)
        np.testing.assert_allclose(np.asarray(found), np.asarray(jax.grad(moved)(g)), rtol=1e-9)


def test_what_a_backend_replaces_in_float64_counts() -> None:
    class Halving(portopt.ArrayAPIBackend):
        def primitives(self, compute_dtype: str) -> Primitives:
            found = super().primitives(compute_dtype)
            divide = {"divide": lambda a, b: a / b / 2} if compute_dtype == "float64" else {}
            return Primitives(found.xp, found.dtype, compute_dtype, divide)

    backend = Halving("numpy", lambda: np)
    wide = backend.primitives("float32").widened_by(lambda: backend.primitives("float64"))
    with np.errstate(all="ignore"):
        logarithm = float(wide.log(np.asarray(1.5, np.float32)))
    assert logarithm != pytest.approx(np.log(1.5), rel=1e-3)
