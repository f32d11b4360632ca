"""Where XLA must be kept from rewriting, and where it need not be.

A comparison after a quotient or root (the flush) keeps XLA from turning `(a / b) / c` into `a / (b * c)` and `a / sqrt(b)` into
`a * rsqrt(b)`. But it uses the quotient twice, and XLA does not fuse an expensive operation into a loop that uses it twice: a
step falls into several loops, three times as slow. A quotient or root that is only added, subtracted or stored is not subject
to these rewrites, and on the CPU the hardware flushes it; so it goes without.
"""

from __future__ import annotations

import dataclasses
import functools

from portopt.program import Program

PLAIN = {"divide": "plain_divide", "sqrt": "plain_sqrt"}
"""Operation to its name where it needs no comparison."""


@functools.lru_cache(maxsize=512)
def without_needless_fences(program: Program) -> Program:
    """Return the program with each quotient and root that is only added, subtracted or stored under its plain name."""
    consumers: dict[int, set[str]] = {}
    for op in program.ops:
        for i in op.args:
            consumers.setdefault(i, set()).add(op.name)
    ops = tuple(
        dataclasses.replace(op, name=PLAIN[op.name])
        if not op.kind.is_scalar and op.name in PLAIN and consumers.get(i, set()) <= {"add", "subtract"}
        else op
        for i, op in enumerate(program.ops)
    )
    return dataclasses.replace(program, ops=ops)
