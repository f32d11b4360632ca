from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from portopt.arithmetic import HOST, Arithmetic
from portopt.arithmetic.dtypes import COMPUTE_DTYPE, SMALLEST_NORMAL, round_scalar
from portopt.backend import PURE, ArrayAPIBackend, ArrayInfo, Mode, Step
from portopt.imports import imported
from portopt.program import Program
from portopt.program.primitives import Primitives

if TYPE_CHECKING:
    from portopt.optimizer import Optimizer


class TensorFlowBackend(ArrayAPIBackend):
    """Tensors, and variables, which can be changed in place. Inside `tf.function`, scalars are computed in the graph."""

    modes: Mapping[str, Mode] = {
        "eager": Mode("eager", PURE.step),
        "function": Mode("function", lambda optimizer: _in_graph(optimizer), compiled=True),
    }
    extra_modes: Mapping[str, Mode] = {
        "XLA": Mode("XLA", lambda optimizer: _in_graph(optimizer, jit_compile=True), compiled=True)
    }

    def __init__(self) -> None:
        super().__init__(
            "tensorflow",
            lambda: importlib.import_module("portopt_tensorflow._namespace"),
            install_command='pip install "portopt[tensorflow]"',
        )

    @property
    def _tf(self) -> Any:
        return importlib.import_module("tensorflow")

    @property
    def _scalars(self) -> Any:
        return importlib.import_module("portopt_tensorflow._scalars")

    def owns(self, leaf: object) -> bool:
        tf = imported("tensorflow")
        return tf is not None and isinstance(leaf, tf.Tensor | tf.Variable)

    def version(self) -> str:
        return str(self._tf.__version__)

    def devices(self) -> Mapping[str, str | None]:
        return dict.fromkeys(_short_name(device.name) for device in self._tf.config.list_logical_devices())

    def has_dtype(self, name: str) -> bool:
        return True

    def dtype(self, name: str) -> Any:
        return self._tf.as_dtype(name)

    def describe(self, array: Any) -> ArrayInfo:
        device = None if self._is_symbolic(array) or not array.device else _short_name(array.device)
        return ArrayInfo(tuple(array.shape), self.dtype_name(array), device)

    def dtype_name(self, array: Any) -> str:
        return str(array.dtype.name)

    def _is_symbolic(self, value: object) -> bool:
        """Tell whether the value of a tensor or variable is not known yet."""
        if isinstance(value, self._tf.Variable):
            return not self._tf.executing_eagerly()
        return isinstance(value, self._tf.Tensor) and not hasattr(value, "numpy")

    def full(self, like: Any, value: float, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        filled = self._tf.fill(
            self._tf.shape(like) if shape is None else shape, self.xp.asarray(value, dtype=self.dtype(dtype))
        )
        return self._tf.Variable(filled, trainable=False) if isinstance(like, self._tf.Variable) else filled

    def _device(self, array: Any) -> Any:
        return None if self._is_symbolic(array) else array.device or None

    def to_numpy(self, array: Any) -> Any:
        return np.array(array.numpy(), copy=True)

    def from_numpy(self, array: Any, device: str | None) -> Any:
        if device not in self.devices():
            raise ValueError(f"tensorflow has no device {device!r}; it has {', '.join(self.devices())}")
        with self._tf.device(device):
            return self._tf.constant(np.array(array, copy=True))

    def arithmetic(self, values: Iterable[Any]) -> Arithmetic:
        witness = next(filter(self._is_symbolic, values), None)
        if witness is None:
            return HOST
        arithmetic: Arithmetic = self._scalars.GraphArithmetic(witness)
        return arithmetic

    def scalar(self, value: Any) -> Any:
        if not self.owns(value):
            return super().scalar(value)
        return self._tf.convert_to_tensor(value) if self._is_symbolic(value) else value.numpy().item()

    def stored_scalar(self, value: Any) -> Any:
        return value if self.owns(value) else float(value)

    def primitives(self, compute_dtype: str) -> Primitives:
        tf, xp, scalars = self._tf, self.xp, self._scalars
        smallest, dtype = SMALLEST_NORMAL[compute_dtype], self.dtype(compute_dtype)
        scale = 2.0**64 if compute_dtype == "float32" else 2.0**512
        overrides = {
            "flush": lambda x: xp.flush(x, smallest),
            "load": lambda x: xp.flush(xp.converted(x, dtype), smallest),
            "multiply": lambda a, b: scalars.multiply(a, b, smallest, scale),
            "divide": lambda a, b: scalars.divide(a, b, smallest, scale),
            # A root of a normal number is normal; but a graph compiler may merge it with a quotient that follows.
            "sqrt": lambda a: xp.flush(tf.sqrt(a), smallest),
            "equal": tf.equal,
            "constant": self._constant,
            "arange": lambda count, like: tf.range(count, dtype=tf.int64),
            # The graph optimizer turns not(a < b) into a >= b, which is false for a NaN.
            "logical_not": lambda a: tf.where(a, False, True),
        }
        return Primitives(xp, dtype, compute_dtype, overrides)

    def _constant(self, value: float, like: Any) -> Any:
        """Return a number as an array like another one, hidden from graph compilers."""
        if not self._is_symbolic(like):
            return self.xp.asarray(value, dtype=like.dtype, device=self._device(like))
        return self._tf.where(self.xp.never(like), self._tf.ones_like(like), self.xp.asarray(value, dtype=like.dtype))

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        loaded = [self.primitives(COMPUTE_DTYPE[self.dtype_name(g)]).load(g) for g in gradients]
        return self.reductions("float64").total("norm", *loaded)

    def rounded_scalars(
        self, program: Program, scalars: Sequence[Any], compute_dtype: str, like: Any
    ) -> dict[int, Any]:
        rounded = super().rounded_scalars(program, scalars, compute_dtype, like)
        if not self._is_symbolic(like):
            return rounded
        arithmetic: Any = getattr(scalars, "arithmetic", HOST)
        never = self._never(like) if arithmetic is HOST else arithmetic.never
        return {i: self._tf.where(never, self._tf.ones_like(value), value) for i, value in rounded.items()}

    def _never(self, array: Any) -> Any:
        """Return what hides constants where no scalar is symbolic, made from an element of an array."""
        tf = self._tf
        if not array.shape.num_elements():
            return tf.constant(False)
        return self.xp.never(tf.cast(tf.reshape(array, [-1])[0], tf.float32))

    def rounded_scalar(self, value: Any, compute_dtype: str, like: Any) -> Any:
        if self._is_symbolic(value):
            return self._scalars.round_symbolic(self._tf.cast(value, self._tf.float64), self.dtype(compute_dtype))
        return self.xp.asarray(
            round_scalar(float(value), compute_dtype), dtype=self.dtype(compute_dtype), device=self._device(like)
        )

    def stored(self, value: Any, like: Any) -> Any:
        return self._tf.cast(self._tf.broadcast_to(value, like.shape), like.dtype)

    def assign(self, target: Any, value: Any) -> None:
        target.assign(value)

    def why_read_only(self, array: Any) -> str | None:
        return None if isinstance(array, self._tf.Variable) else "is a tensor of TensorFlow and no tf.Variable"


def _in_graph(optimizer: Optimizer, *, jit_compile: bool = False) -> Step:
    step: Step = importlib.import_module("portopt_tensorflow._modes").in_graph(optimizer, jit_compile=jit_compile)
    return step


def _short_name(device: str) -> str:
    """Return `cpu` or `gpu:1` for the full name of a device."""
    name = device.rpartition("device:")[2].lower()
    return "cpu" if name == "cpu:0" else name


backend = TensorFlowBackend()
