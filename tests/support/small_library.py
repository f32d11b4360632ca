"""Array libraries made for a test: NumPy behind a type of their own, right but for what a test makes wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

Function = Callable[..., Any]


class Wrapped:
    """An array: its operators are those of NumPy, `replaced` by others where a test says so."""

    replaced: Mapping[str, Function] = {}

    def __init__(self, data: Any) -> None:
        self.data = np.asarray(data)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.data.astype(dtype) if dtype is not None else self.data

    def __float__(self) -> float:
        return float(self.data)

    def __int__(self) -> int:
        return int(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.data[key] = plain(value)


def plain(value: Any) -> Any:
    return value.data if isinstance(value, Wrapped) else value


def _operator(name: str) -> Function:
    def method(self: Wrapped, *others: Any) -> Wrapped:
        operands = [plain(other) for other in others]
        replaced = self.replaced.get(name)
        result = getattr(self.data, f"__{name}__")(*operands) if replaced is None else replaced(self.data, *operands)
        return type(self)(result)

    return method


_NAMES = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv mod pow neg abs lt le gt ge eq ne and rand or ror xor rxor invert "
    "lshift rshift"
)
for _name in _NAMES.split():
    setattr(Wrapped, f"__{_name}__", _operator(_name))

_FUNCTIONS: Mapping[str, Function] = {
    "abs": np.abs, "sqrt": np.sqrt, "where": np.where, "logical_and": np.logical_and, "logical_or": np.logical_or,
    "logical_not": np.logical_not, "isnan": np.isnan, "any": np.any, "max": np.max, "sum": np.sum, "round": np.round,
    "all": np.all, "min": np.min, "matmul": np.matmul, "matrix_transpose": np.matrix_transpose, "permute_dims": np.transpose,
    "floor": np.floor, "full_like": np.full_like, "bitwise_right_shift": np.right_shift,
    "arange": lambda count, dtype: np.arange(count, dtype=dtype),
    "zeros_like": np.zeros_like, "reshape": np.reshape, "maximum": np.maximum,
    "broadcast_to": np.broadcast_to, "astype": lambda x, dtype, copy=True: x.astype(dtype, copy=copy),
    "asarray": lambda x, dtype=None: np.array(x, dtype=dtype), "full": lambda shape, value, dtype: np.full(shape, value, dtype),
}  # fmt: skip


def make_library(
    name: str,
    functions: Mapping[str, Function] | None = None,
    operators: Mapping[str, Function] | None = None,
    members: Mapping[str, Any] | None = None,
    lacks: tuple[str, ...] = (),
) -> Any:
    """Return an array API namespace with a type of its own; no function takes a device.

    Args:
        name: of the namespace; its arrays are of another module.
        functions: functions on NumPy arrays in place of the right ones.
        operators: the same for operators, by names such as `"add"`.
        members: further attributes of the arrays' type.
        lacks: names that the namespace does not have.
    """
    namespace: Any = ModuleType(name)
    namespace.__version__ = "1.0"
    kind = type(
        "Array",
        (Wrapped,),
        {
            "replaced": operators or {},
            "__array_namespace__": lambda self: namespace,
            "__module__": f"{name}.arrays",
            **(members or {}),
        },
    )
    for dtype in ("float32", "float64", "int64"):
        setattr(namespace, dtype, np.dtype(dtype))
    for key, function in {**_FUNCTIONS, **(functions or {})}.items():
        setattr(
            namespace,
            key,
            lambda *a, function=function, **k: kind(function(*map(plain, a), **{n: plain(v) for n, v in k.items()})),
        )
    for key in lacks:
        delattr(namespace, key)
    namespace.Array = kind
    return namespace
