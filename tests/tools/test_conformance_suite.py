"""Tests of the conformance suite: it passes what is right, catches what is wrong, and says where."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.entry_points import write_distribution
from support.places import TESTS
from support.wrong_backends import (
    OPERATIONS_WRONG,
    REDUCTIONS_WRONG,
    FloatTotals,
    FlushesRoundedGradients,
    ForgetsADevice,
    GradientsInTheDtypeOfParameters,
    IgnoresStrides,
    LargerBins,
    NanLostInNorm,
    NormOfEachTensor,
    OrderDependentNorm,
    RoundsScalarsTwice,
    ScalarsInFloat32,
    SharesMemory,
    SlotsKeptInFloat16,
    TotalsOfMagnitudes,
    WritesIntoGradients,
    WritesIntoItsInputs,
    WrongOperations,
    WrongReductions,
    wrong_reduction,
)

import portopt
from portopt import Backend
from portopt.program import FUNCTIONS, REDUCTIONS
from portopt.program.reductions import Reductions
from portopt_conformance import Case, cases, cases_of, plan, primitives
from portopt_conformance.__main__ import main
from portopt_conformance.arrangement import is_elementwise
from portopt_conformance.committed import CHECKSUM_FILE, FOLDER, DamagedVectorsError, Vectors
from portopt_conformance.comparison import checksums, compare, float_of
from portopt_conformance.configurations import configurations
from portopt_conformance.known_failures import BadLineError, KnownFailure, parse, without_a_case
from portopt_conformance.platform import ReferenceBackend, UnusableDeviceError, choose_device, reference
from portopt_conformance.probes import REDUCED
from portopt_conformance.runner import run
from portopt_conformance.vectors import write
from portopt_conformance.words import (
    FORMATS,
    canonical,
    products_near_smallest_normal,
    random_words,
    special_words,
    to_floats,
    to_words,
)

Keep = Callable[[Case], bool]


def failed(backend: Backend, keep: Keep, **options: Any) -> list[str]:
    """Return the identifiers of the quick suite's cases that `keep` chooses and that fail."""
    chosen = [case for case in cases(backend, quick=True, **options) if keep(case)]
    assert chosen, "no case was chosen"
    return [result.case.id for result in run(chosen).failures]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_wrong_reduction_is_caught(name: str, whole: bool) -> None:
    assert REDUCTIONS_WRONG.keys() == REDUCTIONS.keys()
    (where,) = (which for which, lists in REDUCED.items() if name in lists[0 if whole else 1])
    found = failed(WrongReductions(wrong_reduction(name, whole=whole)), lambda case: case.variant == where)
    assert found == [f"1/operations/{where}/{dtype}/apply/words" for dtype in ("float32", "float64")]


@pytest.mark.parametrize("kind", [FloatTotals, TotalsOfMagnitudes])
def test_a_wrong_total_is_caught(kind: type[Reductions]) -> None:
    found = failed(WrongReductions(kind), lambda case: case.variant == "reductions")
    assert "1/operations/reductions/float64/apply/words" in found


def test_larger_bins_than_needed_are_caught() -> None:
    found = failed(WrongReductions(LargerBins), lambda case: case.variant in REDUCED)
    assert found == [
        f"1/operations/{where}/{dtype}/apply/words" for dtype in ("float32", "float64") for where in REDUCED
    ]


def steps_of(*rules: str) -> Keep:
    """Choose one step from each kind of data, and ten, in float32."""
    return lambda case: (
        case.subject in rules and case.dtype == "float32" and case.name in ("raw", "zero", "ordinary", "ten")
    )


def test_the_reference_passes_the_quick_suite_in_float32() -> None:
    variants = ("resumed", "nested", "given_each_step")
    assert failed(ReferenceBackend(), lambda case: case.dtype == "float32" and case.name not in variants) == []


def test_case_identifiers_are_unique() -> None:
    ids = [case.id for case in cases(portopt.get_backend("numpy"))]
    assert len(ids) == len(set(ids))


TURNS = range(16)
"""Turns of a run that together have all that takes turns of one kind."""


def test_all_that_is_tested_in_a_turn_is_tested_in_full() -> None:
    backend = portopt.get_backend("numpy")
    full = {case.id for case in cases(backend, full=True)}
    assert all({case.id for case in cases(backend, turn=turn)} < full for turn in TURNS)


