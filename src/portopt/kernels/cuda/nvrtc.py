"""NVRTC, the compiler of CUDA C: found where the libraries that bring it have it, and asked through ctypes.

CuPy's own modules are always compiled with `-ftz=true`. The contract flushes by comparison, with tininess decided after rounding,
so kernels are compiled here, alike for all libraries.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""NVRTC's options: IEEE arithmetic, one rounding per operation."""
_MAJORS = (13, 12, 11)
"""Versions of CUDA, the newest first."""


class Compiler:
    """NVRTC.

    Args:
        library: NVRTC.

    Attributes:
        version: such as `"12.9"`.
        architectures: the compute capabilities that it compiles for, such as 90.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self._check(library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        architectures = (ctypes.c_int * count.value)()
        self._check(library.nvrtcGetSupportedArchs(architectures))
        self.version = f"{major.value}.{minor.value}"
        self.architectures: Sequence[int] = list(architectures)

    def compile(self, source: str, target: str) -> bytes:
        """Return CUDA C compiled for a target such as `"sm_90"` (machine code) or `"compute_90"` (PTX)."""
        library, program = self._library, ctypes.c_void_p()
        self._check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"portopt.cu", 0, None, None))
        options = [option.encode() for option in (f"--gpu-architecture={target}", *OPTIONS)]
        try:
            failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
            if failed:
                log = self._read(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")
                text = log.rstrip(b"\0").decode(errors="replace")
                raise RuntimeError(f"NVRTC cannot compile a kernel for {target}: {text or self._text(failed)}")
            kind = "CUBIN" if target.startswith("sm_") else "PTX"
            return self._read(program, f"nvrtcGet{kind}Size", f"nvrtcGet{kind}")
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: Any, size_of: str, read: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, size_of)(program, ctypes.byref(size)))
        content = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, read)(program, content))
        return content.raw

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"NVRTC failed: {self._text(status)}")

    def _text(self, status: int) -> str:
        text: bytes = self._library.nvrtcGetErrorString(status)
        return text.decode()


@functools.cache
def compiler(newest: int | None = None) -> Compiler:
    """Return NVRTC.

    Args:
        newest: the newest major version of CUDA whose machine code can be used; None if nothing is to be run.

    Raises:
        RuntimeError: there is none.
    """
    for major in _MAJORS:
        if newest is None or major <= newest:
            for name in _candidates(major):
                with contextlib.suppress(OSError):
                    return Compiler(_loaded(Path(name)))
    raise RuntimeError(
        f"NVRTC, the compiler of CUDA{'' if newest is None else f' {newest} or older'}, was not found: "
        f"pip install nvidia-cuda-nvrtc{'' if newest is not None and newest >= 13 else '-cu12'}, or set CUDA_PATH to a "
        "CUDA toolkit; or use portopt.interpreted()"
    )


def compile_source(source: str, target: str) -> bytes:
    """Return CUDA C compiled by any NVRTC for a target, to be looked at."""
    return compiler().compile(source, target)


def target_of(capability: int, supported: Sequence[int]) -> str:
    """Return what to compile for on a device of a compute capability such as 90, given those that NVRTC supports.

    A device newer than NVRTC gets PTX, which its driver translates; that keeps each operation as it is.
    """
    if capability in supported:
        return f"sm_{capability}"
    older = [known for known in supported if known < capability]
    if not older:
        raise RuntimeError(
            f"this device has compute capability {capability}, but NVRTC compiles for {min(supported)} and newer: "
            "install an older CUDA toolkit, or use portopt.interpreted()"
        )
    return f"compute_{max(older)}"


def _loaded(path: Path) -> ctypes.CDLL:
    """Return NVRTC, with what it opens by name when it compiles: that of CUDA 13 does not look for it beside itself."""
    if path.is_absolute():
        for built_in in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(built_in))
    return ctypes.CDLL(str(path))


def _candidates(major: int) -> Iterator[str]:
    """Yield the names under which NVRTC of a major version may be found, the likeliest first."""
    if sys.platform == "win32":
        name, folders = f"nvrtc64_{major}0_0.dll", ("bin", "bin/x86_64", "bin/x64")
    else:
        name, folders = f"libnvrtc.so.{major if major > 11 else '11.2'}", ("lib", "lib64")
        # What is loaded already has this name.
        with contextlib.suppress(OSError):
            ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            yield name
    for entry in sys.path:
        packages = Path(entry or ".") / "nvidia"
        for package in ("cuda_nvrtc", f"cu{major}"):
            for folder in folders:
                if (path := packages / package / folder / name).is_file():
                    yield str(path)
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if root := os.environ.get(variable):
            for folder in folders:
                if (path := Path(root) / folder / name).is_file():
                    yield str(path)
    yield name
