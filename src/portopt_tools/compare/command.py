"""`portopt compare` on the command line."""

from __future__ import annotations

import argparse

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.interchange.frameworks import frameworks
from portopt_tools import rule_argument, stopping
from portopt_tools.arguments import add_backends, add_out, positive, seed
from portopt_tools.errors import FAILURE, SUCCESS
from portopt_tools.progress import progress
from portopt_tools.tool import Tool


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--optimizer",
        type=rule_argument.as_argument_type(rule_argument.optimizer),
        default="adam",
        metavar="RULE",
        help=f"{rule_argument.OPTIMIZER_HELP} (default: adam)",
    )
    parser.add_argument(
        "--epochs", type=positive, default=30, metavar="N", help="passes over the 1437 training images (default: 30)"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        metavar="N",
        help="images per step (default: 32, which is 44 steps an epoch)",
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(COMPUTE_DTYPE),
        default="float32",
        help="of parameters and gradients (default: float32)",
    )
    parser.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="of the split of the data, the initial parameters and the order of the images (default: 0)",
    )
    add_backends(
        parser,
        "a backend to run, or an importable array API library such as array_api_strict; may be repeated, and the first is "
        "the reference (default: every installed one that can be used, NumPy first)",
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        dest="devices",
        metavar="NAME",
        help="a device to run on, such as cpu, cuda or cuda:1; may be repeated (default: each backend's first)",
    )
    parser.add_argument(
        "--against",
        action="append",
        choices=tuple(frameworks()),
        default=[],
        help="add this framework's own optimizer that is nearest, with the same hyperparameters, as a run; its formula is "
        "different, so it is no part of the verdict",
    )
    add_out(parser, "write report.html and report.json into this folder (needs matplotlib)")
    parser.add_argument("--quiet", action="store_true", help="print no progress and no table, only the conclusion")


def _run(arguments: argparse.Namespace, command: str) -> int:
    from portopt_tools import output
    from portopt_tools.compare import comparison, reports
    from portopt_tools.compare.console import print_comparison, print_conclusion

    output.prepare_reports(arguments.out, "the curves of the report", "demo")
    settings = comparison.Settings(
        optimizer=arguments.optimizer,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        seed=arguments.seed,
        backends=arguments.backends,
        devices=arguments.devices,
        against=arguments.against,
    )
    with progress(quiet=arguments.quiet) as shown:
        result = comparison.compare(settings, shown.part)
    console = output.output_console()
    if arguments.quiet:
        print_conclusion(console, result)
    else:
        print_comparison(console, result)
    if arguments.out is not None:
        paths = reports.write_reports(arguments.out, result, command)
        if not arguments.quiet:
            output.print_written(console, paths)
    if result.interrupt is not None:
        return stopping.as_stopped(result.interrupt).status
    return SUCCESS if result.identical else FAILURE


TOOL = Tool(
    name="compare",
    summary="train one model with every backend and mode, and compare the bits",
    description="Trains a multi-layer perceptron (64-32-10, softmax cross-entropy) on scikit-learn's handwritten digits, "
    "once per backend, device and mode. Each run starts from the same parameters and computes its gradients from its own "
    "parameters with one NumPy function, so only the optimizer can make a difference. The bits of all parameters are "
    "compared with those of the first run after every step.",
    add_arguments=_add_arguments,
    run=_run,
    epilog="exit status: 0 if all bits agree, 1 if not, 2 if the arguments cannot be used, 130 or 143 if it was stopped by "
    "Ctrl-C or SIGTERM; what was finished by then is printed and written",
)