@pytest.mark.parametrize("full", [False, True])
def test_every_rule_is_tested_with_and_without_clipping_on_raw_words(full: bool) -> None:
    """In float32 and in another dtype, which one changes; in all of them if all is tested."""
    found: dict[tuple[str, str], set[str]] = {}
    for turn in (0,) if full else TURNS:
        ids = {case.id for case in cases(portopt.get_backend("numpy"), full=full, turn=turn, layers=[2, 3])}
        for rule in portopt.RULES:
            for configuration in ("default", "clipped"):
                of = f"{rule.__name__}/{configuration}"
                dtypes = {d for d in FORMATS if {f"2/{of}/{d}/apply/raw", f"3/{of}/{d}/apply/ten"} <= ids}
                assert "float32" in dtypes
                assert configuration == "default" or len(dtypes) > 1
                found.setdefault((rule.__name__, configuration), set()).update(dtypes)
    assert all(found[rule.__name__, "clipped"] == set(FORMATS) for rule in portopt.RULES)
    if full:
        assert all(dtypes == set(FORMATS) for dtypes in found.values())


def test_every_rule_is_tested_for_100_steps() -> None:
    """Elementwise rules on 100,000 words, others on smaller arrays, all options together; in all dtypes in their turn."""
    from portopt_conformance import rules

    assert rules.RANDOM >= 100_000
    elementwise = {rule for rule in portopt.RULES if is_elementwise(rule())}
    assert portopt.SGD in elementwise
    assert len(elementwise) < len(portopt.RULES)
    found: set[str] = set()
    for turn in TURNS:
        ids = {case.id for case in cases(portopt.get_backend("numpy"), turn=turn, layers=[3])}
        assert all(f"3/{rule.__name__}/clipped/float32/apply/hundred" in ids for rule in portopt.RULES)
        found |= ids
    for rule in portopt.RULES:
        for configuration in ("default", "clipped") if rule in elementwise else ("clipped",):
            for dtype in FORMATS if rule in elementwise else plan.DIALECT_DTYPES:
                assert f"3/{rule.__name__}/{configuration}/{dtype}/apply/hundred" in found


def test_every_formula_is_compared_with_its_committed_vector() -> None:
    """On the reference, whose turn ever it is: a change of it shows nowhere else."""
    ids = {case.id for case in cases(portopt.get_backend("numpy"), layers=[2])}
    for rule in portopt.RULES:
        for configuration in configurations(rule):
            assert f"2/{rule.__name__}/{configuration.name}/float32/interpreted/raw" in ids


@pytest.mark.needs("jax")
def test_rules_take_turns_in_modes_of_which_a_sample_is_tested() -> None:
    def tested(turn: int = 0, *, full: bool = False) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for case in cases(backend, layers=[3, 5], turn=turn, full=full):
            if case.variant == "clipped" and case.dtype == "float32" and case.name == "ten":
                found.setdefault(case.mode, set()).add(case.subject)
        return found

    backend = portopt.get_backend("jax")
    rules = {rule.__name__ for rule in portopt.RULES}
    every = tested(full=True)
    assert all(of == rules for of in every.values())
    found: dict[str, set[str]] = {}
    for turn in TURNS:
        of_mode = tested(turn)
        assert of_mode.keys() == every.keys()
        assert of_mode["eager"] == rules
        for mode, of in of_mode.items():
            kinds = {plan.kind_of(rule) for rule in portopt.RULES if rule.__name__ in of}
            assert kinds >= {"elementwise", "reducing"}
            assert mode == "eager" or len(of) < len(rules) / 2
            found.setdefault(mode, set()).update(of)
    assert all(of == rules for of in found.values())


def test_each_option_of_a_rule_has_its_turn_when_the_rule_has() -> None:
    """Periods of rules and of options have divisors in common; counted alike, some would never meet."""
    met: dict[type[portopt.Optimizer], set[int]] = {rule: set() for rule in portopt.RULES}
    generator = random.Random(0)
    for _ in range(1000):
        turn = generator.getrandbits(28)
        numbers, samples = plan.numbers(portopt.RULES, turn), plan.samples(portopt.RULES, turn)
        for rule, number, sample in zip(portopt.RULES, numbers, samples, strict=True):
            if sample:
                met[rule].add(number % plan.OPTION_TURNS)
    assert all(places == set(range(plan.OPTION_TURNS)) for places in met.values())


