"""The step that JAX gets for GPUs, without one: what is lowered for CUDA, and its bits when the CPU runs it."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bits import assert_same_bits, random_words, words
from support.elementwise import ELEMENTWISE
from support.gpu_cases import CASES_IN_A_DTYPE, compare_steps, optimizer_of, words_and_gradients, words_of
from support.turns import in_turn

import portopt
import portopt_jax
from portopt.arithmetic import HOST
from portopt_conformance import probes
from portopt_jax import _scalars
from portopt_jax._kernel import without_kernels
from portopt_jax._scalars import lowering_for

NARROW = {"float16": "f16", "bfloat16": "bf16"}


def lowered(optimizer: portopt.Optimizer, dtype: str, *, steps: int = 1) -> str:
    """Return what JAX gives XLA's GPU compiler for steps inside one jit, on one line for each operation."""

    def step(p: Any, g: Any, state: Any) -> Any:
        for _ in range(steps):
            p, state = optimizer.apply(p, g, state)
        return p, state

    with jax.enable_x64(dtype == "float64"), lowering_for("cuda"):
        p = jnp.zeros(1000, dtype)
        state = optimizer.init(p)._replace(step=jnp.asarray(0, jnp.int32))
        return str(jax.jit(step).trace(p, p, state).lower(lowering_platforms=("cuda",)).as_text())


@pytest.mark.parametrize("rule", ELEMENTWISE)
def test_quotients_and_roots_of_float32_are_computed_in_float64(rule: type[portopt.Optimizer]) -> None:
    text = lowered(optimizer_of(rule, True), "float32")
    found = re.findall(r"stablehlo\.(?:divide|sqrt|rsqrt)\b.*", text)
    assert not [line for line in found if "f32" in line]
    assert [line for line in found if "f64" in line]


def test_the_cpu_keeps_its_own_quotients_and_roots() -> None:
    optimizer, p = portopt.Adam(), jnp.ones(10)
    with without_kernels():
        text = str(jax.jit(lambda *a: optimizer.apply(*a)).lower(p, p, optimizer.init(p)).as_text())
    assert re.search(r"stablehlo\.sqrt .*tensor<10xf32>", text)


@pytest.mark.parametrize("dtype", list(NARROW))
def test_what_a_step_stores_passes_through_its_bits(dtype: str) -> None:
    text = lowered(portopt.SGD(0.1, momentum=0.9), dtype, steps=2)
    short = NARROW[dtype]
    assert len(re.findall(rf"bitcast_convert.*ui16>\) -> tensor<1000x{short}>", text)) == 2


def test_no_bitcast_changes_the_number_of_words() -> None:
    # XLA's GPU compiler ends the process for one inside a loop.
    for optimizer in (portopt.Nadam(clipnorm=1.0), probes.round_probe(), probes.norm_probe()):
        for dtype in ("float32", "float64"):
            text = lowered(optimizer, dtype)
            pairs = re.findall(r"bitcast_convert .*: \(tensor<(\S+)>\) -> tensor<(\S+)>", text)
            assert all(re.sub(r"\D+\d+$", "", a) == re.sub(r"\D+\d+$", "", b) for a, b in pairs), pairs


def test_scalars_come_back_from_their_words() -> None:
    values = random_words((300,), "float64", 1)
    with jax.enable_x64(True):
        stored = _scalars.to_words(jnp.asarray(values))
        assert_same_bits(np.asarray(_scalars.from_words(stored)), values)
    assert stored.dtype == jnp.uint32
    assert_same_bits(np.asarray(stored), values.view(np.uint32).reshape(-1, 2))


# The bits, where the CPU runs it --------------------------------------------------------------------------------


class _ForGpus:
    """An optimizer whose steps are compiled as for GPUs."""

    def __init__(self, optimizer: portopt.Optimizer) -> None:
        self._optimizer = optimizer
        self._jitted = jax.jit(self._step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def _step(self, params: Any, gradients: Any, state: Any) -> Any:
        with without_kernels():
            return self._optimizer.apply(params, gradients, state)

    def apply(self, params: Any, gradients: Any, state: Any) -> Any:
        if not isinstance(params[0], jax.Array):
            return self._optimizer.apply(params, gradients, state)
        with lowering_for("cuda"):
            return self._jitted(params, gradients, state)


def put(array: Any) -> Any:
    return portopt_jax.backend.from_numpy(np.asarray(array), "cpu")


@pytest.mark.parametrize(
    ("rule", "dtype"), in_turn([(rule, dtype) for rule, clipped, dtype in CASES_IN_A_DTYPE if not clipped], 0, 2)
)
def test_the_code_for_gpus_has_the_bits_of_the_interpreter(rule: type[portopt.Optimizer], dtype: str) -> None:
    optimizer: Any = _ForGpus(optimizer_of(rule, False))
    params, gradients = words_and_gradients(dtype, clipped=False)
    with jax.enable_x64(dtype == "float64"), np.errstate(all="ignore"):
        compare_steps(put, np.asarray, optimizer, params, gradients, seed=40)


@pytest.mark.parametrize("operation", ["quotient", "root"])
def test_operations_on_all_pairs_of_special_words(operation: str) -> None:
    a, b = words_of("float32", 0), words_of("float32", 1)
    flush = functools.partial(_scalars.flush, smallest_normal=2.0**-126)
    numpy: Any = portopt.get_backend("numpy")
    primitives = numpy.primitives("float32")
    with np.errstate(all="ignore"), lowering_for("cuda"):
        a, b = primitives.flush(a), primitives.flush(b)
        if operation == "quotient":
            found, wanted = (
                jax.jit(lambda a, b: _scalars.flush_quotient(a, b, 2.0**-126, 2.0**64))(a, b),
                primitives.divide(a, b),
            )
        else:
            found, wanted = jax.jit(lambda a: flush(_scalars.square_root(a)))(a), primitives.sqrt(a)
    assert np.array_equal(words(np.asarray(found)), words(wanted))


def test_derivatives_are_those_of_quotient_and_root() -> None:
    def quotient(a: Any, b: Any) -> Any:
        return _scalars.flush_quotient(a, b, 2.0**-126, 2.0**64)

    with lowering_for("cuda"):
        by_a, by_b = jax.grad(quotient, (0, 1))(jnp.float32(3.0), jnp.float32(4.0))
        root = jax.grad(_scalars.square_root)(jnp.float32(4.0))
        narrow = jax.grad(lambda x: _scalars.narrowed(x, "bfloat16").astype(jnp.float32))(jnp.float32(3.0))
        many = jax.vmap(quotient, (0, None))(jnp.ones(3), jnp.float32(2.0))
    assert [float(x) for x in (by_a, by_b, root, narrow)] == [0.25, -0.1875, 0.25, 1.0]
    assert many.tolist() == [0.5] * 3


def test_powers_of_the_step_are_written_out_with_the_bits_of_the_host() -> None:
    with lowering_for("cuda"), jax.enable_x64(True):
        power = jax.jit(lambda base, t: _scalars.JaxArithmetic(t).integer_power(base, t))
        assert "while" not in power.lower(jnp.float64(0.9), jnp.int32(3)).as_text()
        for base in (0.999, -1.5, 1 + 2.0**-40):
            for t in (0, 1, 3, 1000, 2**20 + 5, 2**31 - 1, -3):
                found = power(jnp.float64(base), jnp.int32(t))
                assert_same_bits(np.asarray(found), np.float64(HOST.integer_power(base, t)))
