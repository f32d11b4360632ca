"""Steps on JAX arrays by kernels in CUDA C: XLA's calls are those of its CPU, CUDA's driver is played."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import mlir
from support.bits import assert_same_bits
from support.recording_driver import STREAM, Recording, recording_driver

import portopt
from portopt_jax import _cuda, _kernel, _launching

HAVING_STREAM = f"  %stream = inttoptr i64 {STREAM} to ptr\n"
clear_caches: Any = jax.clear_caches


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    """Have the CPU's computations call what a GPU's would."""
    one_device, registered = _kernel._is_for_one_device, _kernel._registered_as
    with recording_driver(tmp_path_factory.mktemp("played")) as found, pytest.MonkeyPatch.context() as patch:
        # Many parameters take several launches.
        machine = _cuda._Machine((0,), 2, found.driver.addresses_for_launching(), 40)
        patch.setattr(_cuda, "_FEW", 20)
        patch.setattr(_cuda, "_SOME", 30)
        patch.setattr(_cuda, "JOINED", 3)
        patch.setattr(_cuda, "machine", lambda: machine)
        patch.setattr(_cuda, "usable", lambda: True)
        patch.setattr(_launching, "_STREAM", HAVING_STREAM)
        patch.setattr(_kernel, "_is_for_one_device", lambda module, platform: one_device(module, "cpu"))
        patch.setattr(
            _kernel, "_registered_as", lambda content, made, platform: registered(f"played {content}", made, "cpu")
        )
        clear_caches()
        _kernel.register_in_place(_kernel._step, _kernel._lowered_for_cuda, "cpu")
        _kernel.register_in_place(_kernel._norm, _kernel._norm_lowered_for_cuda, "cpu")
        _kernel.register_in_place(_kernel._total, _kernel._total_lowered_for_cuda, "cpu")
        yield found
        _kernel.register_in_place(_kernel._step, _kernel._lowered, "cpu")
        mlir.register_lowering(_kernel._norm, _kernel._norm_lowered, platform="cpu")
        mlir.register_lowering(_kernel._total, _kernel._total_lowered, platform="cpu")
        clear_caches()


class WithoutScalars(portopt.Optimizer):
    """Its kernel is given arrays, and no number."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p - g, {}


def trees(count: int, narrow: str = "bfloat16") -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(count)
    shapes = [(3, 5), (), (4097,), (0,), (2, 1, 7)]
    dtypes = ["float32", "float32", narrow, "float32", narrow]

    def one() -> dict[str, Any]:
        arrays = {}
        for k in range(count):
            dtype = jnp.dtype(dtypes[k % 5])
            arrays[f"w{k}"] = np.asarray(3 * rng.standard_normal(shapes[k % 5]), dtype)
        return arrays

    return one(), one()


@pytest.mark.parametrize(
    ("optimizer", "way"),
    [
        *((portopt.Adam(0.1, clipnorm=1.0), way) for way in ("jit", "donated", "eager", "scan")),
        (portopt.Nadam(0.1), "donated"),
        (portopt.SophiaG(0.1), "jit"),
        (WithoutScalars(0.1), "jit"),
        (portopt.LAMB(0.1, clipnorm=1.0), "donated"),
        (portopt.NoisySGD(0.1), "scan"),
        (portopt.SM3(0.1), "jit"),
        # Whose steps are as far as it has come.
        (portopt.DoG(initial_rate=0.1), "jit"),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_steps_have_the_bits_of_the_host(optimizer: Any, way: str, played: Recording) -> None:
    program = optimizer.program(shape=(3, 5))
    # Of kernels that reduce, compilers take long.
    params, grads = trees(12) if program.after_totals.is_elementwise else trees(6, "float32")
    inputs = dict.fromkeys(optimizer.inputs, grads)
    state, on_device = optimizer.init(params), jax.tree.map(jnp.asarray, params)
    given = jax.tree.map(jnp.asarray, grads)
    further = dict.fromkeys(optimizer.inputs, given)
    found_state = optimizer.init(on_device)

    def step(p: Any, g: Any, s: Any, further: Any) -> Any:
        return optimizer.apply(p, g, s, **further)

    played.clear()
    if way == "scan":

        def steps(p: Any, s: Any) -> Any:
            return jax.lax.scan(lambda carry, _: (step(carry[0], given, carry[1], further), None), (p, s), None, 3)[0]

        found_state = found_state._replace(step=jnp.asarray(0, jnp.int32))
        on_device, found_state = jax.jit(steps)(on_device, found_state)
    else:
        jitted = step if way == "eager" else jax.jit(step, donate_argnums=(0, 2) if way == "donated" else ())
        for _ in range(3):
            on_device, found_state = jitted(on_device, given, found_state, further)
    for _ in range(3):
        params, state = optimizer.apply(params, grads, state, **inputs)
    for name, array in params.items():
        assert_same_bits(np.asarray(on_device[name]), array)
    for slot, arrays in state.slots.items():
        if isinstance(arrays, dict):
            for name, array in arrays.items():
                assert_same_bits(np.asarray(found_state.slots[slot][name]), array)
    found = set(played.kernels()) - {"sum_squares", "sums_joined", "total_of_parts"}
    if program.is_elementwise:
        assert found == {"update"}
    else:
        assert {"scalars_of_inputs", "stage_0"} <= found


def test_the_trial_finds_nothing_wrong_where_all_is_right_and_says_what_is(
    played: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda, "_devices", lambda: jax.devices("cpu"))
    assert _cuda._found_in_trial() == ""
    played.play(running=False)
    found = _cuda._found_in_trial()
    played.play()
    assert found == "a step has wrong bits"


@pytest.mark.parametrize("donated", [False, True])
def test_operands_are_overwritten_only_where_xla_need_not_copy_them(donated: bool, played: Recording) -> None:
    optimizer, p = portopt.SGD(0.1), jnp.ones(5)

    def inside(p: Any, state: Any) -> Any:
        return jax.lax.fori_loop(0, 2, lambda _, carry: optimizer.apply(carry[0], p, carry[1]), (p, state))

    state = optimizer.init(p)._replace(step=jnp.asarray(0, jnp.int32))
    jitted = jax.jit(optimizer.apply, donate_argnums=(0,) if donated else ())
    assert ("operand_index" in jitted.lower(p, p + 1, state).as_text()) == donated
    assert "operand_index" in jax.jit(inside).lower(p, state).as_text()
    played.clear()
    jitted(p.copy(), p + 1, state)
    assert played.kernels() == ["update"]