@pytest.mark.needs("jax")
def test_where_a_first_mode_compiles_rules_that_reduce_have_every_dtype_and_their_defaults_in_turns() -> None:
    backend = portopt.get_backend("jax")
    platform, depth = plan.depths(backend, "cpu")[0]
    assert depth == "first"
    assert platform.mode.compiled
    for rule in portopt.RULES:
        if not is_elementwise(rule()):
            found = {
                (planned.variant, planned.dtype)
                for number in range(len(plan.COMPILED_IN_TURNS))
                for planned in plan.of_rule(rule, platform, list(FORMATS), depth, quick=False, number=number)
            }
            assert found >= {("default", "float32"), *(("clipped", dtype) for dtype in FORMATS)}


def test_options_of_ones_own_rule_take_turns() -> None:
    class Own(portopt.LAMB):
        pass

    backend = portopt.get_backend("numpy")
    found = [{case.id for case in cases_of([Own], backend, layers=[2], turn=turn)} for turn in range(4)]
    full = {case.id for case in cases_of([Own], backend, layers=[2], full=True)}
    assert all(ids < full for ids in found)
    assert all(
        any(f"/{name}/float32/apply/" in case for case in set.union(*found)) for name in ("betas", "weight_decay")
    )
    assert len({frozenset(ids) for ids in found}) == 4


@pytest.mark.needs("jax")
def test_what_takes_turns_where_modes_compile_leaves_nothing_out() -> None:
    backend = portopt.get_backend("jax")
    single = {(name, dtype) for name in (*primitives.OPERATIONS, *primitives.CHAINS) for dtype in plan.COMPUTE_DTYPES}
    repeated, checked = set(), set()
    for turn in TURNS:
        found = list(cases(backend, layers=[1, 4], turn=turn))
        tested = {
            mode: {(case.variant, case.dtype) for case in found if case.layer == 1 and case.mode == mode} & single
            for mode in ("eager", "interpreted", "in XLA", "jit")
        }
        # Where kernels, the library's single operations and its compiler do them.
        assert tested["eager"] == tested["interpreted"] == tested["in XLA"] == single
        assert len(tested["jit"]) < len(single) / 4
        repeated |= tested["jit"]
        checks = [case for case in found if case.layer == 4]
        assert {case.mode for case in checks} == {"any", *backend.modes}
        checked |= {(case.mode, case.subject) for case in checks}
    assert repeated == single
    assert checked == {(mode, rule.__name__) for mode in ("any", *backend.modes) for rule in portopt.RULES}


CAUGHT_BY: Mapping[str, str] = {
    "root_one_ulp_off": "1/operations/sqrt/float32/apply/words",
    "contracted": "1/operations/multiply_add/float32/apply/words",
    "subnormals_kept": "1/operations/add/float32/apply/words",
    "subnormals_kept_on_load": "1/operations/load/float32/apply/words",
    "tininess_before_rounding": "1/operations/multiply/float32/apply/words",
    "tininess_before_rounding_of_quotients": "1/operations/divide/float32/apply/words",
    "total_order_of_zeros": "1/operations/less_equal/float32/apply/words",
    "reciprocal": "1/operations/divide/float32/apply/words",
    "sum_with_a_zero": "1/operations/multiply/float32/apply/words",
    "products_of_the_library": "1/operations/products/float32/apply/words",
    "identity_with_negative_zeros": "1/operations/identity/float32/apply/words",
    "transpose_without_moving": "1/operations/products/float32/apply/words",
    **{f"{name}_of_the_library": "1/operations/functions/float32/apply/words" for name in FUNCTIONS},
    "elements_counted_from_the_end": "1/operations/draws/float32/apply/words",
    "nan_equals_itself": "1/operations/equal/float32/apply/words",
}
"""A case that must fail, for each wrong operation."""


@pytest.mark.parametrize("name", OPERATIONS_WRONG)
def test_a_wrong_operation_is_caught_by_itself(name: str) -> None:
    where = [CAUGHT_BY[name].replace("float32", dtype) for dtype in ("float32", "float64")]
    assert failed(WrongOperations(name, OPERATIONS_WRONG[name]), lambda case: case.id in where) == where


