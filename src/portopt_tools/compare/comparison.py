"""The main job: train with every backend and mode, each on its own, and say whether the bits agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from portopt.optimizer import Optimizer
from portopt_tools import stopping
from portopt_tools.compare import digits
from portopt_tools.compare.bits import Trajectory
from portopt_tools.compare.run_selection import NotRun, select_runs
from portopt_tools.compare.runners import Runner, name_of
from portopt_tools.compare.training import Measurements, Problem, train
from portopt_tools.errors import UnusableArgumentsError
from portopt_tools.progress import Watch, unwatched


@dataclass(frozen=True)
class Settings:
    """What is compared.

    Attributes:
        optimizer: what every run computes.
        epochs: passes over the training images, at least 1.
        batch_size: images per step.
        dtype: dtype of parameters and gradients.
        seed: of the split of the data, the initial parameters and the order of the batches.
        backends: backends to run; none means all that are usable.
        devices: devices to run on; none means each backend's first.
        against: frameworks whose own optimizer is run too.
    """

    optimizer: Optimizer
    epochs: int = 30
    batch_size: int = 32
    dtype: str = "float32"
    seed: int = 0
    backends: Sequence[str] = ()
    devices: Sequence[str] = ()
    against: Sequence[str] = ()


class Verdict(Enum):
    """What the bits of a run say."""

    REFERENCE = "reference"
    IDENTICAL = "identical"
    DIFFERENT = "different"
    FAILED = "failed"
    OTHER_FORMULA = "different formula"


@dataclass(frozen=True)
class Run:
    """One run and its result; `measurements` is None, and `error` says why, where it failed."""

    runner: Runner
    verdict: Verdict
    measurements: Measurements | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """Backend, device and mode."""
        return name_of(self.runner)


@dataclass(frozen=True)
class Comparison:
    """All runs, the reference among them.

    Attributes:
        interrupt: what ended the comparison before its last run; None if nothing did.
    """

    settings: Settings
    problem: Problem
    runs: Sequence[Run]
    not_run: Sequence[NotRun]
    interrupt: KeyboardInterrupt | None = None

    @property
    def identical(self) -> bool:
        """Whether all runs with portopt's formula finished and have the reference's bits after every step."""
        return self.interrupt is None and self.agreeing

    @property
    def agreeing(self) -> bool:
        """Whether those of these runs that finished have the reference's bits after every step."""
        return all(run.verdict in (Verdict.REFERENCE, Verdict.IDENTICAL) for run in self.portopt_runs)

    @property
    def portopt_runs(self) -> Sequence[Run]:
        """The runs that the verdict is about."""
        return [run for run in self.runs if run.runner.formula is None]

    @property
    def reference(self) -> Run | None:
        """The run that the others are compared with; None if all failed."""
        return next((run for run in self.runs if run.verdict is Verdict.REFERENCE), None)


def prepare(settings: Settings) -> tuple[Problem, list[Runner], list[NotRun]]:
    """Return everything that is needed before the first run.

    Raises:
        UnusableArgumentsError: the settings cannot be acted on.
    """
    initial = digits.initial_parameters(settings.seed, settings.dtype)
    runners, not_run = select_runs(
        settings.optimizer, settings.dtype, settings.backends, settings.devices, settings.against
    )
    data = digits.load_digits(settings.seed)
    images = len(data.train_images)
    if settings.batch_size > images:
        raise UnusableArgumentsError(
            f"a batch of {settings.batch_size} images was asked for, but there are only {images} to train on"
        )
    problem = Problem(
        digits=data,
        network=digits.Network(settings.batch_size),
        initial=initial,
        batches=digits.batches(settings.seed, images, settings.batch_size, settings.epochs),
        steps_per_epoch=images // settings.batch_size,
    )
    return problem, runners, not_run


def compare(settings: Settings, watch: Watch = unwatched) -> Comparison:
    """Train once with each backend and mode, and compare the parameters after every step with those of the first run.

    An interrupt ends the comparison, and what was finished by then is returned.

    Raises:
        UnusableArgumentsError: the settings cannot be acted on.
    """
    problem, runners, not_run = prepare(settings)
    runs: list[Run] = []
    interrupt: KeyboardInterrupt | None = None
    with Trajectory(problem.initial) as reference:
        try:
            for runner in runners:
                has_reference = any(run.verdict is Verdict.REFERENCE for run in runs)
                runs.append(_run(problem, runner, reference, watch, has_reference=has_reference))
        except KeyboardInterrupt as stop:
            interrupt = stopping.as_stopped(stop)
            not_run += [NotRun(name_of(runner), str(interrupt)) for runner in runners[len(runs) :]]
    return Comparison(settings, problem, runs, not_run, interrupt)


def _run(problem: Problem, runner: Runner, reference: Trajectory, watch: Watch, *, has_reference: bool) -> Run:
    is_reference = not has_reference and runner.formula is None
    try:
        measured = train(
            problem,
            runner,
            reference=reference if has_reference else None,
            record=reference if is_reference else None,
            on_step=watch(name_of(runner), problem.steps),
        )
    except Exception as error:
        stopping.check()
        # One library that breaks must not hide what the others did.
        if is_reference:
            reference.clear()
        return Run(runner, Verdict.FAILED, error=f"{type(error).__name__}: {error}")
    return Run(runner, _verdict(runner, measured, is_reference), measured)


def _verdict(runner: Runner, measured: Measurements, is_reference: bool) -> Verdict:
    if runner.formula is not None:
        return Verdict.OTHER_FORMULA
    if is_reference:
        return Verdict.REFERENCE
    return Verdict.IDENTICAL if measured.difference is None else Verdict.DIFFERENT
