"""CUDA C without a GPU: what NVRTC makes of it, and the bits that the same source gives as C++ on the host."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.absent import ABSENT
from support.bits import Array, assert_same_bits, assert_same_float, numpy_dtype, ordinary, random_words
from support.cuda_on_host import (
    HostArray,
    HostDevice,
    HostStream,
    Kernel,
    compile_on_host,
    host_cupy,
    on_device,
    shifted_on_device,
)
from support.gpu_cases import (
    DTYPES,
    NUMPY,
    PAIRS,
    EveryFunction,
    EveryOperation,
    assert_gap_is_zero,
    assert_gradient_need_not_be_read,
    compare_gradients_of_another_dtype,
    compare_steps,
    each_case,
    each_case_in_a_dtype,
    each_extreme,
    key_of,
    norm_program,
    optimizer_of,
    reference_norm,
    reference_sums,
    shuffled,
    spread_gradients,
    words_and_gradients,
    words_of,
)
from support.ptx import assert_only_rounded_once, instruction, operations

import portopt
import portopt_cupy._kernel as cupy_kernel
from portopt.arithmetic import HOST
from portopt.arithmetic.dtypes import round_scalar, slot_dtypes
from portopt.kernels import launch
from portopt.kernels.cuda import kernels as cuda_kernels
from portopt.kernels.cuda import nvrtc
from portopt.kernels.cuda.norm import norm_source
from portopt.kernels.cuda.source import ONLY_CHUNK, cuda_source, source_file
from portopt.kernels.groups import kernel_key
from portopt.kernels.key import KernelKey
from portopt.kernels.norm_dependence import GradientNorm, norm_dependence
from portopt.program import Program
from portopt.program.expansion import expand_elementary
from portopt.program.interpreter import evaluate_scalars
from portopt_cupy._backend import CupyBackend
from portopt_cupy._conversion import widened


def source_of(optimizer: portopt.Optimizer, dtype: str) -> str:
    return cuda_source(optimizer.program(), key_of(optimizer, dtype))


def test_source_has_one_line_for_each_operation() -> None:
    source = source_of(portopt.SGD(momentum=0.9), "float16")
    loop = source[source.rindex("for (int k") :].partition("if (whole)")[0]
    assert [line.strip() for line in loop.splitlines()[1:-2]] == [
        "const float p_i = float16_to_float32(p_four.at[k]);",
        "const float g_i = float16_to_float32(g_four.at[k]);",
        "const float moment_i = flush(moment_four.at[k]);",
        "const float a1 = product(a0, g_i);",
        "const float a3 = product(a2, moment_i);",
        "const float a4 = minus(a3, a1);",
        "const float a5 = plus(p_i, a4);",
        "p_four.at[k] = float32_to_float16(a5);",
        "moment_four.at[k] = a4;",
    ]


# What NVRTC makes of it -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _nvrtc() -> None:
    if "cupy" in ABSENT:
        pytest.skip("NOT RUN: needs CuPy and NVRTC, which this run does without (support/absent.py)")
    importlib.import_module("cupy.cuda").nvrtc.getVersion()


def instructions(ptx: str) -> dict[str, Counter[str]]:
    """Return how often each kernel, and the functions that they call, have each operation, such as `"mul.rn.f32"`."""
    functions, *entries = ptx.split(".entry ")
    bodies = {"functions": functions, **{part.split("(", 1)[0].strip(): part for part in entries}}
    return {name: operations(body) + Counter(call=body.count("call.uni")) for name, body in bodies.items()}


def expected_instructions(program: Program, key: KernelKey, architecture: int) -> Counter[str]:
    """Count what a round of a program's loop needs: four elements, with what `arithmetic.cuh` adds for subnormals and storage."""
    count: Counter[str] = Counter()
    in_float64 = key.compute_dtype == "float64"
    for _, op in program.array_ops():
        if op.name in ("add", "subtract", "multiply", "divide", "sqrt"):
            kind = op.name
            if in_float64 and kind in ("add", "subtract") and program.ops[op.args[1]].name == "negative":
                # The compiler writes a + (-b) as a - b, which is the same operation.
                kind = {"add": "subtract", "subtract": "add"}[kind]
            name = instruction(kind, architecture)
            if in_float64:
                name = f"{name.partition('.')[0]}.rn.f64"
            count[name] += 1
            # Is the result tiny before it is rounded to a subnormal? A function knows.
            count["call"] += op.name in ("multiply", "divide") and ".ftz" not in name
        elif op.name == "load" and not in_float64:
            # What is loaded is multiplied by one, which flushes it; or by what a float16 subnormal counts.
            count["mul.rn.f32" if dict(key.dtypes)[str(op.label)] == "float16" else "mul.rn.ftz.f32"] += 1
    for name in program.array_outputs:
        count["add.rn.f32"] += dict(key.dtypes)[name] == "float16"
    return Counter({name: 4 * n for name, n in count.items() if n})


