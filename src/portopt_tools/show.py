"""`portopt show`: what a rule becomes, as the program that all backends share, or as the source of a fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
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


def _key_dtypes(program: Program, dtype: str) -> tuple[tuple[str, str], ...]:
    slots = [name for name in program.array_outputs if name != "p"]
    return (("p", dtype), ("g", dtype), *((name, COMPUTE_DTYPE[dtype]) for name in slots))


def _numba(program: Program, dtype: str) -> str:
    from portopt.kernels.host.compiler import default_flush
    from portopt.kernels.host.source import KernelKey, kernel_source

    return kernel_source(program, KernelKey(_key_dtypes(program, dtype), in_place=True, flush=default_flush()))


def _cuda(program: Program, dtype: str) -> str:
    from portopt.kernels.cuda.source import cuda_source
    from portopt.kernels.host.source import KernelKey

    return cuda_source(program, KernelKey(_key_dtypes(program, dtype), in_place=True, flush="where"))


def _triton(program: Program, dtype: str) -> str:
    from portopt.kernels.host.source import KernelKey
    from portopt.kernels.triton.source import triton_source

    return triton_source(program, KernelKey(_key_dtypes(program, dtype), in_place=True, flush="where"))


TARGETS: Mapping[str, Callable[[Program, str], str]] = {
    "program": lambda program, dtype: str(program),
    "numba": _numba,
    "cuda": _cuda,
    "triton": _triton,
}
"""What can be shown: a function of the program and the dtype that returns the text."""
