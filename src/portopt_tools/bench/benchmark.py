"""The whole measurement: which contenders there are, their times, and the report as values that JSON can hold."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import portopt.kernels.host.threads as host_threads
from portopt.backend import UnknownBackendError, get_backend
from portopt_tools import stopping
from portopt_tools.bench import cases, first_step, machine, measuring
from portopt_tools.bench.cases import Case
from portopt_tools.bench.contenders import (
    PEERS,
    Contender,
    Inputs,
    Peer,
    memory_needed,
    portopt_contenders,
    why_not_compared,
)
from portopt_tools.bench.shapes import SHAPE_SETS, ShapeSet
from portopt_tools.errors import UnusableArgumentsError
from portopt_tools.inventory import describe_backend, installed_backends
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
        quick: small sets, short samples and few of them.
    """

    rules: Sequence[Case] = ()
    shapes: Sequence[str] = ()
    backends: Sequence[str] = ()
    against: Sequence[str] = ()
    repeats: int | None = None
    threads: int | None = None
    interpreted: bool = False
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
_FIRST = "numpy"
"""The backend that stands first in tables: it is always installed."""


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
    not_run: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    first_steps: list[dict[str, Any]] = []
    interrupt: KeyboardInterrupt | None = None
    with _threads(settings.threads):
        backends = _usable_backends(settings, not_run)
        peers = _usable_peers(settings, not_run)
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
                group = _Group(case, shapes, backends, peers, not_run, interpreted=settings.interpreted)
                measured = group.measure(streams, effort.sample_seconds, repeats, watch, not_run)
                groups += [measured] if measured is not None else []
                del left[0]
            _measure_first_steps(settings, backends, effort, watch, first_steps, not_run)
        except KeyboardInterrupt as stop:
            interrupt = stopping.as_stopped(stop)
            not_run += [_not_run(_name(case, shapes), str(interrupt)) for shapes, case in left]
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


def _usable_backends(settings: Settings, not_run: list[dict[str, Any]]) -> list[str]:
    usable = []
    entries = {entry.name: entry for entry in sorted(installed_backends(), key=lambda e: (e.name != _FIRST, e.name))}
    for name in dict.fromkeys(settings.backends or entries):
        if name not in entries:
            try:
                entries[name] = describe_backend(name, name, get_backend(name))
            except UnknownBackendError as error:
                raise UnusableArgumentsError(str(error)) from None
        entry = entries[name]
        if entry.problem is None and entry.usable_devices and "float32" in entry.dtypes:
            usable.append(name)
            continue
        reasons = "; ".join(f"{device}: {reason}" for device, reason in entry.devices.items())
        reason = entry.problem or f"none of its devices can be used ({reasons})"
        if settings.backends:
            install = f": {entry.install_command}" if entry.install_command else ""
            raise UnusableArgumentsError(f"the backend {name!r} was named, but it cannot be used: {reason}{install}")
        not_run.append(_not_run(f"portopt {name}", reason, entry.install_command))
    return usable


def _usable_peers(settings: Settings, not_run: list[dict[str, Any]]) -> list[Peer]:
    usable = []
    for name in dict.fromkeys(settings.against or PEERS):
        peer = PEERS[name]
        try:
            peer.version()
        except ImportError as error:
            reason = f"not installed ({error})"
            if settings.against:
                raise UnusableArgumentsError(f"--against {name}: {reason}: {peer.install_command}") from None
            not_run.append(_not_run(peer.name, reason, peer.install_command))
        else:
            usable.append(peer)
    return usable


def _not_run(name: str, reason: str, install_command: str | None = None, *, failed: bool = False) -> dict[str, Any]:
    return {"name": name, "reason": reason, "install_command": install_command, "failed": failed}


def _name(case: Case, shapes: ShapeSet) -> str:
    return f"{case.rule}, {shapes.name}"


