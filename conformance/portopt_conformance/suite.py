"""The suite's cases for a backend. Nothing here knows pytest or the command line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import portopt
from portopt import Backend, Optimizer
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt_conformance import contract, plan, purity
from portopt_conformance.case import Case, Outcome
from portopt_conformance.committed import Vectors
from portopt_conformance.comparison import size
from portopt_conformance.configurations import Configuration, configurations
from portopt_conformance.expected import Committed, Expected, Live
from portopt_conformance.plan import Planned
from portopt_conformance.platform import Platform, choose_device, reference
from portopt_conformance.words import missing_dtype

LAYERS = {
    0: "backend contract",
    1: "operations, scalars, norm",
    2: "rules, one step",
    3: "rules, many steps",
    4: "purity, layouts, shapes",
    5: "rules, compiled modes",
}
"""The layers by number."""


def untested_dtypes(backend: Backend, against: Platform | None = None) -> dict[str, str]:
    """Return each dtype that cannot be tested on a backend, or compared with another platform's results, and why."""
    found = {}
    needed = [backend] if against is None else [backend, against.backend]
    for dtype in COMPUTE_DTYPE:
        without = next((each.name for each in needed if dtype not in each.dtypes()), None)
        if reason := missing_dtype(dtype):
            found[dtype] = reason
        elif without is not None:
            found[dtype] = f"{without} has no {dtype}"
    return found


def cases(
    backend: Backend,
    *,
    device: str | None = None,
    layers: Collection[int] = tuple(LAYERS),
    quick: bool = False,
    full: bool = False,
    turn: int = 0,
    rules: Sequence[type[Optimizer]] = portopt.RULES,
    against: Platform | None = None,
) -> Iterator[Case]:
    """Yield the suite's cases for a backend.

    Args:
        backend: what is tested; it need not be installed.
        device: name of a device; None for the backend's first usable one.
        layers: numbers of the layers to yield.
        quick: leave out most configurations, modes that repeat others, and runs of 100 steps.
        full: test every rule in every mode and under every setting, and rules that reduce or multiply with all options and
            dtypes where each is a compilation. That takes hours; else they take turns.
        turn: which rules and options have their turn; runs of other numbers test others deeply.
        rules: the rules to test; one alone has all modes. Results of a rule without committed vectors are compared with the
            reference's.
        against: compare with what this platform gives, in place of the committed vectors.

    Raises:
        UnusableDeviceError: the device is not there.
    """
    device = choose_device(backend, device)
    untested = untested_dtypes(backend, against)
    dtypes = [dtype for dtype in backend.dtypes() if dtype not in untested]
    vectors = Vectors()

    def expected(rule: type[Optimizer] | None) -> Expected:
        if against is not None:
            return Live(against)
        return Committed(vectors) if rule is None or vectors.has_rule(rule.__name__) else Live(reference())

    found = _all_cases(backend, device, dtypes, expected, rules, quick=quick, full=full, turn=turn)
    return (case for case in found if case.layer in layers)


def cases_of(
    rules: Sequence[type[Optimizer]],
    backend: Backend,
    *,
    device: str | None = None,
    layers: Collection[int] = tuple(LAYERS),
    quick: bool = False,
    full: bool = False,
    turn: int = 0,
    against: Platform | None = None,
) -> Iterator[Case]:
    """Yield the cases of rules alone; those of a built-in rule are among what `cases` yields.

    Any other rule is compared with the reference, also if it has the name of a rule with committed vectors.

    Args:
        rules: the rules.
        backend, device, layers, quick, full, turn, against: see `cases`.

    Raises:
        UnusableDeviceError: the device is not there.
    """
    built_in = {rule.__name__ for rule in rules if rule in portopt.RULES}
    if built_in:
        whole = cases(backend, device=device, layers=layers, quick=quick, full=full, turn=turn, against=against)
        yield from (case for case in whole if case.subject in built_in)
    for rule in rules:
        if rule not in portopt.RULES:
            platform = against or reference()
            extent: dict[str, Any] = {"layers": layers, "quick": quick, "full": full, "turn": turn}
            own = cases(backend, device=device, rules=[rule], against=platform, **extent)
            yield from (case for case in own if case.subject == rule.__name__)


