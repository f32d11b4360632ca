"""A small array library: enough of the array API for portopt, on top of NumPy's memory."""

from __future__ import annotations

from typing import Any

import numpy as np

__version__ = "0.1"

float32, float64, int64 = "float32", "float64", "int64"


class Array:
    """An array that nobody can change."""

    device = "cpu"

    def __init__(self, data: Any) -> None:
        self.data = data

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> str:
        return str(self.data.dtype)

    def __repr__(self) -> str:
        return f"Array({self.data!r})"

    def __add__(self, other: Any) -> Array:
        return Array(self.data + _data(other))

    def __sub__(self, other: Any) -> Array:
        return Array(self.data - _data(other))

    def __mul__(self, other: Any) -> Array:
        return Array(self.data * _data(other))

    def __truediv__(self, other: Any) -> Array:
        return Array(self.data / _data(other))

    def __rtruediv__(self, other: Any) -> Array:
        return Array(_data(other) / self.data)

    def __floordiv__(self, other: Any) -> Array:
        return Array(self.data // _data(other))

    def __and__(self, other: Any) -> Array:
        return Array(self.data & _data(other))

    def __or__(self, other: Any) -> Array:
        return Array(self.data | _data(other))

    def __xor__(self, other: Any) -> Array:
        return Array(self.data ^ _data(other))

    def __rxor__(self, other: Any) -> Array:
        return Array(_data(other) ^ self.data)

    def __neg__(self) -> Array:
        return Array(-self.data)

    def __lt__(self, other: Any) -> Array:
        return Array(self.data < _data(other))

    def __le__(self, other: Any) -> Array:
        return Array(self.data <= _data(other))

    def __ge__(self, other: Any) -> Array:
        return Array(self.data >= _data(other))

    def __eq__(self, other: object) -> Array:  # type: ignore[override]  # arrays compare elementwise
        return Array(self.data == _data(other))

    def __ne__(self, other: object) -> Array:  # type: ignore[override]
        return Array(self.data != _data(other))

    __hash__ = None  # type: ignore[assignment]  # equality is elementwise

    def __bool__(self) -> bool:
        return bool(self.data)

    def __int__(self) -> int:
        return int(self.data)

    def __float__(self) -> float:
        return float(self.data)


def _data(value: Any) -> Any:
    return value.data if isinstance(value, Array) else value


def asarray(value: Any, *, dtype: str | None = None, device: str | None = None, copy: bool | None = None) -> Array:
    return Array(np.array(_data(value), dtype=dtype, copy=True))


def astype(x: Array, dtype: str, *, copy: bool = True) -> Array:
    return Array(x.data.astype(dtype, copy=copy))


def where(condition: Array, a: Any, b: Any) -> Array:
    return Array(np.where(condition.data, _data(a), _data(b)))


def broadcast_to(x: Array, shape: tuple[int, ...]) -> Array:
    return Array(np.broadcast_to(x.data, shape))


def arange(stop: int, *, dtype: str | None = None, device: str | None = None) -> Array:
    return Array(np.arange(stop, dtype=dtype))


def permute_dims(x: Array, axes: tuple[int, ...]) -> Array:
    return Array(np.transpose(x.data, axes))


def matrix_transpose(x: Array) -> Array:
    return Array(np.swapaxes(x.data, -1, -2))


def _function(name: str) -> Any:
    function = getattr(np, name)
    return lambda *arrays, **options: Array(np.asarray(function(*map(_data, arrays), **options)))


abs = _function("abs")  # the array API's name
sqrt = _function("sqrt")
isnan = _function("isnan")
round = _function("round")  # the array API's name
floor = _function("floor")
maximum = _function("maximum")
bitwise_right_shift = _function("right_shift")
matmul = _function("matmul")
reshape = _function("reshape")
zeros_like = _function("zeros_like")
full_like = _function("full_like")
any = _function("any")  # the array API's name
all = _function("all")  # the array API's name
min = _function("min")  # the array API's name
max = _function("max")  # the array API's name
sum = _function("sum")  # the array API's name
logical_and = _function("logical_and")
logical_or = _function("logical_or")
logical_not = _function("logical_not")
