"""The Triton kernels in Triton's interpreter. Run by `test_triton_kernel.py` in a process of its own, with TRITON_INTERPRET=1.

The interpreter works on CPU tensors, and does everything but compile: the same launches, tables and kernels as on a GPU.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from support.bits import Array, assert_same_bits, assert_same_float, ordinary, random_words
from support.carries import SQUARES, SUMS
from support.elementwise import STAGED
from support.gpu_cases import (
    DTYPES,
    PAIRS,
    EveryDraw,
    EveryFunction,
    EveryOperation,
    EveryReduction,
    EveryTotal,
    assert_gap_is_zero,
    assert_gradient_need_not_be_read,
    compare_gradients_of_another_dtype,
    compare_steps,
    each_case_in_a_dtype,
    each_extreme,
    in_a_dtype,
    norm_program,
    optimizer_of,
    reference_norm,
    reference_sums,
    shuffled,
    spread_gradients,
    trees_with_totals,
    words_and_gradients,
    words_of,
)
from support.gpu_products import compare_products
from support.rules_of_each_kind import RULES, Multiplying

import portopt
import portopt_torch
from portopt.arithmetic import HOST
from portopt.arithmetic.dtypes import round_scalar, slot_dtypes
from portopt.kernels import launch
from portopt.kernels.groups import kernel_key
from portopt.kernels.host import compiler
from portopt.kernels.norm_dependence import GradientNorm, norm_dependence
from portopt.kernels.triton.norm import norm_source
from portopt.kernels.triton.source import triton_source
from portopt.program import bins
from portopt.program.expansion import expand_elementary
from portopt.program.interpreter import evaluate_scalars
from portopt_torch import _triton
from portopt_torch._backend import TorchBackend

backend = portopt_torch.backend
WAIT = GradientNorm.__float__
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")


@pytest.fixture(autouse=True)
def _on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send CPU tensors to the Triton kernels, and fail if a step was done in another way."""
    assert os.environ.get("TRITON_INTERPRET") == "1"
    monkeypatch.setattr(TorchBackend, "_runs_triton", lambda self, tensor: True)
    monkeypatch.setattr(compiler, "available", lambda: False)

    def refuse(name: str) -> None:
        original = getattr(TorchBackend, name)

        def refused(self: Any, *arguments: Any) -> Any:
            assert portopt.backend.is_interpreted(), "torch's own operations were used in place of the kernel"
            return original(self, *arguments)

        monkeypatch.setattr(TorchBackend, name, refused)

    refuse("rounded_scalars")
    refuse("parts_of_total")
    monkeypatch.setattr(GradientNorm, "__float__", lambda self: pytest.fail("the host waited for the device"))


def to_torch(array: Any) -> Any:
    return backend.from_numpy(np.asarray(array), "cpu")


def to_numpy(tensor: Any) -> Array:
    return np.asarray(backend.to_numpy(tensor))


@each_case_in_a_dtype
def test_kernel_has_the_bits_of_the_interpreter(rule: type[portopt.Optimizer], clipped: bool, dtype: str) -> None:
    params, gradients = words_and_gradients(dtype, clipped=clipped)
    compare_steps(to_torch, to_numpy, optimizer_of(rule, clipped), params, gradients, seed=40)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operation_on_all_pairs_of_special_words(dtype: str) -> None:
    compare_steps(to_torch, to_numpy, EveryOperation(0.1), [words_of(dtype, 0)], [[words_of(dtype, 1)]])


def test_elementary_functions_have_the_bits_of_the_interpreter() -> None:
    p, g = (words_of("float32", position)[::3] for position in (0, 1))
    compare_steps(to_torch, to_numpy, EveryFunction(0.1), [p], [[g]])


@pytest.mark.parametrize(("dtype", "gradient_dtype"), PAIRS)
def test_gradients_of_another_dtype_are_loaded_into_the_compute_dtype(dtype: str, gradient_dtype: str) -> None:
    compare_gradients_of_another_dtype(to_torch, to_numpy, dtype, gradient_dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_and_quotients_in_the_gap_are_zero(dtype: str) -> None:
    assert_gap_is_zero(to_torch, to_numpy, dtype)


@pytest.mark.parametrize(("dtype", "slot_dtype"), [(d, s) for d in DTYPES for s in slot_dtypes(d)[1:]])
def test_narrow_slots_are_rounded_after_each_step(dtype: str, slot_dtype: str) -> None:
    gradients = [[words_of(dtype, 1)], [ordinary(words_of(dtype, 1).shape, dtype, 2)]]
    compare_steps(to_torch, to_numpy, portopt.Adam(0.1), [words_of(dtype, 0)], gradients, slot_dtype=slot_dtype, seed=3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_program_need_not_read_the_gradient(dtype: str) -> None:
    assert_gradient_need_not_be_read(to_torch, to_numpy, dtype)


@pytest.mark.parametrize("in_place", [False, True])
def test_any_number_of_parameters_of_any_size_and_dtype(in_place: bool) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (1,), (3000,), (1025,), (0, 3), *((k % 7,) for k in range(20))]
    dtypes = [("float32", "float32", "float16", "float64")[i % 4] for i in range(len(shapes))]
    params = [random_words(s, d, i) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))]
    gradients = [[ordinary(s, d, 100 + i) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))]]
    compare_steps(to_torch, to_numpy, portopt.Nadam(clipnorm=0.5), params, gradients, in_place=in_place)


