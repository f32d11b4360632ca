"""What XLA's compiler makes of steps for a GPU, without one. `make gpu-static` runs this where JAX has its CUDA plugin.

The plugin compiles for a device that is only described, and dumps the PTX. An abort of the compiler ends this process, which is a
failure too: a user's process would end.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DUMP = Path(tempfile.mkdtemp(prefix="xla_gpu_compiled_"))
os.environ["JAX_PLATFORMS"] = "cpu"
# Newer ones dump the code of those kernels alone whose writers are named.
os.environ["XLA_FLAGS"] = f"--xla_dump_to={DUMP} --xla_dump_emitter_re=.*"

import jax  # noqa: E402  # reads the environment
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402
from support.elementwise import ELEMENTWISE  # noqa: E402

import portopt  # noqa: E402
from portopt_conformance import primitives, probes  # noqa: E402
from portopt_conformance.configurations import configurations  # noqa: E402
from portopt_jax._kernel import without_kernels  # noqa: E402
from portopt_jax._scalars import lowering_for  # noqa: E402

DEVICE = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
ARITHMETIC = re.compile(
    r"^\s*(?:@!?%p\d+\s+)?((?:mul|add|sub|div|sqrt|rsqrt|rcp|fma|mad|ex2|lg2|sin|cos|tanh)(?:\.\w+)*\.(?:f32|f64|f16|bf16)(?:x2)?)\b",
    re.M,
)
DTYPES = ("float16", "bfloat16", "float32", "float64")
COUNT = 1000


@pytest.fixture(scope="module")
def sharding() -> Iterator[SingleDeviceSharding]:
    described = topologies.get_topology_desc("", "cuda", target_config=DEVICE, topology="1x1x1")
    yield SingleDeviceSharding(described.devices[0])
    shutil.rmtree(DUMP, ignore_errors=True)


def ptx_of(function: Callable[..., Any], arguments: Any, sharding: SingleDeviceSharding) -> str:
    """Return the PTX of a function for the described device."""
    shutil.rmtree(DUMP, ignore_errors=True)
    shape: Any = jax.ShapeDtypeStruct
    shapes = jax.tree_util.tree_map(lambda x: shape(np.shape(x), jnp.asarray(x).dtype, sharding=sharding), arguments)
    # The norm and the scalars of a state are traced outside the step's own primitive, which knows its platform.
    with lowering_for("cuda"):
        jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).compile()
    texts = [file.read_text() for file in sorted(DUMP.glob("*.ptx"))]
    if not texts:
        raise RuntimeError("XLA dumped no PTX")
    return "\n".join(texts)


def assert_only_rounded_once(ptx: str) -> Counter[str]:
    """Every operation is to be rounded to nearest, none contracted, approximate or flushed; returns how often each is there."""
    found = Counter(ARITHMETIC.findall(ptx))
    for instruction in found:
        # Of float16 and bfloat16 only the product with zero remains, by which a flush keeps the sign: it is exact.
        assert re.fullmatch(r"(mul|add|sub|div|sqrt|rcp)\.rn\.f(32|64)|mul\.rn\.b?f16", instruction), instruction
    assert not re.search(r"\.(ftz|approx|full|sat)\b", ptx)
    return found


@pytest.mark.parametrize(("dtype", "kernels"), [*((dtype, True) for dtype in DTYPES), ("float32", False)])
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("rule", ELEMENTWISE)
def test_two_steps_are_rounded_once_an_operation(
    rule: type[portopt.Optimizer], clipped: bool, dtype: str, kernels: bool, sharding: SingleDeviceSharding
) -> None:
    optimizer = configurations(rule)[-1 if clipped else 0].optimizer()

    def two(p: Any, first: Any, second: Any, state: Any) -> Any:
        p, state = optimizer.apply(p, first, state)
        return optimizer.apply(p, second, state)

    def in_xla(*arguments: Any) -> Any:
        with without_kernels():
            return two(*arguments)

    with jax.enable_x64(dtype == "float64"):
        p = jnp.zeros(COUNT, dtype)
        state = optimizer.init(p)._replace(step=jnp.asarray(0, jnp.int32))
        ptx = ptx_of(two if kernels else in_xla, (p, p, p, state), sharding)
    found = assert_only_rounded_once(ptx)
    if dtype != "float64":
        assert not any(name.startswith(("div", "sqrt")) and name.endswith("f32") for name in found)
    if dtype in ("float16", "bfloat16"):
        # Each step rounds the parameter once: what the first one stores is what the second one loads.
        short = {"float16": "f16", "bfloat16": "bf16"}[dtype]
        assert ptx.count(f"cvt.rn.{short}.f32") >= 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*primitives.OPERATIONS, *primitives.CHAINS])
def test_operations_are_rounded_once(name: str, dtype: str, sharding: SingleDeviceSharding) -> None:
    count, write = {**primitives.OPERATIONS, **primitives.CHAINS}[name]
    check_probe(probes.array_probe(name, count, write), dtype, sharding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("probe", [probes.round_probe, probes.norm_probe, probes.slot_probe])
def test_scalars_and_the_norm_are_rounded_once(
    probe: Callable[[], portopt.Optimizer], dtype: str, sharding: SingleDeviceSharding
) -> None:
    check_probe(probe(), dtype, sharding)


def test_functions_of_scalars_are_rounded_once(sharding: SingleDeviceSharding) -> None:
    check_probe(probes.scalar_probe(primitives._SCALAR_FUNCTIONS), "float32", sharding)


def check_probe(optimizer: portopt.Optimizer, dtype: str, sharding: SingleDeviceSharding) -> None:
    backend: Any = portopt.get_backend("jax")
    with jax.enable_x64(dtype == "float64"):
        # One element too: XLA makes other loops of it.
        for count in (1, COUNT):
            p = jnp.zeros(count, dtype)
            state = optimizer.init(p)
            scalars = {name: backend.stored_scalar(1.0) for name in optimizer.scalar_slots}
            state = state._replace(slots={**state.slots, **scalars}, step=jnp.asarray(0, jnp.int32))
            assert_only_rounded_once(ptx_of(optimizer.apply, (p, p, state), sharding))


def test_contraction_and_approximation_would_be_noticed(sharding: SingleDeviceSharding) -> None:
    x = jnp.ones(COUNT)
    for function in (lambda a, b: a / b, lambda a, b: jnp.sqrt(a) + b, lambda a, b: jnp.exp(a) + b):
        with pytest.raises(AssertionError):
            assert_only_rounded_once(ptx_of(function, (x, x), sharding))