VECTOR = re.compile(r"\b(ld|st)\.(global\.|)(nc\.|)v(\d)\.[bfu](\d+)")


def expected_memory(program: Program, key: KernelKey) -> Counter[tuple[str, ...]]:
    """Count the loads and stores of vectors: of four elements, or twice of two."""
    bits = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
    loaded = [str(op.label) for _, op in program.array_ops() if op.name == "load"]
    count: Counter[tuple[str, ...]] = Counter()
    for kind, names in (("ld", loaded), ("st", program.array_outputs)):
        for name in names:
            is_constant = kind == "ld" and not (key.in_place and name in program.array_outputs)
            size = bits[dict(key.dtypes)[name]]
            at_once = min(4, 128 // size)
            count[kind, "global.", "nc." * is_constant, str(at_once), str(size)] += 4 // at_once
    return count


def ptx_of(source: str, architecture: int) -> str:
    return nvrtc.compile_source(source, f"compute_{architecture}").decode()


@pytest.mark.usefixtures("_nvrtc")
@pytest.mark.parametrize("architecture", [pytest.param(80, marks=pytest.mark.slow), 90])
@each_case_in_a_dtype
def test_ptx_has_exactly_the_operations_of_the_program(
    rule: type[portopt.Optimizer], clipped: bool, dtype: str, architecture: int
) -> None:
    optimizer = optimizer_of(rule, clipped)
    ptx = ptx_of(source_of(optimizer, dtype), architecture)
    assert_only_rounded_once(ptx)
    found = instructions(ptx)
    program, update = optimizer.program(), found.pop("update")
    expected = expected_instructions(program, key_of(optimizer, dtype), architecture)
    # The compiler may write a loop twice, once for each value of a condition that all elements share.
    twice = any(op.name == "where" for _, op in program.array_ops())
    assert update == expected or (twice and update >= expected and update.keys() == expected.keys())
    assert set(found) == {"functions", *(["scalars_of_norm"] if clipped else [])}
    assert Counter(VECTOR.findall(ptx)) == expected_memory(optimizer.program(), key_of(optimizer, dtype))


@pytest.mark.usefixtures("_nvrtc")
@pytest.mark.parametrize(("dtype", "gradient_dtype"), PAIRS)
def test_ptx_converts_gradients_of_another_dtype_without_flushing(dtype: str, gradient_dtype: str) -> None:
    optimizer = portopt.SGD(0.1)
    key = key_of(optimizer, dtype, gradient_dtype=gradient_dtype)
    ptx = ptx_of(cuda_source(optimizer.program(), key), 90)
    assert_only_rounded_once(ptx)
    conversions = set(re.findall(r"\bcvt\.[\w.]*f(?:32|64)\.f(?:32|64)\b", ptx))
    wanted = "cvt.rn.f32.f64" if gradient_dtype == "float64" else "cvt.f64.f32" if dtype == "float64" else None
    assert conversions == ({wanted} if wanted else set())


@pytest.mark.usefixtures("_nvrtc")
@pytest.mark.parametrize("dtype", DTYPES)
def test_ptx_of_the_norm_is_rounded_once(dtype: str) -> None:
    for architecture in (80, 90):
        assert_only_rounded_once(ptx_of(norm_source(dtype), architecture))
    # GPUs with few units of float64 add integers.
    few = ptx_of(norm_source(dtype), 89)
    if dtype == "float64":
        assert_only_rounded_once(few)
    assert bool(re.search(r"\b(?:add|sub|mul)\S*\.f64\b", few)) == (dtype == "float64")
    assert not re.search(r"\b(?:ld|st)\.local\b|__local_depot", few)


@pytest.mark.usefixtures("_nvrtc")
@pytest.mark.parametrize("option", ["--fmad=true", "--ftz=true", "--prec-div=false", "--prec-sqrt=false"])
def test_inexact_options_of_the_compiler_would_be_noticed(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = option.partition("=")[0]
    options = [o for o in nvrtc.OPTIONS if not o.startswith(name)]
    monkeypatch.setattr(nvrtc, "OPTIONS", (*options, option))
    with pytest.raises(AssertionError):
        assert_only_rounded_once(ptx_of(source_of(portopt.Adam(), "float32"), 90))


@pytest.mark.usefixtures("_nvrtc")
def test_machine_code_is_made_and_errors_of_the_compiler_are_shown() -> None:
    assert nvrtc.compile_source(source_of(portopt.SGD(), "float32"), "sm_80")[:4] == b"\x7fELF"
    with pytest.raises(RuntimeError, match=r"cannot compile a kernel for sm_80.*undefined_name"):
        nvrtc.compile_source("__global__ void f(float *x) { *x = undefined_name; }", "sm_80")


def test_target_is_the_device_or_ptx_for_a_newer_one() -> None:
    assert nvrtc.target_of(90, [80, 90]) == "sm_90"
    assert nvrtc.target_of(121, [80, 90, 120]) == "compute_120"
    with pytest.raises(RuntimeError, match="compute capability 35"):
        nvrtc.target_of(35, [80, 90])


# The bits, on the host ------------------------------------------------------------------------------------------


@pytest.fixture
def backend(kernel_directory: Path) -> Iterator[Any]:
    # For one test only: the others need the real NVRTC.
    with host_cupy(kernel_directory) as found:
        yield found


def assert_same_steps(*args: Any, **kwargs: Any) -> None:
    compare_steps(on_device, np.asarray, *args, **kwargs)


def on_view(array: Array) -> HostArray:
    """Return the same memory as an array of the device."""
    return array.view(HostArray)


@pytest.mark.usefixtures("backend")
@each_case_in_a_dtype
def test_kernel_on_the_host_has_the_bits_of_the_interpreter(
    rule: type[portopt.Optimizer], clipped: bool, dtype: str
) -> None:
    optimizer = optimizer_of(rule, clipped)
    assert_same_steps(optimizer, *words_and_gradients(dtype, clipped=clipped), seed=40)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operation_on_all_pairs_of_special_words(dtype: str) -> None:
    compare_steps(on_device, np.asarray, EveryOperation(0.1), [words_of(dtype, 0)], [[words_of(dtype, 1)]])


def test_ptx_of_elementary_functions_is_rounded_once_and_keeps_nothing_in_memory() -> None:
    assert_only_rounded_once(ptx_of(source_of(EveryFunction(), "float32"), 90))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_elementary_functions_have_the_bits_of_the_interpreter(dtype: str) -> None:
    compare_steps(on_device, np.asarray, EveryFunction(0.1), [words_of(dtype, 0)], [[words_of(dtype, 1)]])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("dtype", "gradient_dtype"), PAIRS)
def test_gradients_of_another_dtype_are_loaded_into_the_compute_dtype(dtype: str, gradient_dtype: str) -> None:
    compare_gradients_of_another_dtype(on_device, np.asarray, dtype, gradient_dtype)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_and_quotients_in_the_gap_are_zero(dtype: str) -> None:
    assert_gap_is_zero(on_device, np.asarray, dtype)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("dtype", "slot_dtype"), [(d, s) for d in DTYPES for s in slot_dtypes(d)[1:]], ids=lambda x: str(x)
)
def test_narrow_slots_are_rounded_after_each_step(dtype: str, slot_dtype: str) -> None:
    params, gradients = [words_of(dtype, 0)], [[words_of(dtype, 1)], [ordinary(words_of(dtype, 1).shape, dtype, 2)]]
    assert_same_steps(portopt.Adam(0.1), params, gradients, slot_dtype=slot_dtype, seed=3)


