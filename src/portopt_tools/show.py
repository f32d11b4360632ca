"""`portopt show`: what a rule becomes, as the program that all backends share, or as the source of a fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.groups import kernel_key
from portopt.kernels.key import Flush, KernelKey
from portopt.optimizer import Optimizer
from portopt.program import Program
from portopt_tools.compare.errors import UnusableArgumentsError

DEFAULT_DTYPE = "float32"


def show(optimizer: Optimizer, target: str, dtype: str | None = None) -> str:
    """Return a rule's program, or the source of the kernel that updates parameters of a dtype in place.

    Args:
        optimizer: the rule and its options, which decide what is part of the program.
        target: a key of `TARGETS`.
        dtype: of the parameters and gradients; None for float32. Slots are in the compute dtype, as `init` makes them.

    Raises:
        UnusableArgumentsError: the target has no dtype but one was given, or cannot express the rule.
    """
    program = optimizer.program()
    if target == "program":
        if dtype is not None:
            raise UnusableArgumentsError(
                f"a program has no dtype, so --dtype {dtype} has no meaning with --target program; leave it out"
            )
        return str(program)
    try:
        return TARGETS[target](program, dtype or DEFAULT_DTYPE)
    except NotImplementedError as error:
        raise UnusableArgumentsError(
            f"{type(optimizer).__name__} cannot be written for --target {target}: {error}"
        ) from error


def _key(program: Program, dtype: str, flush: Flush) -> KernelKey:
    dtypes = {**dict.fromkeys(program.array_outputs, COMPUTE_DTYPE[dtype]), "p": dtype, "g": dtype}
    return kernel_key(program, dtypes, in_place=True, flush=flush)


def _numba(program: Program, dtype: str) -> str:
    from portopt.kernels.host.compiler import default_flush
    from portopt.kernels.host.source import kernel_source

    return kernel_source(program, _key(program, dtype, default_flush()))


def _cuda(program: Program, dtype: str) -> str:
    from portopt.kernels.cuda.source import cuda_source

    return cuda_source(program, _key(program, dtype, "where"))


def _triton(program: Program, dtype: str) -> str:
    from portopt.kernels.triton.source import triton_source

    return triton_source(program, _key(program, dtype, "where"))


TARGETS: Mapping[str, Callable[[Program, str], str]] = {
    "program": lambda program, dtype: str(program),
    "numba": _numba,
    "cuda": _cuda,
    "triton": _triton,
}
"""What can be shown: a function of the program and the dtype that returns the text."""
