"""dtypes: in = out, slots in the compute dtype, and arrays that are refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from support.bits import assert_same_bits, numpy_dtype, ordinary, random_words
from support.libraries import LIBRARIES, RUNS, Library, Run, steps
from support.turns import in_turns

import portopt
from portopt.arithmetic.dtypes import COMPUTE_DTYPE

CASES = [(library, dtype) for library in LIBRARIES for dtype in library.backend.dtypes()]
each_case = pytest.mark.parametrize(("library", "dtype"), CASES, ids=lambda x: str(x))
NARROW = ("float16", "bfloat16")


def runs_with(*dtypes: str) -> list[Run]:
    return [run for run in RUNS if set(dtypes) <= set(run.library.backend.dtypes())]


def test_libraries_have_the_dtypes_that_they_should() -> None:
    found = {library.name: set(library.backend.dtypes()) for library in LIBRARIES}
    everything = {"float16", "bfloat16", "float32", "float64"}
    assert found["numpy"] == found["torch"] == found["jax"] == everything
    assert found["array_api_strict"] == {"float32", "float64"}


@pytest.mark.parametrize(
    ("library", "rule", "dtype"),
    [
        (library, rule, dtype)
        for library in LIBRARIES
        for rule, dtype in in_turns(
            portopt.RULES, list(library.backend.dtypes()), in_all=(portopt.Adam, portopt.LAMB, portopt.Muon)
        )
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_dtype_in_is_dtype_out(rule: type[portopt.Optimizer], library: Library, dtype: str) -> None:
    optimizer = rule()
    with library.precision(dtype):
        params = library.arrays({"w": ordinary((3,), dtype, 1)})
        grads = library.arrays({"w": ordinary((3,), dtype, 2)})
        state = optimizer.init(params)
        for _ in range(2):
            params, state = optimizer.apply(params, grads, state)
            assert library.backend.describe(params["w"]).dtype == dtype
            slots = [slot["w"] for name, slot in state.slots.items() if name not in optimizer.scalar_slots]
            assert {library.backend.describe(slot).dtype for slot in slots} <= {COMPUTE_DTYPE[dtype]}


@pytest.mark.parametrize(("dtype", "run"), [(dtype, run) for dtype in NARROW for run in runs_with(dtype)], ids=str)
def test_narrow_parameters_are_computed_in_float32_and_rounded_once(dtype: str, run: Run) -> None:
    optimizer = portopt.Adam(0.01)
    params, gradients = random_words((500,), dtype, 1), [random_words((500,), dtype, 2 + i) for i in range(3)]
    p, state = params, optimizer.init(params.astype(np.float32))
    with np.errstate(all="ignore"):
        for gradient in gradients:
            wide, state = optimizer.apply(p.astype(np.float32), gradient.astype(np.float32), state)
            p = wide.astype(numpy_dtype(dtype))
        actual, actual_state = steps(run, optimizer, params, gradients, dtype)
    assert_same_bits(actual, p)
    for name in optimizer.slots:
        assert_same_bits(actual_state.slots[name], state.slots[name], name)


@pytest.mark.parametrize("run", runs_with("float16"), ids=str)
def test_subnormals_of_float16_are_ordinary_numbers(run: Run) -> None:
    tiny = np.asarray([2.0**-24, -(2.0**-20)], np.float16)
    actual, _ = steps(run, portopt.SGD(1.0), tiny, [-tiny], "float16")
    assert_same_bits(actual, np.asarray([2.0**-23, -(2.0**-19)], np.float16))


@pytest.mark.parametrize("run", RUNS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormals_of_the_compute_dtype_are_zero(dtype: str, run: Run) -> None:
    tiny = np.finfo(dtype).smallest_normal
    params = np.asarray([tiny, tiny / 2, -tiny / 2, tiny, -tiny], dtype)
    grads = np.asarray([0.0, 0.0, 0.0, tiny / 2, -tiny / 4], dtype)
    actual, _ = steps(run, portopt.SGD(1.0), params, [grads], dtype)
    assert_same_bits(actual, np.asarray([tiny, 0.0, -0.0, tiny, -tiny], dtype))
    halves = np.asarray([tiny, -tiny], dtype)
    result, _ = steps(run, portopt.SGD(1.0), halves, [halves * np.asarray(1.5, dtype)], dtype)
    assert_same_bits(result, np.asarray([-0.0, 0.0], dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_mixed_dtypes_in_one_tree(dtype: str) -> None:
    optimizer = portopt.Adam(clipvalue=1.0)
    params = {"a": ordinary((3,), dtype, 1), "b": ordinary((3,), "float32", 2)}
    grads = {"a": ordinary((3,), dtype, 3), "b": ordinary((3,), "float32", 4)}
    both, _ = optimizer.apply(params, grads, optimizer.init(params))
    for name in ("a", "b"):
        alone, _ = optimizer.apply(params[name], grads[name], optimizer.init(params[name]))
        assert_same_bits(both[name], alone)


# slot_dtype


@pytest.mark.parametrize(
    ("dtype", "slot_dtype", "run"),
    [(p, slot, run) for p in ("float32", "bfloat16") for slot in NARROW for run in runs_with(p, slot)],
    ids=str,
)
def test_narrow_slots_are_rounded_after_each_step(dtype: str, slot_dtype: str, run: Run) -> None:
    library, optimizer = run.library, portopt.Adam(0.01)
    params, gradients = ordinary((50,), dtype, 1), [ordinary((50,), dtype, 2 + i) for i in range(3)]
    p, state = params, optimizer.init(params)
    for gradient in gradients:
        p, state = optimizer.apply(p, gradient, state)
        narrow = {name: slot.astype(numpy_dtype(slot_dtype)).astype(np.float32) for name, slot in state.slots.items()}
        state = state._replace(slots=narrow)

    arrays = library.arrays(params)
    start = optimizer.init(arrays, slot_dtype=slot_dtype)
    actual, final = run.mode.many(optimizer, arrays, [library.arrays(g) for g in gradients], start)
    assert_same_bits(library.numpy(actual), p)
    for name in optimizer.slots:
        assert library.backend.describe(final.slots[name]).dtype == slot_dtype
        assert_same_bits(library.numpy(final.slots[name]).astype(np.float32), state.slots[name], name)


@each_case
def test_slot_dtype_may_be_the_compute_dtype(library: Library, dtype: str) -> None:
    with library.precision(dtype):
        params = library.arrays(ordinary((2,), dtype, 1))
        state = portopt.SGD().init(params, slot_dtype=COMPUTE_DTYPE[dtype])
        assert library.backend.describe(state.slots["moment"]).dtype == COMPUTE_DTYPE[dtype]


@pytest.mark.parametrize(
    ("dtype", "slot_dtype", "allowed"),
    [
        ("float32", "float64", "float32 or float16 or bfloat16"),
        ("float16", "float64", "float32 or float16 or bfloat16"),
        ("float64", "float32", "float64"),
        ("float32", "int8", "float32 or float16 or bfloat16"),
        ("float32", "double", "float32 or float16 or bfloat16"),
    ],
)
def test_slot_dtype_that_does_not_fit_is_refused(dtype: str, slot_dtype: str, allowed: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared as a whole
        portopt.SGD().init({"w": ordinary((2,), dtype, 1)}, slot_dtype=slot_dtype)
    assert str(caught.value) == (
        f'slot_dtype {slot_dtype!r} was given, but slots of params["w"], which has dtype {dtype}, must be of dtype {allowed}'
    )


def test_slots_of_a_dtype_that_does_not_fit_are_refused() -> None:
    optimizer, p = portopt.SGD(), np.ones(2, np.float32)
    state = optimizer.init(p)
    for dtype in (np.float64, np.int32):
        wrong = state._replace(slots={"moment": np.zeros(2, dtype)})
        with pytest.raises(
            TypeError, match=rf"state.slots\['moment'\] has dtype {np.dtype(dtype)}, but params has dtype float32"
        ):
            optimizer.apply(p, p, wrong)


# Arrays that are refused


REFUSED = ["int8", "int32", "int64", "uint8", "bool", "complex64", "complex128"]


@pytest.mark.parametrize("library", LIBRARIES, ids=str)
@pytest.mark.parametrize("dtype", REFUSED)
def test_parameters_of_other_dtypes_are_refused(dtype: str, library: Library) -> None:
    with library.precision("float64"):
        params = {"w": library.arrays(np.zeros(2, np.float32)), "n": library.arrays(np.zeros(2, dtype))}
        with pytest.raises(TypeError) as caught:
            portopt.SGD().init(params)
    assert str(caught.value) == (
        f'params["n"] has dtype {dtype}; parameters must be of dtype float16, bfloat16, float32, float64: '
        "leave other arrays out of params, or convert them"
    )


@pytest.mark.parametrize("dtype", [np.longdouble, object, "U1", "M8[s]", ml_dtypes.float8_e4m3fn, "f4,f4"], ids=str)
def test_other_numpy_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(
        TypeError, match=r'params\["w"\] has dtype .*; parameters must be of dtype float16, bfloat16, float32'
    ):
        portopt.SGD().init({"w": np.zeros(2, dtype)})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_big_endian_arrays_are_refused_by_name(dtype: str) -> None:
    swapped = np.dtype(dtype).newbyteorder()
    with pytest.raises(TypeError, match=rf'params\["w"\] has dtype {swapped.str}; parameters must be of dtype float16'):
        portopt.SGD().init({"w": np.zeros(2, swapped)})
    p = {"w": np.zeros(2, dtype)}
    with pytest.raises(TypeError, match=rf'grads\["w"\] has dtype {swapped.str}, but params\["w"\] has dtype {dtype}'):
        portopt.SGD().apply(p, {"w": np.zeros(2, swapped)}, portopt.SGD().init(p))


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [lambda: np.ma.ones(3, np.float32), lambda: np.matrix([1.0]), lambda: np.rec.array(np.ones(3))],
    ids=["masked", "matrix", "recarray"],
)
def test_arrays_with_other_arithmetic_are_refused(make: Any) -> None:
    name = type(make()).__name__
    text = (
        rf"arrays of type {name} are not supported: a subclass of numpy\.ndarray may carry more than numbers \(a mask, units, "
        r"names\), or do its operations otherwise; convert with numpy\.asarray"
    )
    with pytest.raises(TypeError, match=rf'^params\["w"\].*{text}'):
        portopt.SGD().init({"w": make()})
    p = {"w": np.asarray(make())}
    with pytest.raises(TypeError, match=rf'^grads\["w"\].*{text}'):
        portopt.SGD().apply(p, {"w": make()}, portopt.SGD().init(p))


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_sparse_tensors_are_refused(layout: str) -> None:
    sparse = getattr(torch.eye(3), layout)()
    text = r"tensors of layout torch\.sparse_\w+ are not supported: a rule updates every element; convert with to_dense\(\)"
    with pytest.raises(TypeError, match=rf'^params\["w"\].*{text}'):
        portopt.SGD().init({"w": sparse})
    p = {"w": torch.eye(3)}
    with pytest.raises(TypeError, match=rf'^grads\["w"\].*{text}'):
        portopt.SGD().apply(p, {"w": sparse}, portopt.SGD().init(p))


def test_memory_maps_are_arrays(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "w", np.float32, "w+", shape=(3,))
    mapped[:] = 1.0
    optimizer = portopt.SGD(0.5)
    new, _ = optimizer.apply(mapped, np.ones(3, np.float32), optimizer.init(mapped))
    assert_same_bits(new, np.full(3, 0.5, np.float32))
    optimizer.apply_(mapped, np.ones(3, np.float32), optimizer.init(mapped))
    assert_same_bits(np.fromfile(tmp_path / "w", np.float32), np.full(3, 0.5, np.float32))
