"""Which experiments are made in which dtype and mode: the one place that decides it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import portopt
from portopt import Backend, Optimizer
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.backend import IN_PLACE, INTERPRETED
from portopt.program import DRAWS
from portopt_conformance import primitives, rules
from portopt_conformance.arrangement import UNLIKE
from portopt_conformance.configurations import Configuration, configurations
from portopt_conformance.experiment import Experiment
from portopt_conformance.platform import Platform, reference
from portopt_conformance.probes import REDUCED
from portopt_conformance.words import missing_dtype

COMPUTE_DTYPES = tuple(dict.fromkeys(COMPUTE_DTYPE.values()))
SCHEDULED_RULE = portopt.SGD
NARROW_SLOT_RULE = portopt.Adam
NARROW_SLOTS = (("float32", "float16"), ("float32", "bfloat16"), ("float16", "float16"), ("bfloat16", "bfloat16"))
"""Dtypes of parameters and of the slots that one rule keeps for them."""
IN_EVERY_TURN = (SCHEDULED_RULE.__name__, NARROW_SLOT_RULE.__name__)
"""Rules that have everything in modes that compile a step, whose turn ever it is."""
OTHER_GRADIENTS = (("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float64"), ("float64", "float32"))
"""Dtypes of parameters and of the gradients of another dtype with which the same rule makes steps."""

DIALECT_DTYPES = ("float32", "bfloat16")
"""Dtypes in which every dialect of every rule is tested."""

COMPILED = (
    *(("clipped", dtype) for dtype in ("float32", "float64", "bfloat16")),
    *(("default", dtype) for dtype in ("float32", "float16")),
)
"""Configurations and dtypes of elementwise rules in modes that compile, and in the interpreter."""
OF_MANY_ELEMENTS = (("clipped", "float32"), ("clipped", "bfloat16"), ("default", "float32"))
"""Configurations and dtypes of rules whose steps reduce or multiply: each is a kernel to compile, or several."""
IN_TURNS = (("clipped", "float64"), ("default", "float16"))
"""What such rules have one of besides, in turns."""
CLIPPING = ("clipnorm", "clipvalue")
"""Configurations of which `clipped` has everything; a rule that reduces or multiplies has a kernel more to compile for each."""

SAMPLE = (("clipped", "float32"), ("default", "bfloat16"), ("default", "float16"))
"""Configurations and dtypes for modes of which only a sample is tested."""
OPTION_TURNS = 4
"""One option of so many is tested alone where each is a compilation."""
TURNS = {"elementwise": 8, "reducing": 8, "multiplying or drawing": 4}
"""One rule of so many of each kind is tested in each mode of which only a sample is tested, and under each setting.

In modes that compile a step, these rules have more than one test where all rules have one.
"""
SAMPLE_SCHEDULE = "CosineDecay_warmup"
"""The schedule that stands for all in modes offered for tests only."""


@dataclass(frozen=True)
class Planned:
    """An experiment, with the words by which its cases are known."""

    subject: str
    variant: str
    dtype: str
    name: str
    experiment: Experiment
    layer: int


def depths(backend: Backend, device: str) -> list[tuple[Platform, str]]:
    """Return each way to run on a backend, and how much is made there.

    `first`, the first mode, has everything: the core configurations in every dtype, the others in float32; `plain`, other
    modes that compile nothing, the core configurations; `compiled` less of what takes a compilation of its own;
    `sampled`, modes that do many steps at once, a sample of the rules whose turn it is; `single operations`, the interpreter
    of a library that compiles each operation, the same and the operations; `extra`, modes offered for tests only, the sample
    with one schedule.
    """
    found = []
    compiles = next(iter(backend.modes.values())).compiled
    for i, mode in enumerate(backend.modes.values()):
        depth = "sampled" if mode.run is not None else "compiled" if mode.compiled else "plain"
        depth = "single operations" if compiles and mode is INTERPRETED else depth
        found.append((Platform(backend, device, mode), "first" if i == 0 else depth))
    return found + [(Platform(backend, device, mode), "extra") for mode in backend.extra_modes.values()]


def with_settings(backend: Backend, device: str) -> list[Platform]:
    """Return the ways to run under each of a backend's settings: the first mode, and those that compile a step."""
    modes = [platform.mode for platform, depth in depths(backend, device) if depth in ("first", "compiled")]
    return [Platform(backend, device, mode, setting) for setting in backend.settings for mode in modes]