@pytest.mark.usefixtures("backend")
def test_every_float16_and_many_float32_words_are_converted_as_numpy_does(tmp_path: Path) -> None:
    library = compile_on_host(
        source_of(portopt.SGD(), "float16")
        + """
extern "C" __global__ void convert(
    const float16_word *in, float *wide, const float *x, float16_word *h, bfloat16_word *b, long long n)
{
    for (long long i = 0; i < 65536; i++) wide[i] = float16_to_float32(in[i]);
    for (long long i = 0; i < n; i++) { h[i] = float32_to_float16(x[i]); b[i] = float32_to_bfloat16(x[i]); }
}
""",
        tmp_path,
    )
    every = np.arange(65536, dtype=np.uint16)
    halves = every.view(np.float16).astype(np.float32)
    # Around each float16 number and half-way between neighbours, where rounding is decided.
    steps = np.array([-1, 0, 1, 0x0FFF, 0x1000, 0x1001], np.int64)
    near = (halves.view(np.uint32).astype(np.int64)[:, None] + steps).astype(np.uint32).reshape(-1).view(np.float32)
    x = np.concatenate([near, random_words((100_000,), "float32", 1)])
    wide, h, b = np.zeros(65536, np.float32), np.zeros(x.size, np.uint16), np.zeros(x.size, np.uint16)
    arrays = [on_view(a) for a in (every, wide, x, h, b)]
    Kernel(library, "convert")((1,), (1,), (*arrays, np.int64(x.size)))
    assert_same_bits(wide, halves)
    with np.errstate(all="ignore"):
        assert_same_bits(h.view(np.float16), x.astype(np.float16))
        assert_same_bits(b.view(numpy_dtype("bfloat16")), x.astype(numpy_dtype("bfloat16")))


