"""`portopt bench` on the command line."""

from __future__ import annotations

import argparse

from portopt_tools import rule_argument, stopping
from portopt_tools.arguments import add_backends, add_out, positive
from portopt_tools.bench import cases
from portopt_tools.bench.contenders import PEERS
from portopt_tools.bench.shapes import SHAPE_SETS
from portopt_tools.errors import FAILURE, SUCCESS
from portopt_tools.progress import progress
from portopt_tools.tool import Tool


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rule",
        action="append",
        type=rule_argument.as_argument_type(cases.read),
        default=[],
        dest="rules",
        metavar="RULE",
        help=f"{rule_argument.OPTIMIZER_HELP}; may be repeated (default: all of portopt's)",
    )
    parser.add_argument(
        "--shapes",
        action="append",
        choices=tuple(SHAPE_SETS),
        default=[],
        help="a set of parameter shapes; may be repeated (default: all)",
    )
    add_backends(
        parser,
        "a backend of portopt, or an importable array API library; may be repeated (default: every installed one that can "
        "be used)",
    )
    parser.add_argument(
        "--against",
        action="append",
        choices=tuple(PEERS),
        default=[],
        help="another library's optimizers; may be repeated (default: all that are installed)",
    )
    parser.add_argument(
        "--repeats", type=positive, metavar="N", help="samples of each time, of which the median counts (default: 11)"
    )
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads for portopt, torch and XLA alike (default: each library's own default)",
    )
    parser.add_argument(
        "--interpreted", action="store_true", help="also measure portopt without fused kernels, operation by operation"
    )
    parser.add_argument(
        "--backward",
        action="store_true",
        help="before each step do a forward and a backward pass, whose time does not count; only on arrays of torch",
    )
    parser.add_argument(
        "--pure",
        action="store_true",
        help="only steps of portopt that make new arrays; beside them, copying parameters and slots, and Adam in NumPy's "
        "operations",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small arrays and few samples, by default Adam on the smallest set: shows that all works, not how fast",
    )
    add_out(parser, "write bench.json and bench.svg into this folder (needs matplotlib)")
    parser.add_argument("--quiet", action="store_true", help="print no progress, only the results")


def _run(arguments: argparse.Namespace, command: str) -> int:
    from portopt_tools import output
    from portopt_tools.bench import benchmark, reports
    from portopt_tools.bench.console import print_report

    output.prepare_reports(arguments.out, "the plot", "bench")
    settings = benchmark.Settings(
        rules=arguments.rules,
        shapes=arguments.shapes,
        backends=arguments.backends,
        against=arguments.against,
        repeats=arguments.repeats,
        threads=arguments.threads,
        interpreted=arguments.interpreted,
        backward=arguments.backward,
        pure=arguments.pure,
        quick=arguments.quick,
    )
    with progress(quiet=arguments.quiet) as shown:
        report, interrupt = benchmark.measure(settings, command, shown.part)
    console = output.output_console()
    print_report(console, report)
    if arguments.out is not None:
        output.print_written(console, reports.write_reports(arguments.out, report))
    if interrupt is not None:
        return stopping.as_stopped(interrupt).status
    return FAILURE if any(entry["failed"] for entry in report["not_run"]) else SUCCESS


TOOL = Tool(
    name="bench",
    summary="measure the time of a step, side by side with torch.optim and optax",
    description="Times steps of portopt, on each backend and mode, and of the same rules in torch.optim and optax, on the "
    "same shapes, in one process, in turns, and prints the medians. Also measured: the bandwidth of copying memory, the "
    "memory that a step takes beyond its arrays, and the first step of a process. The dtype is float32.",
    add_arguments=_add_arguments,
    run=_run,
    epilog="exit status: 0, 1 if something that takes part failed, 2 if the arguments cannot be used, 130 or 143 if it was "
    "stopped by Ctrl-C or SIGTERM; what was finished by then is printed and written",
)
