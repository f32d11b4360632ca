"""Sums along lines and columns at once, in the kernels for host memory: the interpreter's bits, whatever the elements are.

Elements cancel, so that sums show the last of their bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.bits import assert_same_bits

import portopt
from portopt.kernels.host import threads
from portopt.slot import slot

pytestmark = pytest.mark.needs("numba")

SHAPE = (14, 1046)
"""More lines, and more elements in one, than are added together, and not whole vectors of them."""


class Summed(portopt.Optimizer):
    """Sums along both axes, beside one of all elements; norms along both, of elements that are stored where they are computed."""

    slots = (slot("row", drop=-1), slot("column", drop=-2), slot("size", shape=()))

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        row, column = (xp.sum(g, axis=axis, keepdims=True) for axis in (-1, -2))
        return p, {"row": row, "column": column, "size": xp.sum(g) + xp.sum(p)}


class Measured(portopt.Optimizer):
    """Norms along both axes."""

    slots = (slot("row", drop=-1), slot("column", drop=-2))

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        row, column = (xp.linalg.vector_norm(g, axis=axis, keepdims=True) for axis in (-1, -2))
        return p, {"row": row, "column": column}


def cancelling(*, lines: Any = 0, columns: Any = 0, least: int = -64) -> Any:
    """Return elements of given exponents that come with both signs in each line and column, but for very small ones."""
    rng = np.random.default_rng(0)
    quarter = rng.uniform(0.5, 1.0, (SHAPE[0] // 2, SHAPE[1] // 2)).astype(np.float32)
    all_four = np.block([[quarter, -quarter], [-quarter, quarter]])
    few = rng.random(SHAPE) < 0.01
    x = np.where(few, rng.uniform(0.5, 1.0, SHAPE) * 2.0**least, all_four)
    exponents = np.zeros(SHAPE) + np.resize(lines, (SHAPE[0], 1)) + np.resize(columns, SHAPE[1])
    return np.asarray(x * 2.0**exponents, np.float32)


def with_special(*special: tuple[int, int, float]) -> Any:
    x = cancelling()
    for i, j, value in special:
        x[i, j] = value
    return x


def bounds(exponent: int) -> Any:
    """Return elements at the limits of the bins of this exponent: their largest, and halves of the unit of one."""
    rng = np.random.default_rng(0)
    x = rng.choice([1.0, -1.0, 1 - 2.0**-24, 2.0**-32, 2.0**-33, 3 * 2.0**-33, 2.0**-65, 3 * 2.0**-65], SHAPE)
    return np.asarray(x * rng.choice([-1.0, 1.0], SHAPE) * 2.0**exponent, np.float32)


CASES = {
    "alike": cancelling(),
    "with small ones": cancelling(least=-40),
    "lines of many sizes": cancelling(lines=[0, 40, -40, 0, 0, 0, 80]),
    "larger lines later": cancelling(lines=[-60] * 5 + [0] * 4 + [66] * 5),
    "lines below": cancelling(lines=[0] * 3 + [-70] * 4),
    "lines far below": cancelling(lines=[0] * 3 + [-100] * 4),
    "columns of many sizes": cancelling(columns=[0, 0, 0, 40, -50]),
    "one column larger": cancelling(columns=[0] * 600 + [40] + [0] * 445),
    "at the limits of bins": bounds(16),
    "at the limits of lower bins": bounds(-16),
    "at the limits of bins of squares": bounds(8),
    "at the limits of lower bins of squares": bounds(-8),
    "special": with_special((1, 3, np.nan), (5, 7, np.inf), (5, 9, -np.inf), (6, 7, np.inf), (9, 1040, -np.inf)),
    "zeros": np.where(np.arange(SHAPE[0])[:, None] % 3 == 0, 0.0, cancelling()).astype(np.float32),
    "only zeros": np.full(SHAPE, -0.0, np.float32),
    "subnormal": np.asarray(cancelling(lines=[-122] * 3 + [-130] * 4)),
    "largest": np.asarray(cancelling(least=0), np.float32) * np.float32(2.0**127),
}


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    yield
    portopt.set_num_threads(None)


def compare(rule: portopt.Optimizer, x: Any, what: str) -> None:
    params = np.ones(SHAPE, np.float32)
    state = rule.init(params)
    with np.errstate(all="ignore"), portopt.interpreted():
        _, expected = rule.apply(params, x, state)
    _, found = rule.apply(params, x, state)
    for name, value in expected.slots.items():
        assert_same_bits(found.slots[name], value, f"{what}: {name}")


@pytest.mark.parametrize("name", CASES)
def test_sums_have_the_bits_of_the_interpreter(name: str) -> None:
    compare(Summed(), CASES[name], "sums")
    compare(Measured(), CASES[name], "norms")


@pytest.mark.parametrize("count", [2, 5])
def test_lines_cut_by_threads(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "ELEMENTS_PER_THREAD", 64)
    portopt.set_num_threads(count)
    for name in ("alike", "lines of many sizes", "larger lines later", "one column larger", "special"):
        compare(Summed(), CASES[name], name)


def test_processors_that_do_not_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portopt.kernels.host.kernel.default_flush", lambda: "where")
    for name in ("alike", "subnormal", "special"):
        compare(Summed(), CASES[name], name)
