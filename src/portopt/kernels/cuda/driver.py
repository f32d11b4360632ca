"""CUDA's driver, as far as steps need it: modules, launches, uploads and events, asked through ctypes.

All that is launched and uploaded here is queued on a stream that the caller names; nothing waits for a device.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

NOT_READY = 600
LARGEST_DEFAULT_STREAM = 1
"""The legacy default stream, 0 or 1, cannot be captured, nor be asked while another one is."""
_MAJOR, _MINOR, _MULTIPROCESSORS = 75, 76, 16
"""Attributes of a device: its compute capability, and what it has of multiprocessors."""
_PINNED = 1
_WITHOUT_TIMING = 2
_RELAXED = 2
"""The mode of a thread in which the capture of a stream forbids it nothing."""
_SMALLEST_BLOCK = 4096


class Driver:
    """The driver's functions; each raises an error if the driver says that it failed.

    Args:
        library: the driver.

    Attributes:
        addresses: of the driver's functions, by name, for machine code that calls them.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        word, number, handle = ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p
        size = ctypes.c_size_t

        self.addresses: dict[str, int] = {}

        def function(name: str, *types: Any) -> Any:
            found = getattr(library, name)
            found.argtypes, found.restype = types, ctypes.c_int
            self.addresses[name] = ctypes.cast(found, ctypes.c_void_p).value or 0
            return found

        self._error_name = function("cuGetErrorName", ctypes.c_int, word)
        self._error_text = function("cuGetErrorString", ctypes.c_int, word)
        self._version = function("cuDriverGetVersion", word)
        self._get_device = function("cuDeviceGet", word, ctypes.c_int)
        self._attribute = function("cuDeviceGetAttribute", word, ctypes.c_int, ctypes.c_int)
        self._retain = function("cuDevicePrimaryCtxRetain", word, ctypes.c_int)
        self._current = function("cuCtxGetCurrent", word)
        self._push = function("cuCtxPushCurrent_v2", handle)
        self._pop = function("cuCtxPopCurrent_v2", word)
        self._load = function("cuModuleLoadData", word, word)
        self._find = function("cuModuleGetFunction", word, handle, ctypes.c_char_p)
        self._allocate = function("cuMemHostAlloc", word, size, number)
        self._create_event = function("cuEventCreate", word, number)
        self._is_capturing = function("cuStreamIsCapturing", handle, word)
        self._exchange_mode = function("cuThreadExchangeStreamCaptureMode", word)
        self.record = function("cuEventRecord", handle, handle)
        self.query = function("cuEventQuery", handle)
        self.wait = function("cuStreamWaitEvent", handle, handle, number)
        self.copy = function("cuMemcpyHtoDAsync_v2", word, word, size, handle)
        self.fetch = function("cuMemcpyPeerAsync", word, handle, word, handle, size, handle)
        self.launch = function("cuLaunchKernel", handle, *[number] * 7, handle, word, word)
        function("cuCtxGetDevice", word)
        self.check(function("cuInit", number)(0))

    def addresses_for_launching(self) -> tuple[int, int]:
        """Return where `cuCtxGetDevice` and `cuLaunchKernel` are, for machine code that calls them."""
        return self.addresses["cuCtxGetDevice"], self.addresses["cuLaunchKernel"]

    def check(self, status: int) -> None:
        """Raise an error if a function of the driver did not return zero."""
        if status:
            name, text = ctypes.c_char_p(), ctypes.c_char_p()
            self._error_name(status, ctypes.byref(name))
            self._error_text(status, ctypes.byref(text))
            known = (name.value or b"an unknown error").decode()
            raise RuntimeError(f"CUDA's driver reports {known} ({status}): {(text.value or b'').decode()}")

    def version(self) -> int:
        """Return the newest version of CUDA that the driver knows, such as 12090 for CUDA 12.9."""
        return self._asked(ctypes.c_int(), self._version)

    def capability(self, number: int) -> int:
        """Return a device's compute capability, such as 90."""
        return 10 * self._attribute_of(number, _MAJOR) + self._attribute_of(number, _MINOR)

    def multiprocessors(self, number: int) -> int:
        """Return how many multiprocessors a device has."""
        return self._attribute_of(number, _MULTIPROCESSORS)

    def _attribute_of(self, number: int, which: int) -> int:
        device = self._asked(ctypes.c_int(), self._get_device, ctypes.c_int(number))
        return self._asked(ctypes.c_int(), self._attribute, ctypes.c_int(which), device)

    def context(self, number: int) -> int:
        """Return the context of a device that all libraries share."""
        device = self._asked(ctypes.c_int(), self._get_device, ctypes.c_int(number))
        return self._asked(ctypes.c_void_p(), self._retain, device)

    def current_context(self) -> int | None:
        """Return the context of this thread."""
        found = ctypes.c_void_p()
        self.check(self._current(ctypes.byref(found)))
        return found.value

    @contextlib.contextmanager
    def within(self, context: int) -> Iterator[None]:
        """Make a context that of this thread for a while."""
        if self.current_context() == context:
            yield
            return
        self.check(self._push(context))
        try:
            yield
        finally:
            self.check(self._pop(ctypes.byref(ctypes.c_void_p())))

    def load(self, code: bytes) -> int:
        """Return a module of machine code, or of PTX, in this thread's context."""
        return self._asked(ctypes.c_void_p(), self._load, code)

    def function(self, module: int, name: str) -> int:
        """Return a kernel of a module."""
        return self._asked(ctypes.c_void_p(), self._find, module, name.encode())

    def pinned(self, size: int) -> int:
        """Return memory of the host that the device can read while the host goes on."""
        return self._asked(ctypes.c_void_p(), self._allocate, size, _PINNED)

    def event(self) -> int:
        """Return an event that keeps no time."""
        return self._asked(ctypes.c_void_p(), self._create_event, _WITHOUT_TIMING)

    def is_capturing(self, stream: int) -> bool:
        """Tell whether what is queued on a stream is being recorded for a graph."""
        if stream <= LARGEST_DEFAULT_STREAM:
            return False
        found = ctypes.c_int()
        self.check(self._is_capturing(stream, ctypes.byref(found)))
        return found.value != 0

    @contextlib.contextmanager
    def uncaptured(self) -> Iterator[None]:
        """Let this thread do for a while what queues nothing, and is none of a graph, while one of its streams is captured."""
        mode = ctypes.c_int(_RELAXED)
        self.check(self._exchange_mode(ctypes.byref(mode)))
        try:
            yield
        finally:
            self.check(self._exchange_mode(ctypes.byref(mode)))

    def _asked(self, result: Any, function: Any, *arguments: Any) -> int:
        """Return what a function puts into its first argument."""
        self.check(function(ctypes.byref(result), *arguments))
        found: int = result.value
        return found


