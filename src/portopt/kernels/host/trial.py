"""Whether the compiled look reads this Python and an array library aright, tried on known arrays.

Where it does not (another Python implementation, a build without the global interpreter lock) nothing is watched, and each step
makes the full check.
"""

from __future__ import annotations

import platform
import sys
import sysconfig
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from portopt.backend import Leaf
from portopt.kernels.host.kernel import Inputs, Work
from portopt.kernels.host.readers import ArrayReader
from portopt.kernels.host.watch import Watch, size_of
from portopt.program import Program


def works(reader: ArrayReader, make: Callable[[Any], Any], wrong: Callable[[Any], Sequence[Any]]) -> bool:
    """Tell whether trees and arrays are laid out in memory as the compiled function reads them; tried on known arrays.

    Args:
        reader: how arrays are read.
        make: returns an array of the library with the values of a float32 NumPy array, on memory of its own.
        wrong: given an array of shape (3, 4), returns objects that must not be taken for a gradient of it.
    """
    ordinary = platform.python_implementation() == "CPython" and sys.maxsize > 2**32 and sys.byteorder == "little"
    if not ordinary or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    first, second, third = (make(np.ones(shape, np.float32)) for shape in ((3, 4), (), (2, 1, 5)))
    params = {"b": [first, (second,)], "a": third}
    g1, g2, g3 = (make(np.zeros(shape, np.float32)) for shape in ((3, 4), (), (2, 1, 5)))
    arrays = [Leaf({"p": p, "g": g}, {}, i) for i, (p, g) in enumerate(((third, g3), (first, g1), (second, g2)))]
    table = np.array([[reader.address(a["p"]), 0] for a in arrays], np.int64)
    sizes = np.array([size_of(a["p"]) for a in arrays], np.int64)
    work = Work(_NoKernel(), range(3), table, sizes, 0)  # type: ignore[arg-type]  # it is not run
    grads = {"b": [g1, (g2,)], "a": g3}
    watch = Watch(reader, (params, grads, {}), (), arrays, (), [work], Inputs([work]), same_arrays=True)
    call = watch.begin()
    if not watch.is_possible or not watch.look(params, grads, {}) or not watch.look(params, grads, {}, call=call):
        return False
    if call.table.tolist()[1::2] != [reader.address(g) for g in (g3, g1, g2)]:
        return False
    if list(map(id, call.written)) != list(map(id, (third, first, second))):
        return False
    if list(map(id, call.gradients)) != list(map(id, (g3, g1, g2))) or not watch.look(None, None, None, call=call):
        return False
    equal_key = "".join(("", "a"))
    if not watch.look({"b": params["b"], equal_key: third}, dict(grads), {}):
        return False
    others = [
        {"b": [first, (second,)], "c": third},
        {"b": [first, second], "a": third},
        {"b": [first, (make(np.ones((), np.float32)),)], "a": third},
        [first, second, third],
        first,
    ]
    if any(watch.look(other, grads, {}) for other in others) or watch.look(params, grads, {"m": 0.0}):
        return False
    bad = (*wrong(first), first, 1.0, None)
    return not any(watch.look(params, {"b": [other, (g2,)], "a": g3}, {}) for other in bad)


class _NoKernel:
    columns = ("p", "g")
    address = 0
    inputs = ()
    stages = None
    program = Program("", (), {})
