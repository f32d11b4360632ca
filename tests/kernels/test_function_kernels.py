"""Elementary functions in the host kernel: the bits of the interpreter, and no line where a rule needs none."""

from __future__ import annotations

import numpy as np
import pytest
from support.bits import assert_same_bits
from support.gpu_cases import EveryFunction, key_of, words_of

import portopt
from portopt.kernels.groups import kernel_key
from portopt.kernels.host import compiler, kernel
from portopt.kernels.host.source import kernel_source

pytestmark = pytest.mark.needs("numba")


@pytest.mark.parametrize(("dtype", "flush"), [("float32", "register"), ("float64", "where")])
def test_functions_have_the_bits_of_the_interpreter(dtype: str, flush: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "default_flush", lambda: flush)
    optimizer, p, g = EveryFunction(0.1), words_of(dtype, 0), words_of(dtype, 1)
    assert compiler.available()
    assert optimizer.program().is_elementwise
    found, state = optimizer.apply(p, g, optimizer.init(p))
    with portopt.interpreted():
        expected, expected_state = optimizer.apply(p, g, optimizer.init(p))
    assert_same_bits(found, expected)
    for name, slot in expected_state.slots.items():
        assert_same_bits(state.slots[name], slot, name)


def test_a_function_is_written_once_and_only_if_it_is_used() -> None:
    source = kernel_source(EveryFunction().program(), key_of(EveryFunction(), "float32"))
    assert source.count("def power_of_float32(element_x, element_y):") == 1
    assert source.count("power_of_float32(") == 3
    plain = portopt.SGD().program()
    key = kernel_key(plain, {"p": "float32", "g": "float32", "moment": "float32"}, in_place=True, flush="where")
    assert "_of_float32" not in kernel_source(plain, key)


def test_functions_of_numbers_of_no_axes() -> None:
    optimizer, p = EveryFunction(0.1), np.float32(0.7)
    found, _ = optimizer.apply(p, p, optimizer.init(p))
    with portopt.interpreted():
        expected, _ = optimizer.apply(p, p, optimizer.init(p))
    assert_same_bits(found, expected)
