"""The whole measurement: which contenders there are, their times, and the report as values that JSON can hold."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import portopt.kernels.host.threads as host_threads
from portopt_tools import stopping
from portopt_tools.bench import cases, first_step, machine, measuring
from portopt_tools.bench.cases import Case
from portopt_tools.bench.group import Group, name_of
from portopt_tools.bench.participants import NotMeasured, not_measured, usable_backends, usable_peers
from portopt_tools.bench.shapes import SHAPE_SETS, ShapeSet
from portopt_tools.progress import Watch

SCHEMA_VERSION = 1
"""Version of the layout of the report; it changes when a key changes its meaning or goes away."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        rules: the rules; none means all (with `quick`, Adam).
        shapes: names of shape sets; none means all (with `quick`, the smallest).
        backends: names of backends; none means all that can be used.
        against: keys of `PEERS`; none means all that are installed.
        repeats: samples of each contender; None means the default.
        threads: how many threads each library uses; None leaves each its default.
        interpreted: whether portopt's steps without fused kernels take part.
        backward: whether there is a backward pass before each step, which is not timed.
        pure: whether portopt's steps are those that make new arrays, beside copying and NumPy's operations.
        quick: small sets, short samples and few of them.
    """

    rules: Sequence[Case] = ()
    shapes: Sequence[str] = ()
    backends: Sequence[str] = ()
    against: Sequence[str] = ()
    repeats: int | None = None
    threads: int | None = None
    interpreted: bool = False
    backward: bool = False
    pure: bool = False
    quick: bool = False


@dataclass(frozen=True)
class _Effort:
    repeats: int
    sample_seconds: float
    copy_bytes: int
    first_step_repeats: int


_FULL = _Effort(repeats=11, sample_seconds=0.05, copy_bytes=256 << 20, first_step_repeats=1)
_QUICK = _Effort(repeats=2, sample_seconds=0.001, copy_bytes=16 << 20, first_step_repeats=1)
_QUICK_RULES, _QUICK_SHAPES = (cases.read("adam"),), ("mlp-digits",)


def measure(settings: Settings, command: str, watch: Watch) -> tuple[dict[str, Any], KeyboardInterrupt | None]:
    """Measure, and return the report.

    An interrupt ends the measurement, and the report, marked as partial, has what was finished by then.

    Args:
        settings: what to measure.
        command: the command line that asked for it.
        watch: is told how far it is.

    Returns:
        The report, and the interrupt if there was one.

    Raises:
        UnusableArgumentsError: something that was named cannot be used.
    """
    effort = _QUICK if settings.quick else _FULL
    repeats = settings.repeats or effort.repeats
    not_run: list[NotMeasured] = []
    groups: list[dict[str, Any]] = []
    first_steps: list[dict[str, Any]] = []
    interrupt: KeyboardInterrupt | None = None
    with _threads(settings.threads):
        backends = usable_backends(settings.backends, not_run)
        peers = usable_peers(settings.against, not_run)
        if settings.threads is not None:
            _set_library_threads(settings.threads)
        found_machine = machine.machine()
        copy_threads = settings.threads or host_threads.get_num_threads()
        left = [(shapes, case) for shapes in _shape_sets(settings) for case in _cases(settings)]
        try:
            streams = [
                measuring.Stream(effort.copy_bytes, n, in_place=in_place)
                for in_place in (False, True)
                for n in sorted({1, copy_threads})
            ]
            while left:
                shapes, case = left[0]
                group = Group(
                    case,
                    shapes,
                    backends,
                    peers,
                    not_run,
                    interpreted=settings.interpreted,
                    backward=settings.backward,
                    pure=settings.pure,
                )
                measured = group.measure(streams, effort.sample_seconds, repeats, watch)
                groups += [measured] if measured is not None else []
                del left[0]
            _measure_first_steps(settings, backends, effort, watch, first_steps, not_run)
        except KeyboardInterrupt as stop:
            interrupt = stopping.as_stopped(stop)
            not_run += [not_measured(name_of(case, shapes), str(interrupt)) for shapes, case in left]
    report = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "partial": interrupt is not None,
        "settings": {
            **vars(settings),
            "rules": [case.text for case in settings.rules],
            "repeats": repeats,
            "dtype": "float32",
        },
        "versions": machine.versions(),
        "machine": found_machine,
        "threads": {"copy": copy_threads, "portopt": settings.threads or host_threads.get_num_threads()},
        "extra_memory_method": measuring.memory_method(),
        "groups": groups,
        "first_steps": first_steps,
        "not_run": not_run,
    }
    return report, interrupt


def _cases(settings: Settings) -> list[Case]:
    return list(dict.fromkeys(settings.rules or (_QUICK_RULES if settings.quick else cases.built_in())))


def _shape_sets(settings: Settings) -> list[ShapeSet]:
    names = settings.shapes or (_QUICK_SHAPES if settings.quick else tuple(SHAPE_SETS))
    return [SHAPE_SETS[name].quick() if settings.quick else SHAPE_SETS[name] for name in dict.fromkeys(names)]


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Use so many threads in portopt's kernels, and in XLA, which looks at the environment when JAX is first used."""
    if count is None:
        yield
        return
    variable = "PJRT_NPROC"
    before = os.environ.get(variable)
    os.environ[variable] = str(count)
    host_threads.set_num_threads(count)
    try:
        yield
    finally:
        host_threads.set_num_threads(None)
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _set_library_threads(count: int) -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module("torch").set_num_threads(count)


def _measure_first_steps(
    settings: Settings,
    backends: Sequence[str],
    effort: _Effort,
    watch: Watch,
    found: list[dict[str, Any]],
    not_run: list[NotMeasured],
) -> None:
    # The quick run only shows that it works, and importing the larger libraries takes most of its time.
    chosen, measured = _cases(settings), list(backends)
    if settings.quick:
        chosen, measured = chosen[:1], measured[:1]
    advance = watch("first step of a process", len(chosen) * len(measured))
    for case in chosen:
        for backend in measured:
            try:
                first = first_step.measure(case.text, backend, effort.first_step_repeats)
            except RuntimeError as error:
                stopping.check()
                reason = f"failed: {str(error).splitlines()[-1]}"
                not_run.append(not_measured(f"first step of {case.rule} on {backend}", reason, failed=True))
            else:
                found.append(
                    {
                        "rule": case.rule,
                        "backend": first.backend,
                        "mode": first.mode,
                        "seconds_cold": first.cold,
                        "seconds_cached": first.cached,
                    }
                )
            advance()