class Block(NamedTuple):
    """Pinned memory, its size in bytes, and the event after which the device has read it."""

    address: int
    size: int
    event: int


class Device:
    """A device: its kernels, and what is queued there.

    Args:
        driver: the driver.
        number: of the device.
    """

    def __init__(self, driver: Driver, number: int) -> None:
        self.driver = driver
        self.number = number
        self.context = driver.context(number)
        self.capability = driver.capability(number)
        self.multiprocessors = driver.multiprocessors(number)
        # What ends while it is held may give back memory.
        self._lock = threading.RLock()
        self._blocks: dict[int, collections.deque[Block]] = {}
        self._events: list[int] = []

    def within(self) -> contextlib.AbstractContextManager[None]:
        """Make the device this thread's for a while."""
        return self.driver.within(self.context)

    def launch(self, function: int, blocks: int, threads: int, arguments: bytes, stream: int) -> None:
        """Queue a kernel, given its arguments one after the other as C lays them out in a struct."""
        size = ctypes.c_size_t(len(arguments))
        # The marks of a buffer, of its size, and of the end.
        extra = (ctypes.c_void_p * 5)(1, _address_of(arguments), 2, ctypes.addressof(size), 0)
        self.driver.check(self.driver.launch(function, blocks, 1, 1, threads, 1, 1, 0, stream, None, extra))

    def upload(self, at: int, words: array[int], stream: int) -> None:
        """Queue a copy of words to the device's memory; they may be changed as soon as this returns."""
        size = len(words) * words.itemsize
        block = self.block(size)
        ctypes.memmove(block.address, words.buffer_info()[0], size)
        try:
            self.driver.check(self.driver.copy(at, block.address, size, stream))
            self.driver.check(self.driver.record(block.event, stream))
        finally:
            self.take_back([block])

    def block(self, size: int) -> Block:
        """Return pinned memory that the device does not read any more: the first given back, or new one if it still does."""
        capacity = max(_SMALLEST_BLOCK, 1 << (size - 1).bit_length())
        with self._lock:
            blocks = self._blocks.setdefault(capacity, collections.deque())
            if blocks:
                status = self.driver.query(blocks[0].event)
                if status == 0:
                    return blocks.popleft()
                if status != NOT_READY:
                    self.driver.check(status)
        return Block(self.driver.pinned(capacity), capacity, self.driver.event())

    def event(self) -> int:
        """Return an event that nobody will ask or wait for any more: one given back, or a new one."""
        with self._lock:
            return self._events.pop() if self._events else self.driver.event()

    def take_back_events(self, events: Sequence[int]) -> None:
        """Have events back, also before they have happened: who waits for one already waits for what was recorded then."""
        with self._lock:
            self._events += events

    def take_back(self, blocks: Sequence[Block]) -> None:
        """Have pinned memory back, also while the device still reads it."""
        with self._lock:
            for block in blocks:
                self._blocks[block.size].append(block)


def _address_of(content: bytes) -> int | None:
    return ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value


@functools.cache
def driver() -> Driver:
    """Return the driver of this machine.

    Raises:
        RuntimeError: there is none.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return Driver(ctypes.CDLL(name))
    except (AttributeError, OSError) as error:
        raise RuntimeError(
            f"CUDA's driver ({name}) cannot be used: {error}; install NVIDIA's driver, 450 or newer, or use "
            "portopt.interpreted()"
        ) from error


@functools.cache
def device(number: int) -> Device:
    """Return a device by its number."""
    return Device(driver(), number)
