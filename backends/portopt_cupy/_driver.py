"""Which of CuPy's packages goes with the CUDA driver of this machine, found without CuPy.

Run as a program, it prints the version of CUDA to install libraries for, if there is a driver.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any


@functools.cache
def driver_version() -> int | None:
    """Return the newest major version of CUDA that the driver knows, None where there is no driver."""
    version = ctypes.c_int()
    try:
        failed = _driver().cuDriverGetVersion(ctypes.byref(version))
    except (AttributeError, OSError):
        return None
    # 12090 is CUDA 12.9, and 0 is a stub that stands for the driver where programs are built.
    return version.value // 1000 or None if failed == 0 else None


def _driver() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def install_command(version: int | None) -> str:
    """Return what installs CuPy for a driver of that version; without a driver, what does so for each version of CUDA."""
    if version is None:
        return 'pip install "portopt[cupy-cuda13x]", or "portopt[cupy-cuda12x]" for CUDA 12'
    return f'pip install "portopt[cupy-cuda{wanted_version(version)}x]"'


def wanted_version(version: int | None) -> int | None:
    """Return the version of CUDA that libraries are installed for, given that of the driver."""
    return None if version is None else 13 if version >= 13 else 12


if __name__ == "__main__":
    print(wanted_version(driver_version()) or "")
