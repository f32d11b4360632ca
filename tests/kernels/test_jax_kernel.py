"""Steps under JAX by the host kernel: where it runs, where XLA's operations stand in, and that nobody can tell the difference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from support.bits import assert_same_bits
from support.jax_trees import assert_same_trees
from support.processes import run_python
from support.rules_of_each_kind import Factored, Multiplying, Numbered, Trusting

import portopt
from portopt_jax import _handler, _kernel
from portopt_jax._kernel import without_kernels

CALL = 'custom_call_target="portopt_'


def parameters(seed: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"matrix": (7, 5), "vector": (11,), "scalar": (), "empty": (0, 3)}
    return {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def compiled_text(function: Any, *arguments: Any) -> str:
    return str(jax.jit(function).lower(*arguments).compile().as_text())


# The conformance suite has the bits of all rules.
@pytest.mark.parametrize("rule", [portopt.SGD, portopt.Adam, portopt.Nadam, portopt.Lookahead])
def test_a_jitted_step_is_one_call_of_the_kernel_with_the_bits_of_xla_and_of_the_host(
    rule: type[portopt.Optimizer],
) -> None:
    optimizer = rule()
    params, grads = parameters(0), parameters(1)
    state = optimizer.init(params)._replace(step=jnp.asarray(0))
    assert compiled_text(optimizer.apply, params, grads, state).count(CALL) == 1
    with without_kernels():
        in_xla = jax.jit(lambda *arguments: optimizer.apply(*arguments))
        assert CALL not in str(in_xla.lower(params, grads, state).compile().as_text())
        expected = in_xla(params, grads, state)
    found = jax.jit(optimizer.apply)(params, grads, state)
    assert_same_trees(found, expected)
    host = {name: np.asarray(p) for name, p in params.items()}
    on_host, _ = optimizer.apply(host, {n: np.asarray(g) for n, g in grads.items()}, optimizer.init(host))
    assert_same_trees(found[0], on_host)


def test_parameters_of_several_dtypes_take_one_call_for_each_combination() -> None:
    optimizer = portopt.Nadam()
    params = {"narrow": parameters(0, jnp.bfloat16), "half": parameters(0, jnp.float16), "wide": parameters(0)}
    state = optimizer.init(params)
    assert compiled_text(optimizer.apply, params, params, state).count(CALL) == 3
    found, state = jax.jit(optimizer.apply)(params, params, state)
    with without_kernels():
        expected, _ = jax.jit(lambda *arguments: optimizer.apply(*arguments))(params, params, optimizer.init(params))
    assert_same_trees(found, expected)


def test_clipping_many_leaves_adds_one_call_and_no_operations_for_each() -> None:
    # Of several combinations of dtypes, each a call, but of one norm.
    count = 60
    params = {f"p{i}": jnp.full(3 + i, 0.5, (jnp.float32, jnp.bfloat16)[i % 2]) for i in range(count)}

    def lines(optimizer: portopt.Optimizer) -> list[str]:
        return compiled_text(optimizer.apply, params, params, optimizer.init(params)).splitlines()

    plain, clipped = lines(portopt.Adam()), lines(portopt.Adam(clipnorm=0.5))
    assert [sum(CALL in line for line in of) for of in (plain, clipped)] == [2, 3]
    assert len(clipped) < len(plain) + count


@pytest.mark.parametrize("last", [0.0, 1e30, np.inf, np.nan])
@pytest.mark.parametrize("size", [5_001, 700_001])
def test_the_norm_in_a_jit_has_the_bits_of_the_host(size: int, last: float) -> None:
    # This one is no sample: what is too large for the bins is found by the pass over all. The others are such that carries show.
    rng = np.random.default_rng(0)
    arrays = [
        (rng.standard_normal(n) * 2.0**-9).astype(dtype)
        for n in (size, 0, 7)
        for dtype in ("float32", "float16", "float64")
    ]
    arrays[0][-2] = last
    with jax.enable_x64(True):
        gradients = [jnp.asarray(a) for a in arrays]
        norm = portopt.get_backend("jax").gradient_norm
        assert compiled_text(norm, gradients).count(CALL) == 1
        found = jax.jit(norm)(gradients)
        with without_kernels():
            in_xla = jax.jit(lambda gradients: norm(gradients))(gradients)
    expected = np.float64(portopt.get_backend("numpy").gradient_norm(arrays))
    assert_same_bits(np.asarray(found), expected)
    assert_same_bits(np.asarray(in_xla), expected)


@pytest.mark.parametrize("optimizer", [portopt.Prodigy(), portopt.DoG()], ids=lambda given: type(given).__name__)
def test_totals_over_all_parameters_are_a_call_each_with_the_bits_of_the_host(optimizer: portopt.Optimizer) -> None:
    rng = np.random.default_rng(5)
    # Threads share the elements, but none of them a parameter.
    host = [np.asarray(rng.standard_normal(s), np.float32) for s in ((300_001,), (3, 5), (), (0, 2), (400_000,))]
    params, host_state = list(map(jnp.asarray, host)), optimizer.init(host)
    state = optimizer.init(params)
    step = jax.jit(optimizer.apply)
    calls = compiled_text(optimizer.apply, params, params, state).count(CALL)
    assert calls == 1 + len(optimizer.program().totals)
    for factor in (1.0, 0.25, np.inf):
        grads = [np.float32(factor) * (x - np.float32(0.5)) for x in host]
        params, state = step(params, list(map(jnp.asarray, grads)), state)
        with np.errstate(all="ignore"):
            host, host_state = optimizer.apply(host, grads, host_state)
        assert_same_trees(params, host)
    with without_kernels():
        in_xla, _ = jax.jit(lambda *arguments: optimizer.apply(*arguments))(params, params, state)
    assert_same_trees(step(params, params, state)[0], in_xla)


def test_totals_of_several_dtypes_are_left_to_xla() -> None:
    optimizer, params = portopt.DoG(), {"narrow": jnp.ones(3, jnp.bfloat16), "wide": jnp.ones((2, 2))}
    found, _ = jax.jit(optimizer.apply)(params, params, optimizer.init(params))
    host = {name: np.asarray(p) for name, p in params.items()}
    assert_same_trees(found, optimizer.apply(host, host, optimizer.init(host))[0])


def test_a_step_that_nobody_uses_is_left_out() -> None:
    optimizer, params = portopt.Adam(clipnorm=0.5), parameters()

    def loss_beside_a_step(params: Any) -> Any:
        optimizer.apply(params, params, optimizer.init(params))
        return params["vector"].sum()

    assert CALL not in compiled_text(loss_beside_a_step, params)


def test_donated_memory_is_reused_and_kept_memory_is_left_alone() -> None:
    optimizer = portopt.Adam()
    grads = jnp.full(100_003, 0.5)

    def start() -> tuple[Any, Any]:
        params = jnp.linspace(-1.0, 1.0, 100_003)
        return params, optimizer.init(params)._replace(step=jnp.asarray(0))

    params, state = start()
    kept, kept_state = jax.jit(optimizer.apply)(params, grads, state)
    assert_same_trees((params, state), start())
    addresses = {params.unsafe_buffer_pointer(), *(slot.unsafe_buffer_pointer() for slot in state.slots.values())}
    found, found_state = jax.jit(optimizer.apply, donate_argnums=(0, 2))(params, grads, state)
    assert {
        found.unsafe_buffer_pointer(),
        *(s.unsafe_buffer_pointer() for s in found_state.slots.values()),
    } == addresses
    assert_same_trees((found, found_state), (kept, kept_state))


def test_one_array_may_be_parameter_gradient_and_slot_at_once() -> None:
    optimizer = portopt.Adam()
    w = jnp.linspace(0.5, 1.5, 257)
    state = portopt.OptimizerState(jnp.asarray(3), {"m": w, "v": w})
    found = jax.jit(optimizer.apply)(w, w, state)
    host = np.asarray(w)
    expected = optimizer.apply(host, host, portopt.OptimizerState(3, {"m": host, "v": host}))
    assert_same_trees((found[0], found[1].slots), (expected[0], expected[1].slots))


def test_large_steps_are_shared_by_threads_without_changing_a_bit() -> None:
    optimizer = portopt.Nadam(clipnorm=1.0)
    rng = np.random.default_rng(3)
    params = [rng.standard_normal(n, np.float32) for n in (300_001, 5, 0, 131_072, 70_001)]
    grads = [rng.standard_normal(p.shape, np.float32) for p in params]
    expected, expected_state = optimizer.apply(params, grads, optimizer.init(params))
    arrays = list(map(jnp.asarray, params))
    step = jax.jit(optimizer.apply)
    for _ in range(20):
        found, state = step(arrays, list(map(jnp.asarray, grads)), optimizer.init(arrays))
        assert_same_trees(found, expected)
        assert_same_trees(state.slots["m"], expected_state.slots["m"])


@pytest.mark.parametrize(("rule", "calls"), [(Trusting, 1), (Factored, 2), (Numbered, 1), (portopt.NoisySGD, 1)])
def test_a_step_with_reductions_is_a_call_for_each_program(rule: type[portopt.Optimizer], calls: int) -> None:
    optimizer = rule(0.01)
    params, grads = parameters(0), parameters(1)
    state = optimizer.init(params)
    assert compiled_text(optimizer.apply, params, grads, state).count(CALL) == calls
    host, of_host = ({name: np.asarray(a) for name, a in arrays.items()} for arrays in (params, grads))
    expected = optimizer.apply(host, of_host, optimizer.init(host))
    for step in (jax.jit(optimizer.apply), jax.jit(optimizer.apply, donate_argnums=(0, 2)), optimizer.apply):
        given = jax.tree_util.tree_map(jnp.copy, params)
        found = step(given, grads, optimizer.init(given))
        assert_same_trees(found[0], expected[0])
        slots = [name for name in expected[1].slots if name not in optimizer.scalar_slots]
        assert_same_trees({n: found[1].slots[n] for n in slots}, {n: expected[1].slots[n] for n in slots})


@pytest.mark.parametrize("rule", [Trusting, Factored])
def test_threads_share_large_parameters_stage_by_stage(rule: type[portopt.Optimizer]) -> None:
    optimizer, rng = rule(0.01), np.random.default_rng(3)
    shapes = ((7, 5), (700, 1000), (11,), (3, 200_001), (0, 2), (600_001,), (400, 1000), (150, 1000))
    params, grads = ([rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(2))
    expected, expected_state = optimizer.apply(params, grads, optimizer.init(params))
    arrays, step = list(map(jnp.asarray, params)), jax.jit(optimizer.apply)
    for _ in range(5):
        found, state = step(arrays, list(map(jnp.asarray, grads)), optimizer.init(arrays))
        assert_same_trees(found, expected)
        assert_same_trees(state.slots, expected_state.slots)


def test_what_a_product_is_in_stays_in_xla() -> None:
    assert not _kernel.can_run(Multiplying().program(shape=(3, 4)))


def test_lanes_that_differ_in_what_is_reduced_differ_in_all_that_comes_of_it() -> None:
    optimizer = Trusting()
    w = jnp.ones(5)
    state = optimizer.init(w)
    lanes = jax.vmap(optimizer.apply, in_axes=(None, 0, None))
    new, new_state = jax.eval_shape(lanes, w, jnp.ones((3, 5)), state)
    assert new.shape == new_state.slots["m"].shape == (3, 5)

    class Reducing(portopt.Optimizer):
        """The parameter moves by a number that only the gradient's reduction has."""

        slots = ()

        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return p - c.lr * xp.sum(g), {}

    reducing = Reducing()
    new, _ = jax.eval_shape(jax.vmap(reducing.apply, in_axes=(None, 0, None)), w, jnp.ones((3, 5)), reducing.init(w))
    assert new.shape == (3, 5)