SEEN_IN_RULES = {
    "root_one_ulp_off": "Adam",
    "contracted": "RMSprop",
    "subnormals_kept": "Adagrad",
    "total_order_of_zeros": "Adamax",
    "reciprocal": "Adadelta",
}
"""A rule in whose steps a wrong operation shows, too."""


@pytest.mark.parametrize(("name", "rule"), SEEN_IN_RULES.items())
def test_a_wrong_operation_is_caught_in_a_rule(name: str, rule: str) -> None:
    backend = WrongOperations(name, OPERATIONS_WRONG[name])
    assert failed(backend, steps_of(rule))


@pytest.mark.parametrize(
    ("backend", "caught_by"),
    [
        (WritesIntoItsInputs(), "4/Adam/clipped/float16/any/apply_leaves_its_inputs"),
        (WritesIntoGradients(), "4/SGD/clipped/float16/any/apply_leaves_its_inputs"),
        (WritesIntoGradients(), "4/SGD/clipped/float16/any/in_place_changes_only_what_it_says"),
        (SlotsKeptInFloat16(), "2/Adam/default/float32/apply/raw"),
        (OrderDependentNorm(), "1/norm/moderate/float32/apply/shuffled"),
        (OrderDependentNorm(), "2/SGD/clipped/float64/apply/ordinary"),
        (NormOfEachTensor(), "1/norm/moderate/float32/apply/in_three"),
        (NanLostInNorm(), "1/norm/nan_and_infinite/float32/apply/swapped"),
        (ScalarsInFloat32(), "3/Nadam/default/float32/apply/ten"),
        (RoundsScalarsTwice(), "1/operations/round/float32/apply/words"),
        (FlushesRoundedGradients(), "1/operations/load_gradient_float64/float32/apply/words"),
        (GradientsInTheDtypeOfParameters(), "1/operations/load_gradient_float32/bfloat16/apply/words"),
        (SharesMemory(), "0/backend/contract/float32/any/conversions_copy"),
        (ForgetsADevice(), "0/backend/contract/float32/any/unknown_devices_are_errors"),
        (IgnoresStrides(), "4/Adam/clipped/float16/any/views_give_the_same_bits"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ReferenceBackend) else None,
)
def test_a_wrong_backend_is_caught(backend: Backend, caught_by: str) -> None:
    assert failed(backend, lambda case: case.id == caught_by) == [caught_by]
    assert failed(ReferenceBackend(), lambda case: case.id == caught_by) == []


class Adam(portopt.Adam):
    """Adam with one product and one quotient in the other order."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        _, new_slots = super().update(xp, p, g, slots, c)
        root = xp.sqrt(new_slots["vhat"] if self.amsgrad else new_slots["v"])
        return p - c.lr_t * (new_slots["m"] / (root + self.epsilon)), new_slots


class SGD(portopt.SGD):
    """Momentum with the sum of Nesterov's step associated to the right."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        new, new_slots = super().update(xp, p, g, slots, c)
        if self.nesterov and self.momentum:
            return p + (self.momentum * new_slots["moment"] - c.lr * g), new_slots
        return new, new_slots


@pytest.mark.parametrize("rule", [Adam, SGD])
def test_one_operation_order_changed_in_a_rule_is_caught(rule: type[portopt.Optimizer]) -> None:
    found = failed(ReferenceBackend(), steps_of(rule.__name__), rules=[rule])
    for name in (
        "2/{}/clipped/float32/apply/raw",
        "2/{}/clipped/float32/apply/ordinary",
        "3/{}/clipped/float32/apply/ten",
    ):
        assert name.format(rule.__name__) in found


def test_a_changed_formula_is_told_from_a_wrong_backend() -> None:
    case = next(c for c in cases(ReferenceBackend(), rules=[Adam], quick=True) if c.layer == 2)
    text = case.run().text
    assert "the rule's formula, or NumPy, has changed" in text
    assert "of 16 blocks have another checksum; the first holds any m[0:6528], any p[0:6528]" in text


class SignDescent(portopt.Optimizer):
    """A rule that the suite does not know."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p - c.lr * xp.sign(g) * xp.sqrt(xp.abs(g)), {}


def test_a_rule_without_vectors_is_compared_with_the_reference() -> None:
    keep: Keep = lambda case: case.layer in (2, 3) and case.dtype == "float32"  # noqa: E731
    assert failed(ReferenceBackend(), keep, rules=[SignDescent]) == []
    wrong = WrongOperations("root_one_ulp_off", OPERATIONS_WRONG["root_one_ulp_off"])
    assert failed(wrong, keep, rules=[SignDescent])


def test_a_failure_reports_count_ulp_first_index_bits_and_inputs() -> None:
    backend = WrongOperations("root_one_ulp_off", OPERATIONS_WRONG["root_one_ulp_off"])
    case = next(c for c in cases(backend, quick=True) if c.id == "1/operations/sqrt/float32/apply/words")
    outcome = case.run()
    assert outcome.difference is not None
    assert outcome.difference.exact
    assert outcome.difference.elements > 1000
    first, second = outcome.text.splitlines()[:2]
    assert f"sqrt: {outcome.difference.elements} of 33372 elements differ, worst 1 ulp; first at " in first
    assert "expected 0x" in first
    assert ", got 0x" in first
    assert second.startswith("    p there: 0x")


def test_compare_counts_elements_bits_and_ulp() -> None:
    wanted = np.array([1.0, 2.0, -0.0, np.nan], np.float32)
    found = np.array([np.nextafter(np.float32(1), np.float32(2)), 2.0, 0.0, np.nan], np.float32)
    difference = compare({"p": found}, {"p": wanted}, {"g": wanted})
    assert difference is not None
    assert (difference.elements, difference.bits) == (2, 2)
    assert difference.text == (
        "p: 2 of 4 elements differ, worst 1 ulp; first at 0: expected 0x3f800000 (1.0), got 0x3f800001 (1.0000001192092896)\n"
        "    g there: 0x3f800000 (1.0)"
    )


def test_two_nans_are_equal_and_two_zeros_are_not() -> None:
    quiet, signalling = to_floats(np.array([0x7FC00000, 0xFFA00001], np.uint32), "float32")
    assert compare({"p": np.array([quiet])}, {"p": np.array([signalling])}) is None
    assert checksums({"p": np.array([quiet])}) == checksums({"p": np.array([signalling])})
    zeros = compare({"p": np.array([0.0])}, {"p": np.array([-0.0])})
    assert zeros is not None
    assert "worst +0 against -0" in zeros.text
    assert checksums({"p": np.array([0.0])}) != checksums({"p": np.array([-0.0])})


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (np.zeros(3, np.float64), "p has dtype float64, expected float32"),
        (np.zeros(4, np.float32), "p has shape (4,), expected (3,)"),
        (np.array([np.nan, 0, 0], np.float32), "worst a NaN against a number (1 times)"),
    ],
)
def test_compare_sees_dtype_shape_and_nan(found: Any, text: str) -> None:
    difference = compare({"p": found}, {"p": np.zeros(3, np.float32)})
    assert difference is not None
    assert text in difference.text


def test_a_check_that_raises_is_a_failure_with_its_traceback() -> None:
    def check() -> Any:
        raise RuntimeError("broken kernel")

    outcome = Case(2, "Adam", "default", "float32", "apply", "raw", check).run()
    assert not outcome.passed
    assert "RuntimeError: broken kernel" in outcome.text


@pytest.mark.parametrize("dtype", FORMATS)
def test_special_words_hold_every_class_of_number(dtype: str) -> None:
    values = [float_of(int(w), FORMATS[dtype]) for w in special_words(dtype)]
    smallest = 2.0 ** (1 - FORMATS[dtype].bias)
    assert sum(v == 0 for v in values) == 2
    assert sum(0 < abs(v) < smallest for v in values) >= 8
    assert smallest in values
    assert values.count(float("inf")) == 1
    assert sum(v != v for v in values) == 4
    with np.errstate(invalid="ignore"):
        wide = to_floats(special_words(dtype), dtype).astype(np.float64)
    assert np.array_equal(np.array(values), wide, equal_nan=True)


def test_random_words_never_change() -> None:
    assert [hex(w) for w in random_words("float64", 3, "seed")] == RANDOM_WORDS
    assert random_words("float32", 2, "seed").tolist() == [int(w, 16) >> 32 for w in RANDOM_WORDS[:2]]


RANDOM_WORDS = ["0x1b56e9341ca6d977", "0xa2d635b9e43b0247", "0xd89b05632403fbf4"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_near_the_smallest_normal_lie_where_roundings_part(dtype: str) -> None:
    from fractions import Fraction

    precision, bias = FORMATS[dtype].mantissa_bits + 1, FORMATS[dtype].bias
    first, second = (to_floats(words, dtype).tolist() for words in products_near_smallest_normal(dtype, 64))
    products = [abs(Fraction(a) * Fraction(b)) * 2 ** (bias - 1) for a, b in zip(first, second, strict=True)]
    low, high = 1 - Fraction(1, 2**precision), 1 - Fraction(1, 2 ** (precision + 1))
    assert sum(low <= x < high for x in products) == 32
    assert all(abs(x - 1) < Fraction(1, 2 ** (precision - 3)) for x in products)


def test_regenerated_vectors_are_the_committed_bytes(tmp_path: Path) -> None:
    from portopt_conformance.committed import file_of

    some = [(dtype, e) for dtype, e in plan.experiments() if file_of(e.key) == "operations.txt"]
    write(tmp_path, some)
    assert (tmp_path / "operations.txt").read_bytes() == (FOLDER / "operations.txt").read_bytes()


def test_committed_vectors_are_small_and_of_every_experiment() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000
    vectors = Vectors()
    for _, experiment in plan.experiments():
        known = vectors.words(experiment.key) if experiment.literal else vectors.checksums(experiment.key)
        assert known, experiment.key


def test_a_damaged_vector_file_is_an_error(tmp_path: Path) -> None:
    for path in FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / "Adam.txt"
    damaged.write_bytes(damaged.read_bytes().replace(b"0", b"1", 1))
    with pytest.raises(DamagedVectorsError, match=r"Adam\.txt does not have the checksum in SHA256SUMS"):
        Vectors(tmp_path).checksums("rules/Adam/default/float32/raw")
    assert Vectors(tmp_path).checksums("rules/SGD/default/float32/raw")
    (tmp_path / CHECKSUM_FILE).unlink()
    with pytest.raises(DamagedVectorsError, match="SHA256SUMS is missing"):
        Vectors(tmp_path).checksums("rules/SGD/default/float32/raw")


def _case(name: str, *, passes: bool) -> Case:
    from portopt_conformance import Outcome

    return Case(2, "Adam", "default", "float32", "apply", name, lambda: Outcome(passes))


def test_a_known_failure_does_not_fail_the_run() -> None:
    report = run([_case("raw", passes=False), _case("ten", passes=True)], [KnownFailure("*/raw", "reason", "link")])
    assert (report.passed, report.failed, report.known) == (1, 0, 1)


def test_a_known_failure_that_passes_fails_the_run() -> None:
    report = run([_case("raw", passes=True)], [KnownFailure("*/raw", "reason", "link")])
    assert (report.passed, report.failed) == (0, 1)
    assert report.failures[0].text == "passes, but is listed as a known failure (reason): remove `*/raw`"


def test_a_known_failure_that_matches_nothing_is_found() -> None:
    line = KnownFailure("2/Adamm/*", "reason", "link")
    assert without_a_case([line], ["2/Adam/default/float32/apply/raw"]) == [line]


def test_known_failures_are_read_with_comments_and_checked() -> None:
    text = "# comment\n\n2/Adam/*/raw | root is wrong | https://example.org/1\n"
    assert parse(text, "file") == [KnownFailure("2/Adam/*/raw", "root is wrong", "https://example.org/1")]
    with pytest.raises(BadLineError, match=r"file:1: expected `PATTERN \| REASON \| LINK`"):
        parse("2/Adam/*/raw | no link", "file")


def test_first_party_backends_have_no_known_failures() -> None:
    from portopt_conformance.known_failures import FOLDER as LISTS
    from portopt_conformance.known_failures import load

    for path in LISTS.glob("*.txt"):
        assert load(None, path.stem) == []


def test_a_run_without_cases_fails() -> None:
    assert run([]).failed == 1


class WithoutCuda(ReferenceBackend):
    def devices(self) -> Mapping[str, str | None]:
        return {"cpu": None, "cuda": "no CUDA device was found", "tpu:0": None}


def test_a_device_is_chosen_by_name_or_kind() -> None:
    assert choose_device(WithoutCuda(), None) == "cpu"
    assert choose_device(WithoutCuda(), "tpu") == "tpu:0"
    with pytest.raises(UnusableDeviceError, match="cannot use the device 'cuda': no CUDA device was found"):
        choose_device(WithoutCuda(), "cuda")
    with pytest.raises(UnusableDeviceError, match="cannot use the device 'xpu': it has cpu, tpu:0"):
        choose_device(WithoutCuda(), "xpu")


def test_command_line_runs_a_layer_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "result.json"
    assert main(["--backend", "numpy", "--quick", "--layer", "0", "--json", str(path)]) == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(result["passed"], int)
    assert (result["failed"], result["backend"], result["device"]) == (0, "numpy", "cpu")
    assert result["passed"] == len(result["cases"])
    assert f"{result['passed']} passed, 0 failed" in capsys.readouterr().out


wrong_root = WrongOperations("wrong_root", OPERATIONS_WRONG["root_one_ulp_off"])
no_backend = object()


def test_command_line_fails_for_a_wrong_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    name = f"{__name__}:wrong_root"
    assert main(["--backend", name, "--quick", "--layer", "1", "--json", str(path)]) == 1
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["failed"] == len(result["failures"]) > 0
    assert any(failure["id"] == "1/operations/sqrt/float32/apply/words" for failure in result["failures"])
    output = capsys.readouterr().out
    assert "FAILED 1/operations/sqrt/float32/apply/words" in output
    assert "worst 1 ulp" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "nonsense"], "cannot test nonsense: no backend is named 'nonsense'"),
        (["--backend", "nonsense:backend"], "cannot test nonsense:backend: No module named 'nonsense'"),
        (["--backend", "numpy:backend"], "cannot test numpy:backend"),
        (["--backend", "numpy", "--device", "tpu"], "numpy cannot use the device 'tpu': it has cpu"),
        (["--backend", f"{__name__}:no_backend"], "which is no backend: it lacks arithmetic"),
        (["--backend", "numpy", "--known-failures", "/no/such/file"], "No such file"),
        (["--backend", "numpy", "--against", "nonsense"], "no backend is named 'nonsense'"),
    ],
)
def test_what_is_missing_is_an_error_and_no_skip(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--layer", "9"], ["--nonsense"], ["--json"]])
def test_unusable_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_if_available_says_not_run_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    assert main(["--backend", "numpy", "--device", "cuda", "--if-available", "--json", str(path)]) == 0
    assert capsys.readouterr().out.startswith("NOT RUN numpy on cuda: numpy cannot use the device 'cuda'")
    result = json.loads(path.read_text(encoding="utf-8"))
    assert (result["passed"], result["failed"]) == (0, 0)
    assert "cannot use the device 'cuda'" in result["not_run"][0]


def test_against_another_backend(capsys: pytest.CaptureFixture[str]) -> None:
    rule = f"{__name__}:Unknown"
    arguments = ["--backend", "numpy", "--quick", "--layer", "2", "--rule", rule]
    assert main([*arguments, "--against", "array_api_strict"]) == 0
    assert main([*arguments, "--against", f"{__name__}:wrong_root"]) == 1
    output = capsys.readouterr().out
    assert "FAILED 2/Unknown/" in output
    assert "NOT RUN bfloat16: array_api_strict has no bfloat16" in output


class Unknown(portopt.Optimizer):
    """A rule that the suite does not know."""

    slots = ("m",)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p - c.lr * xp.sqrt(xp.abs(slots.m)), {"m": slots.m + g}


class NeedsArguments(Unknown):
    def __new__(cls, *, power: float) -> Any:
        return super().__new__(cls)


def subjects(path: Path) -> set[str]:
    return {case["id"].split("/")[1] for case in json.loads(path.read_text(encoding="utf-8"))["cases"]}


def test_the_cases_of_named_rules_alone_are_run(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    arguments = ["--quick", "--layer", "4", "--quiet", "--json", str(path)]
    assert main([*arguments, "--rule", "ADAM", "--rule", f"{__name__}:Unknown"]) == 0
    assert subjects(path) == {"Adam", "Unknown"}
    whole = {case.id for case in cases(portopt.get_backend("numpy"), quick=True, layers=[4])}
    ran = {case["id"] for case in json.loads(path.read_text(encoding="utf-8"))["cases"]}
    assert {i for i in ran if "/Adam/" in i} == {i for i in whole if "/Adam/" in i}


def test_a_rule_of_ones_own_is_compared_with_the_interpreter_on_numpy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    arguments = ["--rule", f"{__name__}:Unknown", "--quick", "--layer", "2", "--quiet", "--json", str(path)]
    assert main(["--backend", "numpy", *arguments]) == 0
    assert subjects(path) == {"Unknown"}
    assert main(["--backend", f"{__name__}:wrong_root", *arguments]) == 1
    assert "FAILED 2/Unknown/default/float32/apply/raw" in capsys.readouterr().out


def test_a_rule_of_ones_own_has_no_vectors_though_its_name_has(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    # With Adam's vectors, from which the class of this module differs, it would fail.
    arguments = ["--rule", f"{__name__}:Adam", "--quick", "--layer", "2", "--quiet", "--json", str(path)]
    assert main(arguments) == 0
    assert subjects(path) == {"Adam"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("adm", "argument --rule: unknown optimizer: 'adm'; did you mean 'Adam'?"),
        (f"{__name__}:Unknwon", "has no 'Unknwon'; did you mean 'Unknown'?"),
        (f"{__name__}:NeedsArguments", "cannot be made without arguments"),
    ],
)
def test_what_is_no_rule_is_refused(rule: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--rule", rule])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_progress_is_printed_on_the_standard_error_and_not_if_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rule", "sgd", "--quick", "--layer", "4"]
    assert main(arguments) == 0
    first, *_, last = capsys.readouterr().err.splitlines()
    assert (first, last.split(",")[0]) == ("numpy cpu: 0/16", "numpy cpu: 16/16")
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_dtypes_that_are_not_tested_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--backend", "array_api_strict", "--quick", "--layer", "0"]) == 0
    assert "NOT RUN bfloat16: array_api_strict has no bfloat16" in capsys.readouterr().out


SAMPLE = TESTS / "sample_backend"


@pytest.fixture
def with_sample_backend(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which the sample backend is installed, as far as entry points can tell."""
    write_distribution(tmp_path, "portopt-tiny", "portopt.backends", "tiny = portopt_tiny:backend")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(SAMPLE)])}


