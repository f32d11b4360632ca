"""Which experiments are made in which dtype and mode: the one place that decides it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import portopt
from portopt import Backend, Optimizer
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.backend import IN_PLACE, INTERPRETED
from portopt_conformance import primitives, rules
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
COMPILED_IN_TURNS = (
    *(("clipped", dtype) for dtype in ("bfloat16", "float16", "float64")),
    ("default", "float32"),
)
"""What they have one of besides all options at once in float32 where the first mode compiles, in turns."""
CLIPPING = ("clipnorm", "clipvalue")
"""Configurations of which `clipped` has everything; a rule that reduces or multiplies has a kernel more to compile for each."""

SAMPLE = (("clipped", "float32"), ("default", "bfloat16"), ("default", "float16"))
"""Configurations and dtypes for modes of which only a sample is tested."""
REPEATED_TURNS = 8
"""One operation of so many is tested in each dtype in a mode that repeats what another has."""
OPTION_TURNS = 4
"""One option of so many is tested alone, of a rule whose turn it is not or where each is a compilation."""
CHECK_TURNS = 3
"""One rule of so many has its arrays checked in each mode; where a mode compiles, those of `KINDS`."""
KINDS = {"elementwise": 1, "reducing": 1, "multiplying or drawing": 2}
"""In one mode of so many it is the turn of a rule of each kind, so that more rules make no run longer.

These rules have all of their tests, others fewer; modes of which only a sample is tested, and settings, have no others.
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


def apart(turn: int, by: int) -> int:
    """Return what a way to choose counts from, if another counts from the turn, or from this with another number.

    It grows with the turn, but not in step with it: counted alike, two ways whose periods have a common divisor would never meet
    in some of their combinations.
    """
    return turn + turn // by


def numbers(rules: Sequence[type[Optimizer]], turn: int) -> range:
    """Return a number for each rule, by which its options take turns, other ones each time that the rule has its own.

    Args:
        rules: the rules.
        turn: the turn of the run.
    """
    first = apart(turn, 2**10)
    return range(first, first + len(rules))


