"""CUDA's driver and NVRTC, played on the host: what is queued is recorded, and run by kernels that a C++ compiler compiled.

The library's own `Driver` asks it through ctypes, as it would ask the real one; only the shared library is another.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from support.cuda_on_host import THREADS, compiled, find_compiler

from portopt.kernels import passes
from portopt.kernels.cuda import driver, kernels, nvrtc

_SOURCE = Path(__file__).with_name("recording_driver.cpp")
_KINDS = {601: "launch", 602: "upload", 603: "record", 604: "wait", 605: "fetch"}
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(')
_PACKED = """
#include <tuple>

template <typename Value> static Value taken(const char *arguments, size_t &at)
{
    at = (at + alignof(Value) - 1) / alignof(Value) * alignof(Value);
    Value value;
    memcpy(&value, arguments + at, sizeof value);
    at += sizeof value;
    return value;
}

template <typename... Values> static void call_packed(void (*kernel)(Values...), const char *arguments)
{
    size_t at = 0;
    std::tuple<std::decay_t<Values>...> values{taken<std::decay_t<Values>>(arguments, at)...};
    std::apply(kernel, values);
}

template <typename... Values> static size_t packed_size(void (*)(Values...))
{
    size_t at = 0;
    ((at = (at + alignof(Values) - 1) / alignof(Values) * alignof(Values) + sizeof(Values)), ...);
    return at;
}
"""
STREAM = 7
"""A stream of the first played device."""
_STREAMS_OF_DEVICE = 1000


def stream_of(device: int, stream: int = STREAM) -> int:
    """Return the stream of a device, given that of the first one."""
    return stream + _STREAMS_OF_DEVICE * device


def device_of(stream: int) -> int:
    """Return the device of a stream."""
    return stream // _STREAMS_OF_DEVICE


class Entry(NamedTuple):
    """What was queued.

    Attributes:
        kind: `"launch"`, `"upload"`, `"fetch"` from another device, `"record"` of an event, or `"wait"` for one.
        stream: where.
        size: bytes of arguments, or of what is copied.
        blocks: of a launch.
        kernel: its name.
    """

    kind: str
    stream: int
    size: int
    blocks: int
    kernel: str


class Recording:
    """What the played driver was asked to queue."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.read_entry.restype = ctypes.c_char_p
        library.say_memory.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_longlong
        library.count_entries.restype = library.count_graphs.restype = ctypes.c_longlong
        self.driver = driver.Driver(library)

    def clear(self) -> None:
        """Forget what was queued."""
        self._library.clear_entries()

    def entries(self) -> list[Entry]:
        """Return what was queued, events apart."""
        found = []
        for k in range(self._library.count_entries()):
            numbers = (ctypes.c_longlong * 4)()
            name = self._library.read_entry(ctypes.c_longlong(k), numbers)
            kind, stream, size, blocks = numbers
            found.append(Entry(_KINDS[kind], stream, size, blocks, name.decode()))
        return [entry for entry in found if entry.kind not in ("record", "wait")]

    def kernels(self) -> list[str]:
        """Return the names of the kernels that were queued."""
        return [entry.kernel for entry in self.entries() if entry.kind == "launch"]

    def uploaded(self) -> int:
        """Return how many bytes were uploaded."""
        return sum(entry.size for entry in self.entries() if entry.kind == "upload")

    def play(self, *, running: bool = True, delayed: bool = False, captured: int = 0) -> None:
        """Say whether kernels and uploads do anything, and when: at once or in `run_queued`; and which stream is captured."""
        self._library.set_playing(int(running), int(delayed), ctypes.c_void_p(captured))

    @contextmanager
    def capture(self, stream: int = STREAM) -> Iterator[Callable[[], None]]:
        """Record what is queued on a stream, of which nothing is done; gives what does it, as often as it is called."""
        self.play(captured=stream)
        number = self._library.count_graphs() - 1
        try:
            yield lambda: self._library.replay(ctypes.c_longlong(number))
        finally:
            self.play()

    def fail_once(self, kind: str) -> None:
        """Let the driver report an error where next something of a kind is queued."""
        self._library.fail_once(next(number for number, name in _KINDS.items() if name == kind))

    @contextmanager
    def calling(self, function: Callable[[], None]) -> Iterator[None]:
        """Call a function whenever a kernel is launched."""
        called = ctypes.CFUNCTYPE(None)(function)
        self._library.call_at_launches(called)
        try:
            yield
        finally:
            self._library.call_at_launches(None)

    def run_queued(self) -> None:
        """Do what was queued: on one stream after the other, as far as events let it."""
        assert self._library.run_queued(), "a stream waits for an event that is after what waits for it"

    def say_memory(self, address: int, size: int, device: int) -> None:
        """Say which device has some memory, so that no other one may be given its address."""
        self._library.say_memory(address, size, device)


class _HostCompiler:
    version = "of the host"
    architectures = (80, 90)

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def compile(self, source: str, target: str) -> bytes:
        assert target == "sm_90"
        names = dict.fromkeys(_KERNEL.findall(source))
        calls = [
            f'extern "C" void packed_{name}(const char *arguments) {{ call_packed({name}, arguments); }}\n'
            f'extern "C" size_t size_{name}() {{ return packed_size({name}); }}'
            for name in names
        ]
        return str(compiled("\n".join([source, _PACKED, *calls]), self._directory)).encode() + b"\0"


@functools.cache
def _library(directory: Path) -> ctypes.CDLL:
    # Several processes may do so at once.
    target, own = directory / "recording_driver.so", directory / f"recording_driver.{os.getpid()}"
    command = [find_compiler(), "-std=gnu++17", "-O1", "-shared", "-fPIC", "-pthread", str(_SOURCE), "-o", str(own)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    own.replace(target)
    return ctypes.CDLL(str(target))


@contextmanager
def recording_driver(directory: Path) -> Iterator[Recording]:
    """Play CUDA's driver and NVRTC; what is compiled is kept in a directory."""
    library = _library(directory)
    library.set_limit(THREADS)
    recording = Recording(library)
    recording.play()
    recording.clear()
    library.forget_memory()
    caches = (kernels.function, kernels._module, driver.device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PORTOPT_CACHE_DIR", "")
        patch.setattr(passes, "LANES", THREADS)
        patch.setattr(driver, "driver", lambda: recording.driver)
        patch.setattr(nvrtc, "compiler", lambda newest=None: _HostCompiler(directory))
        for cached in caches:
            cached.cache_clear()
        yield recording
        for cached in caches:
            cached.cache_clear()
