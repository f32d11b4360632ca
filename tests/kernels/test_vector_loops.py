"""Loops in vectors: sums whose bins are taken from some of the elements have the interpreter's bits, whatever the others are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.bits import assert_same_bits
from support.twins import Twin

import portopt
from portopt.kernels.host import threads
from portopt.kernels.host.staged_source import staged_source
from portopt.kernels.host.vector_source import CHUNK, HEAD, LANES, MANY, PIECES
from portopt.kernels.key import KernelKey
from portopt.scalars import sqrt

pytestmark = pytest.mark.needs("numba")


class Storing(portopt.Optimizer):
    """Two norms, after slots are stored."""

    slots = ("m", "v")

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        m, v = 0.9 * slots.m + g, 0.5 * slots.v + g * g
        u = m / (xp.sqrt(v) + 1e-7)
        ratio = xp.linalg.vector_norm(p) / (xp.linalg.vector_norm(u) + 1.0)
        return p - c.lr * ratio * u, {"m": m, "v": v}


class Summing(portopt.Optimizer):
    """A sum and a mean of what every operation has a part in, and nothing stored before they are known."""

    slots = ("m",)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        chosen = ((p < g) & ~(p <= 0.25)) | (p == slots.m)
        x = xp.where(chosen, -xp.abs(p) * g, xp.sqrt(xp.abs(g)) / (1.0 + p * p))
        total, mean, length = xp.sum(x), xp.mean(xp.where(chosen, p, slots.m)), xp.linalg.vector_norm(x)
        m = 0.5 * slots.m + (total / (1.0 + sqrt(length)) + mean + xp.sum(g)) * g
        return p - c.lr * m, {"m": m}


RULES = (Storing, Summing)
PIECE = MANY // (LANES * PIECES) * LANES
LARGE = 2.0**70
"""Added and taken away again, it leaves the others rounded to the bins that it needs: to even integers."""
BODY = 3 * PIECE + HEAD
"""An element that is not looked at for the bins, and as late that others were added before."""


def ordinary(a: Any) -> None:
    """Leave numbers as they are."""


def at(places: slice | int, value: float) -> Callable[[Any], None]:
    def change(a: Any) -> None:
        a[places] = value

    return change


def times(places: slice, factor: float) -> Callable[[Any], None]:
    def change(a: Any) -> None:
        a[places] *= np.float32(factor)

    return change


def both(*changes: Callable[[Any], None]) -> Callable[[Any], None]:
    def change(a: Any) -> None:
        for each in changes:
            each(a)

    return change


CASES: dict[str, Callable[[Any], None]] = {
    "ordinary": ordinary,
    "a larger one at once": at(HEAD, 1e9),
    "a larger one late": at(BODY + CHUNK + 5, 1e9),
    "larger ones twice": both(at(BODY, 1e9), at(6 * PIECE + HEAD + CHUNK, -1e18)),
    "a larger one last": at(-1, 1e15),
    "much larger ones": times(slice(BODY, BODY + 100), 1e30),
    "smaller ones in what is looked at": times(slice(0, HEAD), 1e-30),
    "all zero": at(slice(None), 0.0),
    "zeros first": at(slice(0, BODY + 7), -0.0),
    "zeros but one": both(at(slice(None), 0.0), at(BODY + CHUNK, 3.0)),
    "subnormals": at(slice(None), 1e-40),
    "subnormals but for some": at(slice(HEAD, 5 * PIECE), 1e-40),
    "NaN": at(BODY + 1, np.nan),
    "infinities": both(at(BODY + 1, np.inf), at(BODY + 2, -np.inf)),
    "infinity and a larger one": both(at(BODY + 1, np.inf), at(BODY + CHUNK + 1, 1e12)),
    "just below and at a bound of sums": both(at(slice(None), 2.0**16 * (1.0 - 2.0**-24)), at(BODY + 3, 2.0**16)),
    "just below and at a bound of squares": both(at(slice(None), 2.0**8 * (1.0 - 2.0**-24)), at(BODY + 3, 2.0**8)),
    "below and at lower bounds": both(at(slice(None), 2.0**-17), at(BODY + 3, 2.0**-16), at(-5, 2.0**-8)),
}


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    yield
    portopt.set_num_threads(None)


def numbers(size: int, seed: int, change: Callable[[Any], None] = ordinary) -> Any:
    rng = np.random.default_rng(seed)
    a = np.asarray(rng.standard_normal(size) * np.exp(2.0 * rng.standard_normal(size)), np.float32)
    a[seed::97] = 0.25
    change(a)
    return a


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_the_interpreter(rule: type[portopt.Optimizer], case: str) -> None:
    portopt.set_num_threads(1)
    twin = Twin(rule(0.01), {"a": numbers(MANY + 37, 1, CASES[case]), "b": numbers(MANY - 1, 2, CASES[case])})
    for step in range(2):
        twin.step({"a": numbers(MANY + 37, 10 + step, CASES[case]), "b": numbers(MANY - 1, 20 + step)})
        twin.compare()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [2, 3])
def test_parts_whose_elements_differ_in_size_are_added(
    rule: type[portopt.Optimizer], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "ELEMENTS_PER_THREAD", MANY)
    portopt.set_num_threads(count)
    size = 3 * MANY + 3 * 64 + 1
    for change in (ordinary, times(slice(2 * MANY, None), 1e12), times(slice(0, MANY), 1e12), at(-7, 1e9)):
        twin = Twin(rule(0.01), {"a": numbers(size, 1, change)})
        for step in range(2):
            twin.step({"a": numbers(size, 10 + step, change)})
            twin.compare()


@pytest.mark.parametrize("place", [7, BODY, 2 * MANY + BODY, -9])
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_left_when_large_elements_cancel(place: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "ELEMENTS_PER_THREAD", MANY)
    portopt.set_num_threads(count)
    size = 3 * MANY + 1
    # What is lost where a part is not added again shows in some sums only.
    for seed in range(2, 10):
        twin = Twin(Summing(0.01), {"a": numbers(size, 1)})
        twin.step({"a": numbers(size, seed, both(at(place, LARGE), at(place + 1, -LARGE)))})
        twin.compare()


def test_a_step_that_is_not_in_place() -> None:
    portopt.set_num_threads(1)
    rule, params = Storing(0.01), numbers(MANY, 1)
    grads = numbers(MANY, 2, CASES["a larger one late"])
    state = rule.init(params)
    new, new_state = rule.apply(params, grads, state)
    with portopt.interpreted():
        expected, expected_state = rule.apply(params, grads, state)
    assert_same_bits(new, expected, "parameter")
    for name in rule.slots:
        assert_same_bits(new_state.slots[name], expected_state.slots[name], name)


@pytest.mark.parametrize(
    ("rule", "dtype", "flush", "expected"),
    [
        (Storing, "float32", "register", True),
        (Summing, "float32", "register", True),
        (Storing, "float64", "register", False),
        (Storing, "bfloat16", "register", False),
        (Storing, "float32", "where", False),
    ],
)
def test_where_there_are_vectors(rule: type[portopt.Optimizer], dtype: str, flush: Any, expected: bool) -> None:
    names = ("p", "g", *rule.slots)
    source = staged_source(rule().program(shape=(3,)), KernelKey(tuple((name, dtype) for name in names), True, flush))
    assert ("load_vector" in source) == expected
