"""Canonicalisation: a recorded program brought to the arithmetic contract.

After it, a program holds only the operations of `ARRAY_OPERATIONS`, each a single IEEE 754 operation or an exact one:

- `array / scalar` is `array * (1 / scalar)`, the reciprocal taken in float64;
- `maximum`, `minimum` and `sign` are comparisons and `where`, so that ±0 and NaN have one definition:
  of equals (+0 and -0 are equal) the first operand; NaN if either is NaN; the sign of ±0 and NaN is the operand itself;
- a condition of scalars that chooses between arrays is `0 < round(1 or 0)`;
- what no output needs is gone.
"""

from __future__ import annotations

from portopt.program.builder import Builder, Node, rewritten
from portopt.program.ir import Kind, Op, Program


def canonicalize(program: Program) -> Program:
    """Return the same program in canonical form."""
    builder = Builder()
    return rewritten(program, builder, lambda op, args: _canonical(builder, op, args))


def _canonical(builder: Builder, op: Op, args: tuple[int, ...]) -> int:
    def array(name: str, *operands: int) -> int:
        return builder.record(name, Kind.ARRAY, *operands, dims=op.dims)

    def mask(name: str, *operands: int) -> int:
        return builder.record(name, Kind.MASK, *operands, dims=op.dims)

    def extremum(first_wins: int, a: int, b: int) -> int:
        keep_a = mask("logical_or", first_wins, mask("logical_not", mask("equal", a, a)))
        return array("where", keep_a, a, b)

    match op.name:
        case "divide" if op.kind is Kind.ARRAY and builder.ops[args[1]].name == "round":
            reciprocal = builder.divide(1.0, Node(builder.ops[args[1]].args[0]))
            return array("multiply", args[0], builder.record("round", Kind.ARRAY, reciprocal.index))
        case "maximum":
            return extremum(mask("less_equal", args[1], args[0]), *args)
        case "minimum":
            return extremum(mask("less_equal", args[0], args[1]), *args)
        case "sign":
            zero, x = builder.rounded_constant(0.0), args[0]
            negative = array("where", mask("less", x, zero), builder.rounded_constant(-1.0), x)
            return array("where", mask("less", zero, x), builder.rounded_constant(1.0), negative)
        case "condition":
            zero, condition = builder.rounded_constant(0.0), builder.ops[args[0]]
            if condition.name == "constant":
                return mask("less", zero, builder.rounded_constant(float(bool(condition.label))))
            number = builder.where(Node(args[0]), 1.0, 0.0)
            return mask("less", zero, builder.record("round", Kind.ARRAY, number.index))
        case _:
            return builder.record(op.name, op.kind, *args, label=op.label, dims=op.dims)
