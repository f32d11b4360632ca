"""What a rule may get wrong with reductions, products, totals and slots: each error says what was given and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import portopt
from portopt.program.builder import UnsupportedOperationError

SHAPE = (3, 4)


def traced(
    update: Callable[..., Any], slots: tuple[str, ...] = (), shape: tuple[int, ...] = SHAPE, **members: Any
) -> Any:
    body = {"update": lambda self, xp, p, g, slots, c: update(xp, p, g, slots, c), "slots": slots, **members}
    return type("Mine", (portopt.Optimizer,), body)().program(shape=shape)


WRONG_UPDATES: dict[str, tuple[Callable[..., Any], str]] = {
    "axis that is not there": (
        lambda xp, p, g, slots, c: (p - xp.sum(g, axis=2, keepdims=True), {}),
        r"xp.sum along axis 2 of an array of 2 axes, which it does not have: ask p.ndim first",
    ),
    "no keepdims": (
        lambda xp, p, g, slots, c: (p - xp.mean(g, axis=0), {}),
        r"xp.mean with axis=0 and without keepdims=True: give keepdims=True",
    ),
    "reduction of a scalar": (
        lambda xp, p, g, slots, c: (p - xp.sum(c.lr) * g, {}),
        r"gave xp.sum a scalar, but it takes an array",
    ),
    "mean of a mask": (
        lambda xp, p, g, slots, c: (p * xp.mean(g > 0), {}),
        r"gave xp.mean a mask, .*use xp.count_nonzero",
    ),
    "any of numbers": (
        lambda xp, p, g, slots, c: (xp.where(xp.any(g), p, g), {}),
        r"gave xp.any an array that is no mask: compare it first, as in xp.any\(g > 0\)",
    ),
    "product of unlike shapes": (
        lambda xp, p, g, slots, c: (p @ g, {}),
        r"used @ on arrays of shapes \(3, 4\) and \(3, 4\): the last axis of the first must be as long as",
    ),
    "product of a mask": (lambda xp, p, g, slots, c: ((g > 0) @ p.mT @ p, {}), r"gave @ a mask.*use xp.where"),
    "another number of elements": (
        lambda xp, p, g, slots, c: (xp.reshape(p, (5, 2)), {}),
        r"xp.reshape with the shape \(5, 2\) on an array of shape \(3, 4\): the number of elements must stay",
    ),
    "an axis twice": (
        lambda xp, p, g, slots, c: (xp.permute_dims(p, (0, 0)), {}),
        r"xp.permute_dims with the axes \(0, 0\) on an array of 2 axes: each must be given once",
    ),
    "shapes that do not broadcast": (
        lambda xp, p, g, slots, c: (p + p.mT, {}),
        r"gave xp.add arrays of shapes \(3, 4\) and \(4, 3\), which do not broadcast",
    ),
    "narrow new parameter": (
        lambda xp, p, g, slots, c: (xp.sum(g, axis=-1, keepdims=True), {}),
        r"returned an array of shape \(3, 1\) as its new p, which has the shape of the parameter",
    ),
    "identity of an unknown length": (
        lambda xp, p, g, slots, c: (p @ xp.eye(c.lr), {}),
        r"called xp.eye with .* rows, but the number is fixed in the program: give it an integer",
    ),
    "identity that is not square": (
        lambda xp, p, g, slots, c: (p @ xp.eye(4, 3), {}),
        r"called xp.eye\(4, 3, k=0\), but programs can hold square matrices.*xp.eye\(n\)",
    ),
    "identity beside the diagonal": (
        lambda xp, p, g, slots, c: (p @ xp.eye(4, k=1), {}),
        r"called xp.eye\(4, None, k=1\), but programs can hold square matrices",
    ),
    "identity of another length": (
        lambda xp, p, g, slots, c: (p @ xp.eye(3), {}),
        r"used @ on arrays of shapes \(3, 4\) and \(3, 3\)",
    ),
    "identity that does not broadcast": (
        lambda xp, p, g, slots, c: (p - xp.eye(3), {}),
        r"gave xp.subtract arrays of shapes \(3, 4\) and \(3, 3\), which do not broadcast",
    ),
    "qr": (lambda xp, p, g, slots, c: (xp.linalg.qr(p)[0], {}), r"xp.linalg.qr, .*decompositions.*coupled Newton"),
    "svd": (lambda xp, p, g, slots, c: (xp.linalg.svd(p)[0], {}), r"xp.linalg.svd, .*decompositions.*coupled Newton"),
    "eigh": (
        lambda xp, p, g, slots, c: (xp.linalg.eigh(p)[1], {}),
        r"xp.linalg.eigh, .*decompositions.*coupled Newton",
    ),
    "solve": (
        lambda xp, p, g, slots, c: (xp.linalg.solve(p, g), {}),
        r"xp.linalg.solve, .*solutions of equations.*Newton",
    ),
}


@pytest.mark.parametrize(("update", "message"), WRONG_UPDATES.values(), ids=list(WRONG_UPDATES))
def test_what_update_cannot_do_is_said(update: Callable[..., Any], message: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=message):
        traced(update)


def test_product_and_transpose_of_vectors_are_refused() -> None:
    with pytest.raises(
        UnsupportedOperationError, match=r"used @ on arrays of 1 and 1 axes.*two vectors is xp.sum\(a \* b\)"
    ):
        traced(lambda xp, p, g, slots, c: (p @ g, {}), shape=(3,))
    with pytest.raises(UnsupportedOperationError, match=r"used .mT on an array of 1 axes, but only matrices"):
        traced(lambda xp, p, g, slots, c: (p.mT, {}), shape=(3,))


ROW = (portopt.slot("row", drop=-1),)


@pytest.mark.parametrize(
    ("slots", "value", "message"),
    [
        (ROW, lambda xp, g: g, r"array of shape of the parameter as its new row, which has the shape \(3, 1"),
        (ROW, lambda xp, g: xp.sum(g, axis=0, keepdims=True), r"shape \(1, 4\) as its new row, which has the shape \(3"),
        (ROW, lambda xp, g: g > 0, r"returned a mask, the result of a comparison, as its new row"),
        (("m",), lambda xp, g: xp.sum(g, axis=-1, keepdims=True), r"shape \(3, 1\) as its new m, which has the shape of"),
        (("m",), lambda xp, g: "x", r"returned 'x' of type str as its new value of the slot 'm': return an array or a number"),
        ((portopt.slot("n", shape=()),), lambda xp, g: g, r"as its new n, which has one number, a scalar"),
    ],
)  # fmt: skip
def test_new_slots_of_another_shape_are_refused(slots: Any, value: Callable[..., Any], message: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=message):
        traced(lambda xp, p, g, s, c: (p, {slots[0]: value(xp, g)}), slots=slots)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda xp, g: None, r"Mine.totals must return what is reduced over all parameters by name.*returned None"),
        (
            lambda xp, g: {"a": g},
            r"Mine.totals returned 'a' as one array, but a total is the result of xp.sum, xp.max or",
        ),
        (lambda xp, g: {"a": 2 * xp.sum(g)}, r"Mine.totals returned 'a' as .*but a total is the result of xp.sum"),
        (lambda xp, g: {"a": xp.min(g)}, r"Mine.totals returned 'a' as .*but a total is the result of xp.sum"),
        (lambda xp, g: {"t": xp.sum(g)}, r"Mine.totals returned a total under the name 't', which is taken"),
    ],
)
def test_totals_that_are_no_reductions_are_refused(returned: Callable[..., Any], message: str) -> None:
    def totals(self: Any, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return returned(xp, g)

    with pytest.raises(TypeError, match=message):
        traced(lambda xp, p, g, slots, c: (p, {}), totals=totals, coefficients=lambda self, t, **totals: {})


def test_a_total_in_update_is_refused() -> None:
    """It is known before the step of the first parameter, and what a step needs of it is a coefficient."""

    def totals(self: Any, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return {"gained": xp.sum(g)}

    message = r"asked for the total 'gained' in `update`, but totals are arguments of `coefficients`.*return {'gained': gained"
    with pytest.raises(AttributeError, match=message):
        traced(
            lambda xp, p, g, slots, c: (p - c.gained * g, {}),
            totals=totals,
            coefficients=lambda self, t, gained: {"lr": 2 * gained},
        )


def test_a_slot_that_slots_for_invents_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Mine.slots_for returned \['v'\], which are no slots of the rule: it has \['m'\]"
    ):
        traced(lambda xp, p, g, s, c: (p, {"m": s.m}), slots=("m",), slots_for=lambda self, p: ("m", "v"))


def test_a_slot_along_an_axis_that_a_parameter_has_not_is_refused() -> None:
    slots = (portopt.slot("row", drop=1),)
    with pytest.raises(
        ValueError, match=r"slot 'row' of Mine is declared by the axes \(1,\), which a parameter of 1 axes"
    ):
        traced(lambda xp, p, g, s, c: (p, {"row": s.row}), slots=slots, shape=(3,))


class Rows(portopt.Optimizer):
    """Has a slot for matrices only."""

    slots = (portopt.slot("row", drop=-1),)

    def slots_for(self, p: Any) -> Any:
        return self.slots if p.ndim == 2 else ()

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        if p.ndim != 2:
            return p - c.lr * g, {}
        return p - c.lr * g, {"row": slots.row + xp.sum(g, axis=-1, keepdims=True)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([np.zeros(4), None], r'state.slots\[.row.\]\[0\] has shape \(4,\), but params\[0\] has shape \(3,\)'),
        ([None, None], r"state.slots\['row'\]\[0\] is NoneType"),
        ([np.zeros(3), np.zeros(2)], r"state.slots\['row'\]\[1\] is an array, but this optimizer has no such slot"),
    ],
)  # fmt: skip
def test_state_whose_slots_do_not_fit_is_refused_and_nothing_is_changed(row: list[Any], message: str) -> None:
    params, grads = [np.ones(SHAPE), np.ones(2)], [np.ones(SHAPE), np.ones(2)]
    optimizer = Rows(0.5)
    state = optimizer.init(params)
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.apply_(params, grads, state._replace(slots={"row": row}))
    assert all((p == 1).all() for p in params)
