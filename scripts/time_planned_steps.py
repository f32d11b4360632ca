"""Time planned steps in place on four small arrays, with what changes from step to step, beside a plain one.

Usage: python scripts/time_planned_steps.py [numpy | torch]

The arrays are those of mlp-digits, float32. Gradients are of the one sign in one step and of the other in the next: from
gradients that always point the same way, rules that estimate their rate leave float32 within some dozen steps, and to add up
infinities takes other time. Printed are medians, of steps in turns in one process, and how many times the first the others take.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import portopt
from portopt import schedules
from portopt_tools.bench.measuring import Step, alternate, median, steps_per_sample
from portopt_tools.bench.shapes import SHAPE_SETS
from portopt_tools.bench.wording import duration

REPEATS, SECONDS = 15, 0.01
COSINE = schedules.CosineDecay(1e-3, steps=100_000, warmup_steps=1000)
SUBJECTS: dict[str, Callable[[], portopt.Optimizer]] = {
    "Adam": portopt.Adam,
    "clipvalue": lambda: portopt.Adam(clipvalue=1.0),
    "clipnorm": lambda: portopt.Adam(clipnorm=1.0),
    "Constant": lambda: portopt.Adam(schedules.Constant(1e-3)),
    "InverseTimeDecay": lambda: portopt.Adam(schedules.InverseTimeDecay(1e-3, rate=0.5, steps=1000)),
    "ExponentialDecay": lambda: portopt.Adam(schedules.ExponentialDecay(1e-3, rate=0.5, steps=1000)),
    "PolynomialDecay": lambda: portopt.Adam(schedules.PolynomialDecay(1e-3, steps=100_000)),
    "PiecewiseConstant": lambda: portopt.Adam(schedules.PiecewiseConstant([100, 1000], [1e-3, 1e-4, 1e-5])),
    "CosineDecay with warm-up": lambda: portopt.Adam(COSINE),
    "CosineDecay and clipnorm": lambda: portopt.Adam(COSINE, clipnorm=1.0),
    "another number in each step": portopt.Adam,
    "a function of the user's": lambda: portopt.Adam(lambda step: 1e-3),
    "Nadam": portopt.Nadam,
    "Nadam with clipnorm": lambda: portopt.Nadam(clipnorm=1.0),
    "Prodigy": portopt.Prodigy,
    "DoG": portopt.DoG,
}


def arrays(library: str, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    found = [rng.standard_normal(shape, np.float32) for shape in SHAPE_SETS["mlp-digits"].shapes]
    return [portopt.get_backend(library).from_numpy(a, "cpu") for a in found]


def step_of(optimizer: portopt.Optimizer, library: str, rates: Iterator[float] | None) -> Step:
    """Return a step, with the next of some learning rates, if there are any."""
    params, grads = arrays(library, 0), arrays(library, 1)
    signs = itertools.cycle((grads, [-g for g in grads]))
    states = [optimizer.init(params)]

    def plain() -> None:
        states[0] = optimizer.apply_(params, next(signs), states[0])

    def with_rate() -> None:
        states[0] = optimizer.apply_(params, next(signs), states[0], learning_rate=next(rates))  # type: ignore[arg-type]

    return plain if rates is None else with_rate


def main(library: str = "numpy") -> None:
    steps = []
    for name, make in SUBJECTS.items():
        rates = (1e-3 + 1e-9 * k for k in itertools.count()) if name.startswith("another number") else None
        steps.append(step_of(make(), library, rates))
    counts = [steps_per_sample(step, SECONDS) for step in steps]
    medians = list(map(median, alternate(steps, counts, REPEATS, lambda: None)))
    for name, found in zip(SUBJECTS, medians, strict=True):
        print(f"{name:28} {duration(found):>9} {found / medians[0]:6.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
