"""How the kernels for host memory finish sums: their functions as Python, which they are before they are compiled."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from support.bits import assert_same_float
from support.carries import SQUARES, SUMS

import portopt
from portopt.kernels.host.reduction_source import reducing_functions_source
from portopt.kernels.host.staged_steps import stages_of
from portopt.program import bins


def float64_of_bits(word: int) -> float:
    return float(struct.unpack("d", struct.pack("q", word))[0])


def int64_of_bits(x: float) -> int:
    return int(struct.unpack("q", struct.pack("d", x))[0])


def functions() -> dict[str, Any]:
    class Reducing(portopt.Optimizer):
        slots = ()

        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return p - xp.sum(p) * xp.linalg.vector_norm(g) * g, {}

    namespace: dict[str, Any] = {
        "float64": float,
        "float64_inf": math.inf,
        "float64_of_bits": float64_of_bits,
        "int64_of_bits": int64_of_bits,
        "integer_float64": int,
        "larger_float64": max,
        "magnitude_float64": lambda x: int64_of_bits(abs(x)),
        "magnitude_to_float64": float64_of_bits,
        "sqrt": math.sqrt,
        "use_widest_vectors": lambda: None,
        "compile_once": lambda: None,
    }
    exec(reducing_functions_source(stages_of(Reducing().program(shape=(3,))), "float64"), namespace)
    return namespace


def kept(case: bins.Bins) -> Any:
    """Return the bins of one sum as the kernels keep them."""
    return np.asarray([case.exponent, *case.sums, 0], np.int64)


def test_sums_carry_as_the_reference_does() -> None:
    sum_of, root_of = (functions()[name] for name in ("sum_of", "root_of"))
    for case in SUMS + SQUARES:
        assert_same_float(sum_of(kept(case), 1, 0, 0), bins.sum_of(case))
    for case in SQUARES:
        assert_same_float(root_of(kept(case), 1, 0), bins.root_of(case))


@pytest.mark.parametrize(
    "what", ["like", "later ones larger", "columns of many sizes", "at bounds", "large", "largest", "special"]
)
def test_a_row_of_sums_is_what_each_is_alone(what: str) -> None:
    namespace = functions()
    rng = np.random.default_rng(0)
    rows = rng.uniform(1.0, 2.0, (6, 5)) * rng.choice([-1.0, 1.0], (6, 5))
    if what == "later ones larger":
        rows *= 2.0 ** np.asarray([0, 0, 0, 40, 70, 0])[:, None]
    elif what == "columns of many sizes":
        rows *= 2.0 ** np.asarray([-1020, -40, 0, 980, 1020])
    elif what == "at bounds":
        rows = np.sign(rows) * np.where(rng.random((6, 5)) < 0.5, 1.0, 1.0 - 2.0**-53)
        rows *= 2.0 ** np.asarray([-912, -16, 16, 976, 1008])
    elif what in ("large", "largest"):
        rows *= 2.0 ** (970 if what == "large" else 1020)
    elif what == "special":
        rows[3, 1], rows[4, 2], rows[5, 2] = math.nan, math.inf, -math.inf
    together = [0] * 25
    namespace["clear_bins"](together, 5, bins.LOWEST)
    alone = list(together)
    for row in rows.tolist():
        namespace["add_row"](row, 5, together, 5, 0)
        for k, x in enumerate(row):
            namespace["add"]([x], 1, int64_of_bits(abs(x)), alone, 5, k)
    # Of a sum with a special element, only that is true.
    compared = [i for i in range(25) if i >= 20 or alone[20 + i % 5] == 0]
    assert [together[i] for i in compared] == [alone[i] for i in compared]
    numpy: Any = portopt.get_backend("numpy")
    for k, column in enumerate(rows.T):
        if np.all(np.isfinite(column)):
            with numpy.quiet():
                expected = numpy.reductions("float64").partial("sum", column)
            assert (alone[k], *alone[5 + k : 20 : 5]) == (expected.exponent, *expected.sums)
    assert any(alone[20:]) == (what == "special")
