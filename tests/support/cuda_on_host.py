"""CuPy's part in a step, played by NumPy and a C++ compiler, so that launches and kernels run where there is no GPU.

`HostCupy` has what `portopt_cupy` uses of CuPy: arrays with addresses, and modules of CUDA C, which a C++ compiler compiles with
the macros of `cuda_on_host.h`. A block has few threads: kernels must do with any number of them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

HEADER = Path(__file__).with_name("cuda_on_host.h")
COMPILE = (
    "-x",
    "c++",
    "-std=gnu++17",
    "-O1",
    "-ffp-contract=off",
    "-fno-fast-math",
    "-w",
    "-shared",
    "-fPIC",
    "-pthread",
    # A GPU has no loads and stores of vectors that are not aligned.
    "-fsanitize=alignment",
    "-fsanitize-undefined-trap-on-error",
)
THREADS = 4


def find_compiler() -> str:
    """Return a C++ compiler; without one the kernels' body goes untested, which CI does not accept."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        reason = "the CUDA C kernels are tested with a C++ compiler, and there is none: install g++"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return compiler


def compiled(source: str, directory: Path) -> Path:
    """Return the shared library that a C++ compiler makes of CUDA C, the one that is there if there is one."""
    text = f'#include "{HEADER}"\n{source}'
    name = hashlib.sha256(text.encode() + HEADER.read_bytes()).hexdigest()[:24]
    target, own = directory / f"{name}.so", directory / f"{name}.{os.getpid()}"
    if not target.exists():
        command = [find_compiler(), *COMPILE, "-", "-o", str(own)]
        done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        own.replace(target)
    return target


def compile_on_host(source: str, directory: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(compiled(source, directory)))


