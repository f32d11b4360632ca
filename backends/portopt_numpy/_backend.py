from __future__ import annotations

import functools
import importlib
import importlib.util
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from portopt.backend import (
    IN_PLACE,
    INTERPRETED,
    PURE,
    ArrayAPIBackend,
    ArrayInfo,
    Arrays,
    MemoryRange,
    Mode,
    Work,
    described,
    is_interpreted,
)
from portopt.interrupts import finish
from portopt.kernels.host import compiler, joined, kernel, memory, norm, products, segments, totals, trial
from portopt.kernels.host.plan import can_plan, make_plan
from portopt.kernels.host.readers import NUMPY_READER
from portopt.program import Program
from portopt.program.interpreter import StepScalars
from portopt.program.primitives import Primitives
from portopt.program.products import product_shape

_PLAIN = frozenset({np.ndarray, np.memmap})
"""Types of arrays that are numbers and nothing else."""


class NumpyBackend(ArrayAPIBackend):
    """NumPy arrays, memory-mapped ones and NumPy's scalars included; other subclasses of `numpy.ndarray` are refused."""

    modes: Mapping[str, Mode] = {mode.name: mode for mode in (PURE, IN_PLACE, INTERPRETED)}

    def __init__(self) -> None:
        super().__init__("numpy", lambda: importlib.import_module("array_api_compat.numpy"))

    def owns(self, leaf: object) -> bool:
        return isinstance(leaf, np.ndarray | np.generic)

    def version(self) -> str:
        return np.__version__

    def devices(self) -> Mapping[str, str | None]:
        return {"cpu": None}

    def has_dtype(self, name: str) -> bool:
        return name != "bfloat16" or importlib.util.find_spec("ml_dtypes") is not None

    def dtype(self, name: str) -> Any:
        return importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else np.dtype(name)

    def describe(self, array: Any) -> ArrayInfo:
        if type(array) not in _PLAIN and not isinstance(array, np.generic):
            raise TypeError(
                f"arrays of type {type(array).__name__} are not supported: a subclass of numpy.ndarray may carry more "
                "than numbers (a mask, units, names), or do its operations otherwise; convert with numpy.asarray"
            )
        return ArrayInfo(array.shape, _dtype_name(array.dtype), "cpu")

    def full(self, like: Any, value: float, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        return np.full(like.shape if shape is None else shape, value, dtype=self.dtype(dtype))

    def to_numpy(self, array: Any) -> Any:
        return np.array(array, copy=True)

    def from_numpy(self, array: Any, device: str | None) -> Any:
        if device != "cpu":
            raise ValueError(f"numpy has no device {device!r}; it has cpu")
        return np.array(array, copy=True)

    def stored(self, value: Any, like: Any) -> Any:
        return np.array(np.broadcast_to(value, like.shape), dtype=like.dtype, copy=True)

    def assignable(self, value: Any, like: Any) -> Any:
        return value

    def primitives(self, compute_dtype: str) -> Primitives:
        primitives = super().primitives(compute_dtype)
        if compiler.available() and not is_interpreted():
            primitives.fused = functools.partial(_fused, compute_dtype)
            primitives.multiply_matrices = _multiply_matrices  # type: ignore[method-assign]  # as overrides do
            primitives.squares = lambda x: norm.squares_of_arrays([x], [_dtype_name(x.dtype)])
            if compute_dtype == "float32":
                primitives.sliced, primitives.rescaled = products.slices, products.rescaled
                primitives.joined = joined.run
        return primitives

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        runs = [
            isinstance(of.scalars, StepScalars) and self.why_not_fused(of.program, of.parameters) is None
            for of in works
        ]
        if True not in runs:
            with memory.reused():
                return super().update(works, in_place=in_place)
        others = [work for work, in_kernel in zip(works, runs, strict=True) if not in_kernel] if False in runs else []
        interpreted: Iterator[dict[str, Any]] = iter(())
        if others:
            with memory.reused():
                interpreted = iter(self.results(others, in_place=in_place))
        jobs: list[kernel.Job] = []
        results: list[dict[str, Any]] = []
        copies: list[Callable[[], object]] = []
        for (program, scalars, parameters), in_kernel in zip(works, runs, strict=True):
            names = tuple(program.array_outputs)
            old = [{n: a[n] for n in names} for a in parameters] if in_place else []
            if in_kernel:
                leaves = described(self, parameters)
                dtypes = [leaf.dtypes for leaf in leaves]
                places = kernel.places_of(leaves) or () if kernel.draws(program) else ()
                new = None if in_place else [{n: np.empty(a[n].shape, a[n].dtype) for n in names} for a in parameters]
                jobs.append(kernel.Job(program, scalars, dtypes, parameters, new, places))  # type: ignore[arg-type]  # a step's scalars
            else:
                new = [next(interpreted) for _ in parameters]
                for targets, values in zip(old, new, strict=False):
                    copies += [functools.partial(operator.setitem, targets[n], ..., values[n]) for n in names]
            results += old if new is None or in_place else new
        kernel.update(jobs, copies)
        return results

    def why_not_fused(self, program: Program, parameters: Sequence[Arrays]) -> str | None:
        return kernel.why_not_fused(program, described(self, parameters))

    def total(self, name: str, works: Sequence[Work]) -> Any:
        reduction = name.removeprefix("total_")
        if is_interpreted() or not compiler.available() or not all(totals.can_run(reduction, work) for work in works):
            return super().total(name, works)
        jobs = [
            kernel.Job(program, scalars, [leaf.dtypes for leaf in described(self, parameters)], parameters, None)  # type: ignore[arg-type]  # a step's scalars
            for program, scalars, parameters in works
        ]
        return totals.total_of(reduction, jobs)

    def plan(
        self,
        programs: Sequence[Program],
        trees: Any,
        parameters: Sequence[Arrays],
        *,
        in_place: bool = True,
        same_arrays: bool = True,
    ) -> Any:
        if is_interpreted() or not compiler.available() or not can_plan(programs):
            return "not all of the step is done by kernels"
        if not _watch_works():
            return "objects of this Python or NumPy lie in memory otherwise than the compiled function reads them"
        leaves = described(self, parameters)
        return make_plan(self, programs, trees, leaves, NUMPY_READER, in_place=in_place, same_arrays=same_arrays)

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        if is_interpreted() or not compiler.available():
            return super().gradient_norm(gradients)
        return norm.norm_of_arrays(gradients, [_dtype_name(g.dtype) for g in gradients])

    def assign_all(self, targets: Sequence[Any], values: Sequence[Any]) -> None:
        finish([functools.partial(operator.setitem, target, ..., v) for target, v in zip(targets, values, strict=True)])

    def why_read_only(self, array: Any) -> str | None:
        if isinstance(array, np.generic):
            return "is a NumPy scalar"
        if not array.flags.writeable:
            return "is a read-only NumPy array"
        if array.size and _overlaps_itself(array):
            return "is a view whose elements share memory"
        return None

    def memory_range(self, array: Any) -> MemoryRange:
        if array.size == 0:
            return MemoryRange("cpu", 0, 0)
        return MemoryRange("cpu", *np.lib.array_utils.byte_bounds(array))

    def share_memory(self, a: Any, b: Any) -> bool:
        return bool(np.shares_memory(a, b))


def _multiply_matrices(a: Any, b: Any) -> Any:
    return np.matmul(a, b, out=memory.empty(product_shape(a.shape, b.shape), a.dtype))


def _fused(compute_dtype: str, program: Program, arrays: Sequence[Any], scalars: Sequence[float]) -> list[Any]:
    return segments.run(program, compute_dtype, arrays, [_dtype_name(a.dtype) for a in arrays], scalars)


@functools.cache
def _dtype_name(dtype: Any) -> str:
    """Return a dtype's name; NumPy derives it anew each time."""
    return str(dtype.name if dtype.isnative else dtype)


@functools.cache
def _watch_works() -> bool:
    def wrong(like: Any) -> list[Any]:
        return [
            np.zeros((4, 3), np.float32),
            np.zeros((3, 4), np.int32),
            np.zeros((6, 4), np.float32)[::2],
            np.zeros((4, 3), np.float32).T,
        ]

    return trial.works(NUMPY_READER, np.copy, wrong)


def _overlaps_itself(array: Any) -> bool:
    """Tell whether two elements may share memory: each stride must pass over all that the smaller ones span."""
    span = array.itemsize
    for stride, n in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if n > 1:
            if stride < span:
                return True
            span += stride * (n - 1)
    return False


backend = NumpyBackend()