def samples(rules: Sequence[type[Optimizer]], turn: int) -> list[Sequence[tuple[str, str]]]:
    """Return what of `SAMPLE` is tested of each rule in a mode: nothing unless it is the rule's turn, then two of the three.

    Each mode has rules of every kind, and each rule some modes; the narrow dtypes alternate.

    Args:
        rules: the rules.
        turn: the mode's number.
    """
    found: list[Sequence[tuple[str, str]]] = []
    numbers = dict.fromkeys(TURNS, turn)
    for rule in rules:
        kind = kind_of(rule)
        turns, remaining = divmod(numbers[kind], TURNS[kind])
        found.append(() if remaining else (SAMPLE[0], SAMPLE[1 + turns % 2]))
        numbers[kind] += 1
    return found


def kind_of(rule: type[Optimizer]) -> str:
    """Return which of the kinds of `TURNS` a rule is of."""
    default = configurations(rule)[0]
    if default.is_elementwise:
        return "elementwise"
    operations = {op.name for op in default.optimizer().program(shape=UNLIKE["matrix"]).ops}
    return "multiplying or drawing" if operations & {"matmul", *DRAWS} else "reducing"


def rules_of_checks(
    platforms: Sequence[Platform], rules: Sequence[type[Optimizer]], *, full: bool
) -> list[Sequence[type[Optimizer]]]:
    """Return the rules whose arrays are checked in each mode: all, or those whose turn it is where a mode compiles.

    Args:
        platforms: the backend in each mode.
        rules: the rules.
        full: whether to leave out none.
    """
    if full or not any(platform.mode.compiled for platform in platforms):
        return [rules for _ in platforms]
    return [
        [rule for rule, sample in zip(rules, samples(rules, turn), strict=True) if sample]
        for turn in range(len(platforms))
    ]


def operations(
    platform: Platform, dtypes: Sequence[str], depth: str, *, turn: int = 0, full: bool = False
) -> Iterator[Planned]:
    """Yield the experiments on operations, scalars and the norm.

    Args:
        platform: where the experiments are made.
        dtypes: the dtypes there.
        depth: how much, see `depths`.
        turn: the mode's number, where compute dtypes take turns.
        full: whether to make what is left out because it takes long.
    """
    if depth in ("sampled", "extra") or platform.mode is IN_PLACE:
        return
    is_dear = depth in ("compiled", "single operations") and not full
    for dtype in dtypes:
        yield Planned("operations", "load", dtype, "words", primitives.conversion_experiment(dtype), 1)
        for other in dtypes:
            if other != dtype:
                experiment = primitives.gradient_experiment(dtype, other)
                yield Planned("operations", f"load_gradient_{other}", dtype, "words", experiment, 1)
        # Narrow dtypes are loaded first, and then it is the norm of float32.
        for full_name, experiment in (
            primitives.norm_experiments(dtype) if dtype in COMPUTE_DTYPES or not is_dear else ()
        ):
            variant, _, name = full_name.partition("/")
            yield Planned("norm", variant, dtype, name or "in_order", experiment, 1)
    for place, dtype in enumerate(COMPUTE_DTYPES):
        if dtype in dtypes:
            for number, (variant, experiment) in enumerate(primitives.array_experiments(dtype)):
                if is_dear and (number + turn) % len(COMPUTE_DTYPES) != place:
                    continue
                yield Planned("operations", variant, dtype, "words", experiment, 1)
            if dtype == "float32" or not is_dear:
                yield Planned("operations", "functions", dtype, "words", primitives.function_experiment(dtype), 1)
                yield Planned("operations", "products", dtype, "words", primitives.product_experiment(dtype), 1)
                yield Planned("operations", "identity", dtype, "words", primitives.identity_experiment(dtype), 1)
                yield Planned("operations", "draws", dtype, "words", primitives.draw_experiment(dtype), 1)
            for name in REDUCED:
                yield Planned("operations", name, dtype, "words", primitives.reduction_experiment(name, dtype), 1)
            yield Planned("operations", "round", dtype, "words", primitives.round_experiment(dtype), 1)
    if "float32" in dtypes:
        yield Planned("scalars", "functions", "float32", "values", primitives.scalar_experiment(), 1)


def of_rule(
    rule: type[Optimizer],
    platform: Platform,
    dtypes: Sequence[str],
    depth: str,
    *,
    quick: bool,
    full: bool = False,
    number: int = 0,
    sample: Sequence[tuple[str, str]] = SAMPLE,
) -> Iterator[Planned]:
    """Yield the experiments on a rule.

    Args:
        rule: the rule.
        platform: where the experiments are made.
        dtypes: the parameters' dtypes.
        depth: how much, see `depths`.
        quick: whether to leave out all but two configurations, and the runs of 100 steps.
        full: whether to make what is left out because it takes long.
        number: the rule's number, where options take turns.
        sample: configurations and dtypes in modes of which a sample is tested.
    """
    scope = _Scope(depth, number, platform.mode.compiled, _is_interpreted(platform), full, sample)
    for configuration in configurations(rule):
        outermost = configuration.name in ("default", "clipped")
        if quick and not outermost:
            continue
        for dtype in dtypes:
            for layer, name in _chosen(configuration, dtype, scope, outermost=outermost):
                if not (quick and name == "hundred"):
                    yield _planned(configuration, dtype, layer, name)
        if configuration.name == "default":
            yield from _extras(configuration, dtypes, depth, quick=quick)
        if configuration.name == "clipped" and rule.__name__ == NARROW_SLOT_RULE.__name__ and not quick:
            yield from _with_other_gradients(configuration, dtypes, depth)


