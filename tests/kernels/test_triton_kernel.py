"""Triton without a GPU: the instructions that it compiles to, and the bits that its interpreter gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from support.elementwise import STAGED
from support.gpu_cases import (
    CASES_IN_A_DTYPE,
    DTYPES,
    PAIRS,
    EveryDraw,
    EveryReduction,
    key_of,
    norm_program,
    optimizer_of,
    programs_of_totals,
    staged_key,
)
from support.places import TESTS
from support.turns import in_turns

import portopt
import portopt_torch._triton as torch_kernel
from portopt.kernels.groups import kernel_key
from portopt.kernels.key import KernelKey
from portopt.kernels.names import COLUMNS_SLICED, LARGEST_JOINED, RESCALED, ROWS_SLICED, SUMS_JOINED
from portopt.kernels.norm_dependence import norm_dependence
from portopt.kernels.passes import passes_of
from portopt.kernels.triton.norm import norm_source
from portopt.kernels.triton.products import products_source
from portopt.kernels.triton.source import CHUNK, WARPS, triton_source
from portopt.kernels.triton.staged_source import staged_source
from portopt.kernels.triton.totals import totals_source
from portopt.program import Program

needs_triton = pytest.mark.needs("triton")
PER_THREAD = CHUNK // (32 * WARPS)
"""Elements that one thread works on: each operation stands in the PTX that often."""


def test_source_has_one_line_for_each_operation() -> None:
    optimizer = portopt.SGD(momentum=0.9)
    source = triton_source(optimizer.program(), key_of(optimizer, "bfloat16"))
    body = [line.strip() for line in source.splitlines()]
    assert body[body.index("p_i = flush_float32(bfloat16_to_float32(tl.load(p + i, mask=inside)))") :] == [
        "p_i = flush_float32(bfloat16_to_float32(tl.load(p + i, mask=inside)))",
        "g_i = flush_float32(bfloat16_to_float32(tl.load(g + i, mask=inside)))",
        "moment_i = flush_float32(tl.load(moment + i, mask=inside))",
        "a1 = product_float32(g_i, a0)",
        "a3 = product_float32(moment_i, a2)",
        "a4 = flush_float32(a3 - a1)",
        "a5 = flush_float32(p_i + a4)",
        "tl.store(p + i, float32_to_bfloat16(a5), mask=inside)",
        "tl.store(moment + i, a4, mask=inside)",
    ]


# What Triton makes of it ----------------------------------------------------------------------------------------

ARITHMETIC = re.compile(r"^\s*(?:@!?%p\d+\s+)?(mul|add|sub|div|sqrt|fma|mad)((?:\.\w+)*)\.(f32|f64|f16|bf16)\b", re.M)
SLICING = {
    "x": "*real",
    "integers": "*fp64",
    "factors": "*fp64",
    **dict.fromkeys(("lines", "count", "beside", "bits"), "i32"),
}
JOINING = {"memory": "*i64", "results": "*i64", "count": "i32", "each": "i32"}
SIGNATURES = {
    "update": {"table": "*i64", "rows": "*i32", "scalars": "*real", "from_norm": "*real"},
    "stage": {"table": "*i64", "rows": "*i32", "scalars": "*real", "unrounded": "*fp64", "from_norm": "*real"},
    "scalars_of_norm": {"largest": "*i64", "sums": "*i64", "given": "*fp64", "results": "*real"},
    "largest_gradient": {"table": "*i64", "rows": "*i32", "largest": "*i64"},
    "sum_squares": {"table": "*i64", "rows": "*i32", "largest": "*i64", "sums": "*i64"},
    ROWS_SLICED: SLICING,
    COLUMNS_SLICED: SLICING,
    SUMS_JOINED: JOINING,
    LARGEST_JOINED: JOINING,
    RESCALED: {
        **dict.fromkeys(("n11", "n12", "n21", "n13", "n31", "n22", "rows", "columns"), "*fp64"),
        "results": "*real",
        "size": "i64",
        **dict.fromkeys(("row_count", "column_count", "bits"), "i32"),
    },
}


@pytest.fixture(scope="module", autouse=True)
def _empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def ptx_of(source: str, kernel: str, compute_dtype: str, architecture: int, **options: Any) -> str:
    import triton  # type: ignore[import-untyped]  # it has no stubs
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]  # it has no stubs
    from triton.compiler import ASTSource  # type: ignore[import-untyped]  # it has no stubs

    function = getattr(torch_kernel.load_module(source), kernel)
    real = {"float32": "fp32", "float64": "fp64"}[compute_dtype]
    kinds = SIGNATURES["stage" if kernel.startswith("stage_") else kernel]
    types = {name: kind.replace("real", real) for name, kind in kinds.items()}
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    constants = {"CHUNK": CHUNK} if "CHUNK" in signature else {}
    warps = {"num_warps": 1} if kernel == "scalars_of_norm" else {}
    compiled = triton.compile(
        ASTSource(function, signature, constants),
        target=GPUTarget("cuda", architecture, 32),
        options={**torch_kernel.OPTIONS, **warps, **options},
    )
    return str(compiled.asm["ptx"])


def instructions(ptx: str) -> Counter[str]:
    return Counter("{}{}.{}".format(*match.groups()) for match in ARITHMETIC.finditer(_without_harmless_flush(ptx)))


def _without_harmless_flush(ptx: str) -> str:
    """Drop the flush that Triton 3.4 gives quotients and roots: operands are flushed before, tiny quotients after."""
    return re.sub(r"\b(div|sqrt)\.rn\.ftz\.f32", r"\1.rn.f32", ptx)


def assert_only_rounded_once(ptx: str) -> None:
    """Every operation is to be rounded to nearest, none contracted, approximate or flushed."""
    for instruction in instructions(ptx):
        assert re.fullmatch(r"(mul|add|sub|div|sqrt)\.rn\.f(32|64)", instruction), instruction
    assert not re.search(r"\.(ftz|approx|full|sat)\b|\bfma\b|\.local\b", _without_harmless_flush(ptx))


def expected_instructions(program: Program, key: KernelKey) -> Counter[str]:
    """Count what the operations of a program need, with what `triton_support` adds for tiny products and quotients."""
    ops = program.ops
    count: Counter[str] = Counter()
    scaled = set()
    for _, op in program.array_ops():
        if op.name in ("add", "subtract"):
            count["sub" if op.name == "subtract" else "add"] += 1
        elif op.name == "multiply":
            count["mul"] += 2
            scaled.add(op.args[1] if ops[op.args[0]].name == "round" else op.args[0])
        elif op.name == "divide":
            count["div"] += 2
            scaled.add(op.args[0])
        elif op.name == "sqrt":
            count["sqrt"] += 1
    count["mul"] += len(scaled)
    suffix = "f64" if key.compute_dtype == "float64" else "f32"
    return Counter({f"{name}.rn.{suffix}": PER_THREAD * n for name, n in count.items() if n})


ARCHITECTURES = [pytest.param(80, marks=pytest.mark.slow), 90]


def _name(x: Any) -> str:
    return "-".join(map(_name, x)) if isinstance(x, tuple) else getattr(x, "__name__", str(x))


@needs_triton
@pytest.mark.parametrize(("case", "architecture"), in_turns(CASES_IN_A_DTYPE, (90, 80)), ids=_name)
def test_ptx_has_exactly_the_operations_of_the_program(
    case: tuple[type[portopt.Optimizer], bool, str], architecture: int
) -> None:
    rule, clipped, dtype = case
    optimizer = optimizer_of(rule, clipped)
    program, key = optimizer.program(), key_of(optimizer, dtype)
    ptx = ptx_of(triton_source(program, key), "update", key.compute_dtype, architecture)
    assert_only_rounded_once(ptx)
    assert instructions(ptx) == expected_instructions(program, key)


@needs_triton
@pytest.mark.parametrize(("dtype", "gradient_dtype"), PAIRS)
def test_ptx_converts_gradients_of_another_dtype_without_flushing(dtype: str, gradient_dtype: str) -> None:
    optimizer = portopt.SGD(0.1)
    key = key_of(optimizer, dtype, gradient_dtype=gradient_dtype)
    ptx = ptx_of(triton_source(optimizer.program(), key), "update", key.compute_dtype, 90)
    assert_only_rounded_once(ptx)
    conversions = set(re.findall(r"\bcvt\.[\w.]*f(?:32|64)\.f(?:32|64)\b", ptx))
    # cvt.f64.f16 does at once what takes two conversions elsewhere.
    widened = dtype == "float64" and gradient_dtype != "float16"
    wanted = "cvt.rn.f32.f64" if gradient_dtype == "float64" else "cvt.f64.f32" if widened else None
    assert conversions == ({wanted} if wanted else set())


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "architecture"), [("float32", 90), pytest.param("float64", 80, marks=pytest.mark.slow)]
)
def test_ptx_of_scalars_of_the_norm_is_rounded_once(dtype: str, architecture: int) -> None:
    for program in (norm_program(), portopt.SGD(clipnorm=1.0).program()):
        slots = dict.fromkeys(set(program.array_outputs) - {"p"}, dtype)
        key = kernel_key(program, {"p": dtype, "g": dtype, **slots}, in_place=True, flush="where")
        assert norm_dependence(program).rounded_on_device
        assert_only_rounded_once(ptx_of(triton_source(program, key), "scalars_of_norm", dtype, architecture))


@needs_triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ptx_of_the_norm_is_rounded_once(dtype: str, architecture: int) -> None:
    for kernel in ("largest_gradient", "sum_squares"):
        assert_only_rounded_once(ptx_of(norm_source(dtype), kernel, "float64", architecture))


@needs_triton
@pytest.mark.parametrize(
    ("rule", "dtype", "architecture"),
    [
        pytest.param(rule, dtype, architecture, marks=[pytest.mark.slow] * (rule is not portopt.LAMB))
        for rule, (dtype, architecture) in in_turns(
            [*STAGED, EveryReduction, EveryDraw],
            [(dtype, architecture) for dtype in ("float32", "float64") for architecture in (80, 90)],
            in_all=(portopt.LAMB,),
        )
    ],
)
def test_ptx_of_programs_that_reduce_and_draw_is_rounded_once(
    rule: type[portopt.Optimizer], dtype: str, architecture: int
) -> None:
    program = rule().program(shape=(3, 4)).after_totals
    if program.is_elementwise:
        return
    source = staged_source(program, staged_key(program, dtype))
    for step in passes_of(program).passes:
        assert_only_rounded_once(ptx_of(source, step.name, dtype, architecture))


@needs_triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ptx_of_totals_is_rounded_once(architecture: int) -> None:
    program = programs_of_totals()[-1]
    source = staged_source(program, staged_key(program, "float32"))
    for step in passes_of(program).passes:
        assert_only_rounded_once(ptx_of(source, step.name, "float32", architecture))
    for kernel in (SUMS_JOINED, LARGEST_JOINED):
        assert_only_rounded_once(ptx_of(totals_source(), kernel, "float64", architecture))


@needs_triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ptx_of_slicing_and_scaling_back_is_rounded_once(dtype: str, architecture: int) -> None:
    for kernel in (ROWS_SLICED, COLUMNS_SLICED, RESCALED):
        assert_only_rounded_once(ptx_of(products_source(dtype), kernel, dtype, architecture))


@needs_triton
def test_contraction_would_be_noticed() -> None:
    optimizer = portopt.Adam()
    source = triton_source(optimizer.program(), key_of(optimizer, "float32"))
    # Without the flush between them, a product and a sum are what compilers contract.
    bare = re.sub(r"product_float32\((\w+), (\w+)\)", r"(\1 * \2)", source)
    assert_only_rounded_once(ptx_of(bare, "update", "float32", 90))
    with pytest.raises(AssertionError):
        assert_only_rounded_once(ptx_of(bare, "update", "float32", 90, enable_fp_fusion=True))
    with pytest.raises(AssertionError):
        assert_only_rounded_once(ptx_of(bare.replace("square_root_float32", "tl.sqrt"), "update", "float32", 90))


# The bits -------------------------------------------------------------------------------------------------------

INTERPRETED = TESTS / "cases" / "triton_interpreted.py"
QUICK = (
    "carry or slices or every_total or float32 and (gap or another_dtype or every_operation or LAMB or SM3 or Noisy)"
)


@needs_triton
@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    ("selection", "at_least"),
    [
        (QUICK, 15),
        pytest.param(f"test_kernel_has_the_bits and not ({QUICK})", 30, marks=pytest.mark.slow),
        pytest.param(f"not test_kernel_has_the_bits and not ({QUICK})", 80, marks=pytest.mark.slow),
    ],
)
def test_the_interpreter_of_triton_gives_the_bits_of_the_contract(selection: str, at_least: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", selection, str(INTERPRETED)]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= at_least
    assert "skipped" not in done.stdout