def test_gradients_computed_in_the_same_jit_are_what_the_step_sees() -> None:
    """XLA could contract the products of a train step with the sums of the update, if the update were its own loop."""
    optimizer = portopt.SGD(learning_rate=0.1, momentum=0.9)
    rng = np.random.default_rng(0)
    params, a, b = (jnp.asarray(rng.standard_normal(10_001, np.float32)) for _ in range(3))
    state = optimizer.init(params)

    def train_step(params: Any, state: Any) -> tuple[Any, Any, Any]:
        grads = a * params + b * params
        return grads, *optimizer.apply(params, grads, state)

    @contextmanager
    def with_kernels() -> Iterator[None]:
        yield

    for context in (with_kernels, without_kernels):
        with context():
            grads, found, found_state = jax.jit(lambda *arguments: train_step(*arguments))(params, state)
        host = np.asarray(params)
        expected, expected_state = optimizer.apply(host, np.asarray(grads), optimizer.init(host))
        assert_same_trees(found, expected)
        assert_same_trees(found_state.slots, expected_state.slots)


def test_exported_steps_hold_only_what_every_machine_has() -> None:
    optimizer, params = portopt.Adam(), parameters()
    slots, step = optimizer.init(params).slots, jnp.asarray(0)

    def train_step(params: Any, grads: Any, slots: Any, step: Any) -> Any:
        params, state = optimizer.apply(params, grads, portopt.OptimizerState(step, slots))
        return params, state.slots, state.step

    jitted: Any = jax.jit(train_step)
    exported: Any = jax.export.export(jitted)(params, params, slots, step)
    assert "custom_call" not in exported.mlir_module()
    assert_same_trees(exported.call(params, params, slots, step), jitted(params, params, slots, step))


