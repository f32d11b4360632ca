"""Names in generated source: those of the kernels, and those of the rule where the language allows them."""

from __future__ import annotations

import re
from collections.abc import Set

from portopt.kernels.key import KernelKey
from portopt.program import GIVEN, Program

UPDATE = "update"
"""The kernel that does a step, on GPUs."""
SCALARS_OF_NORM = "scalars_of_norm"
"""The one that computes the scalars that need the norm of the gradients."""
SCALARS_OF_INPUTS = "scalars_of_inputs"
"""The one that computes all scalars, where all that is given lies on the device."""
SUM_SQUARES = "sum_squares"
"""The one that reduces gradients to what their norm is computed from."""
TOTAL_OF_PARTS = "total_of_parts"
"""The one that makes a total, such as that norm, of what blocks have found of it, where scalars are computed elsewhere."""
PUT_WORDS = "put_words"
"""The one that writes the arguments of its launch into the device's memory."""
ROWS_SLICED, COLUMNS_SLICED, RESCALED = "rows_sliced", "columns_sliced", "rescaled"
"""Those that make operands of products integers, and products of these numbers of the compute dtype."""
SUMS_JOINED, LARGEST_JOINED = "sums_joined", "largest_joined"
"""Those that join what blocks found for a total over all parameters."""
MULTIPLIED = "multiplied"
"""The one that multiplies matrices of integers."""
PUT_ROWS = "put_rows"
"""The one that finds for a table which parameter each chunk is of."""

_TAKEN_SUFFIXES = (
    *("_i", "_four", "_fours", "_before", "_word", "_exponent"),
    *("_float16", "_bfloat16", "_float32", "_float64", "_of"),
)
"""Names that end so are the source's own, as are those that a program counts its results with."""
_COUNTED = re.compile(r"[ars][0-9]+")


def array_names(key: KernelKey, reserved: Set[str]) -> dict[str, str]:
    """Return the name in the source of each array of a kernel, by its name in the program, which need not read all of them."""
    return {name: _identifier(name, f"slot_{k}", reserved) for k, (name, _) in enumerate(key.dtypes)}


def identifiers(program: Program, arrays: dict[str, str], reserved: Set[str]) -> list[str]:
    """Return a name for each operation's result; loaded values are named apart from the arrays."""
    names = program.names()
    for i, op in enumerate(program.ops):
        if op.name == "load":
            names[i] = f"{arrays[str(op.label)]}_i"
        elif op.name in GIVEN:
            names[i] = _identifier(str(op.label), f"scalar_{i}", reserved)
    return names


def _identifier(name: str, otherwise: str, reserved: Set[str]) -> str:
    plain = re.fullmatch(r"[a-z]+[0-9]*(_[a-z0-9]+)*|[A-Z][a-z0-9]+", name) is not None
    taken = name in reserved or name.endswith(_TAKEN_SUFFIXES) or name.startswith(("slot_", "scalar_", "new_"))
    return name if plain and not taken and _COUNTED.fullmatch(name) is None else otherwise
