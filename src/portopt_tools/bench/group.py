"""One rule on one set of shapes: the times of all contenders, taken in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from portopt.backend import get_backend
from portopt_tools import stopping
from portopt_tools.bench import cases, machine, measuring
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
from portopt_tools.bench.participants import NotMeasured, not_measured
from portopt_tools.bench.pure import pure_contenders
from portopt_tools.bench.shapes import ShapeSet
from portopt_tools.progress import Watch


def name_of(case: Case, shapes: ShapeSet) -> str:
    """Return how progress and reports call a rule on a set of shapes."""
    return f"{case.rule}, {shapes.name}"


class Group:
    """One rule on one set of shapes. What is not measured, such as a peer without a counterpart, is added to `not_run`."""

    def __init__(
        self,
        case: Case,
        shapes: ShapeSet,
        backends: Sequence[str],
        peers: Sequence[Peer],
        not_run: list[NotMeasured],
        *,
        interpreted: bool,
        backward: bool,
        pure: bool,
    ) -> None:
        self.case = case
        self.shapes = shapes
        self.not_run = not_run
        self.name = name_of(case, shapes)
        self.pure = pure
        self.contenders = [
            c
            for backend in map(get_backend, backends)
            for c in (
                pure_contenders(case.optimizer, backend)
                if pure
                else portopt_contenders(backend, interpreted=interpreted)
            )
        ]
        for peer in peers:
            reason = why_not_compared(peer, case.optimizer)
            if reason is None:
                self.contenders += peer.contenders(case.optimizer, get_backend(peer.backend))
            else:
                not_run.append(not_measured(f"{peer.name} ({self.name})", reason))
        self._before: dict[str, measuring.Step] = {}
        if backward:
            passes = {name: _backward(name) for name in dict.fromkeys(c.backend for c in self.contenders)}
            self._before = {name: found for name, found in passes.items() if found is not None}
            for contender in self.contenders:
                if contender.backend not in self._before:
                    reason = f"there is no backward pass on arrays of {contender.backend} to do before each step"
                    not_run.append(not_measured(f"{contender.name} ({self.name})", reason))
            self.contenders = [c for c in self.contenders if c.backend in self._before]
        self.bytes_moved = 4 * cases.elements_moved(case.optimizer, shapes.shapes)

    def measure(
        self,
        streams: Sequence[measuring.Stream],
        sample_seconds: float,
        repeats: int,
        watch: Watch,
    ) -> dict[str, Any] | None:
        """Return the group's part of the report; None if there is not enough memory."""
        optimizer = self.case.optimizer
        needed = memory_needed(self.contenders, optimizer, self.shapes)
        available = machine.available_memory()
        if available is not None and needed > available:
            reason = f"needs about {needed / 2**30:.1f} GiB of memory, of which {available / 2**30:.1f} GiB are free"
            self.not_run.append(not_measured(self.name, f"{reason}; name fewer backends"))
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
                self.not_run.append(not_measured(f"{contender.name} ({self.name})", reason, failed=True))
                continue
            finally:
                advance()
            taking_part.append(contender)
            steps.append(step)
            counts.append(count)
            memory.append(extra)
        samples = measuring.alternate(
            [*steps, *(stream.step for stream in streams)],
            [*counts, *(1 for _ in streams)],
            repeats,
            advance,
            [*(self._before.get(c.backend) for c in taking_part), *(None for _ in streams)],
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
            self._result(contender, taken, count, extra, copy_rate, update_rate)
            for contender, taken, count, extra in zip(taking_part, samples, counts, memory, strict=False)
        ]
        _add_ratios(found)
        return {
            "rule": self.case.rule,
            "options": dict(self.case.options),
            "shapes": self.shapes.name,
            "backward": bool(self._before),
            "pure": self.pure,
            "tensors": len(self.shapes.shapes),
            "parameters": self.shapes.parameters,
            "bytes_per_step": self.bytes_moved,
            "copy_bytes_per_second": copy_rate,
            "update_bytes_per_second": update_rate,
            "streams": rates,
            "contenders": found,
        }

    def _result(
        self,
        contender: Contender,
        samples: list[float],
        count: int,
        extra_memory: int,
        copy_rate: float,
        update_rate: float,
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
            "share_of_update": self.bytes_moved / seconds / update_rate,
            "extra_memory_bytes": extra_memory,
        }


def _backward(backend: str) -> measuring.Step | None:
    found = (peer.backward() for peer in PEERS.values() if peer.backend == backend)
    return next((step for step in found if step is not None), None)


def _add_ratios(contenders: list[dict[str, Any]]) -> None:
    """Add to each of portopt's contenders how many times as long the best of each other library takes."""
    best: dict[str, float] = {}
    for c in contenders:
        if c["library"] != "portopt":
            best[c["library"]] = min(c["seconds_per_step"], best.get(c["library"], float("inf")))
    for c in contenders:
        if c["library"] == "portopt":
            c["times_as_fast_as"] = {library: seconds / c["seconds_per_step"] for library, seconds in best.items()}