def test_without_numba_the_step_is_left_to_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernel, "available", lambda: False)
    optimizer, params = portopt.Adam(), parameters()
    state = optimizer.init(params)
    assert CALL not in compiled_text(lambda *arguments: optimizer.apply(*arguments), params, params, state)


def test_a_slot_that_only_passes_through_keeps_its_bits() -> None:
    class Reading(portopt.Optimizer):
        slots = ("unused",)

        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return p - c.lr * g, {"unused": slots.unused}

    optimizer, params = Reading(), parameters()
    found, state = jax.jit(optimizer.apply)(params, params, optimizer.init(params))
    host = {name: np.asarray(p) for name, p in params.items()}
    expected, _ = optimizer.apply(host, host, optimizer.init(host))
    assert_same_trees(found, expected)
    assert_same_trees(state.slots["unused"], optimizer.init(host).slots["unused"])


def test_clipnorm_on_concrete_arrays_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, params = portopt.Adam(clipnorm=0.5), parameters()
    expected, _ = jax.jit(optimizer.apply)(params, params, optimizer.init(params))
    from portopt_jax._backend import PendingScalar

    monkeypatch.setattr(PendingScalar, "__float__", lambda self: pytest.fail("the norm was waited for"))
    found, _ = optimizer.apply(params, params, optimizer.init(params))
    assert_same_trees(found, expected)


