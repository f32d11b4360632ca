"""CUDA C of programs that reduce and draw: the interpreter's bits on the host, and what NVRTC makes of it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from support.bits import Array, assert_same_float, ordinary, random_words
from support.carries import SQUARES, SUMS
from support.cuda_on_host import HostArray, Kernel, compile_on_host, host_cupy, on_device, shifted_on_device
from support.elementwise import STAGED
from support.gpu_cases import (
    EveryDraw,
    EveryReduction,
    EveryTotal,
    compare_steps,
    in_a_dtype,
    programs_of_totals,
    staged_key,
    trees_with_totals,
)
from support.gpu_products import compare_products
from support.ptx import assert_only_rounded_once, instruction, operations
from support.rules_of_each_kind import RULES, Multiplying
from support.turns import in_turn

import portopt
import portopt_cupy._kernel as cupy_kernel
from portopt.backend.array_api import ArrayAPIBackend
from portopt.kernels import launch, passes
from portopt.kernels.cuda import kernels, nvrtc
from portopt.kernels.cuda import source as cuda_source
from portopt.kernels.cuda.products import multiplied_source, products_source
from portopt.kernels.cuda.source import REDUCED_CHUNK, reductions_source, source_file
from portopt.kernels.cuda.staged_source import staged_source
from portopt.kernels.cuda.totals import totals_source
from portopt.kernels.names import RESCALED
from portopt.kernels.norm_dependence import norm_dependence
from portopt.kernels.passes import HEIGHT, can_pass, passes_of
from portopt.program import DRAWS, Program, bins
from portopt.scalars import where

SHAPES: tuple[tuple[int, ...], ...] = ((), (5,), (0,), (3000,), (0, 3), (40, 70), (129, 33), (3, 4, 5))


@pytest.fixture
def backend(kernel_directory: Path) -> Iterator[Any]:
    with host_cupy(kernel_directory) as found:
        yield found


@pytest.fixture
def interpreted_programs(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """Return a list that gets what was done on the device without a kernel."""
    found: list[Program] = []
    original = ArrayAPIBackend.update

    def noted(self: Any, works: Any, *, in_place: bool) -> Any:
        if not portopt.backend.is_interpreted():
            found.extend(work.program for work in works)
        return original(self, works, in_place=in_place)

    totals = ArrayAPIBackend.parts_of_total

    def noted_total(self: Any, name: str, works: Any, reductions_of: Any) -> Any:
        if not portopt.backend.is_interpreted():
            found.extend(work.program for work in works)
        return totals(self, name, works, reductions_of)

    monkeypatch.setattr(ArrayAPIBackend, "update", noted)
    monkeypatch.setattr(ArrayAPIBackend, "parts_of_total", noted_total)
    return found


def trees(dtype: str, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> tuple[list[Array], list[list[Array]]]:
    params = [ordinary(shape, dtype, i) for i, shape in enumerate(shapes)]
    return params, [[ordinary(shape, dtype, 100 * k + i) for i, shape in enumerate(shapes)] for k in (1, 2)]


class Proportional(portopt.Optimizer):
    """A scalar of the parameter that needs the norm of all gradients, and one of the state that does."""

    slots = ()
    scalar_slots: ClassVar[Mapping[str, float]] = {"largest": 0.0}

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return {"size": xp.linalg.vector_norm(g)}

    def coefficients(self, t: Any, size: Any, largest: Any) -> Any:
        return {"size": size, "largest": where(size > largest, size, largest)}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p - xp.linalg.vector_norm(p) / c.size * g, {}


EVERY_RULE = [*STAGED, *RULES, Proportional, EveryDraw]
# The bits, on the host --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("backend")
@in_a_dtype(
    [portopt.LAMB, EveryDraw, *in_turn([r for r in EVERY_RULE if r not in (portopt.LAMB, EveryDraw)], 0, 2)],
    (portopt.LAMB, EveryDraw),
)
def test_kernels_on_the_host_have_the_bits_of_the_interpreter(
    rule: type[portopt.Optimizer], dtype: str, interpreted_programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = rule()
    # Totals of all parameters are numbers that the host is given.
    monkeypatch.setattr(HostArray, "may_wait", bool(optimizer.program(shape=(3, 4)).totals) or rule is Multiplying)
    compare_steps(on_device, np.asarray, optimizer, *trees(dtype))
    assert all(any(op.name == "matmul" for op in program.ops) for program in interpreted_programs)
    assert bool(interpreted_programs) == (rule is Multiplying)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", ["float32", "float64", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_every_reduction_of_all_of_rows_and_of_columns(dtype: str) -> None:
    shapes = ((140, 19), (1, 1), (3, 2500), (0, 3), (3, 0))
    params, gradients = trees(dtype, shapes)
    # Words of any bits, infinities and NaN among them, come last: little is left of what they touch.
    gradients.append([random_words(shape, dtype, i) for i, shape in enumerate(shapes)])
    compare_steps(on_device, np.asarray, EveryReduction(0.1), params, gradients[1:])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("rule", [EveryReduction, EveryDraw], ids=lambda rule: rule.__name__)
def test_arrays_that_are_not_aligned(rule: type[portopt.Optimizer]) -> None:
    params, gradients = trees("float32", ((1, 3), (2, 2049), (3, 5), (70, 60)))
    compare_steps(shifted_on_device, np.asarray, rule(), params, gradients, in_place=True)


@pytest.mark.usefixtures("backend")
def test_larger_parameters_are_reduced_to_parts_of_more_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes.number_of_parts(2**31 + 1, REDUCED_CHUNK) <= passes.MOST_PARTS
    for module in (passes, cuda_source):
        monkeypatch.setattr(module, "MOST_PARTS", 2)
    assert passes.number_of_parts(70_000, REDUCED_CHUNK) == 2
    kernels.update_source.cache_clear()
    try:
        compare_steps(on_device, np.asarray, portopt.LAMB(), *trees("float32", ((70_000,), (3,))))
    finally:
        kernels.update_source.cache_clear()


@pytest.mark.usefixtures("backend")
def test_every_reduction_of_special_numbers() -> None:
    words = (np.nan, np.inf, -np.inf, -0.0, 2.0**-1022, 2.0**1023)
    params, gradients = trees("float64", ((7, 9),) * len(words))
    for p, word in zip(params, words, strict=True):
        p[3, 4] = p[5, 2] = word
    params.append(np.full((2, 3), -0.0))
    params.append(np.asarray([[np.inf, -np.inf, 1.0]]))
    gradients[0] += [np.ones((2, 3)), np.ones((1, 3))]
    compare_steps(on_device, np.asarray, EveryReduction(0.1), params, gradients[:1])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("dtype", "joined"), [("float32", 1024), ("bfloat16", 2)])
def test_every_total_of_all_parameters(
    dtype: str, joined: int, interpreted_programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostArray, "may_wait", True)
    # Of many parts, so many are joined before.
    monkeypatch.setattr(launch, "JOINED", joined)
    for params, gradients in trees_with_totals(dtype):
        compare_steps(on_device, np.asarray, EveryTotal(), params, gradients)
    assert not interpreted_programs


@pytest.mark.usefixtures("backend")
def test_a_total_takes_two_launches_for_each_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    original = cupy_kernel.LIBRARY.launch

    def noted(module: Any, kernel: str, *arguments: Any) -> None:
        launched.append(kernel)
        original(module, kernel, *arguments)

    monkeypatch.setattr(HostArray, "may_wait", True)
    monkeypatch.setattr(cupy_kernel.LIBRARY, "launch", noted)
    params, (gradients, _) = trees("float32", tuple((k % 7, 3) for k in range(30)))
    compare_steps(on_device, np.asarray, portopt.Prodigy(), params, [gradients])
    assert launched == ["stage_0", "stage_1"] * 2 + ["update"]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("rule", [portopt.LAMB, portopt.NovoGrad, portopt.SM3], ids=lambda rule: rule.__name__)
def test_steps_in_place_and_clipped(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(clipnorm=0.5, clipvalue=0.01)
    compare_steps(
        on_device, np.asarray, optimizer, *trees("float32", ((60,), (12, 7), (2, 3, 20), (0,))), in_place=True
    )


@pytest.mark.usefixtures("backend")
def test_more_parameters_than_one_launch_takes() -> None:
    shapes = tuple((k % 5,) for k in range(150))
    compare_steps(on_device, np.asarray, portopt.LAMB(), *trees("float32", shapes))


@pytest.mark.usefixtures("backend")
def test_a_gradient_in_the_memory_of_another_programs_parameter_is_read_before_it_is_overwritten() -> None:
    optimizer, data = portopt.Adafactor(), ordinary((120,), "float32", 1)
    start = [data[:60].copy(), data[60:].reshape(6, 10).copy()]
    gradients = [data[60:].copy(), data[:60].reshape(6, 10).copy()]
    with portopt.interpreted():
        expected, _ = optimizer.apply(start, gradients, optimizer.init(start))
    device = on_device(data)
    params, grads = [device[:60], device[60:].reshape(6, 10)], [device[60:], device[:60].reshape(6, 10)]
    optimizer.apply_(params, grads, optimizer.init([on_device(x) for x in start]))
    for actual, wanted in zip(params, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(actual).view(np.uint32), wanted.view(np.uint32))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        (Multiplying, "float32"),
        *(pytest.param(portopt.NorMuon, d, marks=pytest.mark.slow) for d in ("float16", "float64")),
    ],
)
def test_what_stands_between_products_runs_in_kernels(
    rule: type[portopt.Optimizer], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()

    def count(name: str) -> None:
        original = getattr(launch, name)

        def counted(*arguments: Any) -> Any:
            counts[name] += 1
            return original(*arguments)

        monkeypatch.setattr(launch, name, counted)

    count("segment")
    count("squares")
    monkeypatch.setattr(HostArray, "may_wait", True)
    compare_steps(on_device, np.asarray, rule(), *trees(dtype, ((6, 4), (3,))))
    assert counts["segment"] > 2
    assert counts["squares"] >= 2  # the norm of a matrix in each of two steps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slices_and_products_have_the_bits_of_the_definition(dtype: str, backend: Any) -> None:
    compare_products(backend.primitives(dtype), on_device, np.asarray)


# Sums that carry ----------------------------------------------------------------------------------------------------

_FINISH = """
extern "C" __global__ void finish(const Sum *sums, double *totals, double *roots, long long n)
{
    for (long long i = 0; i < n; i++) { totals[i] = sum_of(sums[i]); roots[i] = root_of(sums[i]); }
}
"""


def test_sums_carry_as_the_reference_does(tmp_path: Path) -> None:
    parts = ("#define THREADS 4", source_file("arithmetic.cuh"), reductions_source(), _FINISH)
    library = compile_on_host("\n".join(parts), tmp_path)

    def finished(kernel: str, words: Any, results: int) -> list[list[float]]:
        given = np.asarray(words, np.int64).view(HostArray)
        found = [np.zeros(len(words)).view(HostArray) for _ in range(results)]
        Kernel(library, kernel)((1,), (1,), (given, *found, np.int64(len(words))))
        return [np.asarray(x).tolist() for x in found]

    totals, roots = finished("finish", [(case.exponent, *case.sums, 0) for case in SUMS + SQUARES], 2)
    for case, total, root in zip(SUMS + SQUARES, totals, roots, strict=True):
        assert_same_float(total, bins.sum_of(case))
        if case in SQUARES:
            assert_same_float(root, bins.root_of(case))


_BOTH_SQUARES = """
extern "C" __global__ void both_squares(const float *x, long long *words, long long rounds)
{
    Sum first = no_sum(LOWEST_OF_SQUARES), second = first;
    for (long long k = 0; k < rounds; k++) {
        float some[16];
        unsigned int most = 0;
        for (int n = 0; n < 16; n++) {
            some[n] = x[16 * k + n];
            most = magnitude_of(some[n]) > most ? magnitude_of(some[n]) : most;
        }
        add_squares(first, some);
        raise_bins(second, first.exponent);
        if (most != 0)
            add_integer_squares(second, some);
        memcpy(words + 10 * k, &first, sizeof first);
        memcpy(words + 10 * k + 5, &second, sizeof second);
    }
}
"""


@pytest.mark.parametrize("kind", ["alike", "spread", "growing", "powers", "shrinking"])
def test_squares_are_added_as_integers_to_the_same_bins(kind: str, tmp_path: Path) -> None:
    """As GPUs with few units of float64 do; after each round all five words are the same, not only what they sum to."""
    rng, rounds = np.random.default_rng(5), 400
    exponents = {
        "alike": rng.integers(-3, 3, (rounds, 16)),
        "spread": rng.integers(-126, 127, (rounds, 16)),
        "growing": np.sort(rng.integers(-126, 127, rounds))[:, None] - rng.integers(0, 60, (rounds, 16)),
        "powers": rng.integers(-126, 127, (rounds, 1)) - np.arange(16) * rng.integers(0, 6, (rounds, 1)),
        "shrinking": -np.sort(rng.integers(-127, 126, rounds))[:, None] + np.zeros((1, 16), np.int64),
    }[kind]
    mantissas = np.ones((rounds, 16)) if kind == "powers" else 1 + rng.integers(0, 2**23, (rounds, 16)) * 2.0**-23
    if kind == "alike":
        mantissas = 1 + rng.choice([0, 1, 2**11, 2**12, 2**22, 2**23 - 1, 3 * 2**10], (rounds, 16)) * 2.0**-23
    x = np.ldexp(mantissas * rng.choice([-1.0, 1.0, 1.0], (rounds, 16)), np.maximum(exponents, -126)).astype(np.float32)
    x[rng.random((rounds, 16)) < 0.1] = 0.0
    parts = ("#define THREADS 4", source_file("arithmetic.cuh"), reductions_source(), _BOTH_SQUARES)
    library = compile_on_host("\n".join(parts), tmp_path)
    words = np.zeros((rounds, 2, 5), np.int64).view(HostArray)
    Kernel(library, "both_squares")((1,), (1,), (x.reshape(-1).view(HostArray), words, np.int64(rounds)))
    found = np.asarray(words)
    assert np.array_equal(found[:, 0], found[:, 1])
    assert found[-1, 0, 1:4].any()


# Random numbers ------------------------------------------------------------------------------------------------------

_NEARLY_NOTHING = """
#define MOST_OFF 0x1p-41
__device__ __forceinline__ double near_normal_of(const Words &words) { return fraction_of(words.word[0]); }
"""
_NORMALS = """
extern "C" __global__ void normals(const unsigned int *words, double *near, double *exact, bool *needs, long long n)
{
    for (long long i = 0; i < n; i++) {
        const Words four = {{words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]}};
        near[i] = near_normal_of(four);
        exact[i] = normal_of(four);
        needs[i] = needs_more(near[i], four);
    }
}
"""


@pytest.mark.parametrize("off", ["", " * (1 + 0x1p-22)", " * (1 - 0x1p-22)"])
def test_a_normal_number_is_near_what_it_is_defined_as_or_computed_so(off: str, tmp_path: Path) -> None:
    program = portopt.NoisySGD().program()
    source = staged_source(program, staged_key(program, "float32"))
    for approximate, wide in (("1.0f / x;", "1.0 / x"), ("1.0f / sqrtf(x);", "1.0 / sqrt((double)x)")):
        assert source.count(approximate) == 1
        source = source.replace(approximate, f"(float)({wide}{off});")
    # Lengths near 1 and 0 and powers of two, angles near all multiples of a quarter turn; any words.
    rng = np.random.default_rng(3)
    words = rng.integers(2**32, size=(8, 20_000, 4), dtype=np.uint32)
    few = rng.integers(2**32, size=(7, 20_000), dtype=np.uint32) >> rng.integers(1, 32, (7, 20_000), dtype=np.uint32)
    words[1, :, 0], words[2, :, 0], words[3, :, 0] = ~few[0], few[1], 2**16 + (few[2] >> np.uint32(16))
    for k in range(4):
        words[4 + k, :, 2] = k * 2**30 + np.where(few[3 + k] % 2, few[3 + k], ~few[3 + k])
    words[4:, :1000, 3] = few[3:, :1000]
    words = words.reshape(-1, 4)
    near, exact, needs = np.zeros(len(words)), np.zeros(len(words)), np.zeros(len(words), bool)
    arrays = [x.view(HostArray) for x in (words.reshape(-1), near, exact, needs)]
    Kernel(compile_on_host(source + _NORMALS, tmp_path), "normals")((1,), (1,), (*arrays, np.int64(len(words))))
    known = words[:, 0] != 2**32 - 1
    most = np.max(np.abs(near[known] / exact[known] - 1))
    assert most < 2.0**-41
    assert most > 2.0**-50
    assert all(needs[~known])
    certain = near[~needs]
    # What is off by that much rounds to the same number.
    for factor in (1 - 2.0**-41, 1, 1 + 2.0**-41):
        assert np.array_equal((certain * factor).astype(np.float32), exact[~needs].astype(np.float32))
    assert needs[known].mean() < 2.0**-14


_LINES = """
extern "C" __global__ void both_ways(const float *x, Sum *found, long long rounds)
{
    Column<float> column;
    begin(column);
    Sum of_column = no_sum(LOWEST_EXPONENT);
    for (long long k = 0; k < rounds; k++) {
        float some[4];
        for (int n = 0; n < 4; n++)
            some[n] = x[4 * k + n];
        const float one[1] = {some[0]};
        add_column(column, one, 0);
        add_numbers(of_column, one);
        found[4 * k] = sum_of_bins(column.bins, column.exponent, column.special);
        found[4 * k + 1] = of_column;
        Bins rows[1];
        int exponents[1];
        add_rows(rows, exponents, some);
        found[4 * k + 2] = sum_of_row(rows[0], exponents, 0);
        Sum of_row = no_sum(LOWEST_EXPONENT);
        add_numbers(of_row, some);
        found[4 * k + 3] = of_row;
    }
}
"""


@pytest.mark.parametrize("special", [False, True])
def test_numbers_of_a_line_are_added_to_the_same_bins(special: bool, tmp_path: Path) -> None:
    """All integers are the same after each round, not only what they sum to."""
    rng, rounds = np.random.default_rng(6), 400
    exponents = np.sort(rng.integers(-126, 127, rounds))[:, None] - rng.integers(0, 100, (rounds, 4))
    x = np.ldexp(1 + rng.integers(0, 2**23, (rounds, 4)) * 2.0**-23, np.maximum(exponents, -126)).astype(np.float32)
    x *= rng.choice([-1.0, 0.0, 1.0, 1.0], x.shape).astype(np.float32)
    if special:
        x[rng.random(x.shape) < 0.01] = np.inf
        x[rng.random(x.shape) < 0.01] = np.nan
        x[rng.random(x.shape) < 0.01] = -np.inf
    x[0] = 2.0**-126
    parts = ("#define THREADS 4", source_file("arithmetic.cuh"), reductions_source(), source_file("axes.cuh"), _LINES)
    library = compile_on_host("\n".join(parts), tmp_path)
    words = np.zeros((rounds, 2, 2, 5), np.int64).view(HostArray)
    Kernel(library, "both_ways")((1,), (1,), (x.reshape(-1).view(HostArray), words, np.int64(rounds)))
    found = np.asarray(words)
    # What is special is all that counts of a line that is; bins of zeros alone may be any.
    of_numbers = (found[..., 4] == 0).all(axis=2) & found[:, :, 1, 1:4].any(axis=2)
    assert np.array_equal(found[:, :, 0, 4], found[:, :, 1, 4])
    assert np.array_equal(found[:, :, 0][of_numbers], found[:, :, 1][of_numbers])
    assert of_numbers.any(axis=0).all()
    assert found[..., 4].any() == special


_PACKED = """
extern "C" __global__ void packed(Sum *sums, long long n)
{
    for (long long i = 0; i < n; i++)
        sums[i] = whole_of(part_of(sums[i]));
}
"""


def test_what_a_tile_leaves_of_a_sum_holds_all_of_it(tmp_path: Path) -> None:
    most = 2**31 * HEIGHT
    integers = [(most, -most, most), (-most, most, -most), (0, -1, 1), (-1, 0, -1), (1, 2**24, -(2**24))]
    exponents = range(bins.LOWEST, 1041, bins.WIDTH)
    words = [(exponents[k % len(exponents)], *integers[k % 5], 0) for k in range(5 * len(exponents))]
    words += [(bins.LOWEST, 0, 0, 0, special) for special in (1, 2, 4, 6)]
    parts = ("#define THREADS 4", source_file("arithmetic.cuh"), reductions_source(), source_file("axes.cuh"), _PACKED)
    library = compile_on_host("\n".join(parts), tmp_path)
    found = np.asarray(words, np.int64).view(HostArray)
    Kernel(library, "packed")((1,), (1,), (found, np.int64(len(words))))
    assert np.asarray(found).tolist() == list(map(list, words))


# What NVRTC makes of it ---------------------------------------------------------------------------------------------


def instructions(ptx: str, kernel: str) -> Counter[str]:
    return operations(ptx.partition(f".entry {kernel}(")[2].partition(".entry ")[0])


def expected(program: Program, of_pass: tuple[int, ...], architecture: int) -> Counter[str]:
    """Count what the operations of a pass need in float32, those that they share with what is loaded apart."""
    names = [program.ops[i].name for i in of_pass]
    counted = ("add", "subtract", "multiply", "divide", "sqrt")
    return Counter(instruction(name, architecture) for name in names if name in counted)


@pytest.mark.needs("cupy")
@pytest.mark.parametrize(
    ("rule", "dtype", "architecture", "shape"),
    [
        (rule, dtype, architecture, shape)
        for i, rule in enumerate(EVERY_RULE)
        for k, (dtype, architecture) in enumerate(itertools.product(("float32", "float64"), (80, 90)))
        if rule is portopt.LAMB or k == i % 4
        # Some have other programs for vectors.
        for shape in ((3, 4), *([(5,)] if rule in (portopt.LAMB, portopt.Adafactor, portopt.SM3) else []))
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_ptx_is_rounded_once_and_passes_over_elements_have_all_their_operations(
    rule: type[portopt.Optimizer], shape: tuple[int, ...], dtype: str, architecture: int
) -> None:
    program = rule().program(shape=shape).after_totals
    if program.is_elementwise or not can_pass(program):
        return
    source = staged_source(program, staged_key(program, dtype))
    # What is nearly a number is contracted; it is never the result unless it must round to the number.
    source = source.replace(source_file("nearly_normal.cuh"), _NEARLY_NOTHING)
    ptx = nvrtc.compile_source(source, f"compute_{architecture}").decode()
    assert_only_rounded_once(ptx)
    whole = norm_dependence(program).program
    for step in passes_of(program).passes:
        drawn = any(op.name in DRAWS for op in program.ops)
        if step.kind == "elements" and step.space:
            assert re.search(r"\bst\.global\.v[24]\.", ptx.partition(f".entry {step.name}(")[2].partition(".entry ")[0])
        if step.kind == "elements" and dtype == "float32" and not drawn:
            found, wanted = instructions(ptx, step.name), expected(whole, step.operations, architecture)
            # What is loaded is multiplied by one, which flushes it.
            wanted["mul.rn.ftz.f32"] += sum(whole.ops[i].reads is not None for i in step.operations)
            wanted = +wanted
            # The compiler may write a loop twice, once for each value of a condition that all elements share.
            assert found.keys() == wanted.keys(), step.name
            assert found >= wanted, step.name


@pytest.mark.needs("cupy")
@pytest.mark.parametrize(("dtype", "architecture"), [("float32", 80), ("float64", 90)])
def test_ptx_of_totals_is_rounded_once(dtype: str, architecture: int) -> None:
    for source in (*(staged_source(p, staged_key(p, dtype)) for p in programs_of_totals()), totals_source()):
        assert_only_rounded_once(nvrtc.compile_source(source, f"compute_{architecture}").decode())


@pytest.mark.needs("cupy")
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ptx_of_slicing_and_scaling_back_is_rounded_once(dtype: str, architecture: int) -> None:
    ptx = nvrtc.compile_source(products_source(dtype), f"compute_{architecture}").decode()
    assert_only_rounded_once(ptx)
    rescaled = instructions(ptx, RESCALED)
    assert rescaled["add.rn.f64"] == {"float32": 1, "float64": 6}[dtype]


@pytest.mark.needs("cupy")
def test_machine_code_is_made() -> None:
    program = portopt.Adafactor().program(shape=(3, 4))
    for source in (staged_source(program, staged_key(program, "float32")), products_source("float64")):
        assert nvrtc.compile_source(source, "sm_80")[:4] == b"\x7fELF"


@pytest.mark.needs("cupy")
def test_a_product_in_a_capture_keeps_its_sums_in_registers() -> None:
    ptx = nvrtc.compile_source(multiplied_source(), "compute_90").decode()
    # Every sum is exact, so what is contracted is the same.
    assert ptx.count("fma.rn.f64") >= 256
    assert not re.search(r"\b(?:ld|st)\.local\b|__local_depot", ptx)