def samples(rules: Sequence[type[Optimizer]], turn: int) -> list[Sequence[tuple[str, str]]]:
    """Return what of `SAMPLE` is tested of each rule in a mode: nothing unless it is the rule's turn, then two of the three.

    In turns that follow each other, each rule of a kind has its own; the narrow dtypes alternate.

    Args:
        rules: the rules.
        turn: the mode's number, counted from the turn of the run.
    """
    chosen = {}
    for kind, modes in KINDS.items():
        members = [rule for rule in rules if kind_of(rule) == kind]
        if members and turn % modes == 0:
            rounds, place = divmod(turn // modes, len(members))
            chosen[members[place]] = (SAMPLE[0], SAMPLE[1 + rounds % 2])
    return [chosen.get(rule, ()) for rule in rules]


def kind_of(rule: type[Optimizer]) -> str:
    """Return which of the kinds of `KINDS` a rule is of."""
    return configurations(rule)[0].kind


def checks(
    platforms: Sequence[Platform], rules: Sequence[type[Optimizer]], dtypes: Sequence[str], *, turn: int, full: bool
) -> list[list[tuple[type[Optimizer], str]]]:
    """Return the rules whose arrays are checked in each mode, and in which dtype: all rules, or those whose turn it is.

    What is checked does not depend on rule and dtype together: each rule has one dtype, every dtype a rule.

    Args:
        platforms: the backend in each mode.
        rules: the rules.
        dtypes: the parameters' dtypes.
        turn: the turn of the run.
        full: whether to leave out none.
    """
    compiles = any(platform.mode.compiled for platform in platforms)

    def is_chosen(number: int, rule: type[Optimizer], sample: object) -> bool:
        if full or (compiles and sample):
            return True
        return not compiles and (rule.__name__ in IN_EVERY_TURN or (number + turn) % CHECK_TURNS == 0)

    return [
        [
            (rule, dtypes[number % len(dtypes)])
            for number, (rule, sample) in enumerate(zip(rules, samples(rules, turn + mode), strict=True))
            if is_chosen(number, rule, sample)
        ]
        for mode in range(len(platforms))
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
    in_library = platform.mode.without_kernels
    if (depth in ("sampled", "extra") and not in_library) or platform.mode is IN_PLACE:
        return
    # A compiled step after the first mode's calls what that has; else the library's compiler does it, or its single operations.
    is_repeated = depth == "compiled" and not in_library and not full
    is_dear = depth in ("compiled", "single operations", "extra") and not full
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
                if not is_repeated or (number + turn) % REPEATED_TURNS == place:
                    yield Planned("operations", variant, dtype, "words", experiment, 1)
            dear = primitives.dear_experiments(dtype)
            for number, (variant, experiment) in enumerate(dear.items()):
                # All in the first mode and operation by operation, the dearest in one dtype.
                if not is_dear or (
                    (dtype == "float32" or variant in REDUCED)
                    if depth == "single operations"
                    else (number + turn) % len(dear) == place
                ):
                    yield Planned("operations", variant, dtype, "words", experiment, 1)
            yield Planned("operations", "round", dtype, "words", primitives.round_experiment(dtype), 1)
    if "float32" in dtypes and not is_repeated:
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
    scope = _Scope(depth, number, platform, full, sample)
    for configuration in configurations(rule):
        outermost = configuration.name in ("default", "clipped")
        if quick and not outermost:
            continue
        for dtype in dtypes:
            chosen = dict.fromkeys(_chosen(configuration, dtype, scope, outermost=outermost))
            if scope.is_reference and dtype == "float32":
                # What all others are compared with: a changed formula shows here.
                chosen[2, "raw"] = None
            for layer, name in chosen:
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
    platform: Platform
    full: bool
    sample: Sequence[tuple[str, str]]

    @property
    def is_in_turn(self) -> bool:
        return self.full or SAMPLE[0] in self.sample

    @property
    def compiled(self) -> bool:
        return self.platform.mode.compiled

    @property
    def is_interpreted(self) -> bool:
        """Whether steps are done operation by operation, if only because a backend knows nothing else."""
        mode = self.platform.mode
        return mode is INTERPRETED or not (mode.compiled or INTERPRETED.name in self.platform.backend.modes)

    @property
    def is_reference(self) -> bool:
        return self.platform.mode is INTERPRETED and self.platform.backend.name == reference().backend.name


def _chosen(configuration: Configuration, dtype: str, scope: _Scope, *, outermost: bool) -> Iterator[tuple[int, str]]:
    """Yield layer and name of what is made with a configuration in a dtype."""
    depth = scope.depth
    single = dtype == "float32"
    is_deep = scope.is_in_turn or configuration.rule.__name__ in IN_EVERY_TURN
    if depth == "compiled" and not is_deep:
        if (configuration.name, dtype) == SAMPLE[0] and scope.number % OPTION_TURNS == 0:
            yield (3, "ten")
        return
    if scope.compiled and not scope.full and depth in ("first", "compiled") and not configuration.is_elementwise:
        # A compilation takes seconds: most options at once stand for all, and the first mode for dialects and other dtypes.
        first = depth == "first"
        other = COMPILED_IN_TURNS[scope.number % len(COMPILED_IN_TURNS)]
        chosen = (SAMPLE[0], other) if first and scope.is_in_turn else (SAMPLE[0],)
        if (configuration.name, dtype) in chosen:
            yield (3, "ten")
        if first and single and _is_dialect_in_turn(configuration, scope.number, is_deep=is_deep):
            yield (2, "ordinary")
        return
    if depth in ("first", "plain") and not is_deep:
        yield from _out_of_turn(configuration, dtype, scope)
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


def _is_dialect_in_turn(configuration: Configuration, number: int, *, is_deep: bool) -> bool:
    """Tell whether a configuration is the one dialect of its rule that stands for all, or one in four out of turn."""
    dialects = [found for found in configurations(configuration.rule) if found.dialect]
    if not is_deep and number % OPTION_TURNS:
        return False
    return configuration.dialect and dialects[number // OPTION_TURNS % len(dialects)] is configuration


def _out_of_turn(configuration: Configuration, dtype: str, scope: _Scope) -> Iterator[tuple[int, str]]:
    """Yield what is made in a mode that compiles nothing, or in the first, with a rule whose turn it is not.

    All options at once, the defaults in one dtype, and some of its options and dialects alone.
    """
    first, single = scope.depth == "first", dtype == "float32"
    if (configuration.name, dtype) == SAMPLE[0]:
        if first or configuration.is_elementwise:
            yield from ((2, "raw"), (3, "ten"))
        if first:
            yield from ((2, "ordinary"), (3, "resumed"), (3, "given_each_step"))
            if not scope.is_interpreted:
                yield (3, "hundred")
            if configuration.is_elementwise:
                yield (3, "nested")
        return
    if not first:
        return
    if configuration.name == "default" and single:
        yield from ((2, "raw"), (3, "ten"))
        if configuration.is_elementwise:
            yield (2, "zero")
    elif configuration.name == "clipped":
        others = [other for other in COMPUTE_DTYPE if other != "float32"]
        if dtype == others[scope.number % len(others)]:
            yield from ((2, "raw"), (3, "ten"))
    elif single and configuration.name not in CLIPPING and _is_option_in_turn(configuration, scope.number):
        yield (2, "raw")


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
