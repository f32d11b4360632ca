"""Looking at many NumPy arrays in one compiled call, between two steps of a plan.

`array.ctypes.data` takes over a microsecond in Python, more than the step itself for a small array. The memory layout of an
array object is part of NumPy's binary interface (`PyArrayObject_fields`), so compiled code can read it. It is tried on known
arrays first; where it does not give what NumPy says (another Python implementation, a build without the global interpreter
lock) there is no prober, and each step makes the full check.
"""

from __future__ import annotations

import functools
import platform
import sys
import sysconfig
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from portopt.host.compiler import compile_function
from portopt.host.plan import merged_ranges

_SOURCE = '''"""Compare NumPy array objects with what a plan expects of them."""


def kernel(gradients, written, types, sizes, shapes, count, table, columns, column, starts, ends, intervals):
    """Return the first parameter whose arrays are not as expected, or -1; put the gradients' addresses into the table."""
    for k in range(count):
        expected = pointer_to_int64(shapes[k])
        for c in range(columns):
            if c == column:
                fields = pointer_to_int64(gradients[k])
                flags = 0x101
            else:
                fields = pointer_to_int64(written[k * columns + c])
                flags = 0x501
            if fields[1] != types[0] or fields[7] != types[1 + k * columns + c] or (fields[8] & flags) != flags:
                return k
            dimensions = fields[3] & 0xFFFFFFFF
            if (expected[3] & 0xFFFFFFFF) != dimensions:
                return k
            shape = pointer_to_int64(fields[4])
            expected_shape = pointer_to_int64(expected[4])
            size = 1
            for axis in range(dimensions):
                size *= shape[axis]
                if shape[axis] != expected_shape[axis]:
                    return k
            if size != sizes[k]:
                return k
            if c != column:
                if table[k * columns + c] != fields[2]:
                    return k
                continue
            table[k * columns + c] = fields[2]
            first = 0
            last = intervals
            while first < last:
                middle = (first + last) // 2
                if ends[middle] <= fields[2]:
                    first = middle + 1
                else:
                    last = middle
            if size > 0 and first < intervals and starts[first] < fields[2] + size * types[1 + count * columns]:
                return k
    return -1
'''
# flags: 0x1 is NPY_ARRAY_C_CONTIGUOUS, 0x100 NPY_ARRAY_ALIGNED, 0x400 NPY_ARRAY_WRITEABLE


@functools.cache
def _probe() -> Any:
    return compile_function(_SOURCE, "probe")


@functools.cache
def available() -> bool:
    """Tell whether array objects have the layout that the compiled function reads; tried on known arrays."""
    ordinary = platform.python_implementation() == "CPython" and sys.maxsize > 2**32 and sys.byteorder == "little"
    if not ordinary or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    samples: list[Any] = [np.zeros((3, 4), np.float32), np.zeros((), np.float32), np.zeros((2, 1, 5), np.float32)]
    gradients = [np.ones_like(a) for a in samples]
    table = np.array([[a.ctypes.data, 0] for a in samples], np.int64)
    prober = NumpyProber([{"p": p, "g": g} for p, g in zip(samples, gradients, strict=True)], ("p", "g"), table)
    if not prober.fits(gradients) or table[:, 1].tolist() != [a.ctypes.data for a in gradients]:
        return False
    wrong = [
        np.zeros((4, 3), np.float32),
        np.zeros((3, 4), np.int32),
        np.zeros((6, 4), np.float32)[::2],
        samples[0],
        1.0,
    ]
    if any(prober.fits([other, *gradients[1:]]) for other in wrong):
        return False
    samples[0].flags.writeable = False
    return not prober.fits(gradients)


class NumpyProber:
    """Looks at NumPy arrays between two steps of a plan.

    Args:
        parameters: name to array, of each parameter.
        columns: names of the table's columns.
        table: addresses, one row a parameter.
    """

    def __init__(self, parameters: Sequence[Mapping[str, Any]], columns: Sequence[str], table: Any) -> None:
        # Arrays without memory of the parameters' shapes, to compare with: a plan must not keep the parameters alive.
        shapes = [
            np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), p["p"].shape, (0,) * p["p"].ndim) for p in parameters
        ]
        names = [name for name in columns if name != "g"]
        first = parameters[0]
        dtypes = [p[name].dtype for p in parameters for name in columns]
        written = array("q", [0 if name == "g" else id(p[name]) for p in parameters for name in columns])
        types = array("q", [id(np.ndarray), *map(id, dtypes), first["g"].itemsize])
        sizes = array("q", [p["p"].size for p in parameters])
        starts, ends = merged_ranges([(p[n].ctypes.data, p[n].nbytes) for p in parameters for n in names])
        shape_ids = array("q", map(id, shapes))
        result = array("q", [0, 0])
        self._count, self._result = len(parameters), result
        self._keep_alive = (shapes, dtypes, written, types, sizes, starts, ends, shape_ids, table)
        self._before = (result.buffer_info()[0], result.buffer_info()[0] + 8)
        self._after = (
            written.buffer_info()[0], types.buffer_info()[0], sizes.buffer_info()[0], shape_ids.buffer_info()[0],
            self._count, table.ctypes.data, len(columns), list(columns).index("g"),
            starts.buffer_info()[0], ends.buffer_info()[0], len(starts),
        )  # fmt: skip
        self._probe = _probe()

    def fits(self, gradients: list[Any]) -> bool:
        if len(gradients) != self._count:
            return False
        ids = array("q", map(id, gradients))
        self._probe(*self._before, ids.buffer_info()[0], *self._after)
        return self._result[0] == -1

    def written(self) -> None:
        pass