_TINY = """
extern "C" __global__ void compute(
    const {real} *a, const {real} *b, {real} *products, {real} *quotients, {real} *by_asking, long long *counts, long long n)
{{
    for (long long i = 0; i < n; i++) {{
        products[i] = product(a[i], b[i]);
        quotients[i] = quotient(a[i], b[i]);
    }}
    counts[0] = asked;
    for (long long i = 0; i < n; i++) {{
        const {real} x = a[i] * b[i], y = a[i] / b[i], zero = 0;
        by_asking[i] = fabs(x) <= {smallest} && product_is_tiny(a[i], b[i]) ? ({real})copysign(zero, x) : x;
        by_asking[n + i] = fabs(y) <= {smallest} && quotient_is_tiny(a[i], b[i]) ? ({real})copysign(zero, y) : y;
    }}
    counts[1] = asked - counts[0];
}}
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_only_what_is_rounded_to_the_smallest_normal_number_is_asked_about(dtype: str, tmp_path: Path) -> None:
    real, smallest = {"float32": ("float", "0x1p-126f"), "float64": ("double", "0x1p-1022")}[dtype]
    source = source_file("arithmetic.cuh").replace(
        f"_is_tiny({real} a, {real} b) {{", f"_is_tiny({real} a, {real} b) {{ asked++;"
    )
    text = "static long long asked;\n" + source + _TINY.format(real=real, smallest=smallest)
    library = compile_on_host(text, tmp_path)
    left, right = words_of(dtype, 0), words_of(dtype, 1)
    # Zeros with all that they meet, and magnitudes on both sides of the smallest number in steps of a last bit.
    near = np.ldexp(1 + np.arange(-300, 300) * float(np.finfo(dtype).epsneg), np.finfo(dtype).minexp).astype(dtype)
    numbers = np.concatenate([near, -near, np.asarray([1, 1 + 2**-20, 1 - 2**-20, 0.5, 2, -3, 0, -0.0], dtype)])
    a = np.concatenate([left, right, np.repeat(numbers, 8), np.zeros_like(left)])
    b = np.concatenate([right, left, np.tile(numbers[-8:], len(numbers)), right])
    products, quotients, by_asking = np.zeros_like(a), np.zeros_like(a), np.zeros(2 * len(a), dtype)
    counts = np.zeros(2, np.int64)
    arrays = [on_view(x) for x in (a, b, products, quotients, by_asking, counts)]
    Kernel(library, "compute")((1,), (1,), (*arrays, np.int64(len(a))))
    assert_same_bits(products, by_asking[: len(a)])
    assert_same_bits(quotients, by_asking[len(a) :])
    with np.errstate(all="ignore"):
        tiny = np.finfo(dtype).smallest_normal
        exact = np.count_nonzero(np.abs(a * b) == tiny) + np.count_nonzero(np.abs(a / b) == tiny)
    assert 0 < counts[0] == exact < counts[1] / 4


# Launches -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("in_place", [False, True])
def test_any_number_of_parameters_of_any_size(in_place: bool) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (1,), (5000,), (2049,), (0, 3), *((k % 7,) for k in range(120)), (6000,)]
    params = [random_words(shape, "float32", i) for i, shape in enumerate(shapes)]
    gradients = [[ordinary(shape, "float32", 1000 + i) for i, shape in enumerate(shapes)] for _ in range(2)]
    assert_same_steps(portopt.Adam(clipnorm=0.5), params, gradients, in_place=in_place)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_arrays_that_are_not_aligned_and_ends_of_chunks(dtype: str, in_place: bool) -> None:
    sizes = (0, 1, 3, ONLY_CHUNK - 1, ONLY_CHUNK, ONLY_CHUNK + 1, 5)
    params = [random_words((n,), dtype, i) for i, n in enumerate(sizes)]
    gradients = [[random_words((n,), dtype, 100 + i) for i, n in enumerate(sizes)]]
    compare_steps(shifted_on_device, np.asarray, portopt.SGD(0.1, momentum=0.9), params, gradients, in_place=in_place)


@pytest.mark.usefixtures("backend")
def test_parameters_of_several_dtypes_in_one_tree() -> None:
    shapes = [("float32", 100), ("float16", 3000), ("float64", 50), ("float32", 4000), ("float64", 1)]
    params = [random_words((n,), dtype, i) for i, (dtype, n) in enumerate(shapes)]
    gradients = [[ordinary((n,), dtype, 10 + i) for i, (dtype, n) in enumerate(shapes)]]
    assert_same_steps(portopt.Nadam(clipnorm=0.5, clipvalue=0.01), params, gradients)


@pytest.mark.usefixtures("backend")
def test_step_in_place_on_strided_arrays_writes_them() -> None:
    optimizer = portopt.Adam(0.1)
    whole, gradient = ordinary((40, 30), "float32", 1), ordinary((30, 20), "float32", 2)
    expected, _ = optimizer.apply(whole[::2].copy(), gradient.T.copy(), optimizer.init(whole[::2].copy()))
    device = on_device(whole)
    optimizer.apply_(device[::2], on_device(gradient).T, optimizer.init(device[::2]))
    assert_same_bits(np.asarray(device)[::2], expected)
    assert_same_bits(np.asarray(device)[1::2], whole[1::2])


@pytest.mark.usefixtures("backend")
def test_gradients_in_the_memory_of_parameters_are_read_before_they_are_overwritten() -> None:
    optimizer = portopt.SGD(1.0, momentum=0.5)
    data = ordinary((9000,), "float32", 1)
    first, second, third = (data[a : a + 3000].copy() for a in (0, 10, 3000))
    start = [first, third]
    expected, _ = optimizer.apply(start, [second, first], optimizer.init(start))
    device = on_device(data)
    params, grads = [device[:3000], device[3000:6000]], [device[10:3010], device[:3000]]
    optimizer.apply_(params, grads, optimizer.init([on_device(x) for x in start]))
    for actual, wanted in zip(params, expected, strict=True):
        assert_same_bits(np.asarray(actual), wanted)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_program_need_not_read_the_gradient(dtype: str) -> None:
    assert_gradient_need_not_be_read(on_device, np.asarray, dtype)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("clipnorm", [None, 1.0])
def test_capture_in_a_cuda_graph_is_refused_before_anything_changes(
    clipnorm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, p = portopt.Adam(clipnorm=clipnorm), on_device(ordinary((10,), "float32", 1))
    state, before = optimizer.init(p), np.array(p)
    monkeypatch.setattr(HostStream, "captured", True)
    for step in (optimizer.apply, optimizer.apply_):
        with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
            step(p, on_device(before), state)
        with portopt.interpreted(), pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
            step(p, on_device(before), state)
    monkeypatch.setattr(HostStream, "ptr", 0)
    assert_same_bits(np.asarray(p), before)
    optimizer.apply_(p, on_device(before), state)
    assert np.any(np.asarray(p) != before)


@pytest.mark.usefixtures("backend")
def test_what_a_step_keeps_is_written_only_where_it_was_subnormal() -> None:
    program = portopt.SophiaG().program()
    assert program.ops[program.array_outputs["h"]].reads == "h"
    assert "if (differ(h_four, h_before))" in source_of(portopt.SophiaG(), "float32")
    params, gradients = [ordinary((6000,), "float32", 1)], [[ordinary((6000,), "float32", 2)]]
    assert_same_steps(portopt.SophiaG(), params, gradients, seed=5, in_place=True)


@pytest.mark.usefixtures("backend")
def test_apply_leaves_inputs_untouched() -> None:
    optimizer = portopt.Adam(clipnorm=0.1)
    p, g = ordinary((100,), "float32", 1), ordinary((100,), "float32", 2)
    device_p, device_g = on_device(p), on_device(g)
    state = optimizer.init(device_p)
    new, new_state = optimizer.apply(device_p, device_g, state)
    assert_same_bits(np.asarray(device_p), p)
    assert_same_bits(np.asarray(device_g), g)
    assert not np.any(np.asarray(state.slots["m"]))
    assert not np.shares_memory(new, device_p)
    assert np.any(np.asarray(new_state.slots["m"]))


@pytest.mark.usefixtures("backend")
def test_hyperparameters_of_one_step_compile_nothing() -> None:
    optimizer, p = portopt.Adam(clipnorm=1.0), on_device(ordinary((10,), "float32", 1))
    state = optimizer.init(p)
    optimizer.apply(p, p, state)
    before = cuda_kernels._module.cache_info().misses
    for rate in (0.5, 0.25):
        optimizer.apply(p, p, state, learning_rate=rate, clipnorm=rate)
    assert cuda_kernels._module.cache_info().misses == before


# The norm -------------------------------------------------------------------------------------------------------


def norm_of(gradients: list[Any]) -> GradientNorm:
    found = launch.gradient_norm(cupy_kernel.LIBRARY, gradients)
    assert found is not None
    return found


def device_norm(gradients: list[Array], tmp_path: Path) -> float:
    found = norm_of([on_device(g) for g in gradients])
    library = compile_on_host(
        norm_source("float64")
        + """
