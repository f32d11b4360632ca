"""What `print(program)` shows of programs that reductions and products cut into stages."""

from __future__ import annotations

from typing import Any

import portopt
from portopt.scalars import where


class Trusting(portopt.Optimizer):
    """Steps in proportion to the size of the parameter, each row divided by its largest element."""

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return {"length": xp.linalg.vector_norm(g)}

    def coefficients(self, t: Any, length: Any) -> Any:
        return {"lr": self.learning_rate_at(t) / length}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        size = xp.sum(p * p)
        row = xp.max(xp.abs(g), axis=-1, keepdims=True)
        return p - c.lr * where(size > 0, size, 1.0) * g / row, {}


def test_totals_come_first_and_reductions_begin_stages() -> None:
    assert (
        str(Trusting().program(shape=(3, 4)))
        == """\
program Trusting
  scalars, float64, given learning_rate
    length = total_norm(g)
    s0 = learning_rate / length
  stage 1, arrays, compute dtype, loaded p, g
    a0 = p * p
    a1 = absolute(g)
  scalars of the parameter, float64, after stage 1
    r0 = sum(a0)
    r1 = 0 < r0
    r2 = where(r1, r0, 1.0)
    r3 = s0 * r2
  stage 2, arrays
    a2 = max(a1, axes=(1,))
    a3 = round(r3)
    a4 = a3 * g
    a5 = a4 / a2
    a6 = p - a5
    store p <- a6"""
    )


def test_elementwise_program_has_no_stages() -> None:
    text = str(portopt.Adam(clipnorm=1.0).program())
    assert "stage" not in text
    assert text.index("total_norm") < text.index("sqrt")