class _Group:
    """One rule on one set of shapes; a peer without a counterpart of the rule is added to `not_run`."""

    def __init__(
        self,
        case: Case,
        shapes: ShapeSet,
        backends: Sequence[str],
        peers: Sequence[Peer],
        not_run: list[dict[str, Any]],
        *,
        interpreted: bool,
    ) -> None:
        self.case = case
        self.shapes = shapes
        self.name = _name(case, shapes)
        self.contenders = [
            c for name in backends for c in portopt_contenders(get_backend(name), interpreted=interpreted)
        ]
        for peer in peers:
            reason = why_not_compared(peer, case.optimizer)
            if reason is None:
                self.contenders += peer.contenders(case.optimizer, get_backend(peer.backend))
            else:
                not_run.append(_not_run(f"{peer.name} ({self.name})", reason))
        self.bytes_moved = 4 * cases.arrays_moved(case.optimizer) * shapes.parameters

    def measure(
        self,
        streams: Sequence[measuring.Stream],
        sample_seconds: float,
        repeats: int,
        watch: Watch,
        not_run: list[dict[str, Any]],
    ) -> dict[str, Any] | None:
        optimizer = self.case.optimizer
        needed = memory_needed(self.contenders, optimizer, self.shapes.parameters)
        available = machine.available_memory()
        if available is not None and needed > available:
            reason = f"needs about {needed / 2**30:.1f} GiB of memory, of which {available / 2**30:.1f} GiB are free"
            not_run.append(_not_run(self.name, f"{reason}; name fewer backends"))
            return None
        advance = watch(self.name, (repeats + 1) * len(self.contenders) + repeats * len(streams))
        inputs = Inputs(optimizer, self.shapes)
        taking_part: list[Contender] = []
        steps: list[measuring.Step] = []
        counts: list[int] = []
        memory: list[int] = []
        for contender in self.contenders:
            try:
                step = contender.prepare(inputs)
                count = measuring.steps_per_sample(step, sample_seconds)
                extra = measuring.extra_memory(step)
            except Exception as error:
                stopping.check()
                # One that fails must not take the times of the others with it.
                reason = f"failed: {type(error).__name__}: {error}"
                not_run.append(_not_run(f"{contender.name} ({self.name})", reason, failed=True))
                continue
            finally:
                advance()
            taking_part.append(contender)
            steps.append(step)
            counts.append(count)
            memory.append(extra)
        samples = measuring.alternate(
            [*steps, *(stream.step for stream in streams)], [*counts, *(1 for _ in streams)], repeats, advance
        )
        rates = [
            {
                "in_place": stream.in_place,
                "threads": stream.threads,
                "bytes_moved": stream.bytes_moved,
                "bytes_per_second": stream.bytes_moved / measuring.median(taken),
            }
            for stream, taken in zip(streams, samples[len(steps) :], strict=True)
        ]
        copy_rate, update_rate = (
            max(rate["bytes_per_second"] for rate in rates if rate["in_place"] is in_place)
            for in_place in (False, True)
        )
        found = [
            self._result(contender, taken, count, extra, copy_rate)
            for contender, taken, count, extra in zip(taking_part, samples, counts, memory, strict=False)
        ]
        _add_ratios(found)
        return {
            "rule": self.case.rule,
            "options": dict(self.case.options),
            "shapes": self.shapes.name,
            "tensors": len(self.shapes.shapes),
            "parameters": self.shapes.parameters,
            "bytes_per_step": self.bytes_moved,
            "copy_bytes_per_second": copy_rate,
            "update_bytes_per_second": update_rate,
            "streams": rates,
            "contenders": found,
        }

    def _result(
        self, contender: Contender, samples: list[float], count: int, extra_memory: int, copy_rate: float
    ) -> dict[str, Any]:
        seconds = measuring.median(samples)
        return {
            "name": contender.name,
            "library": contender.library,
            "backend": contender.backend,
            "mode": contender.mode,
            "seconds_per_step": seconds,
            "samples": samples,
            "steps_per_sample": count,
            "microseconds_per_tensor": 1e6 * seconds / len(self.shapes.shapes),
            "bytes_per_second": self.bytes_moved / seconds,
            "share_of_copy": self.bytes_moved / seconds / copy_rate,
            "extra_memory_bytes": extra_memory,
        }


def _add_ratios(contenders: list[dict[str, Any]]) -> None:
    """Add to each of portopt's contenders how many times as long the best of each other library takes."""
    best: dict[str, float] = {}
    for c in contenders:
        if c["library"] != "portopt":
            best[c["library"]] = min(c["seconds_per_step"], best.get(c["library"], float("inf")))
    for c in contenders:
        if c["library"] == "portopt":
            c["times_as_fast_as"] = {library: seconds / c["seconds_per_step"] for library, seconds in best.items()}


def _measure_first_steps(
    settings: Settings,
    backends: Sequence[str],
    effort: _Effort,
    watch: Watch,
    found: list[dict[str, Any]],
    not_run: list[dict[str, Any]],
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
                not_run.append(_not_run(f"first step of {case.rule} on {backend}", reason, failed=True))
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
