"""Programs with reductions in the kernels for host memory: the interpreter's bits, whoever adds what and in which memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from support.bits import assert_same_bits
from support.turns import in_turns
from support.twins import Twin, same

import portopt
from portopt.hyperparameters import seed_hyperparameter
from portopt.kernels.host import compiler, kernel, threads
from portopt.kernels.host.staged_steps import stages_of
from portopt.kernels.stages import Loop, can_cut, store_early
from portopt.program.draws import Place
from portopt.scalars import sqrt, where
from portopt.slot import slot

pytestmark = pytest.mark.needs("numba")


LARGEST_FIRST = 27069349
"""The seed of which the sixth element of the first parameter draws a uniform number that would round to 1, at the first step."""


class Scaled(portopt.Optimizer):
    """Two norms of a parameter, then its update, with a number for each parameter."""

    slots = ("m", slot("size", shape=()))

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        m = 0.9 * slots.m + g
        u = m / (xp.abs(m) + 0.5) + 0.01 * p
        parameter, update = xp.linalg.vector_norm(p), xp.linalg.vector_norm(u)
        ratio = where(parameter > 0.0, where(update > 0.0, parameter / update, 1.0), 1.0)
        size = 0.5 * slots.size + ratio
        return p - c.lr * size * u, {"m": m, "size": size}


class Factored(portopt.Optimizer):
    """Means of rows and columns, a mean of the former, a mean of the result, then the update; of vectors, none of it."""

    slots = (slot("row", drop=-1), slot("column", drop="second"), "v")

    def second(self, p: Any) -> tuple[int, ...]:
        return (p.ndim - 2,)

    def slots_for(self, p: Any) -> tuple[str, ...]:
        return ("row", "column") if p.ndim > 1 else ("v",)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        squares = g * g + 1e-30
        if p.ndim < 2:
            v = 0.9 * slots.v + squares
            return p - c.lr * g / xp.sqrt(v), {"v": v}
        row = 0.9 * slots.row + 0.1 * xp.mean(squares, axis=-1, keepdims=True)
        column = 0.9 * slots.column + 0.1 * xp.sum(squares, axis=-2, keepdims=True)
        u = g / xp.sqrt(row / xp.mean(row, axis=-2, keepdims=True) * column)
        size = sqrt(xp.mean(u * u))
        return p - (c.lr * where(size > 1.0, 1.0 / size, 1.0)) * u, {"row": row, "column": column}


class Extreme(portopt.Optimizer):
    """Extremes, counts and truths, whole and along axes, the outer and the inner ones."""

    slots = ("m", slot("k", keep=0), slot("e", shape=()))

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        largest = xp.max(xp.abs(g), axis=0, keepdims=True)
        scale = where(xp.any(p < -2.0), 0.5, 2.0) * where(xp.all(p < 5.0), 1.0, 3.0)
        scale = scale + 0.01 * xp.count_nonzero(g > 0.1) + xp.min(g)
        positive = xp.count_nonzero(g > 0.0, axis=tuple(range(1, p.ndim)), keepdims=True)
        k = xp.maximum(slots.k, positive)
        every = xp.all(g < 3.0, axis=0, keepdims=True)
        m = slots.m + xp.where(every, g, -g) / (largest + 0.1)
        m = xp.where(xp.any(g > 1.0, axis=-1, keepdims=True), m, -m)
        return p - c.lr * scale * m * k, {"m": m, "k": k, "e": slots.e + scale + xp.sum(p) + xp.max(p)}


class Normed(portopt.Optimizer):
    """Norms of rows and of columns."""

    slots = ()

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        row = xp.linalg.vector_norm(g, axis=-1, keepdims=True)
        return p - c.lr * g / (row + xp.linalg.vector_norm(p, axis=0, keepdims=True)), {}


class Totalling(portopt.Optimizer):
    """Totals of sums, norms and maxima: of what is computed, of rows, of numbers of parameters, of scaled elements."""

    slots = ("m", slot("row", drop=-1), slot("x", shape=()))
    scalar_slots: ClassVar[Mapping[str, float]] = {"d": 0.5}

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Mapping[str, Any]:
        return {
            "moved": xp.sum(g * (p - c.d * slots.m)),
            "length": xp.linalg.vector_norm(g / (xp.linalg.vector_norm(p) + 1.0)),
            "largest": xp.max(p - slots.m),
            "rows": xp.sum(0.1 * slots.row + xp.max(g, axis=-1, keepdims=True)),
        }

    def coefficients(self, t: Any, d: Any, moved: Any, length: Any, largest: Any, rows: Any) -> Mapping[str, Any]:
        return {"d": 0.5 * d + moved / (1.0 + length), "rate": 0.01 * d, "scale": largest + rows}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        m = 0.9 * slots.m + c.scale * g
        row = slots.row + xp.mean(g, axis=-1, keepdims=True)
        return p - c.rate * m, {"m": m, "x": slots.x + xp.sum(m), "row": row}


class Drawing(portopt.Optimizer):
    """Random numbers, elementary functions, and a sum of what they make, in one kernel."""

    slots = ("m",)
    draws: ClassVar[Mapping[str, Any]] = {"even": "uniform", "noise": "normal"}
    seed: int = seed_hyperparameter(default=LARGEST_FIRST)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, even: Any, noise: Any) -> Any:
        m = slots.m + xp.where(even < 0.5, g, xp.tanh(g)) + 0.1 * noise
        total = xp.sum(even * xp.exp(0.01 * m))
        return p - c.lr * m / sqrt(total * total + 1.0), {"m": m + even}


class Known(portopt.Optimizer):
    """Slots whose new values are known before the norms: what `kept` held is needed after them, what the others held is not."""

    slots = ("m", "most", "kept")

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        m, most, kept = 0.9 * slots.m + g, xp.maximum(0.9 * slots.most, xp.abs(g)), 0.5 * slots.kept + p
        before, after = xp.linalg.vector_norm(slots.m), xp.linalg.vector_norm(m)
        scale = (before + xp.sum(most)) / (1.0 + after + xp.max(kept))
        return p - c.lr * scale * (m + slots.kept), {"m": m, "most": most, "kept": kept}


class Returning(Known):
    """The same, but the gradient is needed after the norms."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        p, new = super().update(xp, p, g, slots, c)
        return p - c.lr * g, new