def test_step_in_place_on_strided_tensors_writes_them() -> None:
    optimizer = portopt.Adam(0.1)
    whole, gradient = ordinary((40, 30), "float32", 1), ordinary((30, 20), "float32", 2)
    start = whole[::2].copy()
    expected, _ = optimizer.apply(start, gradient.T.copy(), optimizer.init(start))
    tensor = to_torch(whole)
    optimizer.apply_(tensor[::2], to_torch(gradient).T, optimizer.init(tensor[::2]))
    assert_same_bits(to_numpy(tensor)[::2], expected)
    assert_same_bits(to_numpy(tensor)[1::2], whole[1::2])


def test_gradients_in_the_memory_of_parameters_are_read_before_they_are_overwritten() -> None:
    optimizer = portopt.SGD(1.0, momentum=0.5)
    data = ordinary((9000,), "float32", 1)
    start = [data[:3000].copy(), data[3000:6000].copy()]
    expected, _ = optimizer.apply(start, [data[10:3010].copy(), data[:3000].copy()], optimizer.init(start))
    tensor = to_torch(data)
    params, grads = [tensor[:3000], tensor[3000:6000]], [tensor[10:3010], tensor[:3000]]
    optimizer.apply_(params, grads, optimizer.init([p.clone() for p in params]))
    for actual, wanted in zip(params, expected, strict=True):
        assert_same_bits(to_numpy(actual), wanted)


def test_leaves_that_require_grad_stay_leaves_and_autograd_sees_the_change() -> None:
    optimizer = portopt.Adam(0.1)
    leaf = torch.ones(5, requires_grad=True)
    new, _ = optimizer.apply(leaf, torch.ones(5), optimizer.init(leaf))
    assert new.requires_grad
    assert new.is_leaf
    loss = (leaf * leaf).sum()
    optimizer.apply_(leaf, torch.ones(5), optimizer.init(leaf))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def norm_of(gradients: list[Array]) -> GradientNorm:
    found = launch.gradient_norm(_triton.LIBRARY, [to_torch(g) for g in gradients])
    assert found is not None
    return found