def test_llvm_that_cannot_read_the_handler_leaves_steps_to_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(source: str) -> None:
        raise RuntimeError("LLVM IR parsing error: expected type")

    monkeypatch.setattr(_handler, "_llvm", lambda: SimpleNamespace(parse_assembly=parse))
    assert not _handler.supported.__wrapped__()


def test_memory_that_a_step_cannot_have_ends_it_with_an_error_or_is_done_without() -> None:
    printed = run_python(
        """
        import ctypes
        import llvmlite.binding as llvm

        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        asked, refused = [], None

        @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)
        def malloc(size):
            asked.append(size)
            return None if len(asked) == refused else libc.malloc(size)

        # Code that llvmlite makes finds this one.
        llvm.add_symbol("malloc", ctypes.cast(malloc, ctypes.c_void_p).value)

        import jax
        import jax.numpy as jnp
        import portopt

        optimizer = portopt.LAMB(clipnorm=0.5)
        params = {"small": jnp.linspace(-1.0, 1.0, 7), "large": jnp.linspace(-1.0, 1.0, 2_000_003)}
        state = optimizer.init(params)
        step = jax.jit(optimizer.apply)

        def stepped():
            asked.clear()
            try:
                found = jax.block_until_ready(step(params, params, state))
            except ValueError as error:
                return str(error)
            return [bytes(memoryview(leaf)) for leaf in jax.tree.leaves(found)]

        expected = stepped()
        for refused in range(1, len(asked) + 1):
            found = stepped()
            print("equal" if found == expected else found)
        """
    ).splitlines()
    error = "RESOURCE_EXHAUSTED: portopt: there is no memory for a step's tables"
    # Of the norm: its table and workspace, and a counter for each of its stages.
    assert printed[:6] == [error, error, *["equal"] * 4]
    # The tables; workspace and counter of what is small; workspace of what is large, and a counter for each of its stages.
    assert printed[6:11] == [error, error, "equal", error, "equal"]
    assert set(printed[11:]) == {"equal"}