SHAPES: dict[type[portopt.Optimizer], tuple[tuple[int, ...], ...]] = {
    Known: ((37, 53), (600,), (0, 3)),
    Scaled: ((37, 53), (600,), (), (1,), (0, 3), (7, 3, 5)),
    Factored: ((37, 53), (600,), (3, 700), (1, 1), (0, 3), (3, 0), (5, 2, 7), (9, 3)),
    Extreme: ((37, 53), (3, 700), (1, 1), (5, 2, 7), (600, 3)),
    Normed: ((37, 53), (3, 700), (1, 1), (5, 2, 7)),
    Totalling: ((37, 53), (1, 1), (0, 3), (5, 700)),
    Drawing: ((6,), (37, 53), (), (0, 3), (7, 3, 5), (600,)),
}
RULES = (Scaled, Factored, Extreme, Totalling, Drawing, Known)


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    yield
    portopt.set_num_threads(None)


def tree(rule: type[portopt.Optimizer], dtype: str, seed: int, special: float | None = None) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    arrays = {}
    for shape in SHAPES[rule]:
        a = rng.standard_normal(shape) * np.exp(4.0 * rng.standard_normal(shape)) * 10.0 ** rng.integers(-6, 4)
        if special is not None and a.size > 1:
            a.flat[rng.integers(a.size)] = special
        with np.errstate(over="ignore"):
            arrays[str(shape)] = np.asarray(a, dtype)
    return arrays


@pytest.mark.parametrize(
    ("rule", "special"), [*((rule, None) for rule in RULES), *in_turns(RULES, (np.nan, np.inf, -np.inf))]
)
def test_kernels_have_the_bits_of_the_interpreter(rule: type[portopt.Optimizer], special: float | None) -> None:
    twin = Twin(rule(0.01), tree(rule, "float32", 1))
    for step in range(3):
        twin.step(tree(rule, "float32", 10 + step, special))
        twin.compare()


