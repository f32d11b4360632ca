"""`portopt show`: what a rule becomes, as the program that all backends share, or as the source of a fused kernel."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.dialects import DIALECTS
from portopt.kernels.groups import array_order, kernel_key
from portopt.kernels.key import Flush, KernelKey
from portopt.kernels.printed import printed
from portopt.optimizer import Optimizer
from portopt.program import Program
from portopt_tools import rule_argument
from portopt_tools.errors import SUCCESS, UnusableArgumentsError
from portopt_tools.tool import Tool

DEFAULT_DTYPE = "float32"
_PRODUCTS = "its step multiplies matrices or has functions or random numbers that this kind of kernel does not have"
DEFAULT_SHAPE = (256, 512)
"""Of the parameter for which a program is shown that depends on that: large enough a matrix for rules that have a threshold."""


def show(optimizer: Optimizer, target: str, dtype: str | None = None, shape: tuple[int, ...] = DEFAULT_SHAPE) -> str:
    """Return a rule's program, or the source of the kernel that updates parameters of a dtype in place.

    Args:
        optimizer: the rule and its options, which decide what is part of the program.
        target: a key of `TARGETS`.
        dtype: of the parameters and gradients; None for float32. Slots are in the compute dtype, as `init` makes them.
        shape: of the parameter, for a rule whose program depends on it.

    Raises:
        UnusableArgumentsError: the target has no dtype but one was given, or cannot express the rule.
    """
    program = optimizer.program(shape=shape)
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
    dtypes = {**dict.fromkeys(array_order(program), COMPUTE_DTYPE[dtype]), "p": dtype, "g": dtype}
    return kernel_key(program, dtypes, in_place=True, flush=flush)


def _numba(program: Program, dtype: str) -> str:
    from portopt.kernels.host.compiler import default_flush
    from portopt.kernels.host.source import kernel_source
    from portopt.kernels.host.staged_source import staged_source
    from portopt.kernels.host.staged_steps import can_be_staged

    return _source(program, dtype, default_flush(), kernel_source, can_be_staged, staged_source)


def _cuda(program: Program, dtype: str) -> str:
    from portopt.kernels.cuda.products import products_source
    from portopt.kernels.cuda.source import cuda_source
    from portopt.kernels.cuda.staged_source import staged_source
    from portopt.kernels.passes import can_pass

    if _multiplies(program):
        return printed(program.after_totals, dtype, cuda_source, products_source)
    return _source(program, dtype, "where", cuda_source, can_pass, staged_source)


def _multiplies(program: Program) -> bool:
    return any(op.name == "matmul" for op in program.ops)


def _source(
    program: Program,
    dtype: str,
    flush: Flush,
    of_elements: Callable[[Program, KernelKey], str],
    can_be_staged: Callable[[Program], bool],
    of_stages: Callable[[Program, KernelKey], str],
) -> str:
    program = program.after_totals
    key = _key(program, dtype, flush)
    if program.is_elementwise:
        return of_elements(program, key)
    if not can_be_staged(program):
        raise NotImplementedError(_PRODUCTS)
    return of_stages(program, key)


TARGETS: Mapping[str, Callable[[Program, str], str]] = {
    "program": lambda program, dtype: str(program),
    "numba": _numba,
    "cuda": _cuda,
}
"""What can be shown: a function of the program and the dtype that returns the text."""


def shape_argument(text: str) -> tuple[int, ...]:
    """Return a shape that stands on a command line as lengths with commas between them."""
    lengths = text.split(",") if text else []
    if not all(length.strip().isdigit() for length in lengths):
        raise argparse.ArgumentTypeError(f"must be lengths such as 256,512, but {text!r} was given")
    return tuple(map(int, lengths))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "optimizer",
        type=rule_argument.as_argument_type(rule_argument.optimizer),
        metavar="RULE",
        help=rule_argument.OPTIMIZER_HELP,
    )
    parser.add_argument("--target", choices=tuple(TARGETS), default="program", help="what to print (default: program)")
    parser.add_argument(
        "--dtype",
        choices=tuple(COMPUTE_DTYPE),
        help=f"of the parameters that the kernel updates (default: {DEFAULT_DTYPE}); a program has none",
    )
    parser.add_argument(
        "--shape",
        type=shape_argument,
        default=DEFAULT_SHAPE,
        metavar="LENGTHS",
        help=f"of the parameter, for a rule whose program depends on it (default: {','.join(map(str, DEFAULT_SHAPE))})",
    )
    parser.add_argument(
        "--dialect",
        choices=tuple(DIALECTS),
        help="whose formula the rule has (default: the config's, or the rule's first)",
    )


def _run(arguments: argparse.Namespace, command: str) -> int:
    optimizer = arguments.optimizer
    if arguments.dialect is not None:
        try:
            optimizer = optimizer.replace(dialect=arguments.dialect)
        except (TypeError, ValueError) as error:
            raise UnusableArgumentsError(str(error)) from error
    print(show(optimizer, arguments.target, arguments.dtype, arguments.shape).rstrip("\n"))
    return SUCCESS


TOOL = Tool(
    name="show",
    summary="print the program of a rule, or the source of a fused kernel",
    description="Prints what a rule becomes: the program that every backend runs, or the source that is generated from it "
    "for a fused kernel that updates parameters in place.",
    add_arguments=_add_arguments,
    run=_run,
)