def test_the_norm_of_concrete_gradients_is_a_number_when_one_is_asked_for() -> None:
    norm = portopt.get_backend("jax").gradient_norm([jnp.asarray([3.0, 4.0])])
    assert float(norm) == 5.0


def test_sharded_arrays_are_updated_where_they_lie_with_the_same_bits() -> None:
    printed = run_python(
        """
        import jax, jax.numpy as jnp, numpy as np, portopt
        from jax.sharding import Mesh, NamedSharding, PartitionSpec

        sharding = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
        rng = np.random.default_rng(0)
        p, g = (rng.standard_normal((64, 33), np.float32) for _ in range(2))
        optimizer = portopt.Adam(clipnorm=1.0)
        step = jax.jit(optimizer.apply)
        one, one_state = step(jnp.asarray(p), jnp.asarray(g), optimizer.init(jnp.asarray(p)))
        arrays = [jax.device_put(x, sharding) for x in (p, g)]
        state = optimizer.init(arrays[0])
        many, many_state = step(*arrays, state)
        places = [many.sharding == sharding, many_state.slots["m"].sharding == sharding]
        same = np.asarray(many).tobytes() == np.asarray(one).tobytes()
        print(len(jax.devices()), same, *places)
        alone = jnp.asarray(p), jnp.asarray(g), optimizer.init(jnp.asarray(p))
        print(*('target="portopt_' in step.lower(*a).compile().as_text() for a in ((*arrays, state), alone)))
        """,
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    assert printed.split("\n")[:2] == ["8 True True True", "False True"]


def test_a_compiled_step_from_jax_cache_on_disk_finds_its_kernel(tmp_path: Any) -> None:
    source = """
        import jax, jax.numpy as jnp, numpy as np, portopt
        p = jnp.linspace(-1.0, 1.0, 1001)
        optimizer = portopt.Nadam()
        print(np.asarray(jax.jit(optimizer.apply)(p, p, optimizer.init(p))[0]).tobytes().hex())
        """
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    first = run_python(source, **cache)
    kept = {path.name for path in tmp_path.iterdir() if "apply" in path.name}
    assert kept
    assert run_python(source, **cache) == first
    assert {path.name for path in tmp_path.iterdir() if "apply" in path.name} == kept


def test_no_parameter_of_the_primitive_has_a_name_that_older_jax_cannot_pass_on() -> None:
    optimizer, params = portopt.Adam(), parameters()
    traced = jax.make_jaxpr(optimizer.apply)(params, params, optimizer.init(params))
    found = [set(equation.params) for equation in traced.eqns if equation.primitive.name == "portopt_step"]
    assert found == [{"program", "kernel_key", "in_xla", "places"}]


@pytest.mark.parametrize(("version", "fits"), [("0.8.0", False), ("0.8.1", True), ("0.10.2", True), ("1.0.0rc1", True)])
def test_kernels_are_registered_where_jaxlib_takes_them(
    monkeypatch: pytest.MonkeyPatch, version: str, fits: bool
) -> None:
    monkeypatch.setattr("jaxlib.__version__", version)
    assert _handler.supported.__wrapped__() is fits