class Kernel:
    """A kernel of a library that `compile_on_host` made."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._library = library
        self._function = getattr(library, name)
        self._function.restype = None

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        # A block of one thread stays one; a larger one shrinks, which a kernel must not notice.
        blocks, threads = grid[0], min(block[0], THREADS)
        values = [_argument(a) for a in arguments]
        for index in range(blocks):
            self._library.begin_block(threads)
            runners = [
                threading.Thread(target=self._run, args=(index, blocks, thread, threads, values))
                for thread in range(threads)
            ]
            for runner in runners:
                runner.start()
            for runner in runners:
                runner.join()
            self._library.end_block()

    def _run(self, block: int, blocks: int, thread: int, threads: int, values: list[Any]) -> None:
        self._library.set_position(block, blocks, thread, threads)
        self._function(*values)


def _argument(value: Any) -> Any:
    """Return an argument as C takes it: structures by value, arrays of the device by address, scalars by their type."""
    if isinstance(value, HostArray):
        return ctypes.c_void_p(value.data.ptr)
    if isinstance(value, np.ndarray):
        assert value.dtype.names == ("words",), "CuPy passes only structures by value"
        structure: Any = type("Table", (ctypes.Structure,), {"_fields_": [("bytes", ctypes.c_char * value.nbytes)]})
        return structure.from_buffer_copy(value.tobytes())
    types = {"float32": ctypes.c_float, "float64": ctypes.c_double, "int64": ctypes.c_int64, "bool": ctypes.c_bool}
    return types[value.dtype.name](value.item())


class HostArray(np.ndarray[Any, np.dtype[Any]]):
    """A NumPy array with the attributes of a CuPy array that its backend uses."""

    @property
    def device(self) -> Any:
        return HostDevice(0)

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)

    may_wait = False

    def __float__(self) -> float:
        assert self.may_wait, "the host waited for the device"
        return super().__float__()


class HostDevice:
    compute_capability = "90"

    def __init__(self, number: int) -> None:
        self.id = number

    def __enter__(self) -> HostDevice:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class HostStream:
    """A stream that is not being captured, unless a test says so."""

    ptr = 7
    captured = False

    def __init__(self, device: int = 0) -> None:
        pass

    def is_capturing(self) -> bool:
        return self.captured


class HostPool:
    """Memory of its own, as of CuPy, which never gives it to others."""

    def __init__(self) -> None:
        self.memory: list[Any] = []

    def malloc(self, size: int) -> None:
        """Stands for the pool."""


def copied_to_host(array: HostArray) -> Any:
    assert array.may_wait, "the host waited for the device"
    return np.array(array)


def on_device(array: Any) -> HostArray:
    return np.array(array, copy=True).view(HostArray)


def shifted_on_device(array: Any) -> HostArray:
    """Return a copy that begins 1, 2, 4 or 8 elements, by the number of elements, after a multiple of 16 bytes."""
    at = 1 << array.size % 4
    room = np.zeros(array.size + 24, array.dtype).view(HostArray)
    at += -(room.ctypes.data // array.itemsize) % (16 // array.itemsize)
    room[at : at + array.size] = array.reshape(-1)
    return room[at : at + array.size].reshape(array.shape).view(HostArray)


@contextmanager
def host_cupy(directory: Path) -> Iterator[Any]:
    """Let `portopt_cupy` run on `HostArray`s; gives its backend."""
    from support.recording_driver import recording_driver

    from portopt.backend import prefer
    from portopt_cupy._backend import CupyBackend

    class HostBackend(CupyBackend):
        recording: Any

        def _reader(self, array: Any) -> str:
            return "these arrays are no objects of CuPy's"

        def stored(self, value: Any, like: Any) -> Any:
            return np.asarray(super().stored(value, like)).view(HostArray)

        def primitives(self, compute_dtype: str) -> Any:
            found = super().primitives(compute_dtype)
            # What NumPy's functions return is sometimes an array of its own.
            if (fused := found.fused) is not None:
                found.fused = lambda program, arrays, scalars: fused(program, list(map(on_device, arrays)), scalars)
            if (squares := found.squares) is not None:
                found.squares = lambda x: squares(on_device(x))
            if (sliced := found.sliced) is not None:
                found.sliced = lambda x, axis: sliced(on_device(x), axis)
            if (rescaled := found.rescaled) is not None:
                found.rescaled = lambda integers, left, right: rescaled(list(map(on_device, integers)), left, right)
            return found

    backend = HostBackend()
    cupy: Any = ModuleType("cupy")
    cupy.ndarray = HostArray
    pools: list[HostPool] = []

    def empty(shape: Any, dtype: Any) -> HostArray:
        made = np.empty(shape, dtype).view(HostArray)
        if pools:
            pools[-1].memory.append(made)
        return made

    @contextmanager
    def using_allocator(malloc: Any) -> Iterator[None]:
        pools.append(malloc.__self__)
        yield
        pools.pop()

    cupy.empty = empty
    cupy.zeros = lambda shape, dtype: np.zeros(shape, dtype).view(HostArray)
    cupy.full = lambda shape, value, dtype: np.full(shape, value, dtype).view(HostArray)
    cupy.array = cupy.asarray = lambda x: np.array(x, copy=True).view(HostArray)
    cupy.negative = np.negative
    cupy.asnumpy = copied_to_host
    cupy.byte_bounds = np.lib.array_utils.byte_bounds
    cupy.shares_memory = np.shares_memory
    namespace: Any = ModuleType("array_api_compat.cupy")
    namespace.__dict__.update(vars(importlib.import_module("array_api_compat.numpy")))
    namespace.broadcast_to = functools.partial(np.broadcast_to, subok=True)
    cuda: Any = ModuleType("cupy.cuda")
    cuda.Device = HostDevice
    cuda.get_current_stream = HostStream
    cuda.MemoryPool, cuda.using_allocator = HostPool, using_allocator
    cuda.runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError)
    cupy.cuda = cuda
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", cupy)
        patch.setitem(sys.modules, "cupy.cuda", cuda)
        # Of numbers, NumPy's functions return arrays of its own.
        kernels = importlib.import_module("portopt_cupy._kernel")
        patch.setattr(kernels.CupyLibrary, "address", lambda self, array: int(array.ctypes.data))
        # What has no kernel, NumPy does.
        patch.setitem(sys.modules, "array_api_compat.cupy", namespace)
        with prefer(backend), recording_driver(directory) as backend.recording:
            yield backend
