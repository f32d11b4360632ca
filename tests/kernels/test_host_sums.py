"""How the kernels for host memory finish sums: their functions as Python, which they are before they are compiled."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from support.bits import assert_same_float
from support.carries import SQUARES, SUMS

import portopt
from portopt.kernels.host.reduction_source import reducing_functions_source
from portopt.kernels.host.staged_source import stages_of
from portopt.program import bins


def float64_of_bits(word: int) -> float:
    return float(struct.unpack("d", struct.pack("q", word))[0])


def functions() -> dict[str, Any]:
    class Reducing(portopt.Optimizer):
        slots = ()

        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return p - xp.sum(p) * xp.linalg.vector_norm(g) * g, {}

    namespace: dict[str, Any] = {"float64_of_bits": float64_of_bits, "sqrt": math.sqrt}
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