extern "C" __global__ void read(const Sum *parts, long long count, double *result)
{
    const Sum found = over_parts(no_sum(LOWEST_OF_SQUARES), parts, count);
    if (threadIdx.x == 0)
        *result = root_of(found);
}
""",
        tmp_path,
    )
    result = np.zeros(1)
    Kernel(library, "read")((1,), (256,), (found.words[0], np.int64(found.count), on_view(result)))
    return float(result[0])


def norm_on_host(gradients: list[Array]) -> float:
    """Return the norm as the host reads it, which waits for the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostArray, "may_wait", True)
        return float(norm_of(list(map(on_device, gradients))))


@pytest.mark.usefixtures("backend")
def test_warps_of_a_block_combine_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks have four threads here: two warps, if these have two lanes each."""
    lanes = "#define LANES 32\n"
    assert lanes in norm_source("float32")
    monkeypatch.setattr(
        cupy_kernel.LIBRARY, "norm_module", lambda dtype: norm_source(dtype).replace(lanes, "#define LANES 2\n")
    )
    gradients = spread_gradients("float32")
    assert norm_on_host(gradients).hex() == reference_norm(gradients).hex()


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_has_the_bits_of_the_reference_in_any_order(backend: Any, dtype: str, tmp_path: Path) -> None:
    gradients = spread_gradients(dtype)
    expected = reference_norm(gradients)
    assert 0 < expected < np.inf
    assert device_norm(gradients, tmp_path).hex() == expected.hex()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostArray, "may_wait", True)
        sums = norm_of(list(map(on_device, gradients))).squares.sums
    assert list(sums) == reference_sums(gradients)
    assert dtype in ("float16", "bfloat16") or all(sums)
    assert device_norm(shuffled(gradients), tmp_path).hex() == expected.hex()
    assert norm_on_host(gradients).hex() == expected.hex()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("dtype", "range_of"), [("float32", 126), ("bfloat16", 40), ("float64", 1020)])
def test_norm_of_gradients_that_grow_or_shrink(dtype: str, range_of: int, tmp_path: Path) -> None:
    numbers = ordinary((9000,), "float64", 4)
    grown = np.ldexp(numbers, np.linspace(-range_of, range_of, 9000).astype(int) - 2).astype(numpy_dtype(dtype))
    # The second begins within a vector, and ends in one; each thread finds its largest last in one, first in the other.
    for gradients in ([grown], [grown[1:-2], grown[::-1].copy()], [np.zeros_like(grown), grown[:4500]]):
        assert device_norm(gradients, tmp_path).hex() == reference_norm(gradients).hex()
        assert norm_on_host(gradients).hex() == reference_norm(gradients).hex()
    grown[[100, 8000]] = np.inf
    assert device_norm([grown], tmp_path) == norm_on_host([grown]) == np.inf
    grown[5000] = np.nan
    assert np.isnan([device_norm([grown], tmp_path), norm_on_host([grown])]).all()


@pytest.mark.usefixtures("backend")
@each_extreme
def test_norm_of_extreme_gradients(values: list[float], tmp_path: Path) -> None:
    expected, actual = reference_norm([np.asarray(values)]), device_norm([np.asarray(values)], tmp_path)
    assert_same_float(actual, expected)
    assert_same_float(norm_on_host([np.asarray(values)]), expected)


# Scalars that need the norm -------------------------------------------------------------------------------------


def part_of(gradient: list[float]) -> list[int]:
    """Return what a block leaves of the squares of some numbers."""
    bins = NUMPY.reductions("float64").partial("norm", np.asarray(gradient))
    special = 0 if bins.special == 0 else 2 if bins.special == np.inf else 1
    return [int(bins.exponent), *map(int, bins.sums), special]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scalars_that_need_the_norm_have_the_bits_of_the_host(dtype: str, tmp_path: Path) -> None:
    program = norm_program()
    split = norm_dependence(program)
    key = kernel_key(program, {"p": dtype, "g": dtype}, in_place=True, flush="where")
    library = compile_on_host(cuda_source(program, key), tmp_path)
    for value in (0.25, 2.5, 37.0, 0.0, float("inf"), float("nan")):
        inputs = {"gradient_norm": value, "t": 5, "learning_rate": 0.3}
        parts = np.asarray([part_of([value]), part_of([0.0])], np.int64)
        results = np.zeros(len(split.rounded_on_device), dtype)
        values = split.host_scalars(inputs)
        given = [np.asarray(values[i])[()] for i in split.given]
        Kernel(library, "scalars_of_norm")((1,), (256,), (on_view(parts), np.int64(2), *given, on_view(results)))
        expected = evaluate_scalars(expand_elementary(program), HOST, inputs)
        wanted = [round_scalar(float(expected[j]), dtype) for _, j in split.rounded_on_device]
        assert len(wanted) == 18
        assert_same_bits(results, np.asarray(wanted, dtype), f"norm {value}")


@each_case
def test_the_host_waits_for_no_scalar(rule: type[portopt.Optimizer], clipped: bool) -> None:
    split = norm_dependence(optimizer_of(rule, clipped).program())
    assert [split.program.ops[i].label for i in split.given] == (["clipnorm"] if clipped else [])
    assert len(split.rounded_on_device) == clipped
    assert not any(split.needs_norm(i) for i in split.program.scalar_outputs.values())


def test_cupy_widens_subnormals_exactly() -> None:
    words = random_words((4000,), "float32", 7)
    subnormal = np.arange(1, 0x00800000, 9973, dtype=np.uint32)
    edges = np.array([0, 1, 0x007FFFFF, 0x00800000, 0x7F800000, 0x7FC00000, 0x3F800000], np.uint32)
    x = np.concatenate([words.view(np.uint32), subnormal, edges]).view(np.float32)
    x = np.concatenate([x, -x])
    with np.errstate(invalid="ignore"):
        assert_same_bits(widened(np, x), x.astype(np.float64))
        assert_same_bits(widened(np, x[1]), x[1].astype(np.float64))


class ZeroFillingCupy:
    """As some versions of CuPy do it: arrays without axes are filled, and zeros are bytes."""

    @staticmethod
    def array(x: Array) -> Array:
        return np.zeros_like(x) if x.ndim == 0 and x == 0 else np.array(x)

    @staticmethod
    def full(shape: tuple[int, ...], value: float, dtype: str) -> Array:
        return np.full(shape, value + 0.0 if value else 0.0, dtype)

    negative = staticmethod(np.negative)


class SignKeepingCupy(ZeroFillingCupy):
    """As CuPy 14.2 does it."""

    @staticmethod
    def full(shape: tuple[int, ...], value: float, dtype: str) -> Array:
        return np.full(shape, value, dtype)


@pytest.mark.parametrize("cupy", [ZeroFillingCupy, SignKeepingCupy])
def test_cupy_keeps_the_sign_of_zeros(cupy: type[ZeroFillingCupy], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CupyBackend()
    monkeypatch.setattr(CupyBackend, "_cupy", cupy)
    monkeypatch.setattr(CupyBackend, "devices", lambda self: {"cuda:0": None})
    monkeypatch.setattr(cupy, "cuda", SimpleNamespace(Device=HostDevice), raising=False)
    zero = np.asarray(-0.0, np.float32)
    like = zero.view(HostArray)
    found = (
        backend.from_numpy(zero, "cuda"),
        backend.rounded_scalar(-0.0, "float32", like),
        backend.full(like, -0.0, "float32"),
    )
    for array in found:
        assert_same_bits(array, zero)
    assert_same_bits(backend.full(like, 0.0, "float32"), np.asarray(0.0, np.float32))
    assert_same_bits(backend.rounded_scalar(0.1, "float32", like), np.asarray(0.1, np.float32))
