"""Canonicalisation: a recorded program brought to the arithmetic contract.

After it, a program holds only the operations of `ARRAY_OPERATIONS`, each a single IEEE 754 operation or an exact one:

- `array / scalar` is `array * (1 / scalar)`, the reciprocal taken in float64;
- `maximum`, `minimum` and `sign` are comparisons and `where`, so that ±0 and NaN have one definition:
  of equals (+0 and -0 are equal) the first operand; NaN if either is NaN; the sign of ±0 and NaN is the operand itself;
- what no output needs is gone.
"""

from __future__ import annotations

from portopt.program import Kind, Op, Program


class _Rewriter:
    def __init__(self) -> None:
        self.ops: list[Op] = []
        self._index: dict[tuple[object, ...], int] = {}

    def add(self, op: Op) -> int:
        key = (op.name, op.kind, op.args, repr(op.label))
        if key not in self._index:
            self._index[key] = len(self.ops)
            self.ops.append(op)
        return self._index[key]

    def array(self, name: str, *args: int) -> int:
        return self.add(Op(name, Kind.ARRAY, args))

    def mask(self, name: str, *args: int) -> int:
        return self.add(Op(name, Kind.MASK, args))

    def rounded_constant(self, value: float) -> int:
        return self.array("round", self.add(Op("constant", Kind.FLOAT, label=value)))


def _extremum(rewriter: _Rewriter, first_wins: int, a: int, b: int) -> int:
    a_is_number = rewriter.mask("equal", a, a)
    keep_a = rewriter.mask("logical_or", first_wins, rewriter.mask("logical_not", a_is_number))
    return rewriter.array("where", keep_a, a, b)


def _rewrite(rewriter: _Rewriter, op: Op, args: tuple[int, ...]) -> int:
    match op.name:
        case "divide" if op.kind is Kind.ARRAY and rewriter.ops[args[1]].name == "round":
            scalar = rewriter.ops[args[1]].args[0]
            one = rewriter.add(Op("constant", Kind.FLOAT, label=1.0))
            reciprocal = rewriter.add(Op("divide", Kind.FLOAT, (one, scalar)))
            return rewriter.array("multiply", args[0], rewriter.array("round", reciprocal))
        case "maximum":
            return _extremum(rewriter, rewriter.mask("less_equal", args[1], args[0]), *args)
        case "minimum":
            return _extremum(rewriter, rewriter.mask("less_equal", args[0], args[1]), *args)
        case "sign":
            zero, x = rewriter.rounded_constant(0.0), args[0]
            negative = rewriter.array("where", rewriter.mask("less", x, zero), rewriter.rounded_constant(-1.0), x)
            return rewriter.array("where", rewriter.mask("less", zero, x), rewriter.rounded_constant(1.0), negative)
        case _:
            return rewriter.add(Op(op.name, op.kind, args, op.label))


def canonicalize(program: Program) -> Program:
    """Return the same program in canonical form."""
    rewriter = _Rewriter()
    new_index: list[int] = []
    for op in program.ops:
        new_index.append(_rewrite(rewriter, op, tuple(new_index[i] for i in op.args)))
    arrays = {name: new_index[i] for name, i in program.array_outputs.items()}
    scalars = {name: new_index[i] for name, i in program.scalar_outputs.items()}
    return without_dead_code(program.name, rewriter.ops, arrays, scalars)


def without_dead_code(name: str, ops: list[Op], arrays: dict[str, int], scalars: dict[str, int]) -> Program:
    """Return a program of those operations that an output needs."""
    live: set[int] = set()
    pending = [*arrays.values(), *scalars.values()]
    while pending:
        i = pending.pop()
        if i not in live:
            live.add(i)
            pending.extend(ops[i].args)
    kept = sorted(live)
    position = {old: new for new, old in enumerate(kept)}
    return Program(
        name=name,
        ops=tuple(Op(ops[i].name, ops[i].kind, tuple(position[a] for a in ops[i].args), ops[i].label) for i in kept),
        array_outputs={output: position[i] for output, i in arrays.items()},
        scalar_outputs={output: position[i] for output, i in scalars.items()},
    )