def _conform(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "portopt_conformance", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_sample_backend_is_found_and_used(with_sample_backend: dict[str, str]) -> None:
    program = (
        "import numpy as np, portopt, portopt_tiny.arrays as tiny\n"
        "opt, w = portopt.SGD(learning_rate=0.5), tiny.asarray(np.asarray([1.0, 2.0]))\n"
        "w, state = opt.apply({'w': w}, {'w': w}, opt.init({'w': w}))\n"
        "print(sorted(portopt.backends()), type(w['w']).__name__, w['w'].data.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=with_sample_backend, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{sorted([*portopt.backends(), 'tiny'])} Array [0.5, 1.0]"


def test_the_sample_backend_passes_with_its_known_failures(with_sample_backend: dict[str, str]) -> None:
    known = str(SAMPLE / "known_failures.txt")
    layers = ("--layer", "0", "--layer", "1", "--layer", "4")
    done = _conform(with_sample_backend, "--backend", "tiny", "--quick", *layers, "--known-failures", known)
    assert done.returncode == 0, done.stdout + done.stderr
    # One for each rule whose arrays are checked in this turn.
    assert re.search(r" passed, 0 failed, [1-9]\d* known failures$", done.stdout.rstrip())


def test_known_failures_are_strict_on_the_command_line(with_sample_backend: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "known.txt"
    path.write_text(
        "0/*/shapes_survive | said to fail | https://example.org/1\n4/*/no_such_check | gone | https://example.org/2\n",
        encoding="utf-8",
    )
    done = _conform(with_sample_backend, "--backend", "tiny", "--quick", "--layer", "0", "--known-failures", str(path))
    assert done.returncode == 1
    assert "passes, but is listed as a known failure (said to fail): remove `0/*/shapes_survive`" in done.stdout
    assert "the known failure `4/*/no_such_check` matches no case of the suite: remove it" in done.stdout


def test_reference_and_canonical_words_agree_on_nan() -> None:
    words = to_words(np.array([np.nan, -np.nan, 1.0], np.float32))
    assert canonical(to_floats(words, "float32")).tolist() == [0x7FC00000, 0x7FC00000, 0x3F800000]
    assert reference().backend.name == "numpy"
