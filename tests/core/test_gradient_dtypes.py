"""Gradients of another dtype than their parameter: loaded into the compute dtype like any, the same bits everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support.bits import Array, assert_same_bits, numpy_dtype, ordinary, random_words
from support.keeping_rule import Keeping
from support.libraries import BY_NAME, LIBRARIES, RUNS, Library, Run

import portopt
from portopt.arithmetic import HOST
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.groups import kernel_key
from portopt.kernels.host import compiler, kernel, norm
from portopt.program.interpreter import StepScalars
from portopt_torch import TorchOptimizer

DTYPES = tuple(COMPUTE_DTYPE)
PAIRS = [(p, g) for p in DTYPES for g in DTYPES if p != g]
each_pair = pytest.mark.parametrize(("dtype", "gradient_dtype"), PAIRS)
N = 2.0**-126
"""The smallest normal float32 number."""


def loaded(gradient: Array, compute: str) -> Array:
    """Return what the contract says that a gradient is in the compute dtype."""
    with np.errstate(all="ignore"):
        wide = gradient.astype(np.float64)
        if compute == "float64":
            return np.where(np.abs(wide) < 2.0**-1022, np.copysign(0.0, wide), wide)
        # Scaled, it is rounded with full precision, however small it is.
        tiny = (np.abs(wide) < 2 * N) & (np.abs((wide * 2.0**64).astype(np.float32)) < np.float32(N * 2.0**64))
        return np.where(tiny, np.copysign(np.float32(0), wide.astype(np.float32)), wide.astype(np.float32))


def gradients_of(dtype: str) -> Array:
    """Return numbers at which conversions part, and raw words."""
    largest = float(np.finfo(np.float32).max)
    numbers = [0.0, 1.0, N, N * (1 - 2.0**-24), N * (1 - 2.0**-25), N * (1 - 2.0**-25 - 2.0**-52), N * (1 - 2.0**-26)]
    numbers += [
        N / 2,
        2.0**-149,
        3 * 2.0**-149,
        2.0**-150,
        2.0**-160,
        2.0**-1022,
        2.0**-1074,
        2.0**-133,
        2.0**-24,
        2.0**-14,
    ]
    numbers += [
        1 + 2.0**-24,
        1 + 2.0**-24 + 2.0**-50,
        1 + 3 * 2.0**-24,
        largest,
        largest * (1 + 2.0**-25),
        1e300,
        np.inf,
    ]
    numbers += [largest * (1 + 2.0**-26), np.nan, 65504.0, 65520.0, 3.0e38]
    with np.errstate(all="ignore"):
        special = np.asarray([*numbers, *(-x for x in numbers)]).astype(numpy_dtype(dtype))
    return np.concatenate([special, random_words((400,), dtype, 1)])


def expected_of(dtype: str, gradient: Array) -> tuple[Array, Array]:
    compute = COMPUTE_DTYPE[dtype]
    passed = loaded(gradient, compute)
    with np.errstate(all="ignore"):
        return passed, passed + passed


def wide(*dtypes: str) -> str:
    return "float64" if "float64" in dtypes else dtypes[0]


def runs(dtype: str, gradient_dtype: str) -> Iterator[Run]:
    for run in RUNS:
        with run.library.precision(wide(dtype, gradient_dtype)):
            if {dtype, gradient_dtype} <= set(run.library.backend.dtypes()):
                yield run


@each_pair
def test_a_gradient_of_any_dtype_is_loaded_into_the_compute_dtype(dtype: str, gradient_dtype: str) -> None:
    gradient = gradients_of(gradient_dtype)
    passed, doubled = expected_of(dtype, gradient)
    found = list(runs(dtype, gradient_dtype))
    assert found
    for run in found:
        library = run.library
        with library.precision(wide(dtype, gradient_dtype)):
            params = library.arrays({"w": np.zeros(gradient.shape, numpy_dtype(dtype))})
            grads = library.arrays({"w": gradient})
            state = Keeping().init(params)
            params, state = run.mode.many(Keeping(), params, [grads] * 3, state)
            assert library.backend.describe(params["w"]).dtype == dtype
            assert_same_bits(library.numpy(state.slots["passed"]["w"]), passed, f"{run}: passed on")
            assert_same_bits(library.numpy(state.slots["doubled"]["w"]), doubled, f"{run}: doubled")


@each_pair
@pytest.mark.parametrize("flush", ["register", "where"])
def test_the_host_kernel_loads_it_under_both_ways_to_flush(dtype: str, gradient_dtype: str, flush: Any) -> None:
    if flush == "register" and compiler.default_flush() != "register":
        return
    gradient = gradients_of(gradient_dtype)
    compute, program = COMPUTE_DTYPE[dtype], Keeping().program()
    dtypes = {"p": dtype, "g": gradient_dtype, "passed": compute, "doubled": compute}
    arrays = {name: np.zeros(gradient.shape, numpy_dtype(kind)) for name, kind in dtypes.items()}
    arrays["g"] = gradient
    fused = kernel.host_kernel(program, kernel_key(program, dtypes, in_place=True, flush=flush))
    table = np.array([[arrays[name].ctypes.data for name in fused.columns]], np.int64)
    work = kernel.Work(fused, [0], table, np.array([gradient.size], np.int64), gradient.size)
    kernel.run([work], [StepScalars(program, HOST, {"learning_rate": 0.0, "t": 1})])
    for name, expected in zip(("passed", "doubled"), expected_of(dtype, gradient), strict=True):
        assert_same_bits(arrays[name], expected, name)


@each_pair
def test_a_planned_step_is_the_same_step(dtype: str, gradient_dtype: str) -> None:
    optimizer, interpreted = portopt.Adam(0.1, clipnorm=1.0), portopt.Adam(0.1, clipnorm=1.0)
    with np.errstate(all="ignore"):
        start = [ordinary((7,), dtype, 1), ordinary((2, 3), "float32", 2)]
        gradients = [
            [ordinary((7,), gradient_dtype, 10 + i), ordinary((2, 3), (gradient_dtype, "float32")[i % 2], 20 + i)]
            for i in range(6)
        ]
    for library in (BY_NAME["numpy"], BY_NAME["torch"]):
        params, others = library.arrays(start), library.arrays(start)
        state, other_state = optimizer.init(params), interpreted.init(others)
        for gradient in gradients:
            state = optimizer.apply_(params, library.arrays(gradient), state)
            with portopt.interpreted():
                others, other_state = interpreted.apply(others, library.arrays(gradient), other_state)
        assert not compiler.available() or optimizer._cache.plans
        for actual, expected in zip(library.numpy(params), library.numpy(others), strict=True):
            assert_same_bits(actual, expected)
        for slot in optimizer.slots:
            for actual, expected in zip(
                library.numpy(state.slots[slot]), library.numpy(other_state.slots[slot]), strict=True
            ):
                assert_same_bits(actual, expected, slot)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_the_norm_is_that_of_the_gradients_as_they_are_given(run: Run) -> None:
    library = run.library
    dtypes = [dtype for dtype in ("bfloat16", "float16", "float32", "float64") if dtype in _dtypes(library)]
    gradients = [np.abs(ordinary((5,), dtype, i)) + numpy_dtype(dtype).type(1) for i, dtype in enumerate(dtypes)]
    optimizer = portopt.SGD(1.0, clipnorm=0.5)
    size = norm.norm_of_arrays(gradients, dtypes) if compiler.available() else None
    with library.precision("float64"):
        params = [np.zeros(5, np.float32) for _ in dtypes]
        arrays = library.arrays(params)
        given = [library.arrays(gradients)]
        new, _ = run.mode.many(optimizer, arrays, given, optimizer.init(arrays))
        assert size is None or float(library.backend.gradient_norm(given[0])) == size
        with np.errstate(all="ignore"):
            expected, _ = optimizer.apply(params, gradients, optimizer.init(params), gradient_norm=size)
        for actual, wanted in zip(library.numpy(new), expected, strict=True):
            assert_same_bits(actual, wanted)


def _dtypes(library: Library) -> tuple[str, ...]:
    with library.precision("float64"):
        return library.backend.dtypes()


@pytest.mark.parametrize("library", LIBRARIES, ids=str)
@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
def test_gradients_that_are_no_floats_are_refused(library: Library, dtype: str) -> None:
    params = library.arrays({"w": np.ones(2, np.float32)})
    try:
        grads = library.arrays({"w": np.ones(2, dtype)})
    except (TypeError, ValueError):
        return
    optimizer = portopt.SGD()
    with pytest.raises(
        TypeError,
        match=rf'^grads\["w"\] has dtype {dtype}, but params\["w"\] has dtype float32, whose gradients are float16 or bfloat16 '
        "or float32 or float64; they must agree$",
    ):
        optimizer.apply(params, grads, optimizer.init(params))


# JAX ----------------------------------------------------------------------------------------------------------------------

JAX_PAIRS = [("float32", "bfloat16"), ("bfloat16", "float32"), ("float64", "float32"), ("float32", "float64")]


@pytest.mark.parametrize(("dtype", "gradient_dtype"), JAX_PAIRS)
@pytest.mark.parametrize("by_kernel", [True, False])
def test_jax_loads_it_inside_jit_scan_and_vmap(dtype: str, gradient_dtype: str, by_kernel: bool) -> None:
    from contextlib import nullcontext

    gradient = np.stack([gradients_of(gradient_dtype)] * 2)
    passed, doubled = expected_of(dtype, gradient)
    context = nullcontext() if by_kernel else portopt.interpreted()
    with jax.enable_x64(True), context:
        g, w = jnp.asarray(gradient), jnp.zeros(gradient.shape, dtype)

        def step(w: Any, g: Any) -> Any:
            return Keeping().apply(w, g, Keeping().init(w))

        def scanned(w: Any, g: Any) -> Any:
            def one(carry: Any, g: Any) -> Any:
                return Keeping().apply(carry[0], g, carry[1]), None

            # A carry has one type: the step is an array from the start.
            state = Keeping().init(w)
            start = (w, state._replace(step=jnp.int32(0)))
            return jax.lax.scan(one, start, jnp.stack([g, g]))[0]

        for way in (jax.jit(step), jax.jit(scanned), jax.vmap(step), jax.jit(jax.vmap(step))):
            new, state = way(w, g)
            assert new.dtype == dtype
            assert_same_bits(state.slots["passed"], passed)
            assert_same_bits(state.slots["doubled"], doubled)


@pytest.mark.parametrize(("dtype", "gradient_dtype"), JAX_PAIRS)
def test_the_derivative_of_loading_is_one(dtype: str, gradient_dtype: str) -> None:
    with jax.enable_x64(True):
        w = jnp.ones(4, dtype)

        def result(g: Any) -> Any:
            return portopt.SGD(0.5).apply(w, g, portopt.SGD(0.5).init(w))[0].astype("float64").sum()

        g = jnp.asarray([0.0, 1.0, -2.0, 2.0**-130], gradient_dtype)
        derivative = jax.grad(result)(g)
        assert derivative.dtype == gradient_dtype
        assert derivative.tolist() == [-0.5] * 4


def test_float64_gradients_need_no_setting_of_jax() -> None:
    with jax.enable_x64(True):
        g = jnp.asarray([1.0 + 2.0**-30, 2.0**-149])
    w, optimizer = jnp.zeros(2, jnp.float32), portopt.SGD(1.0, clipnorm=100.0)
    for step in (optimizer.apply, jax.jit(optimizer.apply)):
        new, _ = step(w, g, optimizer.init(w))
        assert_same_bits(new, np.asarray([-1, 0], np.float32))


# torch's loop -------------------------------------------------------------------------------------------------------------


@each_pair
def test_a_torch_optimizer_takes_gradients_of_the_dtype_that_a_tensor_allows(dtype: str, gradient_dtype: str) -> None:
    start = ordinary((5,), dtype, 1)
    parameter = torch.nn.Parameter(BY_NAME["torch"].arrays(start))
    if not hasattr(parameter, "grad_dtype"):
        return  # torch before 2.9 ties a gradient's dtype to its parameter's
    parameter.grad_dtype = getattr(torch, gradient_dtype)
    rule = portopt.Adam(0.1, clipnorm=0.5)
    optimizer = TorchOptimizer([parameter], portopt.Adam(0.1, clipnorm=0.5))
    params = [start]
    state = rule.init(params)
    for i in range(4):
        gradient = ordinary((5,), gradient_dtype, 2 + i)
        parameter.grad = BY_NAME["torch"].arrays(gradient)
        optimizer.step()
        params, state = rule.apply(params, [gradient], state)
        assert_same_bits(BY_NAME["torch"].numpy(parameter.detach()), params[0])
