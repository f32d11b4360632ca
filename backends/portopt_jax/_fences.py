"""Where XLA must be kept from rewriting, and where it need not be.

A comparison after a quotient or root (the flush) keeps XLA from turning `(a / b) / c` into `a / (b * c)` and `a / sqrt(b)` into
`a * rsqrt(b)`. But it uses the quotient twice, and XLA does not fuse an expensive operation into a loop that uses it twice: a
step falls into several loops, three times as slow. A quotient or root that is only added, subtracted or stored is not subject
to these rewrites, and on the CPU the hardware flushes it; so it goes without. A load goes without its comparison where only
arithmetic reads it, since the hardware flushes operands too.
"""

from __future__ import annotations

import dataclasses
import functools

from portopt.program import Op, Program
from portopt.program.expansion import loads_to_flush


@functools.lru_cache(maxsize=512)
def without_needless_fences(program: Program) -> Program:
    """Return the program with each operation that needs no comparison on the CPU under its name with `plain_` before it."""
    consumers: dict[int, set[str]] = {}
    for op in program.ops:
        for i in op.args:
            consumers.setdefault(i, set()).add(op.name)
    flushed = loads_to_flush(program)

    def is_plain(i: int, op: Op) -> bool:
        if op.name == "load":
            return i not in flushed
        return (
            op.name in ("divide", "sqrt") and not op.kind.is_scalar and consumers.get(i, set()) <= {"add", "subtract"}
        )

    ops = (
        dataclasses.replace(op, name=f"plain_{op.name}") if is_plain(i, op) else op for i, op in enumerate(program.ops)
    )
    return dataclasses.replace(program, ops=tuple(ops))
