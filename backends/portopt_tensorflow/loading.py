"""In which order TensorFlow and Triton can be loaded into one process."""

from __future__ import annotations

import contextlib
import importlib
import sys


def load_triton_first() -> None:
    """Import Triton if it is installed: both it and TensorFlow hold LLVM, and loading Triton second ends the process.

    PyTorch loads it when it constructs its first optimizer.
    """
    if "tensorflow" not in sys.modules:
        with contextlib.suppress(ImportError):
            importlib.import_module("triton")
