"""Kernels in CUDA C, compiled and loaded once for each device."""

from __future__ import annotations

import functools

from portopt._version import __version__
from portopt.kernels import cache
from portopt.kernels.cuda import driver, nvrtc
from portopt.kernels.cuda.source import cuda_source, device_scalars_source
from portopt.kernels.cuda.staged_source import staged_source
from portopt.kernels.key import KernelKey
from portopt.program import Program


@functools.lru_cache(maxsize=512)
def update_source(program: Program, key: KernelKey, on_device: frozenset[str] = frozenset()) -> str:
    """Return the source of the kernels that run a program, given the names of the scalar inputs that lie on the device."""
    source = cuda_source if program.is_elementwise else staged_source
    return source(program, key, on_device)


scalars_source = functools.lru_cache(maxsize=512)(device_scalars_source)


@functools.lru_cache(maxsize=1024)
def function(source: str, name: str, device: int) -> int:
    """Return a kernel of a source on a device."""
    found = driver.device(device)
    # Also while a stream is captured: a load is none of what a graph repeats. Finding a kernel may load it.
    with found.within(), found.driver.uncaptured():
        return found.driver.function(_module(source, device), name)


@functools.lru_cache(maxsize=512)
def _module(source: str, device: int) -> int:
    found = driver.device(device)
    compiler = nvrtc.compiler(found.driver.version() // 1000)
    target = nvrtc.target_of(found.capability, compiler.architectures)
    options = " ".join(nvrtc.OPTIONS)
    key = {"portopt": __version__, "nvrtc": compiler.version, "target": target, "options": options, "source": source}
    code = cache.load(key)
    if code is None:
        code = compiler.compile(source, target)
        cache.store(key, code)
    return found.driver.load(code)