def test_in_other_dtypes_too() -> None:
    for dtype in ("float64", "float16"):
        twin = Twin(Scaled(0.01), tree(Scaled, dtype, 1))
        twin.step(tree(Scaled, dtype, 2))
        twin.compare()
    huge = {"a": np.array([1e300, 1e-320, -1e160, 1.0]), "b": np.array([1e-300, 1e-290]), "c": np.array([1e308] * 3)}
    twin = Twin(Scaled(0.01), huge)
    twin.step({name: a[::-1].copy() for name, a in huge.items()})
    twin.compare()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_along_axes(dtype: str) -> None:
    twin = Twin(Normed(0.01), tree(Normed, dtype, 1))
    twin.step(tree(Normed, dtype, 2))
    twin.compare()
    if dtype == "float64":
        columns = np.array([[1e300, 1e-300, 1.0, 0.0], [1e200, 1e-310, 1e-200, 0.0], [1e308, 1e-290, 1e160, 0.0]])
        twin = Twin(Normed(0.01), {"a": columns})
        twin.step({"a": columns[::-1, ::-1].copy()})
        twin.compare()


def test_a_step_that_is_not_in_place_leaves_its_inputs() -> None:
    rule = Factored(0.01)
    params, grads = tree(Factored, "float32", 1), tree(Factored, "float32", 2)
    before = {name: p.copy() for name, p in params.items()}
    state = rule.init(params)
    new, new_state = rule.apply(params, grads, state)
    with portopt.interpreted():
        expected, expected_state = rule.apply(params, grads, state)
    same(before, params, "given")
    same(expected, new, "parameter")
    for name in rule.slots:
        same(expected_state.slots[name], new_state.slots[name], name)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_threads_change_no_bit(rule: type[portopt.Optimizer], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "ELEMENTS_PER_THREAD", 64)
    portopt.set_num_threads(count)
    twin = Twin(rule(0.01), tree(rule, "float32", 1))
    for step in range(4):
        twin.step(tree(rule, "float32", 10 + step))
        twin.compare()
    assert len(twin.rule._cache.plans) == 1


@pytest.mark.parametrize("rule", [Factored, Totalling, Drawing])
def test_tensors_are_stepped_like_arrays(rule: type[portopt.Optimizer]) -> None:
    twin = Twin(rule(0.01), tree(rule, "float32", 1), lambda a: torch.from_numpy(np.copy(a)))
    for step in range(4):
        twin.step(tree(rule, "float32", 10 + step))
        twin.compare()


def test_draws_in_double_precision() -> None:
    twin = Twin(Drawing(0.01), tree(Drawing, "float64", 1))
    for step in range(2):
        twin.step(tree(Drawing, "float64", 10 + step))
        twin.compare()


def test_a_number_that_would_round_to_one_is_drawn() -> None:
    class Even(portopt.Optimizer):
        slots = ()
        draws: ClassVar[Mapping[str, Any]] = {"even": "uniform"}
        seed: int = seed_hyperparameter(default=LARGEST_FIRST)

        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, even: Any) -> Any:
            return even + 0.0 * g, {}

    w = np.zeros(6, np.float32)
    rule = Even()
    assert rule.apply(w, w, rule.init(w))[0][5] == np.float32(1 - 2.0**-24)


def test_a_part_of_a_parameter_draws_the_numbers_of_its_part() -> None:
    whole, optimizer = np.zeros((6, 4), np.float32), portopt.NoisySGD()
    expected, _ = optimizer.apply(whole, whole, optimizer.init(whole))
    part, grads = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)
    state = optimizer.init(part)
    for _ in range(3):
        optimizer.apply_(part, grads, state)
    # The plan that there is now knows of no parts.
    optimizer.place_parameters([Place(0, (2, 4), (3, 0), (6, 4))])
    for _ in range(3):
        part[...] = 0.0
        optimizer.apply_(part, grads, state)
        assert_same_bits(part, expected[3:5], "part")


def test_totals_over_parameters_of_two_dtypes() -> None:
    both = [
        {"wide": tree(Totalling, "float64", seed), "narrow": tree(Totalling, "float32", seed + 9)} for seed in range(4)
    ]
    params, *grads = ({f"{kind} {name}": a for kind in of for name, a in of[kind].items()} for of in both)
    twin = Twin(Totalling(0.01), params)
    for given in grads:
        twin.step(given)
        twin.compare()


