"""What vectors are written with in LLVM's language. Imports llvmlite: only the compiler imports this module.

Vectors are as long as the widest registers; LLVM takes several where they are shorter.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

FLOAT, DOUBLE, INT32, INT64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
DOUBLES_AT_ONCE = 8
"""float64 numbers in a vector."""
LINE = 16
"""Numbers of four bytes in a line of a cache."""


def repeated(builder: Any, value: Any, count: int) -> Any:
    """Return a vector of one value."""
    vector = ir.VectorType(value.type, count)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(INT32, 0))
    everywhere = ir.Constant(ir.VectorType(INT32, count), [0] * count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), everywhere)


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Return the result, of a type, of a function of LLVM's, given its name after `llvm.`."""
    function = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}"), args)


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return `a * b + c` of vectors of float64 numbers whose products are exact: fused where the processor can."""
    return call(builder, f"fmuladd.v{a.type.count}f64", a.type, a, b, c)


def fetch(builder: Any, place: Any) -> None:
    """Fetch the line of the cache at an address. That may be beyond the end of an array: fetching cannot fail."""
    # To read, into all caches, data.
    how = [ir.Constant(INT32, k) for k in (0, 3, 1)]
    call(builder, "prefetch.p0", ir.VoidType(), builder.bitcast(place, ir.IntType(8).as_pointer()), *how)
