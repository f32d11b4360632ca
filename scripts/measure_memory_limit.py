"""Time steps against what the memory takes for as many bytes, and against torch.optim, in turns in one process.

    python scripts/measure_memory_limit.py [SHAPES [LIBRARY [RULE ...]]]

SHAPES is a set of `portopt bench`, LIBRARY numpy or torch. A line for each rule has the step; one addition for each array, which
reads and writes what the rule does; changing one array in place, of half as many bytes as the step moves, which are then read and
written; copying, which reads half of them and writes the other half; and the fastest implementation of torch.optim. What is
besides the step is given as the share of its time that it takes: no implementation can be faster than the memory.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import portopt
from portopt_tools.bench import cases
from portopt_tools.bench.contenders import PEERS, Inputs, portopt_contenders
from portopt_tools.bench.measuring import Step, Stream, alternate, median, steps_per_sample
from portopt_tools.bench.shapes import SHAPE_SETS
from portopt_tools.bench.wording import duration

REPEATS, SECONDS = 13, 0.03
RULES = ("sgd", "adagrad", "rmsprop", "adam", "adamw", "adamax")


class _Additions(portopt.Optimizer):
    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p + g, {name: getattr(slots, name) + g for name in self.slots}


class OneSlot(_Additions):
    """A rule that reads and writes what SGD with momentum does."""

    slots = ("m",)


class TwoSlots(_Additions):
    """A rule that reads and writes what Adam does."""

    slots = ("m", "v")


ADDITIONS: Mapping[int, type[_Additions]] = {1: OneSlot, 2: TwoSlots}


def steps(text: str, shapes: str, library: str) -> tuple[dict[str, Step], int]:
    """Return what is timed for a rule, by name, and how many bytes its step moves."""
    optimizer, backend, threads = cases.read(text).optimizer, portopt.get_backend(library), portopt.get_num_threads()
    found: dict[str, Step] = {}
    for name, rule in (("step", optimizer), ("additions", ADDITIONS[len(optimizer.slots)]())):
        (own,) = (c for c in portopt_contenders(backend, interpreted=False) if c.mode == "apply_")
        found[name] = own.prepare(Inputs(rule, SHAPE_SETS[shapes]))
    moved = 4 * cases.elements_moved(optimizer, SHAPE_SETS[shapes].shapes)
    for in_place in (True, False):
        found["in place" if in_place else "copy"] = Stream(moved // 2, threads, in_place=in_place).step
    inputs = Inputs(optimizer, SHAPE_SETS[shapes])
    theirs = {c.mode: c for c in PEERS["torch"].contenders(optimizer, portopt.get_backend("torch"))}
    for mode in ["fused"] if "fused" in theirs else theirs:
        found[mode] = theirs[mode].prepare(inputs)
    return found, moved


def main(shapes: str = "one-10M", library: str = "numpy", *rules: str) -> None:
    for text in rules or RULES:
        found, moved = steps(text, shapes, library)
        # Of several, an untimed one comes first: torch's threads do not end their wait for more work within the time of the next.
        counts = [max(2, steps_per_sample(step, SECONDS)) for step in found.values()]
        taken = dict(
            zip(found, map(median, alternate(list(found.values()), counts, REPEATS, lambda: None)), strict=True)
        )
        own = taken["step"]
        shares = [f"{name} {taken[name] / own:.2f}" for name in ("additions", "in place", "copy")]
        mode = min(taken.keys() - {"step", "additions", "in place", "copy"}, key=taken.__getitem__)
        shares.append(f"torch.optim {mode} {taken[mode] / own:.2f} ({moved / taken[mode] / 1e9:.1f} GB/s)")
        print(
            f"{shapes} {library} {text:8} {duration(own):>8} {moved / own / 1e9:6.1f} GB/s; {', '.join(shares)}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