def _all_cases(
    backend: Backend,
    device: str,
    dtypes: Sequence[str],
    expected: Callable[[type[Optimizer] | None], Expected],
    rules: Sequence[type[Optimizer]],
    *,
    quick: bool,
    full: bool,
    turn: int,
) -> Iterator[Case]:
    depths = plan.depths(backend, device)
    if quick:
        depths = [(platform, depth) for platform, depth in depths if depth in ("first", "compiled")]
    yield from _contract_cases(depths[0][0], dtypes)
    for mode, (platform, depth) in enumerate(depths, turn):
        for planned in plan.operations(platform, dtypes, depth, turn=mode, full=full):
            yield _experiment_case(platform, planned, expected(None))

    # A rule alone has all modes.
    alone = full or len(rules) == 1

    def samples(mode: int) -> Sequence[Sequence[tuple[str, str]]]:
        return [plan.SAMPLE] * len(rules) if alone else plan.samples(rules, mode)

    numbers = plan.numbers(rules, turn)
    for mode, (platform, depth) in enumerate(depths, turn):
        for rule, number, sample in zip(rules, numbers, samples(mode), strict=True):
            for planned in plan.of_rule(
                rule, platform, dtypes, depth, quick=quick, full=full, number=number, sample=sample
            ):
                yield _experiment_case(platform, planned, expected(rule))
    yield from _purity_cases(backend, device, dtypes, rules, full=alone, turn=turn)
    if not quick:
        for mode, platform in enumerate(plan.with_settings(backend, device), turn):
            for rule, sample in zip(rules, samples(mode), strict=True):
                for planned in plan.under_settings(rule, dtypes, sample):
                    yield _experiment_case(platform, planned, expected(rule))


def _experiment_case(platform: Platform, planned: Planned, expected: Expected) -> Case:
    def check() -> Outcome:
        with platform.active(planned.dtype):
            results = planned.experiment.run(platform)
        difference = expected.difference(planned.experiment, planned.dtype, results)
        text = "" if difference is None else difference.text
        return Outcome(difference is None, size(results), difference, text)

    layer = 5 if platform.mode.compiled and planned.layer > 1 else planned.layer
    return Case(layer, planned.subject, planned.variant, planned.dtype, platform.mode_name, planned.name, check)


def _contract_cases(platform: Platform, dtypes: Sequence[str]) -> Iterator[Case]:
    for dtype in dtypes:
        for name, check in contract.CHECKS.items():

            def run(check: contract.Check = check, dtype: str = dtype) -> Outcome:
                with platform.active(dtype):
                    return _verdict(list(check(platform, dtype)))

            yield Case(0, "backend", "contract", dtype, "any", name, run)


def _purity_cases(
    backend: Backend, device: str, dtypes: Sequence[str], rules: Sequence[type[Optimizer]], *, full: bool, turn: int
) -> Iterator[Case]:
    platforms = [Platform(backend, device, mode) for mode in backend.modes.values()]
    chosen = plan.checks(platforms, rules, dtypes, turn=turn, full=full)
    for number, (platform, of_mode) in enumerate(zip(platforms, chosen, strict=True)):
        checks = [(platform.mode_name, check) for check in purity.MODE_CHECKS]
        if number == 0:
            checks += [("any", check) for check in purity.CHECKS]
        for rule, dtype in of_mode:
            configuration = configurations(rule)[-1]
            for mode, check in checks:
                yield _purity_case(platform, check, configuration, dtype, mode)


def _purity_case(platform: Platform, check: purity.Check, configuration: Configuration, dtype: str, mode: str) -> Case:
    def run() -> Outcome:
        with platform.active(dtype):
            return _verdict(list(check(platform, configuration.optimizer(), dtype)))

    return Case(4, configuration.rule.__name__, configuration.name, dtype, mode, check.__name__, run)


def _verdict(problems: list[str]) -> Outcome:
    return Outcome(not problems, text="\n".join(problems))
