"""`SymbolicNamespace`: the part of the array API that a rule may use."""

from __future__ import annotations

from typing import Any, NoReturn

from portopt.program.builder import UnsupportedOperationError
from portopt.program.ir import Kind
from portopt.program.tracing.arrays import ArraySymbol
from portopt.program.tracing.elementwise import operand, power, record
from portopt.program.tracing.matrices import identity, matmul, matrix_transpose, permuted, reshaped
from portopt.program.tracing.reductions import reduced
from portopt.program.tracing.symbol import Recorder, array_argument, index_of, is_mask


class SymbolicNamespace:
    """The part of the array API that a rule may use; each function records an operation."""

    add = staticmethod(lambda a, b: record("add", a, b))
    subtract = staticmethod(lambda a, b: record("subtract", a, b))
    multiply = staticmethod(lambda a, b: record("multiply", a, b))
    divide = staticmethod(lambda a, b: record("divide", a, b))
    negative = staticmethod(lambda a: record("negative", a))
    positive = staticmethod(lambda a: a)
    abs = staticmethod(lambda a: record("absolute", a))
    sqrt = staticmethod(lambda a: record("sqrt", a))
    square = staticmethod(lambda a: record("multiply", a, a))
    pow = staticmethod(power)
    sign = staticmethod(lambda a: record("sign", a))
    maximum = staticmethod(lambda a, b: record("maximum", a, b))
    minimum = staticmethod(lambda a, b: record("minimum", a, b))
    less = staticmethod(lambda a, b: record("less", a, b, kind=Kind.MASK))
    less_equal = staticmethod(lambda a, b: record("less_equal", a, b, kind=Kind.MASK))
    greater = staticmethod(lambda a, b: record("less", b, a, kind=Kind.MASK))
    greater_equal = staticmethod(lambda a, b: record("less_equal", b, a, kind=Kind.MASK))
    equal = staticmethod(lambda a, b: record("equal", a, b, kind=Kind.MASK))
    not_equal = staticmethod(lambda a, b: record("logical_not", record("equal", a, b, kind=Kind.MASK), kind=Kind.MASK))
    logical_and = staticmethod(lambda a, b: record("logical_and", a, b, kind=Kind.MASK))
    logical_or = staticmethod(lambda a, b: record("logical_or", a, b, kind=Kind.MASK))
    logical_not = staticmethod(lambda a: record("logical_not", a, kind=Kind.MASK))
    isnan = staticmethod(lambda a: ~(a == a))
    where = staticmethod(lambda condition, a, b: record("where", condition, a, b))
    exp = staticmethod(lambda a: record("exp", a))
    log = staticmethod(lambda a: record("log", a))
    tanh = staticmethod(lambda a: record("tanh", a))
    cbrt = staticmethod(lambda a: record("cbrt", a))
    atan2 = staticmethod(lambda a, b: record("atan2", a, b))
    matmul = staticmethod(matmul)
    matrix_transpose = staticmethod(matrix_transpose)
    permute_dims = staticmethod(permuted)
    reshape = staticmethod(reshaped)

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @staticmethod
    def sum(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return reduced("sum", "sum", x, axis, keepdims, Kind.FLOAT)

    @staticmethod
    def mean(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return reduced("mean", "mean", x, axis, keepdims, Kind.FLOAT)

    @staticmethod
    def max(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return reduced("max", "max", x, axis, keepdims, Kind.FLOAT)

    @staticmethod
    def min(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return reduced("min", "min", x, axis, keepdims, Kind.FLOAT)

    @staticmethod
    def any(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return reduced("any", "any", x, axis, keepdims, Kind.TRUTH)

    @staticmethod
    def all(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return reduced("all", "all", x, axis, keepdims, Kind.TRUTH)

    @staticmethod
    def count_nonzero(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        x = array_argument("count_nonzero", x)
        return reduced("count_nonzero", "count", x if is_mask(x) else x != 0.0, axis, keepdims, Kind.INTEGER)

    @property
    def linalg(self) -> _LinearAlgebra:
        """The array API's functions of linear algebra that programs can hold."""
        return _LinearAlgebra()

    @staticmethod
    def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
        if min is not None:
            x = record("maximum", x, min)
        return x if max is None else record("minimum", x, max)

    def zeros_like(self, x: Any) -> Any:
        return self.full_like(x, 0.0)

    def ones_like(self, x: Any) -> Any:
        return self.full_like(x, 1.0)

    def full_like(self, x: Any, fill_value: Any) -> Any:
        value = ArraySymbol(self._recorder, operand(self._recorder, fill_value))
        has_shape = isinstance(x, ArraySymbol) and self._recorder.ops[index_of(x)].dims is not None
        return record("where", x == x, value, value) if has_shape else value

    def eye(self, n_rows: Any, n_cols: Any = None, /, *, k: Any = 0) -> Any:
        return ArraySymbol(self._recorder, identity(self._recorder, n_rows, n_cols, k))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedOperationError(
            f"a rule used xp.{name}, which programs cannot hold; supported are xp.{', xp.'.join(SUPPORTED)}, and the operators "
            "+ - * / ** @ abs() comparisons & | ~"
        )


class _LinearAlgebra:
    """The part of the array API's linear algebra that a rule may use."""

    matmul = staticmethod(matmul)
    matrix_transpose = staticmethod(matrix_transpose)

    @staticmethod
    def vector_norm(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return reduced("linalg.vector_norm", "norm", x, axis, keepdims, Kind.FLOAT)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedOperationError(
            f"a rule used xp.linalg.{name}, which programs cannot hold: decompositions and solutions of equations differ between "
            "libraries; supported are xp.linalg.vector_norm, matmul and matrix_transpose, and what products make, such as "
            "coupled Newton iterations for inverse roots"
        )


SUPPORTED: tuple[str, ...] = (
    *sorted(n for n in vars(SymbolicNamespace) if not n.startswith("_") and n != "linalg"),
    "linalg.vector_norm",
)
"""Names of the array API functions that a rule may use."""