def device_norm(gradients: list[Array]) -> float:
    found = norm_of(gradients)
    module = _triton.load_module(
        norm_source("float64")
        + "\n\n@triton.jit\ndef read(largest, sums, result):\n    tl.store(result, norm_of(tl.load(largest), sums))\n"
    )
    result = torch.zeros(1, dtype=torch.float64)
    module.read[(1,)](*_triton.LIBRARY.sums(found), result)
    return float(result[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_has_the_bits_of_the_reference_in_any_order(dtype: str) -> None:
    gradients = spread_gradients(dtype)
    expected = reference_norm(gradients)
    assert 0 < expected < np.inf
    assert device_norm(gradients).hex() == expected.hex()
    sums = _triton.LIBRARY.sums(norm_of(gradients))[1].tolist()
    assert sums == reference_sums(gradients)
    assert dtype in ("float16", "bfloat16") or all(sums)
    assert device_norm(shuffled(gradients)).hex() == expected.hex()


@each_extreme
def test_norm_of_extreme_gradients(values: list[float]) -> None:
    expected, actual = reference_norm([np.asarray(values)]), device_norm([np.asarray(values)])
    assert_same_float(actual, expected)


# Programs that reduce and draw -----------------------------------------------------------------------------------------


STAGED_SHAPES: tuple[tuple[int, ...], ...] = ((), (5,), (0, 3), (12, 7), (1100,), (2, 3, 4))


def trees(dtype: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[list[Array], list[list[Array]]]:
    params = [ordinary(shape, dtype, i) for i, shape in enumerate(shapes)]
    return params, [[ordinary(shape, dtype, 100 * k + i) for i, shape in enumerate(shapes)] for k in (1, 2)]


@in_a_dtype([*STAGED, *RULES, EveryDraw], (portopt.LAMB, portopt.SM3, portopt.NoisySGD))
def test_staged_kernels_have_the_bits_of_the_interpreter(
    rule: type[portopt.Optimizer], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = rule()
    # Totals of all parameters are numbers that the host is given.
    monkeypatch.setattr(GradientNorm, "__float__", WAIT)
    if rule is Multiplying:
        # Products are torch's.
        monkeypatch.undo()
        monkeypatch.setattr(TorchBackend, "_runs_triton", lambda self, tensor: True)
        monkeypatch.setattr(compiler, "available", lambda: False)
    # Drawing takes the interpreter long.
    compare_steps(to_torch, to_numpy, optimizer, *trees(dtype, STAGED_SHAPES[1:4:2] if rule.draws else STAGED_SHAPES))


# A narrow dtype is another load and store, as the kernels of every rule have them.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_reduction_of_all_of_rows_and_of_columns(dtype: str) -> None:
    shapes = ((40, 30), (1, 1), (0, 3), (3, 0))
    params, gradients = trees(dtype, shapes)
    # Words of any bits, infinities and NaN among them, come last: little is left of what they touch.
    gradients.append([random_words(shape, dtype, i) for i, shape in enumerate(shapes)])
    compare_steps(to_torch, to_numpy, EveryReduction(0.1), params, gradients[1:])


def test_every_reduction_of_special_numbers() -> None:
    words = (np.nan, np.inf, -np.inf, -0.0, 2.0**-1022, 2.0**1023)
    params, gradients = trees("float64", ((7, 9),) * len(words))
    for p, word in zip(params, words, strict=True):
        p[3, 4] = p[5, 2] = word
    params += [np.full((2, 3), -0.0), np.asarray([[np.inf, -np.inf, 1.0]])]
    gradients[0] += [np.ones((2, 3)), np.ones((1, 3))]
    compare_steps(to_torch, to_numpy, EveryReduction(0.1), params, gradients[:1])


def test_every_total_of_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientNorm, "__float__", WAIT)
    monkeypatch.setattr(launch, "JOINED", 9)  # parts of the large ones are joined before
    for params, gradients in trees_with_totals("float32"):
        compare_steps(to_torch, to_numpy, EveryTotal(), params, gradients)


@pytest.mark.parametrize("rule", [portopt.LAMB, portopt.SM3], ids=lambda rule: rule.__name__)
def test_staged_steps_in_place_and_clipped(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(clipnorm=0.5, clipvalue=0.01)
    compare_steps(to_torch, to_numpy, optimizer, *trees("float32", ((60,), (12, 7), (0,))), in_place=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slices_and_products_have_the_bits_of_the_definition(dtype: str) -> None:
    compare_products(backend.primitives(dtype), to_torch, to_numpy, few=True)


_FINISH = """

@triton.jit
def finish(words, largest, totals, roots, norms, COUNT: tl.constexpr):
    k = tl.arange(0, COUNT)
    at = words + 4 * k
    exponent, first, second, third = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    nothing = third * 0
    tl.store(totals + k, finished_sum(exponent, first, second, third, nothing, 0))
    tl.store(roots + k, finished_root(exponent, first, second, third, nothing))
    tl.store(norms + k, norm_of(tl.load(largest), at + 1))
"""


def test_sums_carry_as_the_reference_does() -> None:
    cases = SUMS + SQUARES
    cases += cases[:1] * (2048 - len(cases))
    heads = "from portopt.kernels.triton.reduction_support import *\n"
    module = _triton.load_module(norm_source("float64") + heads + _FINISH)
    words = torch.tensor([[case.exponent, *case.sums] for case in cases], dtype=torch.int64)
    # The norm of the gradients knows the exponent by the largest magnitude.
    largest = torch.tensor([2.0**7], dtype=torch.float64).view(torch.int64)
    totals, roots, norms = torch.zeros((3, len(cases)), dtype=torch.float64)
    module.finish[(1,)](words, largest, totals, roots, norms, COUNT=len(cases))
    for k, case in enumerate(cases):
        assert_same_float(float(totals[k]), bins.sum_of(case))
        if case.sums[0] > 1:
            assert_same_float(float(roots[k]), bins.root_of(case))
            assert_same_float(float(norms[k]), bins.root_of(case))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.25, 2.5, 37.0, 0.0, float("inf"), float("nan")])
def test_scalars_that_need_the_norm_have_the_bits_of_the_host(dtype: str, value: float) -> None:
    program = norm_program()
    split = norm_dependence(program)
    key = kernel_key(program, {"p": dtype, "g": dtype}, in_place=True, flush="where")
    module = _triton.load_module(triton_source(program, key))
    inputs = {"gradient_norm": value, "t": 5, "learning_rate": 0.3}
    largest = torch.from_numpy(np.asarray([value]).view(np.int64))
    sums = torch.tensor(reference_sums([np.asarray([value])]), dtype=torch.int64)
    values = split.host_scalars(inputs)
    given = torch.tensor([float(values[i]) for i in split.given], dtype=torch.float64)
    results = torch.zeros(len(split.rounded_on_device), dtype=getattr(torch, dtype))
    module.scalars_of_norm[(1,)](largest, sums, given, results)
    expected = evaluate_scalars(expand_elementary(program), HOST, inputs)
    wanted = [round_scalar(float(expected[j]), dtype) for _, j in split.rounded_on_device]
    assert len(wanted) == 18
    assert_same_bits(results.numpy(), np.asarray(wanted, dtype))