@dataclass(frozen=True)
class _Scope:
    """How much is made of a rule; the arguments of `of_rule` of these names, and what is done there with a step."""

    depth: str
    number: int
    compiled: bool
    is_interpreted: bool
    full: bool
    sample: Sequence[tuple[str, str]]

    @property
    def is_in_turn(self) -> bool:
        return self.full or SAMPLE[0] in self.sample


def _is_interpreted(platform: Platform) -> bool:
    """Tell whether steps are done operation by operation, if only because a backend knows nothing else."""
    mode = platform.mode
    return mode is INTERPRETED or not (mode.compiled or INTERPRETED.name in platform.backend.modes)


def _chosen(configuration: Configuration, dtype: str, scope: _Scope, *, outermost: bool) -> Iterator[tuple[int, str]]:
    """Yield layer and name of what is made with a configuration in a dtype."""
    depth = scope.depth
    if scope.compiled and not scope.full and depth in ("first", "compiled") and not configuration.is_elementwise:
        # A compilation takes seconds: most options at once stand for all, and the first mode for dialects and narrow dtypes.
        first = depth == "first"
        narrow = first and scope.is_in_turn and dtype in DIALECT_DTYPES
        if configuration.name == "clipped" and (dtype == "float32" or narrow):
            yield (3, "ten")
        if first and dtype == "float32" and _is_dialect_in_turn(configuration, scope.number):
            yield (2, "ordinary")
        return
    single = dtype == "float32"
    if depth == "compiled" and not scope.is_in_turn and configuration.rule.__name__ not in IN_EVERY_TURN:
        if (configuration.name, dtype) == SAMPLE[0]:
            yield (3, "ten")
        return
    if configuration.dialect:
        every = scope.full or (configuration.is_elementwise and not scope.compiled)
        if depth == "first" and (dtype in DIALECT_DTYPES if every else single):
            yield from ((2, "raw"), (2, "ordinary"))
        elif depth == "compiled" and single and (scope.full or _is_option_in_turn(configuration, scope.number)):
            yield (2, "ordinary")
        return
    if not configuration.is_elementwise:
        yield from _of_many_elements(configuration, dtype, scope, outermost=outermost)
        return
    core, first = configuration.core, depth == "first"
    if depth in ("sampled", "extra", "single operations"):
        if (configuration.name, dtype) in scope.sample:
            yield (3, "ten")
            if depth == "single operations" and single:
                yield from ((2, "raw"), (3, "hundred"))
        return
    is_slow = scope.compiled or scope.is_interpreted
    if is_slow and outermost and not scope.full and (configuration.name, dtype) not in COMPILED:
        return
    alone = outermost or scope.full or not scope.compiled or _is_option_in_turn(configuration, scope.number)
    in_dtype = single or (core and (outermost or scope.full or not is_slow))
    if in_dtype and ((first and alone) or (depth == "plain" and core)):
        yield from ((2, "raw"), (2, "zero"), (2, "ordinary"), (3, "ten"))
    elif depth == "compiled":
        if core and (outermost or single or scope.full):
            yield from ((2, "raw"), (2, "ordinary"), (3, "ten"))
        elif single and not core and alone:
            yield (2, "ordinary")
        if configuration.name == "default" and single:
            yield from ((2, "zero"), (3, "given_each_step"))
    if outermost:
        one_stands_for_all = scope.is_interpreted and not scope.full
        if not one_stands_for_all or (configuration.name == "clipped" and dtype in DIALECT_DTYPES and scope.is_in_turn):
            yield (3, "hundred")
    if first and core and alone and in_dtype:
        yield from ((3, "resumed"), (3, "given_each_step"))
    if first and single and configuration.name == "clipped":
        yield (3, "nested")


def _is_option_in_turn(configuration: Configuration, number: int) -> bool:
    return (configurations(configuration.rule).index(configuration) + number) % OPTION_TURNS == 0


def _is_dialect_in_turn(configuration: Configuration, number: int) -> bool:
    """Tell whether a configuration is the one dialect of its rule that stands for all."""
    dialects = [found for found in configurations(configuration.rule) if found.dialect]
    return configuration.dialect and dialects[number % len(dialects)] is configuration


