"""What NVRTC makes of CUDA C: the operations in PTX, and whether each is rounded once."""

from __future__ import annotations

import re
from collections import Counter

ARITHMETIC = re.compile(r"^\s*(?:@!?%p\d+\s+)?(mul|add|sub|div|sqrt|fma|mad)((?:\.\w+)*)\.(f32|f64|f16|bf16)\b", re.M)
FLUSHING = 90
"""The architecture whose products flush by themselves."""


def operations(ptx: str) -> Counter[str]:
    """Return how often there is each operation, such as `"mul.rn.f32"`."""
    return Counter("{}{}.{}".format(*match.groups()) for match in ARITHMETIC.finditer(ptx))


def instruction(operation: str, architecture: int) -> str:
    """Return what an operation of a program on float32 arrays must be."""
    name = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "sqrt": "sqrt"}[operation]
    flushes = operation in ("add", "subtract") or (operation == "multiply" and architecture == FLUSHING)
    return f"{name}.rn.{'ftz.' * flushes}f32"


def assert_only_rounded_once(ptx: str) -> None:
    """Every operation is to be rounded to nearest, none contracted, approximate or kept in memory of a thread.

    Sums and products of float32 may flush: the source says which do.
    """
    for name in operations(ptx):
        assert re.fullmatch(r"(mul|add|sub)\.rn\.ftz\.f32|(mul|add|sub|div|sqrt)\.rn\.f(32|64)", name), name
    assert not re.search(r"(?<!\.rn)\.ftz\b|\.(approx|full|sat)\b|\bfma\b|\.local\b", ptx)