def test_a_total_of_nothing_and_of_zeros() -> None:
    twin = Twin(Totalling(0.01), {"a": np.zeros((0, 3), np.float32)})
    twin.step({"a": np.zeros((0, 3), np.float32)})
    twin.compare()
    twin = Twin(Totalling(0.01), {"a": np.zeros((4, 3), np.float32)})
    twin.step({"a": np.full((4, 3), -0.0, np.float32)})
    twin.compare()


def test_totals_of_a_plan_are_over_the_gradients_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("a planned step looked at its arrays one by one")

    twin = Twin(Totalling(0.01), tree(Totalling, "float32", 1))
    for step in range(3):
        twin.step(tree(Totalling, "float32", step))
    monkeypatch.setattr("portopt_numpy._backend.NumpyBackend.total", refuse)
    grads = tree(Totalling, "float32", 9)
    twin.state = twin.rule.apply_(twin.params, grads, twin.state)
    monkeypatch.undo()
    with portopt.interpreted():
        twin.expected, twin.expected_state = twin.rule.apply(twin.expected, grads, twin.expected_state)
    twin.compare()


def test_a_plan_sees_a_slot_that_a_parameter_does_not_have() -> None:
    twin = Twin(Factored(0.01), tree(Factored, "float32", 1))
    for step in range(3):
        twin.step(tree(Factored, "float32", step))
    slots = {name: dict(arrays) for name, arrays in twin.state.slots.items()}
    slots["v"]["(37, 53)"] = np.zeros((37, 53), np.float32)
    state = portopt.OptimizerState(twin.state.step, slots)
    with pytest.raises((TypeError, ValueError), match="v"):
        twin.rule.apply_(twin.params, tree(Factored, "float32", 9), state)


