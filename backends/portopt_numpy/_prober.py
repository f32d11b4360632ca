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
from collections.abc import Sequence
from typing import Any

import numpy as np

from portopt.host.compiler import compile_function
from portopt.host.plan import WrittenMemory

_SOURCE = '''"""Compare NumPy array objects with what a plan expects of them."""


def kernel(objects, types, sizes, shapes, count, flags, table, columns, column, writes):
    """Return the first object that is not as expected, or -1; put addresses into the table, or compare them with it."""
    for k in range(count):
        fields = pointer_to_int64(objects[k])
        if fields[1] != types[0] or fields[7] != types[1 + k]:
            return k
        if (fields[8] & flags) != flags:
            return k
        dimensions = fields[3] & 0xFFFFFFFF
        size = 1
        shape = pointer_to_int64(fields[4])
        for axis in range(dimensions):
            size *= shape[axis]
        if size != sizes[k]:
            return k
        expected = pointer_to_int64(shapes[k])
        if (expected[3] & 0xFFFFFFFF) != dimensions:
            return k
        expected_shape = pointer_to_int64(expected[4])
        for axis in range(dimensions):
            if shape[axis] != expected_shape[axis]:
                return k
        if writes:
            table[k * columns + column] = fields[2]
        elif table[k * columns + column] != fields[2]:
            return k
    return -1
'''

_DENSE, _WRITEABLE = 0x1 | 0x100, 0x400
"""NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED, and NPY_ARRAY_WRITEABLE."""


@functools.cache
def _probe() -> Any:
    return compile_function(_SOURCE, "probe")


@functools.cache
def available() -> bool:
    """Tell whether array objects have the layout that the compiled function reads; tried on known arrays."""
    ordinary = platform.python_implementation() == "CPython" and sys.maxsize > 2**32 and sys.byteorder == "little"
    if not ordinary or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    samples: list[Any] = [np.zeros((3, 4), np.float32), np.zeros((), np.float64), np.zeros((2, 1, 5), np.uint16)]
    table = np.zeros((3, 1), np.int64)
    columns = _Columns(samples, samples, table, 0, _DENSE | _WRITEABLE)
    if not columns.matches(samples, write=True) or table[:, 0].tolist() != [a.ctypes.data for a in samples]:
        return False
    read_only = samples[0].copy()
    read_only.flags.writeable = False
    others = [read_only, np.zeros((4, 3), np.float32), np.zeros((3, 4), np.int32), np.zeros((6, 4), np.float32)[::2]]
    return not any(columns.matches([other, *samples[1:]], write=True) for other in others)


class _Columns:
    """One column of a plan's table: what its arrays must look like."""

    def __init__(self, arrays: Sequence[Any], shapes: Sequence[Any], table: Any, column: int, flags: int) -> None:
        self._types = array("q", [id(np.ndarray), *(id(a.dtype) for a in arrays)])
        self._dtypes = [a.dtype for a in arrays]
        self._sizes = array("q", [a.size for a in arrays])
        self._shapes = array("q", map(id, shapes))
        self._shape_holders = list(shapes)
        self._result = array("q", [0, 0])
        self._table = table
        address = self._result.buffer_info()[0]
        self._before = (address, address + 8)
        self._after = (
            self._types.buffer_info()[0],
            self._sizes.buffer_info()[0],
            self._shapes.buffer_info()[0],
            len(arrays),
            flags,
            table.ctypes.data,
            table.shape[1],
            column,
        )

    def matches(self, arrays: Sequence[Any], *, write: bool) -> bool:
        if len(arrays) != len(self._sizes):
            return False
        return self.match_ids(array("q", map(id, arrays)), write=write)

    def match_ids(self, ids: array[int], *, write: bool) -> bool:
        _probe()(*self._before, ids.buffer_info()[0], *self._after, write)
        return self._result[0] == -1


class NumpyProber:
    """Looks at NumPy arrays between two steps of a plan.

    Args:
        parameters: name to array, of each parameter.
        columns: names of the table's columns.
        table: addresses, one row a parameter.
    """

    def __init__(self, parameters: Sequence[dict[str, Any]], columns: Sequence[str], table: Any) -> None:
        # Empty arrays of the parameters' shapes, for comparison: the plan must not keep the parameters alive.
        shapes = [
            np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), p["p"].shape, (0,) * p["p"].ndim) for p in parameters
        ]
        self._table = table
        self._written = [
            (
                array("q", (id(p[name]) for p in parameters)),
                _Columns([p[name] for p in parameters], shapes, table, k, _DENSE | _WRITEABLE),
            )
            for k, name in enumerate(columns)
            if name != "g"
        ]
        self._gradient_column = list(columns).index("g")
        gradients = [p["p"] for p in parameters]
        self._gradients = _Columns(gradients, shapes, table, self._gradient_column, _DENSE)
        starts = [p[name].ctypes.data for p in parameters for name in columns if name != "g"]
        ends = [p[name].ctypes.data + p[name].nbytes for p in parameters for name in columns if name != "g"]
        self._memory = WrittenMemory(np.array(starts, np.int64), np.array(ends, np.int64))
        self._bytes = np.array([p["p"].nbytes for p in parameters], np.int64)

    def unchanged(self) -> bool:
        return all(columns.match_ids(ids, write=False) for ids, columns in self._written)

    def read_gradients(self, gradients: list[Any]) -> bool:
        return self._gradients.matches(gradients, write=True) and not self._memory.overlaps(
            self._table[:, self._gradient_column], self._bytes
        )

    def written(self) -> None:
        pass