def _of_many_elements(
    configuration: Configuration, dtype: str, scope: _Scope, *, outermost: bool
) -> Iterator[tuple[int, str]]:
    """Yield what is made with a rule whose steps reduce or multiply: its programs are many, so the outermost stand for all."""
    depth = "first" if scope.full and scope.depth == "compiled" else scope.depth
    single = dtype == "float32"
    if outermost:
        chosen = (configuration.name, dtype) in (*OF_MANY_ELEMENTS, IN_TURNS[scope.number % len(IN_TURNS)])
    else:
        chosen = configuration.name not in CLIPPING and _is_option_in_turn(configuration, scope.number)
    first = depth == "first" and (chosen or scope.full)
    if first and (outermost or single):
        yield from ((2, "raw"), (2, "ordinary"))
    plain = (
        depth == "plain" and (configuration.name, dtype) == SAMPLE[0] and (scope.is_in_turn or not scope.is_interpreted)
    )
    if (outermost and first) or plain:
        yield (3, "ten")
    if configuration.name == "clipped" and depth == "first" and dtype in DIALECT_DTYPES:
        if scope.is_in_turn or not scope.is_interpreted:
            yield (3, "hundred")
        yield from ((3, "resumed"), (3, "given_each_step"))
    sample = scope.sample if scope.full else [chosen for chosen in scope.sample if chosen == SAMPLE[0]]
    if depth in ("sampled", "extra", "single operations") and (configuration.name, dtype) in sample:
        yield (3, "ten")


def _planned(configuration: Configuration, dtype: str, layer: int, name: str) -> Planned:
    if layer == 2:
        experiment = rules.one_step(configuration, dtype, name)
    elif name == "hundred":
        experiment = rules.hundred_steps(configuration, dtype)
    elif name == "given_each_step":
        experiment = rules.given_each_step(configuration, dtype)
    else:
        experiment = rules.ten_steps(configuration, dtype, name)
    return Planned(configuration.rule.__name__, configuration.name, dtype, name, experiment, layer)


def _extras(configuration: Configuration, dtypes: Sequence[str], depth: str, *, quick: bool) -> Iterator[Planned]:
    """Yield what one rule stands for all in: schedules, and slots kept in a narrower dtype."""
    name = configuration.rule.__name__
    if name == SCHEDULED_RULE.__name__:
        for dtype in COMPUTE_DTYPES if depth == "first" else ("float32",):
            for schedule, experiment in rules.scheduled(configuration, dtype):
                chosen = depth in ("first", "plain", "compiled") or schedule == SAMPLE_SCHEDULE
                if chosen and dtype in dtypes and (not quick or depth == "first"):
                    yield Planned(name, schedule, dtype, "schedule", experiment, 3)
    if name == NARROW_SLOT_RULE.__name__ and depth in ("first", "compiled") and not quick:
        for dtype, slots in NARROW_SLOTS:
            if dtype in dtypes and slots in dtypes:
                experiment = rules.narrow_slots(configuration, dtype, slots)
                yield Planned(name, f"slots_{slots}", dtype, "ten", experiment, 3)


def _with_other_gradients(configuration: Configuration, dtypes: Sequence[str], depth: str) -> Iterator[Planned]:
    """Yield steps with gradients of another dtype than the parameter."""
    for dtype, other in OTHER_GRADIENTS if depth in ("first", "plain", "compiled") else ():
        if dtype in dtypes and other in dtypes:
            experiment = rules.gradients_of_another_dtype(configuration, dtype, other)
            yield Planned(configuration.rule.__name__, f"gradients_{other}", dtype, "ten", experiment, 3)


def under_settings(
    rule: type[Optimizer], dtypes: Sequence[str], sample: Sequence[tuple[str, str]]
) -> Iterator[Planned]:
    """Yield the experiments that are made under each of a backend's settings."""
    for configuration in configurations(rule):
        if configuration.name == "clipped" and "float32" in dtypes and SAMPLE[0] in sample:
            yield _planned(configuration, "float32", 3, "ten")


def experiments(rules: Sequence[type[Optimizer]] | None = None) -> Iterator[tuple[str, Experiment]]:
    """Yield every experiment that has committed vectors, with its dtype: operations and rules, or only some rules."""
    dtypes = reference().backend.dtypes()
    if missing := [reason for dtype in COMPUTE_DTYPE if (reason := missing_dtype(dtype))]:
        raise RuntimeError(f"the vectors need every dtype: {'; '.join(missing)}")
    for planned in operations(reference(), dtypes, "first") if rules is None else ():
        yield planned.dtype, planned.experiment
    for rule in portopt.RULES if rules is None else rules:
        for planned in of_rule(rule, reference(), dtypes, "first", quick=False, full=True):
            yield planned.dtype, planned.experiment
