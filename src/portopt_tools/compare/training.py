"""One run: training from the common initial parameters, with the bits watched after every step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from portopt_tools.compare.bits import Difference, Trajectory, digest, first_difference
from portopt_tools.compare.digits import Digits, Network, Parameters
from portopt_tools.compare.runners import Runner


@dataclass(frozen=True)
class Problem:
    """What all runs have in common."""

    digits: Digits
    network: Network
    initial: Parameters
    batches: npt.NDArray[np.int64]
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """The number of steps of a run."""
        return len(self.batches)


@dataclass
class Measurements:
    """What one run gave.

    Attributes:
        losses, accuracies, distances: mean training loss, test accuracy, and largest difference of a parameter from the
            reference (None in the reference itself), before training and after each epoch.
        sha256: digest of the final parameters.
        difference: where the bits first differ from the reference's.
        seconds_first_step: duration of the first step, which traces and compiles.
        seconds_per_step: median duration of a step, until the new parameters are on the host.
    """

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    distances: list[float] | None = None
    sha256: str = ""
    difference: Difference | None = None
    seconds_first_step: float = 0.0
    seconds_per_step: float = 0.0


def train(
    problem: Problem,
    runner: Runner,
    *,
    reference: Trajectory | None = None,
    record: Trajectory | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Measurements:
    """Train once.

    Args:
        problem: data, initial parameters and batches.
        runner: what takes the steps.
        reference: what the parameters are compared with after each step; None in the reference run itself.
        record: where the parameters after each step are kept.
        on_step: called after each step.
    """
    found = Measurements(distances=None if reference is None else [0.0])
    durations: list[float] = []

    def watch_quality(parameters: Parameters) -> None:
        loss, accuracy = problem.network.quality(problem.digits, parameters)
        found.losses.append(loss)
        found.accuracies.append(accuracy)

    with runner.context():
        runner.start(problem.initial)
        parameters = runner.parameters()
        watch_quality(parameters)
        for step, rows in enumerate(problem.batches, start=1):
            gradients = runner.load(problem.network.gradients(problem.digits, rows, parameters))
            begin = time.perf_counter()
            runner.step(gradients)
            # Fetching the parameters is the one way to wait that every library has.
            parameters = runner.parameters()
            durations.append(time.perf_counter() - begin)
            if record is not None:
                record.append(parameters)
            end_of_epoch = step % problem.steps_per_epoch == 0
            if reference is not None and (found.difference is None or end_of_epoch):
                expected = reference.after(step)
                if found.difference is None:
                    found.difference = first_difference(step, parameters, expected)
                if end_of_epoch and found.distances is not None:
                    found.distances.append(_largest_difference(parameters, expected))
            if end_of_epoch:
                watch_quality(parameters)
            on_step()
    found.sha256 = digest(parameters)
    found.seconds_first_step = durations[0]
    found.seconds_per_step = statistics.median(durations)
    return found


def _largest_difference(parameters: Parameters, reference: Parameters) -> float:
    with np.errstate(all="ignore"):
        return max(
            float(np.max(np.abs(mine.astype(np.float64) - theirs.astype(np.float64))))
            for mine, theirs in zip(parameters, reference, strict=True)
        )