@pytest.mark.parametrize("which", [Scaled, Totalling, portopt.NoisySGD])
def test_no_memory_of_a_parameter_is_needed(which: type[portopt.Optimizer]) -> None:
    size = 1 << 20
    rule, params = which(0.01), {"w": np.ones((size // 1024, 1024), np.float32)}
    grads, state = {"w": np.ones((size // 1024, 1024), np.float32)}, rule.init(params)
    state = rule.apply_(params, grads, state)
    tracemalloc.start()
    for _ in range(2):  # the second one by a plan
        state = rule.apply_(params, grads, state)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size


def test_functions_of_reductions_are_compiled_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import event

    class Summed(portopt.Optimizer):
        slots = ()
        sign: float = 1.0

        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return p - self.sign * xp.sum(g), {}

    class Opposite(Summed):
        sign = -1.0

    monkeypatch.setenv("PORTOPT_CACHE_DIR", "")
    # Those of other tests may be so many that it is emptied between the two.
    monkeypatch.setattr(compiler, "_compiled", {})
    compiled = []
    for rule in (Summed(), Opposite()):
        with event.install_recorder("numba:compile") as recorder:
            assert rule.apply(np.ones(3), np.ones(3), rule.init(np.ones(3)))[0].tolist() == [1 - 3 * rule.sign] * 3
        compiled.append({e.data["dispatcher"].py_func.__name__ for _, e in recorder.buffer if e.is_start})
    assert "kernel" in compiled[0] & compiled[1]
    assert {"add", "raise_bins"} & compiled[1] == set()


def test_loops_over_all_elements_are_no_more_than_needed() -> None:
    for rule, loops in ((Scaled, 2), (Factored, 3), (Extreme, 2)):
        stages = stages_of(rule(0.1).program(shape=(3, 4)))
        assert len(stages.loops) == loops
        assert all(loop.reductions for loop in stages.loops[:-1])
    factored = stages_of(Factored(0.1).program(shape=(5, 3, 4)))
    assert factored.axes == ((0,), (1,), (2,))
    parts = [part for between in factored.between for part in between.parts if isinstance(part, Loop)]
    assert {part.space for part in parts} == {(0, 1), (0, 2), (0,)}


def test_results_are_stored_as_soon_as_nothing_else_needs_their_memory() -> None:
    def reads(loop: Loop) -> set[str | None]:
        return {stages.program.ops[i].reads for i in loop.operations} - {None}

    stages = store_early(stages_of(Known(0.1).program()), ("p", "m", "most", "kept"))
    first, last = stages.loops
    assert (first.outputs, last.outputs) == (("m", "most"), ("p", "kept"))
    assert (reads(last), last.stored) == ({"p", "kept"}, ("m",))
    # Where slots hold fewer digits, a later loop could not read what it needs.
    stages = stages_of(Known(0.1).program())
    assert store_early(stages, ("p", "most")) is stages
    # A gradient may be in the memory of a slot.
    stages = stages_of(Returning(0.1).program())
    assert store_early(stages, ("p", "m", "most", "kept")) is stages


def test_a_gradient_in_the_memory_of_a_slot_is_read_before_it_is_overwritten() -> None:
    rng = np.random.default_rng(0)
    for rule in (Known(0.1), Returning(0.1)):
        p, m = rng.standard_normal((2, 1200)).astype(np.float32)
        state = rule.init(p)._replace(step=1)
        state.slots["m"][...] = m
        with portopt.interpreted():
            expected, expected_state = rule.apply(p.copy(), m.copy(), state)
        found, slots = p.copy(), {name: a.copy() for name, a in state.slots.items()}
        after = rule.apply_(found, slots["m"], state._replace(slots=slots))
        assert_same_bits(expected, found, "parameter")
        same(expected_state.slots, after.slots, "slot")


class Former(portopt.Optimizer):
    """Sums of rows, those before, and those before these."""

    slots = tuple(
        slot(name, drop=-1, start=start) for name, start in (("row", 1.0), ("before", 2.0), ("long_before", 3.0))
    )

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        row = slots.row + xp.sum(g, axis=-1, keepdims=True)
        return p - c.lr * row * g, {"row": row, "before": slots.row, "long_before": slots.before}


class Exchanging(Former):
    """The same, but the sums of rows go on from the oldest."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        p, new = super().update(xp, p, g, slots, c)
        return p, {**new, "row": slots.long_before}


@pytest.mark.parametrize("rule", [Former, Exchanging])
def test_a_small_slot_gets_what_another_one_held_before_it_was_overwritten(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(0.1)
    assert can_cut(optimizer.program(shape=(3, 4))) == (rule is Former)
    p, g = np.random.default_rng(0).standard_normal((2, 3, 4))
    expected, expected_state = p.copy(), optimizer.init(p)
    state = optimizer.init(p)
    for _ in range(3):
        with portopt.interpreted():
            expected, expected_state = optimizer.apply(expected, g, expected_state)
        state = optimizer.apply_(p, g, state)
        assert_same_bits(expected, p, "parameter")
        same(expected_state.slots, state.slots, "slot")


class Product(portopt.Optimizer):
    """A product of matrices, which no loop over elements is; of vectors, a sum."""

    slots = ()

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p - c.lr * (g @ (g.mT @ g) if p.ndim > 1 else xp.sum(g) * g), {}


@pytest.mark.parametrize("convert", [np.copy, lambda a: torch.from_numpy(np.copy(a))])
def test_a_step_may_run_partly_in_kernels(convert: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    in_kernel: list[Any] = []
    update = kernel.update

    def noted(jobs: Any, *more: Any, **options: Any) -> Any:
        in_kernel.extend(jobs)
        return update(jobs, *more, **options)

    monkeypatch.setattr(kernel, "update", noted)
    params, grads = ({"a": np.ones((3, 4), "f4"), "b": np.full(5, n, "f4"), "c": np.eye(3, dtype="f4")} for n in (1, 2))
    twin = Twin(Product(0.01), params, convert)
    for _ in range(2):
        twin.step(grads)
        twin.compare()
    new, _ = twin.rule.apply(twin.params, {n: convert(g) for n, g in grads.items()}, twin.state)
    twin.step(grads)
    twin.compare()
    same(new, twin.params, "parameter")
    assert [len(job.inputs) for job in in_kernel if job.program.name == "Product"] == [1] * 4


def test_products_are_no_loops() -> None:
    program = Product(0.1).program(shape=(3, 4))
    assert not can_cut(program)
    assert not kernel.can_run(program)
    assert compiler.available()
