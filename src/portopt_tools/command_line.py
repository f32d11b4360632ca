"""The command `portopt`: what is installed, what a rule becomes, comparisons of bits and of speed, the conformance suite."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from portopt._version import __version__
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.dialects import DEFAULT_DIALECT, DIALECTS
from portopt.interchange.configuration import get
from portopt.interchange.frameworks import frameworks
from portopt.optimizer import Optimizer
from portopt.rules import RULES
from portopt_tools.bench.cases import RULES_BY_NAME
from portopt_tools.bench.contenders import PEERS
from portopt_tools.bench.shapes import SHAPE_SETS
from portopt_tools.compare.errors import UnusableArgumentsError
from portopt_tools.show import DEFAULT_DTYPE, TARGETS, show

SAME_BITS, DIFFERENT_BITS, UNUSABLE_ARGUMENTS, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
"""Exit statuses."""
CONTENDER_FAILED = 1
"""Exit status of `bench`."""

_EXIT_STATUS = "exit status: 0 if all bits agree, 1 if not, 2 if the arguments cannot be used"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: the arguments, without the program's name; None means those of the process.

    Raises:
        SystemExit: `--help` or `--version` was given (status 0), or the arguments cannot be parsed (status 2).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["conform"]:
        # The suite has its own parser, so that `python -m portopt_conformance` takes the same options.
        return _conform(arguments[1:])
    parsed = _parser().parse_args(arguments)
    command = shlex.join(["portopt", *arguments])
    try:
        status: int = parsed.run(parsed, command)
        sys.stdout.flush()
    except UnusableArgumentsError as error:
        print(f"portopt {parsed.command}: {error}", file=sys.stderr)
        return UNUSABLE_ARGUMENTS
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has had enough; what Python still holds for it must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="portopt",
        description="Gradient optimizers with the same bits on every array library.",
        epilog="`portopt COMMAND --help` describes the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"portopt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_backends(commands)
    _add_show(commands)
    _add_compare(commands)
    _add_bench(commands)
    commands.add_parser("conform", add_help=False, help="run the conformance suite against a backend")
    return parser


def _add_backends(commands: Any) -> None:
    summary = "list the installed backends, and how to install what is missing"
    parser = commands.add_parser(
        "backends",
        help=summary,
        description=f"{summary.capitalize()}: each backend's version, devices (in parentheses those that cannot be used, with "
        "the reason), parameter dtypes and modes, and the packages that add to them.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=_backends)


def _add_compare(commands: Any) -> None:
    rules = ", ".join(rule.__name__ for rule in RULES)
    parser = commands.add_parser(
        "compare",
        help="train one model with every backend and mode, and compare the bits",
        description="Trains a multi-layer perceptron (64-32-10, softmax cross-entropy) on scikit-learn's handwritten digits, "
        "once per backend, device and mode. Each run starts from the same parameters and computes its gradients from its own "
        "parameters with one NumPy function, so only the optimizer can make a difference. The bits of all parameters are "
        "compared with those of the first run after every step.",
        epilog=_EXIT_STATUS,
    )
    parser.add_argument(
        "--optimizer",
        type=_optimizer,
        default="adam",
        metavar="NAME|JSON",
        help=f"{rules} (in any case), or a config as JSON text or in a file that ends in .json, such as "
        '\'{"class_name": "SGD", "config": {"learning_rate": 0.1, "momentum": 0.9}}\' (default: adam)',
    )
    parser.add_argument(
        "--epochs", type=_positive, default=30, metavar="N", help="passes over the 1437 training images (default: 30)"
    )
    parser.add_argument(
        "--batch-size",
        type=_positive,
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
        type=_seed,
        default=0,
        metavar="N",
        help="of the split of the data, the initial parameters and the order of the images (default: 0)",
    )
    parser.add_argument(
        "--backend",
        action="append",
        default=[],
        dest="backends",
        metavar="NAME",
        help="a backend to run, or an importable array API library such as array_api_strict; may be repeated, and the first is "
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
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write report.html and report.json into this folder (needs matplotlib)"
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress and no table, only the conclusion")
    parser.set_defaults(run=_compare)


def _add_show(commands: Any) -> None:
    rules = ", ".join(rule.__name__ for rule in RULES)
    parser = commands.add_parser(
        "show",
        help="print the program of a rule, or the source of a fused kernel",
        description="Prints what a rule becomes: the program that every backend runs, or the source that is generated from it "
        "for a fused kernel that updates parameters in place.",
    )
    parser.add_argument(
        "optimizer",
        type=_optimizer,
        metavar="RULE",
        help=f"{rules} (in any case), or a config as JSON text or in a file that ends in .json",
    )
    parser.add_argument("--target", choices=tuple(TARGETS), default="program", help="what to print (default: program)")
    parser.add_argument(
        "--dtype",
        choices=tuple(COMPUTE_DTYPE),
        help=f"of the parameters that the kernel updates (default: {DEFAULT_DTYPE}); a program has none",
    )
    parser.add_argument(
        "--dialect",
        choices=tuple(DIALECTS),
        help=f"whose formula the rule has (default: {DEFAULT_DIALECT}, or the config's)",
    )
    parser.set_defaults(run=_show)


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure the time of a step, side by side with torch.optim and optax",
        description="Times steps of portopt, on each backend and mode, and of the same rules in torch.optim and optax, on the "
        "same shapes, in one process, in turns, and prints the medians. Also measured: the bandwidth of copying memory, the "
        "memory that a step takes beyond its arrays, and the first step of a process. The dtype is float32.",
        epilog="exit status: 0, 1 if something that takes part failed, 2 if the arguments cannot be used",
    )
    parser.add_argument(
        "--rule",
        action="append",
        type=str.lower,
        choices=tuple(RULES_BY_NAME),
        default=[],
        dest="rules",
        help="a rule, in any case; may be repeated (default: all)",
    )
    parser.add_argument(
        "--shapes",
        action="append",
        choices=tuple(SHAPE_SETS),
        default=[],
        help="a set of parameter shapes; may be repeated (default: all)",
    )
    parser.add_argument(
        "--backend",
        action="append",
        default=[],
        dest="backends",
        metavar="NAME",
        help="a backend of portopt, or an importable array API library; may be repeated (default: every installed one that can "
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
        "--repeats", type=_positive, metavar="N", help="samples of each time, of which the median counts (default: 11)"
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="threads for portopt, torch and XLA alike (default: each library's own default)",
    )
    parser.add_argument(
        "--interpreted", action="store_true", help="also measure portopt without fused kernels, operation by operation"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small arrays and few samples, by default Adam on the smallest set: shows that all works, not how fast",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write bench.json and bench.svg into this folder (needs matplotlib)"
    )
    parser.set_defaults(run=_bench)


def _optimizer(text: str) -> Optimizer:
    try:
        if text.endswith(".json"):
            text = Path(text).read_text(encoding="utf-8").lstrip()
        return get(json.loads(text) if text.lstrip().startswith("{") else text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not valid JSON: {error}") from error
    except (ValueError, TypeError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> int:
    return _integer(text, 1)


def _seed(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, at_least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = at_least - 1
    if value < at_least:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {at_least}, but {text!r} was given")
    return value


def _backends(arguments: argparse.Namespace, command: str) -> int:
    from portopt_tools.compare import inventory, tables

    found = inventory.installed_backends()
    if arguments.json:
        print(json.dumps(inventory.as_json(found), indent=2))
    else:
        tables.print_inventory(tables.output_console(), found)
    return SAME_BITS


def _compare(arguments: argparse.Namespace, command: str) -> int:
    from portopt_tools.compare import charts, comparison, reports, tables

    if arguments.out is not None:
        charts.require_matplotlib()
        reports.prepare_folder(arguments.out)
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
    with contextlib.nullcontext(_no_progress) if arguments.quiet else _progress() as watch:
        result = comparison.compare(settings, watch)
    console = tables.output_console()
    if arguments.quiet:
        tables.print_conclusion(console, result)
    else:
        tables.print_comparison(console, result)
    if arguments.out is not None:
        paths = reports.write_reports(arguments.out, result, command)
        if not arguments.quiet:
            console.print(f"written: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)
    return SAME_BITS if result.identical else DIFFERENT_BITS


def _show(arguments: argparse.Namespace, command: str) -> int:
    optimizer = arguments.optimizer
    if arguments.dialect is not None:
        try:
            optimizer = optimizer.replace(dialect=arguments.dialect)
        except (TypeError, ValueError) as error:
            raise UnusableArgumentsError(str(error)) from error
    print(show(optimizer, arguments.target, arguments.dtype).rstrip("\n"))
    return SAME_BITS


def _bench(arguments: argparse.Namespace, command: str) -> int:
    from portopt_tools.bench import benchmark, charts, tables
    from portopt_tools.compare import reports
    from portopt_tools.compare.tables import output_console

    if arguments.out is not None:
        charts.require_matplotlib()
        reports.prepare_folder(arguments.out)
    settings = benchmark.Settings(
        rules=arguments.rules,
        shapes=arguments.shapes,
        backends=arguments.backends,
        against=arguments.against,
        repeats=arguments.repeats,
        threads=arguments.threads,
        interpreted=arguments.interpreted,
        quick=arguments.quick,
    )
    with _progress() as watch:
        report = benchmark.measure(settings, command, watch)
    console = output_console()
    tables.print_report(console, report)
    if arguments.out is not None:
        paths = (arguments.out / "bench.json", arguments.out / "bench.svg")
        paths[0].write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        paths[1].write_text(charts.ratios_svg(report), encoding="utf-8")
        console.print(f"written: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)
    return CONTENDER_FAILED if any(entry["failed"] for entry in report["not_run"]) else SAME_BITS


def _no_progress(name: str, steps: int) -> Callable[[], None]:
    return lambda: None


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True))

    def watch(name: str, steps: int) -> Callable[[], None]:
        # Only now: what is wrong with the arguments is said before the first run, and not below an empty display.
        bars.start()
        task = bars.add_task(name, total=steps)
        return lambda: bars.advance(task)

    try:
        yield watch
    finally:
        if bars.live.is_started:
            bars.stop()


def _conform(arguments: list[str]) -> int:
    suite = importlib.import_module("portopt_conformance.__main__")
    status: int = suite.main(arguments, prog="portopt conform")
    return status
