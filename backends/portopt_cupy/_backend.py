from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from portopt.arithmetic.dtypes import round_scalar
from portopt.backend import (
    IN_PLACE,
    INTERPRETED,
    PURE,
    ArrayAPIBackend,
    ArrayInfo,
    Arrays,
    DeviceScalars,
    MemoryRange,
    Mode,
    Work,
    described,
    is_interpreted,
)
from portopt.imports import imported
from portopt.kernels import launch, products
from portopt.kernels.captured_step import CudaGraphs
from portopt.kernels.cuda.library import CudaLibrary
from portopt.kernels.device_arithmetic import DeviceOperations
from portopt.kernels.device_plan import make_device_plan
from portopt.kernels.host import compiler
from portopt.kernels.host.readers import ArrayReader, reader_over
from portopt.kernels.norm_dependence import GradientNorm
from portopt.program import Program
from portopt.program.primitives import Primitives
from portopt_cupy._conversion import widened
from portopt_cupy._driver import driver_version, install_command


class CupyBackend(ArrayAPIBackend):
    """CuPy arrays. CuPy's elementwise kernels are compiled one operation at a time, so nothing can be contracted."""

    modes: Mapping[str, Mode] = {mode.name: mode for mode in (PURE, IN_PLACE, INTERPRETED)}

    def __init__(self) -> None:
        super().__init__("cupy", lambda: importlib.import_module("array_api_compat.cupy"))
        self.graphs: CudaGraphs = CudaGraphs(
            self,
            lambda: self._library,
            lambda array: True,
            lambda arrays: self._is_captured(arrays),
            self.assign,
            _OnDevice,
            lambda array: self._reader([array]),
            lambda: None,
        )

    @property
    def install_command(self) -> str:
        # The driver is asked only if somebody wants to know: it is a large library.
        return install_command(driver_version())

    @install_command.setter
    def install_command(self, command: str) -> None:
        """Leave it to the driver, whatever a base class would say."""

    @property
    def _cupy(self) -> Any:
        return importlib.import_module("cupy")

    def owns(self, leaf: object) -> bool:
        cupy = imported("cupy")
        return cupy is not None and isinstance(leaf, cupy.ndarray)

    def version(self) -> str:
        return str(self._cupy.__version__)

    def devices(self) -> Mapping[str, str | None]:
        runtime = self._cupy.cuda.runtime
        try:
            count = runtime.getDeviceCount()
        except runtime.CUDARuntimeError as error:
            return {"cuda": f"no CUDA device was found ({error})"}
        return {f"cuda:{i}": None for i in range(count)}

    def has_dtype(self, name: str) -> bool:
        return name != "bfloat16"

    def dtype_name(self, array: Any) -> str:
        return str(array.dtype.name)

    def describe(self, array: Any) -> ArrayInfo:
        return ArrayInfo(array.shape, array.dtype.name, f"cuda:{array.device.id}")

    def full(self, like: Any, value: float, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        shape = like.shape if shape is None else shape
        with like.device:
            if value or math.copysign(1.0, value) > 0:
                return self._cupy.full(shape, value, dtype=dtype)
            # Some versions of CuPy take -0 for 0, whose bytes they set, and some do not.
            return self._cupy.negative(self._cupy.full(shape, 0.0, dtype=dtype))

    def to_numpy(self, array: Any) -> Any:
        return self._cupy.asnumpy(array)

    def from_numpy(self, array: Any, device: str | None) -> Any:
        usable = [name for name, reason in self.devices().items() if reason is None]
        name = f"{device}:0" if device == "cuda" else device
        if name not in usable:
            raise ValueError(f"cupy cannot use the device {device!r}; usable are {usable or 'none'}")
        with self._cupy.cuda.Device(int(name.partition(":")[2])):
            # CuPy would fill an array without axes with a number, which loses the sign of -0; others it copies.
            return (
                self._cupy.array(array.reshape(-1)).reshape(array.shape) if array.ndim == 0 else self._cupy.array(array)
            )

    def rounded_scalar(self, value: Any, compute_dtype: str, like: Any) -> Any:
        rounded = np.asarray(round_scalar(float(value), compute_dtype), compute_dtype)
        return self.from_numpy(rounded, self.describe(like).device)

    def primitives(self, compute_dtype: str) -> Primitives:
        found = super().primitives(compute_dtype)
        if compute_dtype != "float32":
            load = found.load
            loads = {"load": lambda x: widened(self._cupy, x) if x.dtype == "float32" else load(x)}
            found = Primitives(self.xp, found.dtype, compute_dtype, loads)
        if not is_interpreted():
            found.fused = lambda program, arrays, scalars: launch.segment(
                self._library, program, compute_dtype, arrays, scalars
            )
            found.squares = functools.partial(launch.squares, self._library)
            found.sliced = functools.partial(products.slices, self._library, self.xp, compute_dtype)
            found.rescaled = functools.partial(products.rescaled, self._library, self.xp, compute_dtype)
        return found

    @property
    def _library(self) -> CudaLibrary:
        found: CudaLibrary = importlib.import_module("portopt_cupy._kernel").LIBRARY
        return found

    def _is_captured(self, arrays: Iterable[Any]) -> bool:
        """Tell whether the work of one of the devices of arrays is being captured in a CUDA graph."""
        cuda = self._cupy.cuda
        for number in {array.device.id for array in arrays}:
            with cuda.Device(number):
                stream = cuda.get_current_stream()
                # The legacy default stream, 0 or 1, cannot be captured, nor be asked while another is.
                if stream.ptr > 1 and stream.is_capturing():
                    return True
        return False

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        if not is_interpreted():
            norm = launch.gradient_norm(self._library, gradients)
            if norm is not None:
                return norm
        return super().gradient_norm(gradients)

    def total(self, name: str, works: Sequence[Work]) -> Any:
        found = None if is_interpreted() else launch.total(self._library, name.removeprefix("total_"), works)
        return super().total(name, works) if found is None else found

    def scalar(self, value: Any) -> Any:
        return value if isinstance(value, GradientNorm) else super().scalar(value)

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        if not is_interpreted():
            # What has no kernel is done operation by operation; none of it is written before all is read.
            repeated = any(isinstance(work.scalars, DeviceScalars) for work in works)
            interpreted = self.graphs.results if repeated else functools.partial(super().update, in_place=False)
            results = launch.update(self._library, works, interpreted, in_place=in_place)
            if results is not None:
                return results
            if repeated:
                return self.graphs.update(works, in_place=in_place)
        return super().update(works, in_place=in_place)

    def why_not_fused(self, program: Program, parameters: Sequence[Arrays]) -> str | None:
        if is_interpreted():
            return "it is inside portopt.interpreted(), which switches the kernels off"
        return None if launch.can_run(program) else "no kernel holds all of the program"

    def plan(
        self,
        programs: Sequence[Program],
        trees: Any,
        parameters: Sequence[Arrays],
        *,
        in_place: bool = True,
        same_arrays: bool = True,
    ) -> Any:
        if is_interpreted() or not compiler.available():
            return "the numbers of a step are computed by a function that numba compiles, and there is none"
        if not parameters:
            return "no parameter has a gradient"
        if isinstance(reader := self._reader(arrays["p"] for arrays in parameters), str):
            return reader
        given = self._library, self, programs, trees, described(self, parameters), reader
        return make_device_plan(*given, in_place=in_place, same_arrays=same_arrays)

    def _reader(self, arrays: Iterable[Any]) -> ArrayReader | str:
        read, library = importlib.import_module("portopt_cupy._layout").reader, self._library
        found: dict[int, ArrayReader | None] = {
            number: read(number) for number in dict.fromkeys(map(library.device, arrays))
        }
        known = {number: reader for number, reader in found.items() if reader is not None}
        if len(known) < len(found):
            return "this CuPy keeps its arrays in memory otherwise than the compiled function reads them"
        return reader_over(known, library.device)

    def memory_range(self, array: Any) -> MemoryRange:
        device = f"cuda:{array.device.id}"
        return MemoryRange(device, *(self._cupy.byte_bounds(array) if array.size else (0, 0)))

    def share_memory(self, a: Any, b: Any) -> bool:
        return bool(self._cupy.shares_memory(a, b))


class _OnDevice(DeviceOperations, CupyBackend):
    """CuPy where the host waits for no scalar. While a stream is captured it calls no cuBLAS, which multiplies its matrices."""

    def primitives(self, compute_dtype: str) -> Primitives:
        found = super().primitives(compute_dtype)
        by_library = found.multiply_matrices

        def multiply_matrices(a: Any, b: Any) -> Any:
            return products.multiplied(self._library, self.xp, a, b) if self._is_captured([a]) else by_library(a, b)

        found.multiply_matrices = multiply_matrices  # type: ignore[method-assign]  # as overrides do
        return found


backend = CupyBackend()
